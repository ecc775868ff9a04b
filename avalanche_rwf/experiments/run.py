"""One run: reads a RunConfig, trains once over the stream, writes one run directory.

A run knows nothing of other runs. It writes checkpoints (:mod:`.checkpoint`) and goes on from the
last one; a resumed run ends with the very numbers of an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import split_online_stream
from avalanche.training.plugins import SupervisedPlugin
from torch import nn

from avalanche_rwf.benchmarks import Benchmark
from avalanche_rwf.evaluation.metrics import accuracy_exposed, metrics_csv, summarise
from avalanche_rwf.evaluation.plugins import (
    FiniteLoss,
    FiniteOutputs,
    Listener,
    Listening,
    Meter,
    Progress,
    peak_memory,
    reset_peak_memory,
)
from avalanche_rwf.evaluation.recorder import AnytimeEvaluation, PredictionRecorder
from avalanche_rwf.evaluation.routing import RoutingRecorder
from avalanche_rwf.experiments.build import (
    build_strategy,
    load_backbone,
    origins_of,
)
from avalanche_rwf.experiments.checkpoint import (
    Checkpoints,
    ResumePoint,
    RunState,
    StaleCheckpointError,
    Stateful,
    clear_leftovers,
    part_of,
    remove,
)
from avalanche_rwf.experiments.config import BUSY, RunConfig, run_directory
from avalanche_rwf.experiments.data_loading import (
    loader_workers,
    run_images,
    training_workers,
)
from avalanche_rwf.experiments.device import set_arithmetic
from avalanche_rwf.experiments.execution import current_execution
from avalanche_rwf.experiments.failures import (
    failure_reason,
    free_memory,
    held_by_others,
    largest_that_fits,
    out_of_memory,
)
from avalanche_rwf.experiments.lease import locked
from avalanche_rwf.experiments.run_logger import RunLogger
from avalanche_rwf.experiments.signals import RunStopped, stop_requested
from avalanche_rwf.experiments.store import (
    environment,
    finished,
    read_json,
    save_tensors,
    source_sha256,
    write_json,
    write_text,
)
from avalanche_rwf.models.backbone import backbone_info
from avalanche_rwf.models.feature_cache import MEMORY
from avalanche_rwf.routing.model import RoutedViT
from avalanche_rwf.strategies.base import FrozenBackboneStrategy
from avalanche_rwf.strategies.description import describe, state_bytes
from avalanche_rwf.strategies.registry import get_method
from avalanche_rwf.utils.untrusted_io import read_file
from avalanche_rwf.version import __version__

Log = Callable[[str], None]

WEIGHTS = "weights.safetensors"
"""In the directory of a finished run of a routed method: :func:`routing_state`."""


def _stream_shape(benchmark: Benchmark) -> list[list[list[int]]]:
    """Classes of each experience, with their samples: a folder may change between two calls."""
    return [[[label, n] for label, n in counts.items()] for counts in benchmark.class_counts]


def train_experience(
    strategy: Any,
    experience: Any,
    boundary_free: bool = False,
    workers: int = 0,
    skip: int = 0,
) -> None:
    """Train on an experience in the order of its samples, which the benchmark fixed.

    An experience without samples, which some streams have, is passed over.

    :param boundary_free: hand it over in sub-experiences of one mini-batch that do not tell where
        the experience begins or ends and which classes it has.
    :param workers: processes that load images; see :mod:`.data_loading`. Sub-experiences of one
        mini-batch are loaded in this process: Avalanche would start new ones for each.
    :param skip: samples at the beginning that have been trained on, in whole mini-batches; a whole
        experience's are passed over by :class:`.checkpoint.Checkpoints`.
    """
    if len(experience.dataset) <= skip:
        return
    parts = experience
    if boundary_free:
        # The seed is not used, but without it Avalanche would draw one.
        parts = split_online_stream([experience], strategy.train_mb_size, shuffle=False, seed=0)
        parts = itertools.islice(parts, skip // strategy.train_mb_size, None)
    strategy.train(
        parts,
        eval_streams=[],
        shuffle=False,
        num_workers=0 if boundary_free else training_workers(strategy, workers),
    )


def exposed_tests(benchmark: Benchmark, trained: int) -> list[Any]:
    """The test experiences with samples after so many training experiences.

    They are those of the classes exposed by then, see :class:`Benchmark`.
    """
    return [test for test in benchmark.test_stream[:trained] if len(test.dataset)]


def routing_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """What training left of a routed model: parameters outside the backbone, the layers' buffers.

    Statistics of closed-form heads are left out: they can be a hundred times as large (a covariance
    of all features), and routing does not read them. Empty for a model without routing layers.
    """
    if not isinstance(model, RoutedViT) or not model.routed_blocks():
        return {}
    parameters = dict(model.named_parameters())
    return {
        name: tensor
        for name, tensor in model.state_without_backbone().items()
        if name in parameters or name.startswith("layers.") or name == "waits"
    }


def _stream_images(
    benchmark: Benchmark, normalise: Callable[[torch.Tensor], torch.Tensor], device: Any
) -> Callable[[Sequence[int]], torch.Tensor]:
    """A function that gives training images by their numbers in the stream, as a step has them."""

    def images(numbers: Sequence[int]) -> torch.Tensor:
        datasets = [experience.dataset.train() for experience in benchmark.train_stream]
        ends = np.cumsum([len(data) for data in datasets]).tolist()
        found = []
        for number in numbers:
            index = int(np.searchsorted(ends, number, side="right"))
            start = ends[index - 1] if index else 0
            image = datasets[index][number - start][0].to(device)
            found.append((normalise(image) if image.dtype == torch.uint8 else image).cpu())
        return torch.stack(found)

    return images


def run_strategy(
    strategy: Any,
    benchmark: Benchmark,
    recorder: PredictionRecorder,
    checkpoints: Checkpoints,
    log: Log = lambda line: None,
    meter: Meter | None = None,
    anytime: AnytimeEvaluation | None = None,
    boundary_free: bool = False,
    workers: int = 0,
    routing: RoutingRecorder | None = None,
    images: Callable[[Sequence[int]], torch.Tensor] | None = None,
) -> None:
    """Train over the stream once, evaluating on the classes so far after each experience.

    A strategy that does not say that it is resumable (:class:`.Description`) is not
    checkpointed: plugins may hold more than model and optimizer, and a run that went on
    without that would end with other numbers.

    :param boundary_free: as :func:`train_experience` takes it.
    :param workers: processes that load images; see :mod:`.data_loading`.
    :param images: gives training images by number, for a replay buffer; see :class:`.RunState`.
    :raises StaleCheckpointError: if a checkpoint does not fit after all; the strategy is then half
        loaded and of no use.
    """
    meter, described = meter or Meter(None), describe(strategy)
    checkpoints.keeps = checkpoints.keeps and described.resumable
    found: dict[str, Stateful | None] = {
        "recorder": recorder, "meter": meter, "anytime": anytime, "routing": routing,
    }  # fmt: skip
    parts = {name: part for name, part in found.items() if part is not None}
    first = _resume(checkpoints, RunState(strategy, parts, images), log)
    # The scenario has experiences without samples too, so that numbers are those of the stream.
    stream = list(benchmark.scenario.train_stream)
    if meter.progress is not None and first != ResumePoint():
        done = sum(len(experience.dataset) for experience in stream[: first.experience])
        here = len(stream[first.experience].dataset) if first.trained else first.samples
        meter.progress(done + here)

    for index, experience in enumerate(stream[first.experience :], first.experience):
        at = first if index == first.experience else ResumePoint(index)
        checkpoints.begin(at, len(experience.dataset))
        if not at.trained:
            with (
                meter.training(lambda: checkpoints.seconds),
                meter.counting(strategy, described.networks),
            ):
                train_experience(strategy, experience, boundary_free, workers, at.samples)
            if routing is not None and index >= routing.experience:
                routing.record(strategy.model, recorder.samples_seen)
        checkpoints.trained()
        tests = exposed_tests(benchmark, index + 1)
        if tests:  # none where a stream begins with experiences without samples
            recorder.begin(index)
            strategy.eval(tests, num_workers=workers)
            accuracy = accuracy_exposed(recorder.points[-1])
            log(f"experience {index}: accuracy on the classes so far {100 * accuracy:.2f} %")
        checkpoints.evaluated()


def _resume(checkpoints: Checkpoints, state: RunState, log: Log) -> ResumePoint:
    """Watch the run, from its checkpoint if there is one; where it goes on."""
    found = checkpoints.find()
    position = checkpoints.attach(state, found)
    if found is None:
        return position
    # Sums are rounded differently by another number of threads.
    torch.set_num_threads(int(found["threads"]))
    if position.trained:
        log(f"resumed at the evaluation of experience {position.experience}")
    elif position.samples:
        log(f"resumed in experience {position.experience} after {position.samples} samples of it")
    else:
        log(f"resumed after experience {position.experience - 1}")
    return position


def run(
    config: RunConfig,
    out: Path,
    device: str = "cpu",
    progress: Progress | None = None,
    *,
    wait: bool = True,
    again: bool = True,
) -> dict[str, Any]:
    """Do one run, or return the summary of a finished one.

    A run that raises leaves its traceback in ``log.txt`` and a summary with status "failed". A run
    that another process is at is not done a second time.

    :param wait: for the other process, and return what it came to; False returns the status "busy".
    :param again: do a run again that failed; False returns the summary of its failure.
    :returns: the contents of ``summary.json``.
    :raises RunStopped: if this process is asked to stop; a checkpoint is written.
    """
    folder = run_directory(out, config)
    while True:
        done = finished(folder)
        if done is not None:
            with contextlib.suppress(OSError):  # a process may have ended before it did so itself
                remove(folder)
            return done
        if stop_requested():
            raise RunStopped
        with locked(folder) as mine:
            if mine:
                done = read_json(folder / "summary.json") or {}
                if done.get("status") == "done" or (done.get("status") == "failed" and not again):
                    return done
                return _run_alone(config, folder, device, progress)
        if not wait:
            return {"status": BUSY}
        again = False  # what the other process comes to counts
        time.sleep(0.2)


def _run_alone(
    config: RunConfig, folder: Path, device: str, progress: Progress | None
) -> dict[str, Any]:
    """Do a run whose lock is held."""
    folder.mkdir(parents=True, exist_ok=True)
    clear_leftovers(folder)
    # An earlier attempt's failure is not this one's.
    (folder / "summary.json").unlink(missing_ok=True)
    # Before anything can fail, so that the leaderboard lists a failed run under its configuration.
    _write_config(folder, config, {"name": config.backbone, "sha256": config.weights_sha256})
    lines = _log_lines(folder / "log.txt")

    def log(line: str) -> None:
        lines.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}")
        write_text(folder / "log.txt", "\n".join(lines) + "\n", make_folder=False)

    log(f"{config.method} on {config.benchmark}, seed {config.seed}, device {device}")
    threads = torch.get_num_threads()
    free_memory()  # reference cycles of Avalanche's keep an earlier run's strategy
    set_arithmetic()
    how = current_execution()
    # Augmented images do not repeat, so their features are not kept; to look one up waits for the
    # GPU, which --no-checks promises not to do.
    repeat = config.augment == "none" and not (how.no_checks and device != "cpu")
    looking = MEMORY.looking(how.no_cache, repeat)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            with RunLogger(folder, config, log) as logger, looking:
                summary = _run(config, folder, device, log, progress=progress, logger=logger)
                logger.write(summary, summary["samples_seen"])
        for text in sorted({f"{w.category.__name__}: {w.message}" for w in caught}):
            log(f"warning: {text}")
        write_json(folder / "summary.json", summary, make_folder=False)
    except RunStopped:
        with contextlib.suppress(OSError):
            log("stopped; the same command goes on from here")
        raise
    except (Exception, SystemExit) as error:  # a user's method may call sys.exit
        if stop_requested():
            # Most often a signal to all processes has ended the workers that load images.
            with contextlib.suppress(OSError):
                log(f"stopped ({type(error).__name__}); the same command goes on from here")
            raise RunStopped from None
        trace = traceback.format_exc().rstrip()
        summary = {
            "status": "failed",
            "error": failure_reason(error, folder, config.batch_size)[:500],
            "error_type": type(error).__name__,
        }
        gpu_full = isinstance(error, torch.cuda.OutOfMemoryError)
    else:
        remove(folder)
        return summary
    finally:
        torch.set_num_threads(threads)
    # The error is released by now, and with it the tensors of the functions it came from. On a full
    # disk the summary cannot be written either: it is returned all the same. It is written before
    # the GPU is used again, which may end the process.
    with contextlib.suppress(OSError):
        log(trace)
        write_json(folder / "summary.json", summary, make_folder=False)
    free_memory()  # for the runs that follow in this process
    if gpu_full:
        others = held_by_others(device)
        fits = largest_that_fits(config.batch_size, functools.partial(_try, config, device))
        summary["error"] = out_of_memory(config.batch_size, fits, others)
        with contextlib.suppress(OSError):
            write_json(folder / "summary.json", summary, make_folder=False)
    return summary


def _try(config: RunConfig, device: str, batch_size: int) -> None:
    """Two training steps and an evaluated batch of a configuration with another batch size."""
    config = replace(config, batch_size=batch_size)
    benchmark, normalise = run_images(config)
    strategy = build_strategy(config, benchmark.num_classes, device, [normalise])
    first, test = (
        next(e for e in stream if len(e.dataset))
        for stream in (benchmark.train_stream, benchmark.test_stream)
    )
    train_experience(strategy, part_of(first, 0, 2 * batch_size))
    strategy.eval([part_of(test, 0, strategy.eval_mb_size)])


def _log_lines(path: Path) -> list[str]:
    """What earlier attempts logged: a resumed run's log tells the whole story."""
    try:
        return read_file(path).decode().splitlines()
    except (OSError, ValueError):
        return []


