"""Avalanche's own checkpoints of the strategies here: a cut script ends with the same numbers."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path

import dill
import pytest
import torch
from avalanche.checkpointing import maybe_load_checkpoint, save_checkpoint

from avalanche_rwf import (
    DataFrameLogger,
    FrozenBackboneStrategy,
    PredictionRecorder,
    RwFStrategy,
    avalanche_checkpoints,
    create_strategy,
)
from avalanche_rwf.strategies.registry import list_methods

from ..runs import assert_equal

# Of Avalanche's own, AGEM and FeatureReplay cannot: they keep an open iterator.
ADAPTED = ["EWC", "Replay", "StreamingLDA"]
METHODS = [*list_methods(), *(f"avalanche:{name}" for name in ADAPTED)]


def build(tools, name, seed=0, **options):
    vit = tools.vit(init_values=None, depth=5)
    torch.manual_seed(seed)
    loop = {"train_mb_size": 8, "evaluator": tools.silent(), "plugins": [PredictionRecorder()]}
    return create_strategy(name, backbone=vit, num_classes=6, loop=loop, **options)


def train(strategy, scenario, start=0, stop=None) -> None:
    """Shuffled, so that the random state is part of what must come back."""
    for experience in scenario.train_stream[start:stop]:
        strategy.train(experience, eval_streams=[])
        strategy.eval(scenario.test_stream[:1])


def save(strategy, path) -> int:
    with avalanche_checkpoints():
        save_checkpoint(strategy, path)
    return path.stat().st_size


def load(fresh, path):
    with avalanche_checkpoints():
        return maybe_load_checkpoint(fresh, path)


def state(strategy) -> dict:
    """What two strategies that are the same have the same of."""
    optimizer = getattr(strategy, "optimizer", None)
    recorders = [p for p in strategy.plugins if isinstance(p, PredictionRecorder)]
    return {
        "model": dict(strategy.model.state_dict()),
        "others": {
            key: dict(value.state_dict())
            for key, value in vars(strategy).items()
            if isinstance(value, torch.nn.Module)
        },
        "optimizer": optimizer.state_dict() if optimizer is not None else {},
        "clock": [strategy.clock.train_iterations, strategy.clock.train_exp_counter],
        "recorded": [recorder.state_dict() for recorder in recorders],
        "ours": strategy.trained_state() if isinstance(strategy, FrozenBackboneStrategy) else {},
    }


@pytest.mark.parametrize("name", METHODS)
def test_a_loaded_strategy_ends_as_one_that_was_not_cut(name, tools, scenario, tmp_path):
    whole = build(tools, name)
    train(whole, scenario, stop=1)
    save(whole, tmp_path / "it.pkl")
    train(whole, scenario, start=1)
    again, done = load(build(tools, name, seed=9), tmp_path / "it.pkl")
    assert done == 1
    train(again, scenario, start=1)
    assert_equal(state(again), state(whole))
    assert len(state(again)["recorded"][0]["points"]) == 3


SMALL = {
    "model_name": "vit_tiny_patch16_224", "pretrained": False, "image_size": 32,
    "backbone_kwargs": {"depth": 2, "embed_dim": 32, "num_heads": 2}, "num_prompts": 2,
    "routed_blocks": [0, 1], "train_mb_size": 5, "buffer": 4,
}  # fmt: skip


def small(tools, **options) -> RwFStrategy:
    return RwFStrategy(**{**SMALL, "evaluator": tools.silent(), **options})


SCRIPT = """
import json, sys
import torch
from avalanche.checkpointing import maybe_load_checkpoint
from avalanche_rwf import RwFStrategy, avalanche_checkpoints
from own.conftest import make_scenario, silent

scenario = make_scenario()
with avalanche_checkpoints():
    strategy = RwFStrategy(**json.loads(sys.argv[1]), evaluator=silent())
    strategy, done = maybe_load_checkpoint(strategy, sys.argv[2])
for experience in scenario.train_stream[done:]:
    strategy.train(experience, eval_streams=[])
    strategy.eval(scenario.test_stream[:1])
