"""Checkpoints of a run: when they are written, what is in them, and going on to the last bit.

A checkpoint is taken after a training step (or, in a stream of mini-batches, after a mini-batch's
sub-experience), after an experience was trained on, and after it was evaluated. It holds what
training has changed and where the run is: the strategy's trained tensors, optimizer, closed-form
statistics, seen classes and replay buffer (which images, not the images), the records of metrics,
all random generators, and how many samples of which experience have been trained on. The order of
the samples is the benchmark's, a function of the seed.

Within an experience a resumed run skips what it has trained on and restores the state in the first
step. By then Avalanche has begun the experience a second time (drawn a seed for the loader, made an
optimizer anew); restoring undoes that.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import functools
import hashlib
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader
from avalanche.training.plugins import EvaluationPlugin, LRSchedulerPlugin, SupervisedPlugin
from avalanche.training.templates.base_sgd import PeriodicEval
from torch import Tensor

from avalanche_rwf.errors import UsageError
from avalanche_rwf.evaluation.loader_order import on_each_loader
from avalanche_rwf.evaluation.stream_position import StreamCounter, stream_counter
from avalanche_rwf.experiments.plugin_state import TEMPLATE, Attributes
from avalanche_rwf.experiments.signals import RunStopped, stop_requested
from avalanche_rwf.strategies.base import FrozenBackboneStrategy
from avalanche_rwf.strategies.saving import load_optimizer
from avalanche_rwf.utils.atomic_io import StateFileError, read_state, save_state
from avalanche_rwf.utils.random_state import random_state, set_random_state
from avalanche_rwf.utils.validation import AnyPath, Flag, Instance, Whole, takes

__all__ = [
    "NAME",
    "PREVIOUS",
    "CheckpointPlugin",
    "Checkpoints",
    "ResumePoint",
    "RunState",
    "Schedule",
    "StaleCheckpointError",
    "Stateful",
    "StopWhenAsked",
    "clear_leftovers",
    "difference",
    "part_of",
    "remove",
]

NAME, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
"""The newest checkpoint of a run directory, and the one before it."""

_FORMAT = 4
# Share of the time for writing. 3 % are promised, but a state may grow until the next one.
_SHARE = 0.025


class StaleCheckpointError(Exception):
    """A checkpoint that can be read but cannot be put into this strategy."""


class Stateful(Protocol):
    """Something with a state of tensors and plain values."""

    def state_dict(self) -> dict[str, Any]:
        """The state."""

    def load_state_dict(self, state: Any) -> Any:
        """Put it back."""


@dataclass(frozen=True)
class ResumePoint:
    """Where a run goes on from its checkpoint: what its loop does next.

    How much was trained on is counted by :class:`.StreamPosition`; that an experience's evaluation
    comes next, or that it is done, only the loop knows.

    :param experience: index of the experience to train on or to evaluate next.
    :param samples: of it that have been trained on.
    :param trained: all of it has been, and its evaluation comes next.
    """

    experience: int = 0
    samples: int = 0
    trained: bool = False


class Schedule:
    """Says when a checkpoint is due.

    :param every: training steps between two; those at experience ends come on top, and 0 leaves
        these alone. None: whenever the time since the last one is so long that writing costs at
        most 2.5 % of it.
    :param size: bytes of a state, from which the first one's cost is guessed.
    """

    def __init__(self, every: int | None = None, size: int = 0) -> None:
        self.every = every
        self.cost = 0.01 + size / 2e8  # seconds; a slow disk
        self._last = time.perf_counter()
        self._steps = 0

    def step(self) -> bool:
        """Count a training step; whether a checkpoint is due after it."""
        self._steps += 1
        if self.every is None:
            return self._affordable()
        return self.every > 0 and self._steps >= self.every

    def end(self) -> bool:
        """Whether a checkpoint is due at an experience's end."""
        return self.every is not None or self._affordable()

    def wrote(self, seconds: float) -> None:
        """Note what a checkpoint has cost."""
        self.cost = seconds
        self._last = time.perf_counter()
        self._steps = 0

    def _affordable(self) -> bool:
        return (time.perf_counter() - self._last) * _SHARE >= self.cost


