"""One run: reads a RunConfig, trains once over the stream, writes one run directory.

A run knows nothing of other runs. It writes checkpoints (:mod:`.checkpoint`) and goes on from the
last one; a resumed run ends with the very numbers of an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import os
import random
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from avalanche.benchmarks import split_online_stream
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from torch import nn

from avalanche_rwf.benchmarks import Benchmark, create_benchmark
from avalanche_rwf.benchmarks.images import Normalisation
from avalanche_rwf.benchmarks.registry import get_benchmark
from avalanche_rwf.benchmarks.stream_registry import get_stream
from avalanche_rwf.evaluation.metrics import (
    METRICS,
    accuracy_exposed,
    accuracy_matrix,
    class_accuracy_matrix,
    experience_ends,
    summarise,
)
from avalanche_rwf.evaluation.recorder import AnytimeEvaluation, PredictionRecorder
from avalanche_rwf.evaluation.routing import RoutingProbe, probe_images
from avalanche_rwf.evaluation.stream_position import stream_counter
from avalanche_rwf.experiments.checkpoint import (
    FRESH,
    Checkpoints,
    Keeps,
    Position,
    RunState,
    StaleCheckpointError,
    checkpoint_every,
    clear_leftovers,
    part_of,
    remove,
)
from avalanche_rwf.experiments.config import BUSY, RunConfig, run_directory
from avalanche_rwf.experiments.data_loading import (
    NormaliseOnDevice,
    loader_workers,
    normalises,
    training_workers,
)
from avalanche_rwf.experiments.failures import (
    failure_reason,
    free_memory,
    largest_that_fits,
    out_of_memory,
)
from avalanche_rwf.experiments.run_logger import RunLogger
from avalanche_rwf.experiments.signals import RunStopped, stop_requested
from avalanche_rwf.experiments.store import (
    environment,
    locked,
    read_json,
    save_tensors,
    source_sha256,
    write_json,
    write_text,
)
from avalanche_rwf.models.backbone import backbone_info, create_backbone
from avalanche_rwf.models.classifier import FrozenViT
from avalanche_rwf.models.heads import HEADS
from avalanche_rwf.routing.model import RoutedViT
from avalanche_rwf.strategies.base import FrozenBackboneStrategy, NonFiniteLossError
from avalanche_rwf.strategies.registry import create_strategy, get_method
from avalanche_rwf.utils.untrusted_io import read_file
from avalanche_rwf.utils.user_code import origin_of
from avalanche_rwf.version import __version__

__all__ = [
    "WEIGHTS",
    "Listener",
    "Listening",
    "Progress",
    "RoutingRecorder",
    "build_benchmark",
    "build_strategy",
    "exposed_tests",
    "load_backbone",
    "reads_boundaries",
    "routing_state",
    "run",
    "run_strategy",
    "train_experience",
]

Progress = Callable[[int], None]
"""Called with the number of training samples that a step has seen."""


@runtime_checkable
class Listener(Protocol):
    """A :data:`Progress` that wants to know accuracies too."""

    def __call__(self, samples: int) -> None:
        """Take in the training samples of a step."""

    def evaluated(self, accuracy: float) -> None:
        """Take in the accuracy of an evaluation, in mid-stream or at an experience's end."""


WEIGHTS = "weights.safetensors"
"""In the directory of a finished run of a routed method: :func:`routing_state`."""


@functools.lru_cache(maxsize=2)
def _backbone(
    name: str,
    weights: str | None,
    image_size: int | None,
    args: tuple[tuple[str, Any], ...],
    prepared: tuple[tuple[str, Any], ...],
) -> nn.Module:
    # Random weights (pretrained=False) are drawn from a seed of their own: the same in every
    # process, and not from whatever was drawn before.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_backbone(
            name,
            weights=weights,
            image_size=image_size,
            data_config=dict(prepared) or None,
            **dict(args),
        )


def load_backbone(config: RunConfig) -> nn.Module:
    """The configuration's backbone; loaded once per process, copied by who trains it."""
    # What was a tuple is a list in JSON.
    args, prepared = (
        tuple(
            (key, tuple(value) if isinstance(value, list) else value)
            for key, value in sorted(values.items())
        )
        for values in (config.backbone_args, config.data_config)
    )
    return _backbone(config.backbone, config.weights, config.image_size, args, prepared)


