"""One run: resuming changes no bit, every method sees the same stream, failures leave a trace."""

from __future__ import annotations

import json
import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from avalanche_rwf.benchmarks.stream_registry import list_streams, resolve_stream_options
from avalanche_rwf.evaluation import plugins
from avalanche_rwf.experiments import build, checkpoint
from avalanche_rwf.experiments import run as module
from avalanche_rwf.experiments.build import build_benchmark, build_strategy, load_backbone
from avalanche_rwf.experiments.config import RunConfig, run_directory
from avalanche_rwf.experiments.run import run
from avalanche_rwf.strategies.base import FrozenBackboneStrategy
from avalanche_rwf.strategies.registry import get_method
from avalanche_rwf.utils.atomic_io import read_state

from ..runs import Killed, assert_equal, execute_with

TIMES = (
    *("train_seconds", "eval_seconds", "eval_share"),
    *("train_samples_per_second", "peak_memory_bytes"),
)


@pytest.fixture
def final(monkeypatch) -> list[dict]:
    """The strategies that runs build, in order."""
    built: list = []

    def keep(*args, **kwargs):
        built.append(build_strategy(*args, **kwargs))
        return built[-1]

    monkeypatch.setattr(module, "build_strategy", keep)
    return built


def metrics(out: Path, config: RunConfig) -> bytes:
    return (run_directory(out, config) / "metrics.csv").read_bytes()


def without_times(summary: dict) -> dict:
    return {k: v for k, v in summary.items() if k not in TIMES}


def cut_after(patch: pytest.MonkeyPatch, checkpoints: int) -> None:
    saved = []

    def save(path, state, previous):
        checkpoint_save(path, state, previous)
        saved.append(path)
        if len(saved) == checkpoints:
            raise Killed

    checkpoint_save = checkpoint.save_state
    patch.setattr(checkpoint, "save_state", save)
    execute_with(patch, checkpoint_every=0)  # at experience ends, whatever it costs


# Cut at an experience's end; every method is cut within experiences in faults/test_resume.py.
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("rwf", {"buffer": 20}),
        ("rwf-lda", {}),
        ("er-ace", {"buffer": 5, "buffer_policy": "class-balanced"}),
        ("avalanche-l2p-as-shipped", {}),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    method, options, configure, final, tmp_path, monkeypatch
):
    config = configure(method, options=options)
    whole = run(config, tmp_path / "whole")
    assert whole["status"] == "done", whole

    with monkeypatch.context() as patch:
        cut_after(patch, 1)
        with pytest.raises(Killed):
            run(config, tmp_path / "cut")
    folder = run_directory(tmp_path / "cut", config)
    assert {p.name for p in folder.iterdir()} == {"config.json", "log.txt", "checkpoint.pt"}
    # Whatever the process drew in between is of no consequence.
    torch.rand(3)

    assert without_times(run(config, tmp_path / "cut")) == without_times(whole)
    assert metrics(tmp_path / "cut", config) == metrics(tmp_path / "whole", config)
    assert "resumed after experience 0" in (folder / "log.txt").read_text()
    assert not (folder / "checkpoint.pt").exists()
    uninterrupted, _, resumed = final
    assert_equal(checkpoint.strategy_state(uninterrupted), checkpoint.strategy_state(resumed))


def on(stream: str, **options) -> dict:
    """That kind of stream, as changes of a configuration."""
    return {"stream": stream, "stream_options": resolve_stream_options(stream, options)}


@pytest.mark.parametrize("stream", list_streams())
def test_a_method_without_boundaries_has_the_same_numbers_when_they_are_hidden(
    stream, configure, tmp_path
):
    told = configure("rwf", experiences=3, **on(stream))
    hidden = replace(told, boundary_free=True)
    assert told.config_hash() != hidden.config_hash()
    first, second = run(told, tmp_path), run(hidden, tmp_path)
    assert first["status"] == second["status"] == "done"
    assert without_times(first) == without_times(second)
    assert metrics(tmp_path, told) == metrics(tmp_path, hidden)


def test_a_run_cut_after_its_last_experience_only_writes_its_summary(
    configure, final, tmp_path, monkeypatch
):
    config = configure()
    with monkeypatch.context() as patch:
        cut_after(patch, 3)
        with pytest.raises(Killed):
            run(config, tmp_path)
    seen: list[int] = []
    summary = run(config, tmp_path, progress=seen.append)
    assert summary["status"] == "done"
    assert seen == [24]  # all at once, for the progress bar
    assert without_times(summary) == without_times(run(config, tmp_path / "whole"))


