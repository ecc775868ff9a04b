"""What goes wrong in one run stays in it: a method that raises, diverges, or takes all memory."""

from __future__ import annotations

import functools
import json
import signal
import weakref

import fault_children as children  # by the path that conftest adds
import pytest
import torch

from avalanche_rwf.experiments import executors
from avalanche_rwf.experiments import run as module
from avalanche_rwf.experiments.config import run_directory
from avalanche_rwf.experiments.execution import Execution
from avalanche_rwf.experiments.executors import execute
from avalanche_rwf.experiments.run import run
from avalanche_rwf.leaderboard.aggregate import aggregate, read_runs


def raising(monkeypatch, error: BaseException, method: str) -> None:
    """Let one method raise in its training."""
    build = module.build_strategy

    def breaking(config, *args, **kwargs):
        strategy = build(config, *args, **kwargs)
        if config.method == method:
            def forward() -> None:
                raise error
            strategy.forward = forward
        return strategy

    monkeypatch.setattr(module, "build_strategy", breaking)


@pytest.mark.parametrize(
    ("error", "batch_size", "sentence"),
    [
        (KeyError("x"), 4, "'x'"),
        (AssertionError(), 4, "AssertionError"),
        (RecursionError("too deep"), 4, "too deep"),
        (SystemExit(0), 4, "The method has asked for the end of the process (0)."),
        (
            torch.cuda.OutOfMemoryError("CUDA out of memory. Tried ..."),
            4,
            "The memory is not enough for a batch of 4 images: a smaller --backbone or "
            "--image-size takes less.",
        ),
        (MemoryError(), 7, "batch of 7 images: --batch-size 3 takes"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            1,
            "batch of 1 images: a smaller --backbone or --image-size takes less.",
        ),
    ],
)
def test_a_method_that_raises_fails_its_run_alone(
    error, batch_size, sentence, configure, tmp_path, monkeypatch
):
    raising(monkeypatch, error, "linear-probe")
    bad, good = (configure(m, batch_size=batch_size) for m in ("linear-probe", "ncm"))
    results = list(execute([bad, good], tmp_path, Execution(jobs=1, quiet=True)))
    assert [summary["status"] for _, summary in results] == ["failed", "done"]
    assert sentence in results[0][1]["error"]
    folder = run_directory(tmp_path, bad)
    assert json.loads((folder / "summary.json").read_text()) == results[0][1]
    assert type(error).__name__ in (folder / "log.txt").read_text()
    runs, broken = read_runs(tmp_path)
    assert broken == []
    board = aggregate(runs).set_index("method")
    assert board["failed"].to_dict() == {"linear-probe": 1, "ncm": 0}
    (reason,) = runs[runs["method"] == "linear-probe"]["error"]
    assert reason == results[0][1]["error"]


@pytest.mark.parametrize("method", ["rwf", "er", "avalanche-l2p-as-shipped"])
def test_a_full_gpu_is_told_the_batch_size_that_fits(method, configure, tmp_path, monkeypatch):
    build, held = module.build_strategy, []

    def limited(*args, **kwargs):
        strategy = build(*args, **kwargs)
        forward = strategy.forward

        def small() -> torch.Tensor:
            if strategy.is_training and len(strategy.mb_x) > 3:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate ...")
            return forward()

        strategy.forward = small
        # What still refers to a strategy while another one is tried would be on the GPU as well.
        held.append(sum(old() is not None for old in strategies))
        strategies.append(weakref.ref(strategy.model))
        return strategy

    strategies: list = []
    monkeypatch.setattr(module, "build_strategy", limited)
    summary = run(configure(method, batch_size=14), tmp_path)
    assert summary["status"] == "failed"
    assert summary["error"] == (
        "The memory is not enough for a batch of 14 images: --batch-size 3 fits."
    )
    assert held == [0, 0, 0]  # 14, 7, 3
    assert run(configure(method, batch_size=3), tmp_path)["status"] == "done"


@pytest.mark.parametrize("method", ["rwf", "linear-probe", "er", "avalanche-l2p-as-shipped"])
def test_a_loss_that_is_not_finite_fails_the_run(method, configure, tmp_path, monkeypatch):
    build = module.build_strategy

    def diverging(*args, **kwargs):
        strategy = build(*args, **kwargs)
        criterion = strategy.criterion
        strategy.criterion = lambda: (
            criterion() * float("inf") if strategy.clock.train_iterations == 2 else criterion()
        )
        return strategy

    monkeypatch.setattr(module, "build_strategy", diverging)
    config = configure(method)
    summary = run(config, tmp_path)
    assert summary["status"] == "failed"
    assert summary["error_type"] == "NonFiniteLossError"
    assert "not finite at training step 2" in summary["error"]


@pytest.mark.parametrize("method", ["rwf", "ncm", "avalanche:Naive"])
def test_weights_that_the_last_step_breaks_fail_the_run(method, configure, tmp_path, monkeypatch):
    """Every loss was finite: the evaluation is where it shows."""
    train = module.train_experience

    def breaking(strategy, *args):
        train(strategy, *args)
        head = strategy.model.head
        with torch.no_grad():
            for tensor in (*head.parameters(), *head.buffers()):
                if tensor.is_floating_point():
                    tensor.fill_(float("nan"))

    monkeypatch.setattr(module, "train_experience", breaking)
    summary = run(configure(method, eval_every_samples=0), tmp_path)
    assert summary["status"] == "failed"
    assert summary["error"] == (
        "The outputs are not finite in the evaluation after 4 training steps: lower the learning "
        "rates."
    )
    assert not (run_directory(tmp_path, configure(method, eval_every_samples=0)) /
                "metrics.csv").exists()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_worker_that_is_killed_takes_its_own_run_alone(configure, tmp_path):
    executors.start_server()
    configs = [configure(m, seed=s) for s in range(3) for m in ("slda", "ncm", "linear-probe")]
    found = list(
        execute(
            configs, tmp_path, Execution(jobs=2, quiet=True),
            work=functools.partial(children.a_victim, victim="ncm"),
        )
    )  # fmt: skip
    assert sorted((c.method, c.seed) for c, _ in found) == sorted(
        (c.method, c.seed) for c in configs
    )
    for config, summary in found:
        if config.method == "ncm":
            assert summary["status"] == "failed"
            assert "The worker process was killed, most often because" in summary["error"]
        else:
            assert summary == {"status": "done"}
            assert (tmp_path / f"{config.method}{config.seed}").exists()
