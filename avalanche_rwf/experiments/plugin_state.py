"""The state of Avalanche's plugins, metrics and strategies, as tensors and plain values.

They have no ``state_dict``: their state is what their attributes hold. It is taken apart into plain
values and put back into objects that the same script has built again, so that nothing is unpickled.
What that cannot be done for (iterators, data loaders, networks built on the way) is refused.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.utils import concat_datasets
from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_rwf.errors import UsageError
from avalanche_rwf.evaluation.loader_order import stored

# They hold an iterator over their buffer as soon as they have one.
_UNSAVEABLE = ("AGEMPlugin", "GenerativeReplayPlugin", "MIRPlugin", "RARPlugin")
_PLAIN = (bool, int, float, str, bytes, torch.Size, torch.device)
_LEFT_OUT = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, type)


class _CannotSaveError(Exception):
    """Something with a state that cannot be taken apart; says what."""


class Attributes:
    """The attributes of an object as a state.

    :param owner: the plugin, metric or strategy.
    :param strategy: whose model, optimizer and parameters are saved elsewhere.
    :param stream: the training experiences, in which the samples of a buffer are.
    :param skip: attributes that are saved elsewhere or are none of its state.
    """

    def __init__(
        self, owner: Any, strategy: Any, stream: Sequence[Any], skip: Iterable[str] = ()
    ) -> None:
        self.owner, self.strategy, self.stream = owner, strategy, list(stream)
        self.skip = set(skip)
        self._stack: list[int] = []
        self._places: dict[tuple[int, int], tuple[int, int]] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The attributes, taken apart.

        :raises UsageError: naming the object, and which of them cannot be.
        """
        kind = type(self.owner).__name__
        try:
            if kind in _UNSAVEABLE:
                raise _CannotSaveError("it iterates over its buffer or trains a network of its own")
            return {
                name: self._pack(value, name)
                for name, value in vars(self.owner).items()
                if name not in self.skip
            }
        except _CannotSaveError as error:
            raise UsageError(
                f"CheckpointPlugin cannot save the state of {kind} ({error}), so a loop that goes "
                f"on would end with other numbers: take a {kind} that has state_dict() and "
                "load_state_dict(), or no CheckpointPlugin."
            ) from None

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put :meth:`state_dict` back.

        :raises ValueError: if it does not fit.
        """
        for name, packed in state.items():
            current = vars(self.owner).get(name)
            vars(self.owner)[name] = self._unpack(packed, current)

    # -- taking apart ---------------------------------------------------------------------------

    def _pack(self, value: Any, where: str) -> Any:
        if value is None or isinstance(value, _PLAIN):
            return value
        if id(value) in self._stack:
            raise _CannotSaveError(f"{where} refers to itself")
        self._stack.append(id(value))
        try:
            return self._pack_object(value, where)
        finally:
            self._stack.pop()

    def _pack_object(self, value: Any, where: str) -> list[Any]:
        model = self.strategy.model
        known = [self.strategy, self.strategy.optimizer, model, *self.strategy.plugins]
        if isinstance(value, _LEFT_OUT) or any(value is one for one in known):
            return ["left"]
        if isinstance(value, nn.Parameter) and any(value is p for p in model.parameters()):
            return ["left"]
        if isinstance(value, Tensor):
            return ["tensor", value.detach()]
        if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biuf":
            scalar = not isinstance(value, np.ndarray)
            return ["array", torch.from_numpy(np.array(value)), str(value.dtype), scalar]
        if isinstance(value, dict):
            if type(value) not in (dict, OrderedDict, defaultdict):
                raise _CannotSaveError(f"{where} is a {type(value).__name__}")
            items = value.items()
            return ["dict", [[self._pack(k, where), self._pack(v, f"{where}[{k!r}]")]
                             for k, v in items]]  # fmt: skip
        if type(value) in (list, tuple, set, deque):
            packed = [self._pack(v, f"{where}[{i}]") for i, v in enumerate(value)]
            return ["items", type(value).__name__, packed, getattr(value, "maxlen", None)]
        if isinstance(value, AvalancheDataset):
            return ["samples", *self._pack_samples(value, where)]
        if isinstance(value, nn.Module):
            return self._pack_module(value, where)
        if isinstance(value, Optimizer) or (
            hasattr(value, "state_dict") and hasattr(value, "load_state_dict")
        ):
            return ["state", self._pack(value.state_dict(), where)]
        name = _name(type(value))
        if name is None or not hasattr(value, "__dict__"):
            raise _CannotSaveError(f"{where} is a {type(value).__name__}")
        parts = {k: self._pack(v, f"{where}.{k}") for k, v in vars(value).items()}
        return ["object", name, parts]

    def _pack_module(self, value: nn.Module, where: str) -> list[Any]:
        state = value.state_dict()
        if not state:
            return ["left"]
        if type(value) is not type(self.strategy.model):
            raise _CannotSaveError(f"{where} is a network of its own, a {type(value).__name__}")
        # An earlier copy of the model: tensors that have not changed since are not saved twice.
        now = dict(self.strategy.model.named_parameters())
        kept = {
            name: tensor
            for name, tensor in state.items()
            if name not in now or now[name].requires_grad or not _equal(now[name], tensor)
        }
        frozen = [name for name, p in value.named_parameters() if not p.requires_grad]
        modes = [name for name, module in value.named_modules() if module.training]
        return ["copy", kept, frozen, modes]

    def _pack_samples(self, data: AvalancheDataset[Any], where: str) -> list[Any]:
        """Experiences and positions in them of a buffer's samples, and its transform group."""
        extra = set(data._data_attributes) - {
            name for e in self.stream for name in e.dataset._data_attributes
        }
        if extra:
            raise _CannotSaveError(f"{where} has {sorted(extra)} with its samples")
        places = self._sample_places()
        found = torch.full((len(data), 2), -1, dtype=torch.long)
        for store, positions, numbers in stored(data):
            for position, number in zip(positions.tolist(), numbers.tolist(), strict=True):
                place = places.get((id(store), number))
                if place is None:
                    raise _CannotSaveError(f"{where} has samples that are not of the stream")
                found[position] = torch.tensor(place)
        return [found, data._flat_data._transform_groups.current_group if len(data) else "train"]

    def _sample_places(self) -> dict[tuple[int, int], tuple[int, int]]:
        if self._places is None:
            self._places = {
                (id(store), number): (index, position)
                for index, experience in enumerate(self.stream)
                for store, positions, numbers in stored(experience.dataset)
                for position, number in zip(positions.tolist(), numbers.tolist(), strict=True)
            }
        return self._places

    # -- putting back ---------------------------------------------------------------------------

    def _unpack(self, packed: Any, current: Any) -> Any:
        if not isinstance(packed, list):
            # The run may go on on another device.
            elsewhere = isinstance(packed, torch.device) and isinstance(current, torch.device)
            return current if elsewhere else packed
        kind, *rest = packed
        return getattr(self, f"_unpack_{kind}")(current, *rest)

    def _unpack_left(self, current: Any) -> Any:
        return current

    def _unpack_tensor(self, current: Any, tensor: Tensor) -> Tensor:
        device = current.device if isinstance(current, Tensor) else self.strategy.device
        tensor = tensor.clone().to(device)
        return nn.Parameter(tensor) if isinstance(current, nn.Parameter) else tensor

    def _unpack_array(self, current: Any, tensor: Tensor, dtype: str, scalar: bool) -> Any:
        array = tensor.numpy().astype(dtype)
        return array[()] if scalar else array

    def _unpack_dict(self, current: Any, items: list[list[Any]]) -> Any:
        # In place: something else may hold the same one, and it may have a default.
        old = dict(current) if isinstance(current, dict) else {}
        into = current if isinstance(current, dict) else {}
        into.clear()
        for key, value in items:
            key = self._unpack(key, None)
            into[key] = self._unpack(value, old.get(key))
        return into

    def _unpack_items(self, current: Any, kind: str, items: list[Any], maxlen: int | None) -> Any:
        old = list(current) if isinstance(current, (list, tuple, deque)) else []
        old += [None] * (len(items) - len(old))
        values = [self._unpack(item, was) for item, was in zip(items, old, strict=False)]
        if kind == "deque":
            return deque(values, maxlen)
        if kind == "list" and isinstance(current, list):  # in place, as a dictionary
            current[:] = values
            return current
        return {"list": list, "tuple": tuple, "set": set}[kind](values)

    def _unpack_samples(self, current: Any, places: Tensor, group: str) -> Any:
        if not len(places):
            return concat_datasets([])
        experiences, positions = places.T.numpy()
        parts, order = [], np.empty(len(places), dtype=np.int64)
        done = 0
        for index in np.unique(experiences).tolist():
            here = np.flatnonzero(experiences == index)
            parts.append(self.stream[index].dataset.subset(positions[here].tolist()))
            order[here] = done + np.arange(len(here))
            done += len(here)
        return concat_datasets(parts).subset(order.tolist()).with_transforms(group)

    def _unpack_copy(
        self, current: Any, kept: Mapping[str, Tensor], frozen: list[str], modes: list[str]
    ) -> nn.Module:
        model: nn.Module = current
        if not isinstance(current, nn.Module):
            model = copy.deepcopy(self.strategy.model)
        now = self.strategy.model.state_dict()
        model.load_state_dict({**now, **kept})
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in frozen)
        for name, module in model.named_modules():
            module.training = name in modes
        return model

    def _unpack_state(self, current: Any, packed: Any) -> Any:
        if current is None:
            raise ValueError("an object that has a state of its own is missing")
        current.load_state_dict(self._unpack(packed, current.state_dict()))
        return current

    def _unpack_object(self, current: Any, name: str, parts: Mapping[str, Any]) -> Any:
        if current is None or _name(type(current)) != name:
            current = object.__new__(_class(name))
        for key, value in parts.items():
            vars(current)[key] = self._unpack(value, vars(current).get(key))
        return current


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.detach(), b)