@pytest.mark.parametrize("damage", ["other stream", "other method"])
def test_another_runs_checkpoint_is_a_fresh_start(damage, configure, tmp_path, monkeypatch):
    config = configure("rwf")
    whole = run(config, tmp_path / "whole")
    other = {"other stream": configure("rwf", experiences=2), "other method": configure("ncm")}
    with monkeypatch.context() as patch:
        cut_after(patch, 1)
        with pytest.raises(Killed):
            run(other[damage], tmp_path / "cut")
    file = run_directory(tmp_path / "cut", config) / "checkpoint.pt"
    file.parent.mkdir(parents=True)
    (run_directory(tmp_path / "cut", other[damage]) / "checkpoint.pt").rename(file)
    assert without_times(run(config, tmp_path / "cut")) == without_times(whole)
    assert metrics(tmp_path / "cut", config) == metrics(tmp_path / "whole", config)
    assert not file.exists()
    log = (file.parent / "log.txt").read_text()
    assert "a checkpoint is not used" in log
    if damage == "other stream":
        assert "is of another configuration.experiences (2, here 3)" in log


def test_a_checkpoint_runs_no_code_and_has_no_frozen_weights(configure, tmp_path, monkeypatch):
    config = configure("rwf")
    with monkeypatch.context() as patch:
        cut_after(patch, 2)
        with pytest.raises(Killed):
            run(config, tmp_path)
    state = read_state(run_directory(tmp_path, config) / "checkpoint.pt")  # weights_only
    assert state["position"] == {"experience": 2, "samples": 0, "trained": False}
    assert not [name for name in state["strategy"]["model"] if name.startswith("backbone.")]


def seen_by(config: RunConfig, monkeypatch, tmp_path) -> list[tuple[list[int], torch.Tensor]]:
    """Labels and images of every training mini-batch of a run."""
    batches: list[tuple[list[int], torch.Tensor]] = []
    with monkeypatch.context() as patch:
        after = module.Meter.after_training_iteration

        def note(self, strategy, **kwargs):
            batches.append((strategy.mb_y.tolist(), strategy.mb_x.clone()))
            after(self, strategy, **kwargs)

        patch.setattr(module.Meter, "after_training_iteration", note)
        assert run(config, tmp_path)["status"] == "done"
    return batches


def test_every_method_sees_the_same_stream_in_the_same_order(configure, monkeypatch, tmp_path):
    first, *others = [
        seen_by(configure(method, seed=1), monkeypatch, tmp_path)
        for method in ("ncm", "rwf", "fine-tune", "avalanche-l2p", "avalanche-l2p-as-shipped")
    ]
    assert [len(labels) for labels, _ in first] == [3, 3, 2] * 3
    assert sorted(label for labels, _ in first for label in labels) == sorted([*range(6)] * 4)
    for other in others:
        assert [labels for labels, _ in other] == [labels for labels, _ in first]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(first, other, strict=True))
    another = seen_by(configure("ncm", seed=2), monkeypatch, tmp_path)
    assert [x.sum() for _, x in another] != [x.sum() for _, x in first]


@pytest.mark.parametrize(("method", "passes"), [("er", 2), ("er-ace", 2), ("der", 3)])
def test_replayed_images_are_counted_as_forward_passes(method, passes, configure, tmp_path):
    summary = run(configure(method), tmp_path)
    # 24 images in batches of 3, 3 and 2. The first batch finds an empty buffer.
    replayed = (passes - 1) * (24 - 3)
    assert summary["forward_passes_per_image"] == pytest.approx((24 + replayed) / 24)


def test_the_seed_decides_and_nothing_before_it(configure, tmp_path):
    config = configure("rwf")
    torch.manual_seed(5)
    run(config, tmp_path / "a")
    torch.rand(7)
    run(config, tmp_path / "b")
    assert metrics(tmp_path / "a", config) == metrics(tmp_path / "b", config)


def test_random_weights_are_the_same_in_every_process(configure):
    state = torch.get_rng_state()
    build._backbone.cache_clear()
    torch.manual_seed(11)
    first = load_backbone(configure()).state_dict()
    build._backbone.cache_clear()
    torch.manual_seed(12)
    drawn = torch.get_rng_state()
    assert_equal(dict(load_backbone(configure()).state_dict()), dict(first))
    assert torch.equal(torch.get_rng_state(), drawn)
    torch.set_rng_state(state)


def test_training_does_not_touch_the_shared_backbone(configure, tmp_path):
    before = {k: v.clone() for k, v in load_backbone(configure()).state_dict().items()}
    assert run(configure("fine-tune"), tmp_path)["status"] == "done"
    assert_equal(dict(load_backbone(configure()).state_dict()), before)