def build_benchmark(config: RunConfig, normalised: bool = True) -> Benchmark:
    """The configuration's stream at its seed, with the transforms that the backbone wants.

    :param normalised: False leaves images uint8 where they are held so, for
        :class:`.data_loading.NormaliseOnDevice`.
    """
    info = backbone_info(load_backbone(config))
    return create_benchmark(
        config.benchmark,
        seed=config.seed,
        experiences=config.experiences,
        image_size=info.image_size,
        mean=info.mean,
        std=info.std,
        interpolation=info.interpolation,
        crop_pct=info.crop_pct,
        skip_corrupt=config.skip_corrupt,
        augment=config.augment,
        holdout=config.holdout,
        stream=config.stream,
        stream_options=config.stream_options,
        normalised=normalised,
        test_share=config.test_share,
        split_seed=config.split_seed,
    )


def build_strategy(
    config: RunConfig,
    num_classes: int,
    device: str = "cpu",
    plugins: list[SupervisedPlugin] | None = None,
    evaluator: EvaluationPlugin | None = None,
) -> Any:
    """The configuration's strategy, from the seed alone; by default it prints nothing."""
    _set_seed(config.seed)
    return create_strategy(
        config.method,
        backbone=copy.deepcopy(load_backbone(config)),
        num_classes=num_classes,
        loop={
            "train_mb_size": config.batch_size,
            "train_epochs": 1,
            "eval_mb_size": max(64, config.batch_size),
            "device": device,
            "plugins": plugins or [],
            # Nothing to print: the recorder keeps what the metrics need.
            "evaluator": evaluator or _silent_evaluator(),
            "gradient_steps": config.gradient_steps,
            "precision": config.precision,
        },
        **config.options,
    )


def reads_boundaries(config: RunConfig, strategy: Any) -> bool:
    """Whether training reads where an experience begins or which classes it has."""
    by_method = get_method(config.method).uses_boundaries
    return by_method or bool(getattr(strategy, "uses_boundaries", False))


def _silent_evaluator() -> EvaluationPlugin:
    with warnings.catch_warnings():
        # Avalanche warns that nothing will be logged; here the recorder logs.
        warnings.simplefilter("ignore")
        return EvaluationPlugin(collect_all=False)


