"""Routing metrics: limits that are known by hand, one reading per place, and no trace in training.
"""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin

from avalanche_rwf import DataFrameLogger, RoutedViT, RwFStrategy
from avalanche_rwf.evaluation.routing import (
    ROUTING_METRICS,
    RoutingProbe,
    mean_cosine,
    probe_images,
    read_routes,
    relative_entropy_of,
    routing_metrics,
    slot_similarity,
)


def routed(tools, **options):
    torch.manual_seed(0)
    settings = {"routed_blocks": "0,2", "num_prompts": 3, "readout": "cls", **options}
    return RoutedViT(tools.vit(), 6, **settings)


def test_similarity_of_equal_opposite_and_orthogonal_prompts():
    same = torch.ones(2, 3, 4) * torch.tensor([1.0, 2.0, 5.0])[None, :, None]
    assert slot_similarity(same) == pytest.approx(1)
    assert slot_similarity(torch.eye(4)[None]) == pytest.approx(0)
    assert slot_similarity(torch.tensor([[[1.0, 0], [-2.0, 0]]])) == pytest.approx(-1)
    assert math.isnan(slot_similarity(torch.ones(2, 1, 4)))
    a = torch.randn(2, 3, 4, 5)
    expected = (F.normalize(a, dim=-1) * F.normalize(-a, dim=-1)).sum(-1).mean()
    assert mean_cosine(a, -3 * a) == pytest.approx(float(expected))


def test_routes_are_the_layers_own_prompts_and_associations(tools, images):
    model = routed(tools)
    routes = read_routes(model, images)
    assert list(routes) == [0, 2]
    entering = model.backbone.norm_pre(
        model.backbone._pos_embed(model.backbone.patch_embed(images))
    )
    assert torch.equal(routes[0].prompts, model.layer(0)(entering))
    p = routes[0].diagnostics.association
    assert torch.allclose(p.sum(-1), torch.ones(6, 1, 3))
    # The prompts are the association's means of the tokens, through W_o.
    assert torch.allclose(p[:, 0] @ entering @ model.layer(0).w_o.T, routes[0].prompts, atol=1e-5)


def test_entropy_is_a_share_of_the_uniform_one(tools, images):
    uniform, sharp = (
        relative_entropy_of(read_routes(routed(tools, beta=beta), images)[2].diagnostics)
        for beta in (1e-6, 1e4)
    )
    assert torch.allclose(uniform, torch.ones_like(uniform), atol=1e-4)
    assert float(sharp.max()) < 0.05


def test_drift_is_nothing_at_first_and_counts_from_there(tools, images):
    model, probe = routed(tools), RoutingProbe(images)
    first = probe.measure(model)
    assert set(first) == set(ROUTING_METRICS)
    assert first["prompt_drift"] == pytest.approx(0, abs=1e-12)
    assert first["routing_drift"] == pytest.approx(0, abs=1e-12)
    with torch.no_grad():
        for block in (0, 2):
            model.layer(block).w_o.neg_()
    turned = probe.measure(model)
    # Block 0's prompts are opposite now; block 2's too, but its tokens are others.
    assert 0.9 < turned["prompt_drift"] <= 2
    assert turned["routing_drift"] < turned["prompt_drift"]

    again = RoutingProbe(images)
    again.load_state_dict(probe.state_dict())
    assert again.measure(model) == turned


def test_controls_have_prompts_and_no_association(tools, images):
    for source in ("static", "mean"):
        model = routed(tools, source=source, trainable=("queries", "o"))
        found = RoutingProbe(images).measure(model)
        assert set(found) == {"prompt_drift", "prompt_similarity"}
    assert RoutingProbe(images).measure(torch.nn.Linear(2, 2)) == {}
    single = RoutingProbe(images).measure(routed(tools, num_prompts=1))
    assert "prompt_similarity" not in single


def test_a_probe_has_the_first_images_of_every_class():
    targets = [2, 0, 0, 2, 1, 0, 2]
    data = [(torch.full((3, 2, 2), float(i)), y, 0) for i, y in enumerate(targets)]

    class Data(list):
        pass

    data = Data(data)
    data.targets = targets
    experience = SimpleNamespace(dataset=data)

    def chosen(size):
        return [int(image[0, 0, 0]) for image in probe_images(experience, size)]

    assert chosen(3) == [0, 1, 4]
    assert chosen(5) == [0, 1, 2, 3, 4]
    assert chosen(99) == list(range(7))
    with pytest.raises(ValueError, match="size must be a whole number of at least 1, not 0"):
        probe_images(experience, 0)


def trained(tools, scenario, metrics):
    torch.manual_seed(3)
    logger = DataFrameLogger()
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True), *metrics, loggers=[logger])
    s = RwFStrategy(model=routed(tools), train_mb_size=8, evaluator=evaluator)
    for experience in scenario.train_stream:
        s.train(experience)
    return s, logger.to_frame(), torch.rand(1)


def test_plugin_metrics_reach_the_loggers_and_leave_no_trace(tools, scenario):
    probe = probe_images(scenario.test_stream[0])
    with_metrics, frame, drawn = trained(tools, scenario, routing_metrics(probe))
    without, _, drawn_without = trained(tools, scenario, [])
    assert torch.equal(drawn, drawn_without)
    state, other = with_metrics.model.state_dict(), without.model.state_dict()
    assert all(torch.equal(state[name], other[name]) for name in other)

    for name in ROUTING_METRICS:
        rows = frame[frame["metric"].str.startswith(name)]
        assert len(rows) == 3, name
    drift = frame[frame["metric"].str.startswith("prompt_drift")]["value"].astype(float)
    assert abs(drift.iloc[0]) < 1e-9 < drift.iloc[-1]