@pytest.mark.parametrize("every", [1, 4, 5, 8, 24, 100, 0])
def test_a_auc_is_evaluated_on_its_grid(every, configure, tmp_path):
    config = configure("ncm", eval_every_samples=every)
    summary = run(config, tmp_path)
    rows = [line.split(",") for line in metrics(tmp_path, config).decode().splitlines()[1:]]
    curve = {int(r[0]): float(r[3]) for r in rows if r[2] == "accuracy_exposed"}
    batches = [3, 6, 8, 11, 14, 16, 19, 22, 24]  # 8 images in each experience, 3 at a time
    ends = [8, 16, 24]
    grid = {
        next((seen for seen in batches if seen >= multiple), 24)
        for multiple in (range(every, 25, every) if every else ())
    }
    assert sorted(curve) == sorted({*grid, *ends})
    averaged = {*grid, 24} if every else set(ends)
    assert summary["a_auc"] == pytest.approx(sum(curve[s] for s in averaged) / len(averaged))
    assert summary["a_avg"] == pytest.approx(sum(curve[s] for s in ends) / 3)
    assert summary["a_last"] == curve[24]


def test_sub_experiences_of_a_boundary_free_run_tell_nothing(configure, tmp_path, monkeypatch):
    seen = []

    def note(self, strategy, **kwargs):
        seen.append(strategy.experience)

    monkeypatch.setattr(module.Meter, "before_training_exp", note, raising=False)
    run(configure("ncm", boundary_free=True, **on("si-blurry")), tmp_path)
    assert [len(part.dataset) for part in seen].count(3) > 4
    for part in seen:
        for name in ("origin_experience", "is_first_subexp", "is_last_subexp"):
            with pytest.raises(ValueError, match="not available"):
                getattr(part.train(), name)
        assert not hasattr(part, "classes_in_this_experience")


def test_a_part_of_the_test_images_is_for_mid_stream_alone(configure, tmp_path):
    whole = configure("ncm")
    part = replace(whole, eval_subset=6)
    summary, other = run(whole, tmp_path), run(part, tmp_path)
    for name in ("a_last", "a_avg", "forgetting_class", "gradient_steps"):
        assert summary[name] == other[name]

    def curve(config):
        rows = [line.split(",") for line in metrics(tmp_path, config).decode().splitlines()]
        return {row[0]: row[3] for row in rows if row[2] == "accuracy_exposed"}

    all_, few = curve(whole), curve(part)
    assert list(all_) == list(few)
    assert {seen: few[seen] for seen in ("8", "16", "24")} == {
        seen: all_[seen] for seen in ("8", "16", "24")
    }
    assert 0 < summary["eval_share"] < 1
    seconds = summary["eval_seconds"] + summary["train_seconds"]
    assert summary["eval_share"] == pytest.approx(summary["eval_seconds"] / seconds)


def test_mid_stream_evaluation_does_not_change_the_training(configure, tmp_path):
    often = run(configure("rwf", eval_every_samples=1), tmp_path)
    never = run(configure("rwf", eval_every_samples=0), tmp_path)
    for name in ("a_last", "a_avg", "forgetting_class", "gradient_steps"):
        assert often[name] == never[name]


def test_progress_counts_every_training_sample_once(configure, tmp_path):
    seen: list[int] = []
    run(configure(gradient_steps=2), tmp_path, progress=seen.append)
    assert seen == [3, 3, 2] * 3


def test_gradient_steps_are_counted(configure, tmp_path):
    assert run(configure(gradient_steps=2), tmp_path)["gradient_steps"] == 18
    assert run(configure("ncm"), tmp_path)["gradient_steps"] == 0


def test_a_finished_run_is_not_touched(configure, tmp_path, monkeypatch):
    config = configure("ncm")
    first = run(config, tmp_path)
    monkeypatch.setattr(module, "_run", None)
    assert run(config, tmp_path) == first


def test_a_failed_run_leaves_its_configuration_its_error_and_its_log(
    configure, tmp_path, monkeypatch
):
    config = replace(configure("ncm"), weights_sha256="0123456789ab")
    summary = run(config, tmp_path)
    assert summary["status"] == "failed"
    assert "have changed" in summary["error"]
    folder = run_directory(tmp_path, config)
    content = json.loads((folder / "config.json").read_text())
    assert content["config"] == config.to_dict()
    assert content["config_hash"] == config.config_hash()
    assert content["backbone"] == {"name": "vit_tiny_patch16_224", "sha256": "0123456789ab"}
    assert "Traceback" in (folder / "log.txt").read_text()

    from avalanche_rwf.leaderboard.aggregate import aggregate, read_runs

    runs, broken = read_runs(tmp_path)
    assert broken == []
    assert aggregate(runs)["failed"].tolist() == [1]