torch.save(strategy.trained_state(), sys.argv[3])
"""


def test_another_process_goes_on_with_a_head_that_has_grown(tools, scenario, tmp_path):
    torch.manual_seed(0)
    whole = small(tools)
    train(whole, scenario, stop=1)
    save(whole, tmp_path / "it.pkl")
    train(whole, scenario, start=1)
    # Avalanche installs a package "tests" of its own, so ours goes by another name.
    (tmp_path / "own").symlink_to(Path(__file__).parents[1])
    paths = [tmp_path, Path.cwd(), *os.environ.get("PYTHONPATH", "").split(":")]
    environment = {"PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    arguments = [json.dumps(SMALL), tmp_path / "it.pkl", tmp_path / "state.pt"]
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, *arguments],
        check=True,
        env={**os.environ, **environment},
    )
    again = torch.load(tmp_path / "state.pt", weights_only=True)
    assert whole.model.num_classes == 6
    assert again["experiences"] == 3
    assert_equal(again, whole.trained_state())


@pytest.mark.parametrize("name", ["linear-probe", "er", "er-ace", "der", "rwf"])
def test_a_buffer_is_in_the_file_and_the_data_set_is_not(name, tools, scenario, tmp_path):
    strategy = build(tools, name, **({} if name == "linear-probe" else {"buffer": 4}))
    before = save(strategy, tmp_path / "new.pkl")
    train(strategy, scenario, stop=1)
    images, held = 24, 0 if name == "linear-probe" else 4
    size = 4 * scenario.train_stream[0].dataset[0][0].numel()
    assert len(scenario.train_stream[0].dataset) == images
    grown = save(strategy, tmp_path / "it.pkl") - before
    assert held * size <= grown < (held + 10) * size


def test_a_logger_goes_on_too(tools, scenario, tmp_path):
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.training.plugins import EvaluationPlugin

    def make():
        logger = DataFrameLogger()
        evaluator = EvaluationPlugin(accuracy_metrics(experience=True), loggers=[logger])
        return small(tools, evaluator=evaluator)

    torch.manual_seed(0)
    whole = make()
    train(whole, scenario, stop=1)
    save(whole, tmp_path / "it.pkl")
    train(whole, scenario, start=1)
    again, _ = load(make(), tmp_path / "it.pkl")
    train(again, scenario, start=1)
    frames = [s.evaluator.loggers[0].to_frame() for s in (whole, again)]
    assert len(frames[0])
    assert frames[0].equals(frames[1])


def test_the_script_of_the_documentation(tools, scenario, tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "saving.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```py\n(.*?)^```$", page, re.M | re.S)
    (code,) = (block for block in blocks if "save_checkpoint" in block)
    monkeypatch.chdir(tmp_path)
    first, second = ({"strategy": small(tools), "benchmark": scenario} for _ in range(2))
    exec(compile(code, "<docs/saving.md>", "exec"), first)
    assert first["strategy"].clock.train_exp_counter == 3
    exec(compile(code, "<docs/saving.md>", "exec"), second)
    assert second["done"] == 3
    assert_equal(state(second["strategy"]), state(first["strategy"]))


def test_without_a_file_the_strategy_is_the_one_given(tools, tmp_path):
    strategy = small(tools)
    assert load(strategy, tmp_path / "none.pkl") == (strategy, 0)


def test_dills_setting_is_put_back_also_after_an_error(monkeypatch):
    for before in (False, True):
        monkeypatch.setitem(dill.settings, "byref", before)
        with pytest.raises(KeyError), avalanche_checkpoints():
            assert dill.settings["byref"] is True
            raise KeyError
        assert dill.settings["byref"] is before


def test_nothing_is_warned_of_that_no_user_can_change(tools, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(small(tools), tmp_path / "it.pkl")


def test_what_the_block_is_for(tools, tmp_path):
    """If this is skipped with every PyTorch that is supported, the block can go."""
    try:
        save_checkpoint(small(tools), tmp_path / "it.pkl")
    except pickle.PicklingError as error:
        assert "sentinel" in str(error) or "Can't pickle" in str(error)
    else:
        pytest.skip("this PyTorch and dill write an optimizer without it")