def _write_config(
    folder: Path, config: RunConfig, backbone: dict[str, Any], **more: Any
) -> None:
    write_json(
        folder / "config.json",
        {
            "config": config.to_dict(),
            "config_hash": config.config_hash(),
            "backbone": backbone,
            **more,
        },
        make_folder=False,
    )


def _identity(
    config: RunConfig, benchmark: Benchmark, backbone: str, device: str
) -> dict[str, Any]:
    """What decides a run's numbers: a checkpoint of anything else is of no use to it."""
    values = config.to_dict()
    # A weights file counts by its content; how the options were found makes no difference.
    del values["weights"], values["weights_sha256"], values["tuning"]
    names = ("torch", "timm", "avalanche-lib")
    return {
        "configuration": {**values, "version": __version__},
        "backbone": backbone,
        "code": source_sha256(),
        "code from outside": {
            kind: origin.get("sha256", "") for kind, origin in origins_of(config).items()
        },
        "libraries": {name: metadata.version(name) for name in names},
        "device": device.partition(":")[0],
        "stream": _stream_shape(benchmark),
    }


def _run(config: RunConfig, folder: Path, device: str, log: Log, **watch: Any) -> dict[str, Any]:
    """Do a run, from its checkpoint if there is one that fits; its summary."""
    while True:
        try:
            return _run_once(config, folder, device, log, **watch)
        except StaleCheckpointError as error:
            # Half loaded, the strategy is of no use: everything is built again.
            log(f"a checkpoint does not fit and was removed ({error})")