def strategy_state(strategy: Any, images: bool = True) -> dict[str, Any]:
    """Our strategies know what training changed; for others it is the model and the optimizer.

    :param images: whether a replay buffer's images are in it, or their numbers alone.
    """
    if hasattr(strategy, "trained_state"):
        # A user's class may have its own, which takes nothing.
        ours = getattr(type(strategy), "trained_state", None)
        if images or ours is not FrozenBackboneStrategy.trained_state:
            return dict(strategy.trained_state())
        return dict(strategy.trained_state(images=False))
    return {
        "model": strategy.model.state_dict(),
        "optimizer": strategy.optimizer.state_dict(),
        "iterations": strategy.clock.train_iterations,
        "experiences": strategy.clock.train_exp_counter,
    }


def load_strategy_state(strategy: Any, state: Mapping[str, Any]) -> None:
    """Put back what :func:`strategy_state` gave.

    :raises ValueError: if it does not fit.
    """
    if hasattr(strategy, "load_trained_state"):
        strategy.load_trained_state(state)
        return
    strategy.model.load_state_dict(state["model"])
    if getattr(strategy, "optimized_param_id", 0) is None:
        # Avalanche does so before the first step, and would lose the optimizer's state.
        strategy.make_optimizer(reset_optimizer_state=True)
    load_optimizer(strategy.optimizer, state["optimizer"])
    strategy.clock.train_iterations = state["iterations"]
    strategy.clock.train_exp_counter = state["experiences"]


_COUNTERS = (
    *("train_iterations", "train_exp_counter", "train_exp_epochs"),
    *("train_exp_iterations", "train_epoch_iterations", "total_iterations"),
)