def _set_seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class _Meter(SupervisedPlugin):
    """Training samples, the seconds of training and of evaluation, and how many images went
    through a backbone for it.
    """

    def __init__(self, progress: Progress | None) -> None:
        super().__init__()
        self.progress = progress
        self._reported = 0
        self.eval_seconds = 0.0
        self.forward_images = 0
        self._trained = 0.0
        self._since = 0.0
        self._training: Callable[[], float] | None = None

    @property
    def train_seconds(self) -> float:
        """Seconds of training so far, without evaluations and checkpoints."""
        return self._trained + (self._training() if self._training is not None else 0.0)

    @contextlib.contextmanager
    def training(self, checkpoints: Checkpoints | None) -> Iterator[None]:
        """Count the time in here as training, but for what evaluations and checkpoints take."""

        def other() -> float:
            return self.eval_seconds + (checkpoints.seconds if checkpoints is not None else 0.0)

        start, before = time.perf_counter(), other()
        self._training = lambda: time.perf_counter() - start - (other() - before)
        try:
            yield
        finally:
            self._trained, self._training = self.train_seconds, None

    def state_dict(self) -> dict[str, Any]:
        """What has been counted, for a checkpoint."""
        return {
            "train_seconds": self.train_seconds,
            "eval_seconds": self.eval_seconds,
            "forward_images": self.forward_images,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._trained = float(state["train_seconds"])
        self.eval_seconds = float(state["eval_seconds"])
        self.forward_images = int(state["forward_images"])

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Note what has been counted before, in another process maybe."""
        self._reported = stream_counter(strategy).position.samples_seen

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Report the step's samples."""
        if self.progress is not None:
            counter = stream_counter(strategy)
            counter.after_training_iteration(strategy)
            seen = counter.position.samples_seen
            self.progress(seen - self._reported)
            self._reported = seen

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def after_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Stop the clock."""
        self.eval_seconds += time.perf_counter() - self._since

    @contextlib.contextmanager
    def counting(self, strategy: Any) -> Iterator[None]:
        """Count the images that enter a ViT in training: replayed ones and second passes too."""

        def count(embedding: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if strategy.is_training:
                self.forward_images += len(args[0])

        # L2P's query network is not everywhere a part of the model.
        networks = (strategy.model, getattr(strategy, "original_vit", None))
        embeddings = {
            module
            for network in networks
            if isinstance(network, nn.Module)
            for name, module in network.named_modules()
            if name.rpartition(".")[2] == "patch_embed"
        }
        hooks = [embedding.register_forward_hook(count) for embedding in embeddings]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class Listening(SupervisedPlugin):
    """Tells the accuracy of each evaluation.

    :param recorder: which records it; it comes before this plugin.
    """

    def __init__(self, recorder: PredictionRecorder, listener: Listener) -> None:
        super().__init__()
        self.recorder, self.listener = recorder, listener

    def after_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Tell it."""
        if self.recorder.points:
            self.listener.evaluated(accuracy_exposed(self.recorder.points[-1]))


class _FiniteLoss(SupervisedPlugin):
    """Ends a run whose loss is not finite; strategies of this package see to that themselves."""

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Look at the step's loss.

        :raises NonFiniteLossError: naming the step.
        """
        loss = strategy.loss
        if isinstance(loss, torch.Tensor) and not bool(torch.isfinite(loss.detach()).all()):
            raise NonFiniteLossError(
                f"The loss is not finite at training step {strategy.clock.train_iterations} "
                f"({float(loss.detach().mean()):g}): lower the learning rates."
            )


class _NoNaN(SupervisedPlugin):
    """Ends a run that predicts by NaN: the last step may break the weights, and no loss tells.

    An output of -inf is that of a class that has not been seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self._found: torch.Tensor | None = None

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Begin."""
        self._found = None

    def after_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Look at a mini-batch's outputs, without waiting for the accelerator."""
        if isinstance(strategy.mb_output, torch.Tensor):
            found = torch.isnan(strategy.mb_output.detach()).any()
            self._found = found if self._found is None else self._found | found

    def after_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Say what was found.

        :raises NonFiniteLossError: naming the step.
        """
        if self._found is not None and bool(self._found):
            raise NonFiniteLossError(
                f"The outputs are not finite in the evaluation after "
                f"{strategy.clock.train_iterations} training steps: lower the learning rates."
            )


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


def _reset_peak_memory(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.init()
        torch.cuda.reset_peak_memory_stats(device)
        return
    # Linux: the process's high-water mark starts again at its present size.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory(device: str) -> int:
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _trainable(strategy: Any) -> int:
    model = strategy.model
    if hasattr(model, "trainable_parameters"):
        return int(model.trainable_parameters())
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _gradient_steps(strategy: Any, config: RunConfig) -> int:
    """Updates of the whole run; a model that learns by itself says how many it made."""
    if hasattr(strategy.model, "own_gradient_steps"):
        return int(strategy.model.own_gradient_steps())
    steps = int(strategy.clock.train_iterations) * config.gradient_steps
    return steps if _trainable(strategy) else 0


class RoutingRecorder:
    """Routing metrics at experience ends, on test images of the first experience's classes.

    Where a stream begins with experiences without samples, it is the first experience with some:
    before its end the images' classes have not been learned, and drift would be that from the
    initial values.

    The probe is read between training and evaluation; nothing is drawn, so the run's other numbers
    are the same without it.

    :param experience: the first test experience with samples.
    :param normalise: what is done to its images if they are uint8.
    """

    def __init__(self, experience: Any, normalise: Callable[[torch.Tensor], torch.Tensor]) -> None:
        images = probe_images(experience)
        self.probe = RoutingProbe(normalise(images) if images.dtype == torch.uint8 else images)
        self.experience = int(experience.current_experience)
        self.rows: list[tuple[int, str, float]] = []  # samples seen, metric, value

    def record(self, model: Any, samples_seen: int) -> None:
        """Read the probe."""
        values = self.probe.measure(model)
        self.rows += [(samples_seen, name, value) for name, value in values.items()]

    def state_dict(self) -> dict[str, Any]:
        """Everything so far, for a checkpoint."""
        return {"probe": self.probe.state_dict(), "rows": [list(row) for row in self.rows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.probe.load_state_dict(state["probe"])
        self.rows = [(int(seen), str(name), float(value)) for seen, name, value in state["rows"]]


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


def _metrics_csv(
    points: list[Any],
    summary: dict[str, Any],
    n_experiences: int,
    routing: RoutingRecorder | None = None,
) -> str:
    """``samples_seen,experience,metric,value``; repr keeps every bit of a value.

    ``experience`` is a test experience. A value of the whole stream leaves it empty; so does that
    of a class, whose number is in the metric's name: ``accuracy_class_<c>``. Routing metrics are
    those of test images of the experience of their rows, as its ``accuracy`` is.
    """
    rows = ["samples_seen,experience,metric,value"]
    ends = list(experience_ends(points).values())
    for point in points:
        rows.append(f"{point.samples_seen},,accuracy_exposed,{accuracy_exposed(point)!r}")
        if point.experience is not None and point in ends:
            accuracies = accuracy_matrix([point], n_experiences)[point.experience]
            for e, value in enumerate(accuracies.tolist()):
                if value == value:
                    rows.append(f"{point.samples_seen},{e},accuracy,{value!r}")
            by_class = class_accuracy_matrix([point], n_experiences)[point.experience]
            for c, value in enumerate(by_class.tolist()):
                if value == value:
                    rows.append(f"{point.samples_seen},,accuracy_class_{c},{value!r}")
    if routing is not None:
        first = routing.experience
        rows += [f"{seen},{first},{name},{value!r}" for seen, name, value in routing.rows]
    last = points[-1].samples_seen if points else 0
    for name in (name for name, metric in METRICS.items() if metric.function is not None):
        if summary[name] is not None:
            rows.append(f"{last},,{name},{float(summary[name])!r}")
    return "\n".join(rows) + "\n"


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
    checkpoints: Checkpoints | None = None,
    log: Callable[[str], None] = lambda line: None,
    meter: _Meter | None = None,
    anytime: AnytimeEvaluation | None = None,
    boundary_free: bool = False,
    workers: int = 0,
    routing: RoutingRecorder | None = None,
    images: Callable[[Sequence[int]], torch.Tensor] | None = None,
) -> float:
    """Train over the stream once, evaluating on the classes so far after each experience.

    A strategy that does not say what training changed (``trained_state``, or ``resumable``) is
    not checkpointed: plugins may hold more than model and optimizer, and a run that went on
    without that would end with other numbers.

    :param boundary_free: as :func:`train_experience` takes it.
    :param workers: processes that load images; see :mod:`.data_loading`.
    :param images: gives training images by number, for a replay buffer; see :class:`.RunState`.
    :returns: seconds of training, without evaluation.
    :raises StaleCheckpointError: if a checkpoint does not fit after all; the strategy is then half
        loaded and of no use.
    """
    meter = meter or _Meter(None)
    first = Position()
    if checkpoints is not None:
        if not getattr(strategy, "resumable", hasattr(strategy, "trained_state")):
            checkpoints.keeps = False
        optional = {"anytime": anytime, "routing": routing}
        parts: dict[str, Keeps] = {"recorder": recorder, "meter": meter}
        parts.update((name, part) for name, part in optional.items() if part is not None)
        first = _resume(checkpoints, RunState(strategy, parts, images), log)
    if meter.progress is not None and first != Position():
        sizes = [len(experience.dataset) for experience in benchmark.scenario.train_stream]
        done = sum(sizes[: first.experience])
        meter.progress(done + (sizes[first.experience] if first.trained else first.samples))
    # The scenario has experiences without samples too, so that numbers are those of the stream.
    for index, experience in enumerate(benchmark.scenario.train_stream):
        if index < first.experience:
            continue
        here = first if index == first.experience else Position(index)
        if checkpoints is not None:
            checkpoints.begin(here, len(experience.dataset))
        if not here.trained:
            with meter.training(checkpoints), meter.counting(strategy):
                train_experience(strategy, experience, boundary_free, workers, here.samples)
            if routing is not None and index >= routing.experience:
                routing.record(strategy.model, recorder.samples_seen)
        if checkpoints is not None:
            checkpoints.trained()
        tests = exposed_tests(benchmark, index + 1)
        if tests:  # none where a stream begins with experiences without samples
            recorder.begin(index)
            strategy.eval(tests, num_workers=workers)
            accuracy = accuracy_exposed(recorder.points[-1])
            log(f"experience {index}: accuracy on the classes so far {100 * accuracy:.2f} %")
        if checkpoints is not None:
            checkpoints.evaluated()
    return meter.train_seconds


def _resume(checkpoints: Checkpoints, state: RunState, log: Callable[[str], None]) -> Position:
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
        done = read_json(folder / "summary.json")
        if done is not None and done.get("status") == "done":
            with contextlib.suppress(OSError):  # a process may have ended before it did so itself
                remove(folder)
            return done
        if stop_requested():
            raise RunStopped
        with locked(folder) as mine:
            if mine:
                done = read_json(folder / "summary.json")
                status = None if done is None else done.get("status")
                if done is not None and (status == "done" or (status == "failed" and not again)):
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
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            with RunLogger(folder, config, log) as logger:
                summary = _run(config, folder, device, progress, log, logger)
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
            # A signal to all processes has ended those that load images, most often.
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
    finally:
        torch.set_num_threads(threads)
    # Here nothing holds the error any more, and with it the tensors of the functions it came from.
    if summary["status"] == "failed":
        if gpu_full:
            fits = largest_that_fits(config.batch_size, functools.partial(_try, config, device))
            summary["error"] = out_of_memory(config.batch_size, fits)
        free_memory()  # for the runs that follow in this process
        # Where the results cannot be written, neither can this: the summary is returned.
        with contextlib.suppress(OSError):
            log(trace)
            write_json(folder / "summary.json", summary, make_folder=False)
    if summary["status"] == "done":
        remove(folder)
    return summary


def _try(config: RunConfig, device: str, batch_size: int) -> None:
    """Two training steps and an evaluated batch of a configuration with another batch size."""
    config = replace(config, batch_size=batch_size)
    benchmark = build_benchmark(config, normalised=not normalises(config.method))
    info = backbone_info(load_backbone(config))
    plugins: list[SupervisedPlugin] = [NormaliseOnDevice(info.mean, info.std)]
    strategy = build_strategy(config, benchmark.num_classes, device, plugins)

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


def _ran(strategy: Any) -> dict[str, Any]:
    """Head, mask and read-out that a strategy has, also where the method leaves no choice."""
    model = strategy.model
    head = getattr(model, "head", None)
    names = [name for name, kind in HEADS.items() if type(head) is kind]
    if isinstance(head, nn.Linear):
        names = ["linear"]
    mask = getattr(strategy, "mask", None) if getattr(strategy, "trains", True) else "none"
    if mask == "decoupled" and getattr(model, "frozen", False) and not model.prompt_groups():
        mask = "seen"  # nothing but a head is trained: that is its part of "decoupled"
    return {
        "head": names[0] if names else None,
        "mask": mask,
        "readout": getattr(strategy, "readout", getattr(model, "readout", None)),
        # With a closed-form head prompts learn through a head of their own.
        "training_head": "white" if getattr(model, "training_head", None) is not None else None,
        "clip_norm": getattr(strategy, "clip_norm", None),
        **_ran_on(model),
    }


def _ran_on(model: nn.Module) -> dict[str, Any]:
    """The blocks that a model used, and what stands for an image: "token", or a pooling's name."""
    if not isinstance(model, FrozenViT):
        return {}
    used = {"prompted": model.prompted_blocks(), "readout": model.readout_blocks}
    if isinstance(model, RoutedViT):
        used["routed"] = model.routed_blocks()
    blocks = {f"{name}_blocks": list(indices) for name, indices in used.items() if indices}
    return {**blocks, "pooling": model.pooling}


def origins_of(config: RunConfig) -> dict[str, dict[str, str]]:
    """Where the code that a run uses comes from, of what is not this package's.

    :returns: "method", "benchmark", "stream" or "head" -> :func:`.user_code.origin_of` it.
    """
    head = HEADS.get(str(config.options.get("head")))
    used = {
        "method": get_method(config.method).origin,
        "benchmark": get_benchmark(config.benchmark).origin,
        "stream": get_stream(config.stream).origin,
        "head": {} if head is None else origin_of(head),
    }
    return {kind: dict(origin) for kind, origin in used.items() if origin}


def with_code(config: RunConfig) -> RunConfig:
    """The configuration with the hashes of the files that it uses from outside."""
    hashes = {kind: origin.get("sha256", "") for kind, origin in origins_of(config).items()}
    code, head_code = hashes.pop("method", ""), hashes.pop("head", "")
    return replace(config, code=code, head_code=head_code, data_code=hashes)


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


def _run(
    config: RunConfig,
    folder: Path,
    device: str,
    progress: Progress | None,
    log: Callable[[str], None],
    logger: RunLogger,
) -> dict[str, Any]:
    info = backbone_info(load_backbone(config))
    if config.weights_sha256 not in ("", info.sha256):
        raise RuntimeError(
            f"The weights of {config.backbone} have changed since the comparison began: they are "
            f"{info.sha256[:10]} and were {config.weights_sha256[:10]}."
        )
    spec = get_method(config.method)
    origins = origins_of(config)
    recorded = {"method": config.code, "head": config.head_code, **config.data_code}
    for kind, sha256 in recorded.items():
        origin = origins.get(kind, {})
        if sha256 not in ("", origin.get("sha256")):
            raise RuntimeError(
                f"The code of the {kind} has changed since the comparison began: its file "
                f"{origin.get('file')} is another one."
            )
    benchmark = build_benchmark(config, normalised=not normalises(config.method))
    workers = loader_workers(benchmark)
    recorder = PredictionRecorder()
    meter = _Meter(progress)
    plugins: list[SupervisedPlugin] = [
        *(NormaliseOnDevice(info.mean, info.std), recorder, meter, logger, _NoNaN()),
    ]
    if isinstance(progress, Listener):
        plugins.append(Listening(recorder, progress))
    anytime = None
    if config.eval_every_samples:
        anytime = AnytimeEvaluation(
            benchmark.test_stream,
            every=config.eval_every_samples,
            subset=config.eval_subset or None,
            eval_kwargs={"num_workers": workers},
        )
        plugins.append(anytime)
    _reset_peak_memory(device)
    strategy = build_strategy(config, benchmark.num_classes, device, plugins)
    if not isinstance(strategy, FrozenBackboneStrategy):
        strategy.plugins.insert(0, _FiniteLoss())
    _write_config(
        folder,
        config,
        {key: getattr(info, key) for key in ("name", "sha256", "source", "image_size")},
        ran=_ran(strategy),
        method_origin=dict(spec.origin),
        origins=origins,
        data={
            "classes_per_experience": [list(c) for c in benchmark.classes_per_experience],
            "samples_per_experience": [sum(c.values()) for c in benchmark.class_counts],
            "first_seen": benchmark.first_seen,
            "train_size": benchmark.train_size,
            "test_size": benchmark.test_size,
            "skipped": benchmark.skipped,
        },
        uses_boundaries=reads_boundaries(config, strategy),
        source_sha256=source_sha256(),
        **environment(device),
    )
    trainable = _trainable(strategy)
    normalisation = Normalisation(info.mean, info.std)
    routed = bool(routing_state(strategy.model))
    routing = None
    if routed:
        first = exposed_tests(benchmark, len(benchmark.class_counts))[0]
        routing = RoutingRecorder(first, normalisation)
    checkpoints = Checkpoints(
        folder,
        _identity(config, benchmark, info.sha256, device),
        log,
        every=checkpoint_every(),
        by_part=config.boundary_free,
        resume=not os.environ.get(FRESH),
    )
    start = time.perf_counter()
    try:
        seconds = run_strategy(
            strategy,
            benchmark,
            recorder,
            checkpoints,
            log,
            meter,
            anytime,
            config.boundary_free,
            workers,
            routing,
            _stream_images(benchmark, normalisation, strategy.device),
        )
    except StaleCheckpointError as error:
        # Half loaded, the strategy is of no use: everything is built again.
        log(f"a checkpoint does not fit and was removed ({error})")
        return _run(config, folder, device, progress, log, logger)
    share = checkpoints.seconds / max(time.perf_counter() - start, 1e-9)
    log(f"{checkpoints.written} checkpoints, {100 * share:.2f} % of the time")
    n = len(benchmark.classes_per_experience)
    every = config.eval_every_samples or None
    summary: dict[str, Any] = dict(summarise(recorder.points, n, every))
    samples = recorder.points[-1].samples_seen
    summary.update(
        train_seconds=seconds,
        eval_seconds=meter.eval_seconds,
        eval_share=meter.eval_seconds / max(seconds + meter.eval_seconds, 1e-9),
        train_samples_per_second=samples / seconds if seconds > 0 else None,
        forward_passes_per_image=meter.forward_images / samples if samples else None,
        trainable_parameters=trainable,
        peak_memory_bytes=_peak_memory(device),
        gradient_steps=_gradient_steps(strategy, config),
        samples_seen=samples,
        status="done",
    )
    write_text(folder / "metrics.csv", _metrics_csv(recorder.points, summary, n, routing), False)
    if routed:
        # For `explain`: what is drawn is what this run has learned.
        about = {"config_hash": config.config_hash(), "backbone_sha256": info.sha256}
        save_tensors(folder / WEIGHTS, routing_state(strategy.model), about)
    return summary