def test_a_method_whose_file_has_changed_since_fails_its_run(configure, tmp_path):
    summary = run(replace(configure("ncm"), code="0123456789ab"), tmp_path)
    assert summary["status"] == "failed"
    assert summary["error"].startswith(
        "The code of the method has changed since the comparison began"
    )


def test_a_probe_of_frozen_features_says_the_mask_that_it_has(configure, tmp_path):
    """Without prompts nothing but the head's part of "decoupled" is left."""
    for method, mask in (("linear-probe", "seen"), ("rwf", "decoupled")):
        config = configure(method, options={"mask": "decoupled"})
        assert run(config, tmp_path)["status"] == "done"
        content = json.loads((run_directory(tmp_path, config) / "config.json").read_text())
        assert content["ran"]["mask"] == mask


def test_the_peak_of_the_memory_where_there_is_no_proc(monkeypatch):
    """As on macOS, which counts bytes and not kilobytes."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert 0.5 < plugins.peak_memory("cpu") / (largest * 1024) < 2
    read = Path.read_text

    def no_proc(self, *args, **kwargs):
        if self.parts[:2] == ("/", "proc"):
            raise FileNotFoundError(2, "No such file or directory", str(self))
        return read(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", no_proc)
    for system, unit in (("linux", 1024), ("darwin", 1)):
        monkeypatch.setattr(plugins.sys, "platform", system)
        assert largest * unit <= plugins.peak_memory("cpu") <= 2 * largest * unit


def test_warnings_go_to_the_log(configure, tmp_path, monkeypatch):
    import warnings

    def warned(*args, **kwargs):
        warnings.warn("mind the gap", UserWarning, stacklevel=1)
        return build_strategy(*args, **kwargs)

    monkeypatch.setattr(module, "build_strategy", warned)
    config = configure("ncm")
    run(config, tmp_path)
    log = (run_directory(tmp_path, config) / "log.txt").read_text()
    assert "warning: UserWarning: mind the gap" in log


def test_the_holdout_takes_the_place_of_the_test_images(configure):
    plain, held = build_benchmark(configure()), build_benchmark(configure(holdout=0.25))
    assert (plain.train_size, plain.test_size) == (24, 12)
    assert (held.train_size, held.test_size) == (18, 6)


@pytest.mark.parametrize(
    ("method", "options", "changes", "passes"),
    [
        ("ncm", {}, {}, 1.0),
        ("fine-tune", {}, {}, 1.0),
        ("rwf", {}, {}, 1.0),
        ("rwf", {}, {"gradient_steps": 2}, 2.0),
        ("avalanche-l2p", {}, {}, 2.0),
        ("avalanche-l2p-as-shipped", {}, {}, 2.0),
        # Queries are the principal directions of the first batch: its 3 images go in once more.
        ("rwf-lda", {}, {}, 27 / 24),
    ],
)
def test_forward_passes_are_counted_in_training_alone(
    method, options, changes, passes, configure, final, tmp_path
):
    # Every fourth sample there is an evaluation, which does not count.
    summary = run(configure(method, options=options, **changes), tmp_path)
    assert summary["forward_passes_per_image"] == pytest.approx(passes)
    (strategy,) = final
    assert not any(module._forward_hooks for module in strategy.model.modules())


def test_boundaries_are_recorded_by_method_and_by_strategy(configure, tmp_path, monkeypatch):
    def reads(config: RunConfig) -> bool:
        run(config, tmp_path)
        return json.loads((run_directory(tmp_path, config) / "config.json").read_text())[
            "uses_boundaries"
        ]

    assert reads(configure("avalanche-l2p-as-shipped"))
    assert not reads(configure("ncm"))

    # Of a method that is registered as one that reads none.
    monkeypatch.setattr(FrozenBackboneStrategy, "uses_boundaries", True)
    assert not get_method("slda").uses_boundaries
    assert reads(configure("slda"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
def test_a_pipe_in_the_place_of_an_earlier_log_is_not_waited_for(configure, tmp_path):
    folder = run_directory(tmp_path, configure("ncm"))
    folder.mkdir(parents=True)
    for name in ("log.txt", "summary.json", "config.json"):
        os.mkfifo(folder / name)
    assert run(configure("ncm"), tmp_path)["status"] == "done"
    assert all(path.is_file() for path in folder.iterdir())
