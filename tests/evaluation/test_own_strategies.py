"""Recording and anytime evaluation with every registered method."""

from __future__ import annotations

import pytest
import torch

from avalanche_rwf.evaluation.metrics import accuracy_exposed
from avalanche_rwf.evaluation.recorder import AnytimeEvaluation, PredictionRecorder
from avalanche_rwf.strategies.registry import create_strategy, list_methods

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


def run(tools, scenario, name, plugins, **loop):
    torch.manual_seed(7)
    strategy = create_strategy(
        name,
        backbone=tools.vit(depth=5),
        num_classes=6,
        loop={
            "train_mb_size": 8,
            "eval_mb_size": 36,
            "evaluator": tools.silent(),
            "plugins": plugins,
            **loop,
        },
    )
    for experience in scenario.train_stream:
        strategy.train(experience, eval_streams=[], shuffle=False)
    return strategy


@pytest.mark.parametrize("name", list_methods("*"))
def test_watched_training_ends_with_the_same_weights(tools, scenario, name):
    recorder = PredictionRecorder()
    watched = run(tools, scenario, name, [recorder, AnytimeEvaluation(scenario.test_stream, 12)])
    plain = run(tools, scenario, name, [])
    # experiences of 24 images in batches of 8: 16, then the end
    assert [p.samples_seen for p in recorder.points] == [16, 40, 64]
    assert all(p.experience is None for p in recorder.points)
    assert all(0 <= accuracy_exposed(p) <= 1 for p in recorder.points)
    for (key, a), b in zip(
        watched.model.state_dict().items(), plain.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), key


def test_several_gradient_steps_see_a_sample_once(tools, scenario):
    recorder = PredictionRecorder()
    strategy = run(tools, scenario, "rwf", [recorder], gradient_steps=3)
    strategy.eval(scenario.test_stream)
    assert (recorder.points[0].samples_seen, recorder.points[0].experience) == (72, 2)