def _name(kind: type) -> str | None:
    """A class of Avalanche's whose objects are their attributes; None for any other."""
    plain = kind.__module__.split(".")[0] in ("avalanche", "avalanche_rwf")
    iterates = hasattr(kind, "__next__") or hasattr(kind, "__iter__")
    return f"{kind.__module__}:{kind.__qualname__}" if plain and not iterates else None


def _class(name: str) -> type:
    """The class of a name that :func:`_name` gave; nothing is run but the import of Avalanche's."""
    module, _, attribute = name.partition(":")
    if module.split(".")[0] in ("avalanche", "avalanche_rwf"):
        found = getattr(importlib.import_module(module), attribute, None)
        if inspect.isclass(found) and _name(found) == name:
            return found
    raise ValueError(f"{name!r} is no class of Avalanche's")


TEMPLATE = {
    *("model", "device", "plugins", "experience", "is_training", "current_eval_stream"),
    *("_distributed_check", "_eval_streams", "optimizer", "_criterion", "train_epochs"),
    *("train_mb_size", "eval_mb_size", "retain_graph", "evaluator", "eval_every", "clock"),
    *("adapted_dataset", "dataloader", "mbatch", "mb_output", "loss", "_stop_training"),
    *("optimized_param_id",),
}
"""Attributes of all Avalanche's strategies: saved elsewhere, or of one call of ``train`` alone."""