def _check_unchanged(config: RunConfig, weights_sha256: str) -> None:
    """Check that weights and code are those that the comparison was planned with.

    :raises RuntimeError: naming what has changed.
    """
    if config.weights_sha256 not in ("", weights_sha256):
        raise RuntimeError(
            f"The weights of {config.backbone} have changed since the comparison began: they are "
            f"{weights_sha256[:10]} and were {config.weights_sha256[:10]}."
        )
    origins = origins_of(config)
    recorded = {"method": config.code, "head": config.head_code, **config.data_code}
    for kind, sha256 in recorded.items():
        origin = origins.get(kind, {})
        if sha256 not in ("", origin.get("sha256")):
            raise RuntimeError(
                f"The code of the {kind} has changed since the comparison began: its file "
                f"{origin.get('file')} has other content."
            )


def _of_benchmark(benchmark: Benchmark) -> dict[str, Any]:
    """What config.json says of the data."""
    return {
        "classes_per_experience": [list(c) for c in benchmark.classes_per_experience],
        "samples_per_experience": [sum(c.values()) for c in benchmark.class_counts],
        "first_seen": benchmark.first_seen,
        "train_size": benchmark.train_size,
        "test_size": benchmark.test_size,
        "skipped": benchmark.skipped,
    }


def _run_once(
    config: RunConfig,
    folder: Path,
    device: str,
    log: Log,
    progress: Progress | None,
    logger: RunLogger,
) -> dict[str, Any]:
    """Do a run.

    :raises StaleCheckpointError: if its checkpoint does not fit after all; it is removed then.
    """
    info = backbone_info(load_backbone(config))
    _check_unchanged(config, info.sha256)
    benchmark, normalise = run_images(config)
    workers = loader_workers(benchmark)
    recorder, meter, anytime = PredictionRecorder(), Meter(progress), None
    plugins: list[SupervisedPlugin] = [normalise, recorder, meter, logger, FiniteOutputs()]
    if isinstance(progress, Listener):
        plugins.append(Listening(recorder, progress))
    if config.eval_every_samples:
        anytime = AnytimeEvaluation(
            benchmark.test_stream,
            every=config.eval_every_samples,
            subset=config.eval_subset or None,
            eval_kwargs={"num_workers": workers},
        )
        plugins.append(anytime)
    reset_peak_memory(device)
    strategy = build_strategy(config, benchmark.num_classes, device, plugins)
    if not isinstance(strategy, FrozenBackboneStrategy) and not current_execution().no_checks:
        strategy.plugins.insert(0, FiniteLoss())
    described, spec = describe(strategy), get_method(config.method)
    _write_config(
        folder,
        config,
        {key: getattr(info, key) for key in ("name", "sha256", "source", "image_size")},
        ran=described.record(),
        method_origin=dict(spec.origin),
        origins=origins_of(config),
        data=_of_benchmark(benchmark),
        uses_boundaries=spec.uses_boundaries or described.uses_boundaries,
        source_sha256=source_sha256(),
        **environment(device),
    )
    routing = None
    if routed := bool(routing_state(strategy.model)):
        first = exposed_tests(benchmark, len(benchmark.class_counts))[0]
        routing = RoutingRecorder(first, normalise.images)
    checkpoints = Checkpoints(
        folder,
        _identity(config, benchmark, info.sha256, device),
        log,
        every=current_execution().checkpoint_every,
        by_part=config.boundary_free,
        resume=not current_execution().fresh,
    )
    start = time.perf_counter()
    run_strategy(
        *(strategy, benchmark, recorder, checkpoints, log, meter, anytime),
        *(config.boundary_free, workers, routing),
        _stream_images(benchmark, normalise.images, strategy.device),
    )
    share = checkpoints.seconds / max(time.perf_counter() - start, 1e-9)
    log(f"{checkpoints.written} checkpoints, {100 * share:.2f} % of the time")
    n, more = len(benchmark.classes_per_experience), [] if routing is None else routing.rows
    samples, trained = recorder.points[-1].samples_seen, described.trainable_parameters
    # A model that learns by itself says how many updates it made.
    steps = describe(strategy).own_updates
    if steps is None:
        steps = int(strategy.clock.train_iterations) * config.gradient_steps if trained else 0
    summary: dict[str, Any] = {
        **summarise(recorder.points, n, config.eval_every_samples or None),
        **meter.summary(samples),
        "trainable_parameters": trained,
        "peak_memory_bytes": peak_memory(device),
        "state_bytes": state_bytes(strategy),  # after the peak, which a copy of it would raise
        "gradient_steps": steps,
        "samples_seen": samples,
        "status": "done",
    }
    write_text(folder / "metrics.csv", metrics_csv(recorder.points, summary, n, more), False)
    if routed:
        # For `explain`: what is drawn is what this run has learned.
        about = {"config_hash": config.config_hash(), "backbone_sha256": info.sha256}
        save_tensors(folder / WEIGHTS, routing_state(strategy.model), about)
    return summary
