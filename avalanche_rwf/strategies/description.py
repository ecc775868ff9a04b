"""What a strategy says of itself, for the record of a run and for whoever runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from avalanche_rwf.models.classifier import FrozenViT
from avalanche_rwf.models.heads import HEADS
from avalanche_rwf.routing.model import RoutedViT


@dataclass(frozen=True)
class Description:
    """What may be asked of a strategy, whatever its class.

    :param head: a name of ``list heads``, "linear" of any linear layer; None is another kind.
    :param mask: the classes that compete in the training loss.
    :param readout: what of the backbone's output the head sees.
    :param training_head: "white" where a closed-form head has one that prompts learn through.
    :param clip_norm: largest norm of the gradient, per kind of parameter.
    :param blocks: which blocks the model uses, by what for.
    :param pooling: what stands for an image: "token", or a pooling's name.
    :param trainable_parameters: number of trained scalars.
    :param own_updates: gradient steps that the model made by itself; None leaves them to the
        strategy, one per mini-batch or as many as it was told.
    :param uses_boundaries: whether training reads where an experience begins or its classes.
    :param max_experiences: for how many experiences it has room; None is any number.
    :param resumable: whether model, optimizer and what it says of its state are all that it keeps.
    :param networks: in which its ViTs are.
    :param shared_width: of the features that other methods on this backbone find; 0 is none.
    """

    head: str | None = None
    mask: str | None = None
    readout: str | None = None
    training_head: str | None = None
    clip_norm: float | None = None
    blocks: Mapping[str, list[int]] = field(default_factory=dict)
    pooling: str | None = None
    trainable_parameters: int = 0
    own_updates: int | None = None
    uses_boundaries: bool = False
    max_experiences: int | None = None
    resumable: bool = False
    networks: tuple[nn.Module, ...] = ()
    shared_width: int = 0

    def record(self) -> dict[str, Any]:
        """What `config.json` says of it, also where the method leaves no choice."""
        names = ("head", "mask", "readout", "training_head", "clip_norm")
        blocks = {f"{name}_blocks": list(indices) for name, indices in self.blocks.items()}
        pooling = {} if self.pooling is None else {"pooling": self.pooling}
        return {**{name: getattr(self, name) for name in names}, **blocks, **pooling}


@runtime_checkable
class Describes(Protocol):
    """A strategy that describes itself."""

    def describe(self) -> Description:
        """What it is, at this moment of its training."""


def describe(strategy: Any) -> Description:
    """The description of any strategy of Avalanche's: its own, or what its model tells."""
    if isinstance(strategy, Describes):
        return strategy.describe()
    return of_model(strategy.model, resumable=hasattr(strategy, "trained_state"))


def of_model(model: nn.Module, **more: Any) -> Description:
    """What a model tells.

    :param more: what its strategy knows.
    """
    own: dict[str, Any] = {
        "head": head_name(getattr(model, "head", None)),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "networks": (model,),
    }
    if isinstance(model, FrozenViT):
        used = {"prompted": model.prompted_blocks(), "readout": model.readout_blocks}
        if isinstance(model, RoutedViT):
            used["routed"] = model.routed_blocks()
        own.update(
            readout=model.readout,
            # With a closed-form head prompts learn through a head of their own.
            training_head=None if model.training_head is None else "white",
            blocks={name: list(indices) for name, indices in used.items() if indices},
            pooling=model.pooling,
            trainable_parameters=model.trainable_parameters(),
            own_updates=model.own_gradient_steps(),
            shared_width=model.shared_width(),
        )
    return Description(**{**own, **more})


def head_name(head: Any) -> str | None:
    """The name of a head's kind; None is none of ours."""
    if isinstance(head, nn.Linear):
        return "linear"
    return next((name for name, kind in HEADS.items() if type(head) is kind), None)


def state_bytes(strategy: Any) -> int | None:
    """Bytes of the tensors that training left: weights, a head's sums, a buffer, an optimizer.

    A frozen backbone is not counted. None of a strategy that does not tell its state.
    """
    return _size(strategy.trained_state()) if hasattr(strategy, "trained_state") else None


def _size(state: Any) -> int:
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    parts = state.values() if isinstance(state, Mapping) else state
    return sum(map(_size, parts)) if isinstance(state, (Mapping, list, tuple)) else 0
