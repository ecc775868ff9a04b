"""Saving and restoring what training changed: tensors and plain values, no code."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from avalanche_rwf.errors import UsageError
from avalanche_rwf.models.backbone import weights_sha256
from avalanche_rwf.strategies.replay import Replay
from avalanche_rwf.utils.atomic_io import StateFileError, read_state, save_state
from avalanche_rwf.utils.validation import AnyPath, Flag, is_number, takes

_SAVED = 1


@takes(path=AnyPath())
def read_saved(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What :meth:`Saved.save` wrote; no code is unpickled.

    :raises UsageError: in one sentence, if the file is damaged or none of them.
    """
    try:
        saved = read_state(Path(path))
    except StateFileError as error:
        raise UsageError(f"path takes a file that a strategy has saved: {error}") from None
    keys = {"format", "class", "arguments", "backbone_sha256", "state"}
    if saved.get("format") != _SAVED or not keys <= set(saved):
        raise UsageError(
            f"path takes a file that a strategy of this version has saved, and "
            f"{os.fspath(path)!r} is none."
        )
    return saved


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Put an optimizer's state back; PyTorch takes groups as they come.

    :raises ValueError: if a group is another one, or lacks a setting that the next step reads.
    """
    before = [{**group, "params": None} for group in optimizer.param_groups]
    # A copy: PyTorch would go on updating the tensors of the state that it was given.
    optimizer.load_state_dict(copy.deepcopy(dict(state)))
    for own, loaded in zip(before, optimizer.param_groups, strict=True):
        same = own.get("name") == loaded.get("name")
        if not same or not all(key in loaded and _alike(own[key], loaded[key]) for key in own):
            raise ValueError("The saved state does not fit this optimizer: other parameter groups.")


def _alike(own: Any, loaded: Any) -> bool:
    """Whether a setting can stand in another one's place; None leaves it to PyTorch."""
    if own is None or loaded is None or (is_number(own) and is_number(loaded)):
        return True
    return type(own) is type(loaded)


class Saved:
    """The part of a strategy that saves it; see :class:`FrozenBackboneStrategy`."""

    model: Any
    optimizer: Any
    clock: Any
    replay: Replay | None
    trains: bool
    grows: bool
    optimized_param_id: dict[str, Any]
    _experience: int | None
    _scaler: Any
    _make_room: Any

    def trained_state(self, images: bool = True) -> dict[str, Any]:
        """Everything that training changed, as tensors and plain values.

        The frozen backbone is left out; ``torch.load(..., weights_only=True)`` reads it.

        :param images: whether a replay buffer's images are in it. Without them whoever loads the
            state must put them back: they can be had again by their numbers in the stream.
        """
        state = {
            "model": self.model.state_without_backbone(),
            "optimizer": self.optimizer.state_dict() if self.trains else {},
            "iterations": self.clock.train_iterations,
            "experiences": self.clock.train_exp_counter,
        }
        if self.model.uses_boundaries:
            state["experience"] = self._experience
        if self._scaler is not None:
            state["scaler"] = self._scaler.state_dict()
        return state if self.replay is None else {**state, "replay": self.replay.state_dict(images)}

    @takes(path=AnyPath(), backbone=Flag())
    def save(self, path: str | os.PathLike[str], backbone: bool = False) -> None:
        """Write what training changed to a file: tensors and plain values with a checksum.

        ``torch.load(path, weights_only=True)`` reads it, :meth:`restore` puts it back.

        :param path: its folder is made if it is not there; an earlier file is replaced in one step.
        :param backbone: whether the frozen weights are in it too; otherwise their SHA-256 is, and
            they must be had from where they came from.
        :raises UsageError: if what is saved could not be loaded.
        :raises OSError: if it cannot be written.
        """
        state = {
            "format": _SAVED,
            "class": type(self).__name__,
            "arguments": self._saved_arguments(backbone),
            "backbone_sha256": weights_sha256(self.model.backbone),
            "state": self.trained_state(),
        }
        if backbone:
            state["backbone"] = self.model.backbone.state_dict()
        save_state(Path(path), state)

    def _saved_arguments(self, backbone: bool) -> dict[str, Any]:
        """Arguments with which a class that has a ``load`` is built again, as plain values.

        :raises UsageError: if it could not be built again from them.
        """
        return {}

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Put back what :meth:`save` wrote, into a strategy that was built in the same way.

        :raises UsageError: if the file is damaged or none, or does not fit.
        """
        self._restore(read_saved(path), path)

    def _restore(self, saved: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
        takes = "path takes a file that this strategy has saved"
        if saved["class"] != type(self).__name__:
            raise UsageError(
                f"{takes}, and {os.fspath(path)!r} is of a {saved['class']}, not of a "
                f"{type(self).__name__}."
            )
        try:
            if "backbone" in saved:
                self.model.backbone.load_state_dict(saved["backbone"])
            found = weights_sha256(self.model.backbone)
            if self.model.frozen and found != saved["backbone_sha256"]:
                raise ValueError(
                    f"its backbone's weights are {str(saved['backbone_sha256'])[:10]} and those "
                    f"here {found[:10]}"
                )
            self.load_trained_state(saved["state"])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            why = " ".join(str(error).split())[:200].rstrip(".")
            raise UsageError(f"{takes}, and {os.fspath(path)!r} does not fit: {why}.") from None

    def load_trained_state(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`trained_state` gave.

        :raises ValueError: if the tensors do not fit this model, or a buffer is missing.
        """
        if self.replay is not None and "replay" not in state:
            raise ValueError("The saved state has no buffer, and this strategy replays from one.")
        classes = len(state["model"].get("seen", ()))
        if self.grows and classes > self.model.num_classes:
            self._make_room(torch.tensor([0, classes - 1]))
        elif classes < self.model.num_classes:
            raise ValueError(
                f"The saved state has {classes} classes, and this model has "
                f"{self.model.num_classes}."
            )
        try:
            missing, unexpected = self.model.load_state_dict(state["model"], strict=False)
        except RuntimeError as error:
            first = " ".join(str(error).split())[:200]
            raise ValueError(f"The saved state does not fit this model: {first}") from None
        missing = [n for n in missing if not (self.model.frozen and n.startswith("backbone."))]
        if missing or unexpected:
            raise ValueError(
                f"The saved state does not fit this model: {len(missing)} tensors are missing and "
                f"{len(unexpected)} unexpected ({', '.join([*missing, *unexpected][:4])})."
            )
        if self.trains:
            load_optimizer(self.optimizer, state["optimizer"])
            self.optimized_param_id = {}
        if self._scaler is not None and "scaler" in state:
            self._scaler.load_state_dict(dict(state["scaler"]))
        if self.replay is not None:
            self.replay.load_state_dict(state["replay"])
        self._experience = state.get("experience")
        self.clock.train_iterations = int(state["iterations"])
        self.clock.train_exp_counter = int(state["experiences"])