class RunState:
    """All that a run has changed, to be taken out and put back.

    :param strategy: the strategy.
    :param parts: what else keeps a state, by name (recorders, meters).
    :param images: gives training images [n, 3, H, W] by their numbers in the stream, as the
        strategy was given them; with it a checkpoint holds no images of a replay buffer.
    """

    def __init__(
        self,
        strategy: Any,
        parts: Mapping[str, Stateful],
        images: Callable[[Sequence[int]], Tensor] | None = None,
    ) -> None:
        self.strategy, self.parts, self.images = strategy, dict(parts), images

    def collect(self, rng: dict[str, Any] | None = None) -> dict[str, Any]:
        """The state; its tensors are those at work and not copies.

        :param rng: the generators' state, if not that of this moment.
        """
        clock = self.strategy.clock
        return {
            "strategy": strategy_state(self.strategy, images=self.images is None),
            "clock": {name: int(getattr(clock, name)) for name in _COUNTERS},
            "counter": stream_counter(self.strategy).state_dict(),
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "rng": random_state() if rng is None else rng,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Put a state back; the images that a buffer held are read again.

        :raises StaleCheckpointError: if it does not fit.
        """
        try:
            replay = state["strategy"].get("replay")
            if replay is not None and "images" not in replay:
                if self.images is None:
                    raise ValueError("the buffer's images are not in it")
                numbers = [n for _, _, members, _ in replay["groups"] for n in members]
                replay["images"] = self.images(numbers) if numbers else torch.zeros(0)
            load_strategy_state(self.strategy, state["strategy"])
            stream_counter(self.strategy).load_state_dict(state["counter"])
            for name, part in self.parts.items():
                part.load_state_dict(state["parts"][name])
            for name in _COUNTERS:
                setattr(self.strategy.clock, name, int(state["clock"][name]))
            set_random_state(state["rng"])
        except (
            *(KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError),
            OSError,  # an image that is gone
        ) as error:
            raise StaleCheckpointError(f"{type(error).__name__}: {error}") from error

    def size(self) -> int:
        """Bytes of the tensors in it."""

        def count(value: Any) -> int:
            if isinstance(value, Tensor):
                return value.numel() * value.element_size()
            if isinstance(value, Mapping):
                return sum(map(count, value.values()))
            return sum(map(count, value)) if isinstance(value, (list, tuple)) else 0

        return count(strategy_state(self.strategy, images=False))


def difference(saved: Mapping[str, Any], here: Mapping[str, Any], within: str = "") -> list[str]:
    """What differs between two nested dictionaries, in words: "batch_size (8, here 16)"."""
    found = []
    for key in dict.fromkeys([*saved, *here]):
        a, b = saved.get(key), here.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += difference(a, b, f"{within}{key}.")
        elif _lists(a) != _lists(b):
            short = [text if len(text) <= 40 else f"{text[:37]}..." for text in (str(a), str(b))]
            found.append(f"{within}{key} ({short[0]}, here {short[1]})")
    return found


def _lists(value: Any) -> Any:
    """Tuples are lists in a file."""
    return [_lists(v) for v in value] if isinstance(value, (list, tuple)) else value


def remove(folder: Path) -> None:
    """Remove the checkpoints of a run directory."""
    for name in (NAME, PREVIOUS):
        (folder / name).unlink(missing_ok=True)


def part_of(experience: Any, start: int, stop: int | None = None) -> Any:
    """The experience with its samples from `start` to before `stop`, in the same order."""
    samples = range(len(experience.dataset))[start:stop]
    if len(samples) == len(experience.dataset):
        return experience
    part = copy.copy(experience)
    part.dataset = experience.dataset.subset(samples)
    return part


class _RestoreAtStart(SupervisedPlugin):
    """Skips the trained batches of a resumed experience; restores the state in the first step.

    The experience keeps all samples, because plugins may read them at its end.

    :param batches: that were trained on.
    :param restore: puts the state back.
    """

    def __init__(self, batches: int, restore: Callable[[], None]) -> None:
        super().__init__()
        self._batches, self._restore = batches, restore

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Let the loader skip the batches."""
        _skip_batches(strategy.dataloader, self._batches)

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Restore the state, once."""
        strategy.plugins = [plugin for plugin in strategy.plugins if plugin is not self]
        self._restore()


class _SkippingSampler:
    """A batch sampler without its first batches, which are not loaded either."""

    def __init__(self, sampler: Any, batches: int) -> None:
        self._sampler, self._batches = sampler, batches

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self._sampler), self._batches, None)

    def __len__(self) -> int:
        return max(len(self._sampler) - self._batches, 0)


def _skip_batches(loader: Any, batches: int) -> None:
    """Let a loader begin after so many batches."""

    def skip(one: Any) -> None:
        # The loader refuses to be given another sampler after it was made.
        vars(one)["batch_sampler"] = _SkippingSampler(one.batch_sampler, batches)

    on_each_loader(loader, skip)
    if isinstance(loader, MultiDatasetDataLoader):
        loader.n_iterations -= batches


class Checkpoints(SupervisedPlugin):
    """Writes and finds the checkpoints of one run, and stops it where it can go on from.

    It must be called after every other plugin: append it to ``strategy.plugins``.

    :param folder: the run directory.
    :param identity: what a checkpoint must have been made by to be of use: nested dictionaries of
        plain values.
    :param log: gets a sentence about each file that is not used, and why.
    :param every: see :class:`Schedule`.
    :param by_part: training is on sub-experiences of one mini-batch: a checkpoint is taken after
        them and not after steps, so that their end has been noted everywhere.
    :param resume: False removes the checkpoints that there are.
    :param stop: whether the run has been asked to stop.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        log: Callable[[str], None] = lambda line: None,
        *,
        every: int | None = None,
        by_part: bool = False,
        resume: bool = True,
        stop: Callable[[], bool] = stop_requested,
    ) -> None:
        super().__init__()
        self.folder, self.identity, self.log = folder, identity, log
        self.by_part, self.stop = by_part, stop
        self.younger: tuple[str, ...] = ()  # parts of the identity that old checkpoints lack
        self.within = True  # False writes at experience ends alone
        self.keeps = True  # False writes and finds nothing; the run can be stopped all the same
        self.seconds, self.written = 0.0, 0  # spent on writing, and how often it was done
        self._every = every
        self._resume = resume
        self._schedule = Schedule(every)
        self._run: RunState | None = None
        self._next = ResumePoint()
        self._size = 0
        self._shuffles = False
        self._in_order = False
        self._evaluating: dict[str, Any] | None = None
        self._found = folder / NAME

    def find(self) -> dict[str, Any] | None:
        """The newest checkpoint that is whole and belongs to this run."""
        if not self._resume or not self.keeps:
            remove(self.folder)
            return None
        for name in (NAME, PREVIOUS):
            path = self.folder / name
            if not path.exists() and not path.is_symlink():
                continue
            try:
                state = read_state(path)
            except StateFileError as error:
                self.log(f"a checkpoint is not used: {error}")
                continue
            if state.get("format") != _FORMAT:
                self.log(
                    f"a checkpoint is not used: {name!r} has the format {state.get('format')!r} "
                    f"and not {_FORMAT}"
                )
                continue
            saved = state.get("identity")
            saved = saved if isinstance(saved, dict) else {}
            here = {k: v for k, v in self.identity.items() if k in saved or k not in self.younger}
            differs = difference(saved, here)
            if not differs:
                self._found = path
                return state
            self.log(f"a checkpoint is not used: {name!r} is of another {', '.join(differs)}")
        return None

    def attach(
        self, run: RunState, state: dict[str, Any] | None, at_once: bool = False
    ) -> ResumePoint:
        """Begin to watch a run, from a checkpoint if there is one; where it is to go on.

        Within an experience the state is put back in its first step.

        :param at_once: whether it is to be there before that too, for a loop that looks at it.
        :raises StaleCheckpointError: if the checkpoint does not fit after all; its file is removed.
        """
        self._run = run
        stream_counter(run.strategy)
        self._schedule = Schedule(self._every, run.size() if self.keeps else 0)
        run.strategy.plugins.append(self)
        if state is None:
            return ResumePoint()
        try:
            position = ResumePoint(**state["position"])
            batches = int(state["clock"]["train_exp_iterations"])
        except (KeyError, TypeError) as error:
            self._refuse(StaleCheckpointError(f"{type(error).__name__}: {error}"))
        restore = functools.partial(self._restore, state)
        within = position.samples and not position.trained and not self.by_part
        if at_once or not within:
            restore()
        if within:
            # Before any other plugin does something in the first step.
            run.strategy.plugins.insert(0, _RestoreAtStart(batches, restore))
        return position

    def _restore(self, state: dict[str, Any]) -> None:
        assert self._run is not None
        try:
            self._run.restore(state)
        except StaleCheckpointError as error:
            self._refuse(error)

    def _refuse(self, error: StaleCheckpointError) -> NoReturn:
        """Remove a checkpoint that does not fit, and say so."""
        self._found.unlink(missing_ok=True)
        self.detach()
        raise error

    def detach(self) -> None:
        """Watch the run no more."""
        assert self._run is not None
        plugins = self._run.strategy.plugins
        plugins[:] = [p for p in plugins if p is not self and not isinstance(p, _RestoreAtStart)]

    # -- what the run calls ---------------------------------------------------------------------

    def begin(self, position: ResumePoint, size: int) -> None:
        """Training on an experience begins.

        :param size: samples of the whole experience.
        """
        self._next, self._size = position, size

    def trained(self) -> None:
        """The experience has been trained on."""
        self._next = ResumePoint(self._next.experience, self._size, trained=True)
        # Where steps are counted, one checkpoint after the evaluation is enough.
        self._after(self._every is None and self._schedule.end())
        # Evaluation changes the random generators alone. A run that is stopped in it repeats it.
        self._evaluating = random_state()

    def evaluated(self) -> None:
        """The experience has been evaluated."""
        self._evaluating = None
        self._next = ResumePoint(self._next.experience + 1)
        self._after(self._schedule.end())

    # -- what Avalanche calls -------------------------------------------------------------------

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Note whether the samples come in their order: not where Avalanche shuffles, as it does
        unless it is told.
        """
        self._shuffles = bool(kwargs.get("shuffle", True))

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Count the step; write if it is due."""
        counted = stream_counter(strategy).position
        self._next = ResumePoint(self._next.experience, counted.experience_seen)
        # A loader can begin later only where it goes through the samples in order, and no others.
        self._in_order = counted.in_order and not self._shuffles
        if not self.by_part:
            self._after_step()

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """A sub-experience has ended; write if it is due."""
        if self.by_part:
            self._after_step()

    def before_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """If asked to, stop in an evaluation at an experience's end; resuming repeats it."""
        if self._evaluating is not None and self.stop():
            self._write(self._evaluating)
            raise RunStopped

    # -- inside ---------------------------------------------------------------------------------

    def _after_step(self) -> None:
        due = self._schedule.step()
        # At the last step the experience's end comes next.
        if self.within and self._in_order and self._next.samples < self._size:
            self._after(due)

    def _after(self, due: bool) -> None:
        stop = self.stop()
        if due or stop:
            self._write()
        if stop:
            raise RunStopped

    def _write(self, rng: dict[str, Any] | None = None) -> None:
        assert self._run is not None
        if not self.keeps:
            return
        start = time.perf_counter()
        if not self.folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, "The run directory is gone", str(self.folder))
        save_state(
            self.folder / NAME,
            {
                "format": _FORMAT,
                "identity": self.identity,
                "threads": torch.get_num_threads(),
                "position": asdict(self._next),
                **self._run.collect(rng),
            },
            previous=self.folder / PREVIOUS,
        )
        seconds = time.perf_counter() - start
        self.seconds, self.written = self.seconds + seconds, self.written + 1
        self._schedule.wrote(seconds)


