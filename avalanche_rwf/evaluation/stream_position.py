"""Where in the training stream a strategy is: samples seen, and the experience they belong to.

Shared by the recorder, the anytime evaluation and the logger. Holds numbers only, never an
experience or a data set, so whatever holds one can be pickled and saved.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

__all__ = ["StreamPosition", "attribute", "experience_index", "stream_name"]


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

    Args:
        experience: an Avalanche experience or a sub-experience of `split_online_stream`, in any
            mode.

    Returns:
        the index; a sub-experience whose origin is unknown gives its own number; None if it has
        none either.
    """
    origin = attribute(experience, "origin_experience")
    index = attribute(experience if origin is None else origin, "current_experience")
    return None if index is None else int(index)


def stream_name(experience: Any) -> str | None:
    """Return the name of the stream that an experience comes from ("train", "test"), or None."""
    return attribute(attribute(experience, "origin_stream"), "name")


def _samples(experience: Any) -> int | None:
    """Return the number of samples of an experience, None where it has no length."""
    try:
        return len(experience.dataset)
    except (AttributeError, TypeError, ValueError):
        return None


@dataclass
class StreamPosition:
    """Counts the samples of the stream, and tells when an experience has been seen whole.

    Only stream samples count: what a replay plugin adds to a mini-batch does not. A mini-batch
    therefore counts at most `train_mb_size` samples, and an epoch at most the samples of its
    experience.

    Attributes:
        samples_seen: samples of the stream trained on so far, repeated epochs included.
        experience: index of the training experience they reached; None before training.
        experience_seen: samples of that experience trained on so far, over all its parts.
        experience_size: how many there will be, over all its parts and epochs; None if unknown.
        part_seen: samples of the current part (an experience, or a sub-experience) trained on.
        part_size: how many there will be; None if unknown.
        epoch_size: samples of one epoch over the current part; None if unknown.
        epoch_left: how many of them are still to come; None if unknown.
        is_last_part: no part of the experience follows, as far as the stream tells.
        finished: the end was announced by `finish_part`.
    """

    samples_seen: int = 0
    experience: int | None = None
    experience_seen: int = 0
    experience_size: int | None = None
    part_seen: int = 0
    part_size: int | None = None
    epoch_size: int | None = None
    epoch_left: int | None = None
    is_last_part: bool = False
    finished: bool = False

    @property
    def at_experience_end(self) -> bool:
        """True once all samples of the current experience have been trained on."""
        if self.finished:
            return True
        if self.experience_size is not None and self.experience_seen >= self.experience_size:
            return True
        return self.is_last_part and self.part_size is not None and self.part_seen >= self.part_size

    def start_part(self, experience: Any, epochs: int = 1) -> None:
        """Note that training on an experience or sub-experience begins (`before_training_exp`)."""
        origin = attribute(experience, "origin_experience")
        # The attribute is there, and None, in streams of continuous drift.
        is_sub_experience = "origin_experience" in vars(experience)
        index = experience_index(experience)
        size = _samples(experience)
        if not is_sub_experience or index != self.experience or self.at_experience_end:
            self.experience_seen = 0
        self.experience = index
        self.epoch_size = self.epoch_left = size
        self.part_seen, self.part_size = 0, _times(size, epochs)
        self.finished = False
        if is_sub_experience:
            self.experience_size = None if origin is None else _times(_samples(origin), epochs)
            # Avalanche 0.6 never sets it where the size divides, but never sets it wrongly. The
            # parts of a stream without origins end no experience.
            is_last = bool(attribute(experience, "is_last_subexp"))
            self.is_last_part = origin is not None and is_last
        else:
            self.experience_size, self.is_last_part = self.part_size, True

    def start_epoch(self) -> None:
        """Note that an epoch over the current part begins (`before_training_epoch`)."""
        self.epoch_left = self.epoch_size

    def count(self, n: int, train_mb_size: int | None = None) -> int:
        """Count a mini-batch of n samples; return how many of them the stream brought."""
        new = n if train_mb_size is None else min(n, train_mb_size)
        if self.epoch_left is not None:
            new = min(new, self.epoch_left)
            self.epoch_left -= new
        self.samples_seen += new
        self.experience_seen += new
        self.part_seen += new
        return new

    def finish_part(self) -> None:
        """Note that training on the current part ended (`after_training_exp`)."""
        if self.is_last_part:
            self.finished = True

    def state_dict(self) -> dict[str, Any]:
        """Return the counters as plain numbers, for `torch.load(weights_only=True)`."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the counters from `state_dict()`.

        Raises:
            ValueError: if a counter is missing, unknown or no number.
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
