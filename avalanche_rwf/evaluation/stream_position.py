"""Where in the training stream a strategy is: samples seen, and the experience they belong to.

There is one :class:`StreamCounter` for a strategy, among its plugins. The recorder, the anytime
evaluation, the logger, checkpoints and the progress of a run all read it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training import JointTraining
from torch import Tensor

from avalanche_rwf.errors import UsageError
from avalanche_rwf.evaluation.loader_order import Drawn

# Targets are looked at only when somebody asks, so that a step never waits for the accelerator;
# at this many kept mini-batches they are folded into the set all the same.
_MAX_PENDING = 512


def attribute(experience: Any, name: str) -> Any:
    """Return an attribute of an experience, or None if it is missing, unset or hidden.

    Recording is not training, so the experience is looked at in logging mode, in which Avalanche
    hides nothing. Should it do so all the same, it raises a ValueError (`MaskedAttributeError`);
    for what no stream has set, an AssertionError.
    """
    try:
        view = experience.logging() if hasattr(experience, "logging") else experience
        return getattr(view, name, None)
    except (ValueError, AssertionError):
        return None


def experience_index(experience: Any) -> int | None:
    """Return the index of the training experience, of the one it was cut from if it was cut.

    :param experience: an Avalanche experience or a sub-experience of `split_online_stream`, in any
        mode.
    :returns: the index; a sub-experience whose origin is unknown gives its own number; None if it
        has none either.
    """
    origin = attribute(experience, "origin_experience")
    index = attribute(experience if origin is None else origin, "current_experience")
    return None if index is None else int(index)


def stream_name(experience: Any) -> str | None:
    """Return the name of the stream that an experience comes from ("train", "test"), or None."""
    return attribute(attribute(experience, "origin_stream"), "name")


def whole_stream(experience: Any) -> Any | None:
    """Return the stream of a benchmark that an experience comes from; None if it is not told.

    The origin that an experience names may be a slice of it. A stream without a length is made
    while it is gone through, and is not told either.
    """
    stream = attribute(experience, "origin_stream")
    with contextlib.suppress(AttributeError, KeyError, TypeError):
        stream = stream.benchmark.streams[stream.name]
    return stream if hasattr(stream, "__len__") else None


def _samples(experiences: Sequence[Any]) -> int | None:
    """Return the number of samples of experiences, None where one has no length."""
    try:
        return sum(len(experience.dataset) for experience in experiences)
    except (AttributeError, TypeError, ValueError):
        return None


@dataclass
class StreamPosition:
    """How much of the stream has been trained on, and whether an experience has been seen whole.

    :param samples_seen: samples of the stream trained on so far, repeated epochs included.
    :param experience: index of the training experience they reached; None before training.
    :param experience_seen: samples of that experience trained on so far, over all its parts.
    :param experience_size: how many there will be, over all its parts and epochs; None if unknown.
    :param part_seen: samples of the current part (an experience, or a sub-experience) trained on.
    :param part_size: how many there will be; None if unknown.
    :param batches_left: mini-batches of the current part still to come; None if unknown.
    :param is_last_part: no part of the experience follows, as far as the stream tells.
    :param in_order: the samples of the current part came once, in the order of its data set, and no
        others.
    :param finished: the end was announced by `finish_part`.
    """

    samples_seen: int = 0
    experience: int | None = None
    experience_seen: int = 0
    experience_size: int | None = None
    part_seen: int = 0
    part_size: int | None = None
    batches_left: int | None = None
    is_last_part: bool = False
    in_order: bool = True
    finished: bool = False

    @property
    def at_experience_end(self) -> bool:
        """True once all samples of the current experience have been trained on.

        Where old samples are mixed with new ones, the new ones can be through before the last step.
        """
        if self.finished:
            return True
        if self.batches_left:
            return False
        if self.experience_size is not None and self.experience_seen >= self.experience_size:
            return True
        return self.is_last_part and self.part_size is not None and self.part_seen >= self.part_size

    def start_part(self, experiences: Sequence[Any], epochs: int = 1) -> None:
        """Note that training begins on an experience or sub-experience, or on several together."""
        last = experiences[-1]
        origin = attribute(last, "origin_experience")
        # The attribute is there, and None, in streams of continuous drift.
        is_sub_experience = len(experiences) == 1 and "origin_experience" in vars(last)
        index = experience_index(last)
        if not is_sub_experience or index != self.experience or self.at_experience_end:
            self.experience_seen = 0
        self.experience = index
        self.part_seen, self.part_size = 0, _times(_samples(experiences), epochs)
        self.batches_left, self.in_order, self.finished = None, True, False
        if is_sub_experience:
            self.experience_size = None if origin is None else _times(_samples([origin]), epochs)
            # Avalanche 0.6 never sets it where the size divides, but never sets it wrongly. The
            # parts of a stream without origins end no experience.
            is_last = bool(attribute(last, "is_last_subexp"))
            self.is_last_part = origin is not None and is_last
        else:
            self.experience_size, self.is_last_part = self.part_size, True

    def count(self, new: int) -> None:
        """Count a mini-batch with so many samples of the stream."""
        self.samples_seen += new
        self.experience_seen += new
        self.part_seen += new
        if self.batches_left:
            self.batches_left -= 1

    def finish_part(self) -> None:
        """Note that training on the current part ended (`after_training_exp`)."""
        self.batches_left = None
        if self.is_last_part:
            self.finished = True

    def state_dict(self) -> dict[str, Any]:
        """Return the counters as plain numbers, for `torch.load(weights_only=True)`."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the counters from `state_dict()`.

        :raises ValueError: if a counter is missing, unknown or no number.
        """
        if set(state) != set(self.state_dict()):
            raise ValueError(
                f"state must hold exactly {sorted(self.state_dict())}, got {sorted(state)}."
            )
        for field in fields(self):
            value, takes = state[field.name], str(field.type)
            if not (isinstance(value, int) or (value is None and "None" in takes)):
                raise ValueError(f"{field.name} must be {takes}, got {value!r}.")
        for name, value in state.items():
            setattr(self, name, value)


def _times(size: int | None, epochs: int) -> int | None:
    return None if size is None else size * epochs


class StreamCounter(SupervisedPlugin):
    """The one counter of a strategy: keeps a `StreamPosition` and the exposed classes up to date.

    What counts: the samples of the experience that is trained on, once an epoch each, as the data
    loader gives them. What a buffer brings does not, be it from a replay plugin, in a data set
    that was put together with old samples (Avalanche's `Cumulative`, iCaRL), or images of the same
    experience replayed; neither do several gradient steps or second passes over a mini-batch.
    `JointTraining` trains on all experiences of its call together: all their samples count, and the
    experience at hand is the last of them. Where the strategy trains on something else in their
    place (stored features, as many as the experience has samples), its samples count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.position = StreamPosition()
        self.ended: list[int] = []  # training experiences, in the order of their ends
        self._exposed: set[int] = set()
        self._pending: list[Tensor] = []
        self._drawn: Drawn | None = None
        self._epochs_left = 0

    def __getstate__(self) -> dict[str, Any]:
        # Between two trainings nothing is watched, and a data loader cannot be pickled.
        return {**vars(self), "_drawn": None}

    @property
    def exposed(self) -> tuple[int, ...]:
        """Classes met in training so far, ascending: those of the targets, not of attributes."""
        if self._pending:
            self._exposed.update(torch.cat([y.reshape(-1) for y in self._pending]).tolist())
            self._pending.clear()
        return tuple(sorted(self._exposed))

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Note which experience begins."""
        self._drawn = None
        self._epochs_left = int(strategy.train_epochs)
        self.position.start_part(_trained_on(strategy), self._epochs_left)

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Watch the data loader of the epoch.

        :raises UsageError: if it cannot be told which samples are the stream's.
        """
        if self._drawn is None:
            self._drawn = _drawn(strategy)
        self._drawn.start_epoch(strategy.dataloader)
        try:
            batches = len(strategy.dataloader)
        except TypeError:
            batches = None
        self.position.batches_left = _times(batches, self._epochs_left)
        self._epochs_left -= 1

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Count the mini-batch and its classes; whoever needs them earlier may call it, too."""
        taken = None if self._drawn is None else self._drawn.take()
        if taken is None:
            return
        places, no_others = taken
        follows = self.position.part_seen + np.arange(len(places))
        self.position.in_order &= no_others and bool(np.array_equal(places, follows))
        self.position.count(len(places))
        self._pending.append(strategy.mb_y.detach())
        if len(self._pending) >= _MAX_PENDING:
            _ = self.exposed

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Note that the experience ended."""
        self._drawn = None
        self.position.finish_part()
        at = self.position.experience
        if self.position.at_experience_end and at is not None and self.position.experience_seen:
            self.ended = [*(e for e in self.ended if e != at), at]

    def state_dict(self) -> dict[str, Any]:
        """Return the counters, loadable with `torch.load(weights_only=True)`."""
        return {
            "position": self.position.state_dict(),
            "exposed": list(self.exposed),
            "ended": list(self.ended),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the counters from `state_dict()`; what is being watched stays.

        :raises ValueError: if a counter is missing, unknown or no number.
        """
        self.position.load_state_dict(state["position"])
        self._exposed = {int(c) for c in state["exposed"]}
        self.ended = [int(e) for e in state["ended"]]
        self._pending.clear()


def stream_counter(strategy: Any, own: StreamCounter | None = None) -> StreamCounter:
    """Return the counter of a strategy, which gets one if it has none.

    :param own: the caller's counter. A strategy without one gets it; one that has counted less (a
        state was loaded into `own`) gets its counts.
    """
    for plugin in strategy.plugins:
        if isinstance(plugin, StreamCounter):
            if own is not None and own.position.samples_seen > plugin.position.samples_seen:
                plugin.load_state_dict(own.state_dict())
            return plugin
    counter = StreamCounter() if own is None else own
    # Before the evaluator, so that metrics and loggers see a step after it was counted. A new list,
    # because Avalanche is iterating over the old one.
    plugins = list(strategy.plugins)
    evaluator = getattr(strategy, "evaluator", None)
    place = next((i for i, plugin in enumerate(plugins) if plugin is evaluator), len(plugins))
    strategy.plugins = [*plugins[:place], counter, *plugins[place:]]
    return counter


def _trained_on(strategy: Any) -> list[Any]:
    """The experiences whose samples are new in what a strategy trains on."""
    together = isinstance(strategy, JointTraining)
    return list(strategy._experiences) if together else [strategy.experience]


def _drawn(strategy: Any) -> Drawn:
    own = [experience.dataset for experience in _trained_on(strategy)]
    drawn, adapted = Drawn(own), strategy.adapted_dataset
    if adapted is None or drawn.shares(adapted) or not len(adapted):
        return drawn
    if len(adapted) != sum(map(len, own)):
        raise UsageError(
            "adapted_dataset must hold samples of the experience, or as many of another kind, so "
            f"that the stream's can be counted: none of its {len(adapted)} is among the "
            f"{sum(map(len, own))} of the experience."
        )
    return Drawn([adapted])