def _order(stream: Iterable[Any]) -> str | None:
    """A digest of the labels of a stream's samples in their order; None if they are not told."""
    digest = hashlib.sha256()
    try:
        for experience in stream:
            labels = np.asarray(list(experience.dataset.targets), dtype=np.int64)
            digest.update(len(labels).to_bytes(8, "big") + labels.tobytes())
    except (AttributeError, TypeError, ValueError):
        return None
    return digest.hexdigest()[:16]


class CheckpointPlugin:
    """Checkpoints for a loop of one's own over a stream, which goes on where it was cut.

    Usage::

        checkpoints = CheckpointPlugin("checkpoints")
        strategy = RwFStrategy(..., plugins=[recorder])
        for experience in checkpoints.experiences(strategy, benchmark.train_stream):
            strategy.train(experience, shuffle=False)
            strategy.eval(benchmark.test_stream)

    Started again, the same script gets the rest of the experience that it was in and those that
    follow, and ends with the very weights, recorded points and tables, to the last bit. In the
    checkpoint is, besides what the strategy has trained, the state of all its plugins (buffers of
    replay as numbers of samples of `stream`, earlier models of distillation, importances of
    parameters, schedulers of learning rates), of the evaluator's metrics, and of loggers that have
    ``state_dict`` and ``load_state_dict`` (:class:`DataFrameLogger`). A plugin whose state cannot
    be taken apart into tensors and plain values is refused by name, before the first step where it
    shows there, and else with the first checkpoint. What other loggers have printed or written is
    not in it.

    Within an experience it goes on from where the loader goes through the samples in their order
    and no others. With several epochs, where ``train`` shuffles (Avalanche's default:
    ``shuffle=False`` turns it off), with replayed samples in the batches, and with plugins that
    keep a state of another kind than learning rates, it goes on from the last experience's end.

    :param folder: where ``checkpoint.pt`` and the generation before go; it is made if it is not
        there.
    :param every: training steps between two, besides those after each experience; None spaces
        them so that writing takes less than 3 % of the time.
    :param shuffled: whether the loop shuffles in a way of its own, which ``train`` is not told:
        then, too, nothing is written within an experience.
    :param log: gets a sentence about what is done.
    """

    @takes(
        folder=AnyPath(),
        every=Whole(least=0, optional=True),
        shuffled=Flag(),
        log=Instance(Callable, "a function that takes a sentence"),
    )
    def __init__(
        self,
        folder: str | os.PathLike[str],
        every: int | None = None,
        shuffled: bool = False,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.folder, self.every, self.shuffled, self.log = Path(folder), every, shuffled, log

    def experiences(self, strategy: Any, stream: Iterable[Any]) -> Iterator[Any]:
        """The experiences that are left to train on; `train` passes over the samples of the first
        that were trained on.

        :param stream: the training experiences, in the order of every other start.
        :raises UsageError: if the checkpoint is of another stream or strategy, naming what differs;
            if a plugin, metric or strategy has a state that cannot be saved, naming it.
        """
        stream = list(stream)
        self.folder.mkdir(parents=True, exist_ok=True)
        said: list[str] = []
        # Before anything is put back: a script that was changed, or takes another seed.
        identity = _identity(strategy, stream)
        checkpoints = Checkpoints(self.folder, identity, said.append, every=self.every)
        checkpoints.younger = ("learning rates", "order of the classes")
        parts = _parts(strategy, stream)
        # What cannot be saved is refused before anything is trained. What has a state that an
        # experience's beginning may change cannot begin it twice.
        begins = [
            bool(part.state_dict())
            and isinstance(part, Attributes)
            and not isinstance(part.owner, (EvaluationPlugin, LRSchedulerPlugin, PeriodicEval))
            for part in parts.values()
        ]
        once = strategy.train_epochs == 1
        checkpoints.within = not self.shuffled and once and not any(begins)
        plugins = list(strategy.plugins)
        found = checkpoints.find()
        for line in said:
            self.log(line)
        if found is None and any("is of another" in line for line in said):
            raise UsageError(
                f"folder takes checkpoints of this strategy and stream, and in "
                f"{str(self.folder)!r} {said[-1]}."
            )
        try:
            first = checkpoints.attach(RunState(strategy, parts), found, at_once=True)
        except StaleCheckpointError as error:
            raise UsageError(
                f"folder takes checkpoints of this strategy, and the one in {str(self.folder)!r} "
                f"does not fit ({error})."
            ) from None
        if found is not None:
            self.log(f"resumed in experience {first.experience} after {first.samples} samples")
        try:
            for index, experience in enumerate(stream):
                if index < first.experience:
                    continue
                here = first if index == first.experience else ResumePoint(index)
                checkpoints.begin(here, len(experience.dataset))
                yield experience
                _check_late(strategy, [*plugins, checkpoints])
                checkpoints.evaluated()
        finally:
            checkpoints.detach()


def _identity(strategy: Any, stream: Sequence[Any]) -> dict[str, Any]:
    """What a checkpoint of a strategy and a stream must have been made by."""
    settings = ("train_mb_size", "train_epochs", "gradient_steps", "mask", "precision")
    return {
        "strategy": type(strategy).__name__,
        **{name: getattr(strategy, name, None) for name in settings},
        "stream": [len(experience.dataset) for experience in stream],
        "torch": str(torch.__version__),
        "learning rates": [float(group["lr"]) for group in strategy.optimizer.param_groups],
        "order of the classes": _order(stream),
    }


def _parts(strategy: Any, stream: Sequence[Any]) -> dict[str, Stateful]:
    """What a strategy's plugins, loggers and metrics keep, by name."""
    parts: dict[str, Stateful] = {}
    loggers = list(strategy.evaluator.loggers)
    for place, one in enumerate([*strategy.plugins, *loggers]):
        name = f"{place} {type(one).__name__}"
        if hasattr(one, "state_dict") and hasattr(one, "load_state_dict"):
            parts[name] = one
        elif one is strategy.evaluator:
            parts[name] = Attributes(one, strategy, stream, ("loggers", "_metric_values"))
        elif one is not strategy.clock and not any(one is logger for logger in loggers):
            parts[name] = Attributes(one, strategy, stream)
    if not hasattr(strategy, "trained_state"):
        parts["strategy"] = Attributes(strategy, strategy, stream, TEMPLATE)
    return parts


def _check_late(strategy: Any, known: Sequence[Any]) -> None:
    for plugin in strategy.plugins:
        ours = isinstance(plugin, (StreamCounter, _RestoreAtStart))
        if not ours and vars(plugin) and not any(plugin is one for one in known):
            raise UsageError(
                f"plugins must be complete before CheckpointPlugin begins, and "
                f"{type(plugin).__name__} was added later: it would not be in the checkpoint."
            )


class StopWhenAsked(SupervisedPlugin):
    """Stops training and evaluation that nothing goes on from."""

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Stop after the step."""
        if stop_requested():
            raise RunStopped

    def before_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Stop before the batch."""
        self.after_training_iteration(strategy)


def clear_leftovers(folder: Path) -> None:
    """Remove the temporary files of writes that a killed process left in a run directory."""
    with contextlib.suppress(OSError):
        for path in folder.glob(".*"):
            written = path.name[1:].rpartition(".")[0]
            if written and (written.endswith((".pt", ".json", ".csv", ".txt", ".safetensors"))):
                path.unlink(missing_ok=True)
