"""What every head has: one map from features to logits, from which all else follows."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_rwf.errors import UsageError
from avalanche_rwf.utils.registry import Registry, check_call
from avalanche_rwf.utils.validation import Choice, Whole, takes

__all__ = [
    "HEADS",
    "Head",
    "create_head",
    "fit_buffers",
    "held",
    "list_heads",
    "register_head",
    "with_rows",
]


@contextmanager
def held(module: nn.Module) -> Iterator[None]:
    """Within it, what is computed with a module's parameters gives them no gradient.

    :param module: whose parameters are held; those that were trained are so again afterwards.
    :returns: a context manager.

    >>> layer, x = nn.Linear(2, 1), torch.ones(1, 2, requires_grad=True)
    >>> with held(layer):
    ...     layer(x).sum().backward()
    >>> layer.weight.grad is None, x.grad is None
    (True, False)
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)


def with_rows(old: Tensor, fresh: Tensor) -> Tensor:
    """The rows of `old`, and behind them those of `fresh` that `old` does not have.

    :param old: [n, ...].
    :param fresh: [m, ...], m >= n.
    :returns: [m, ...], of the type and device of `old`.

    >>> with_rows(torch.ones(1), torch.zeros(3))
    tensor([1., 0., 0.])
    """
    return torch.cat([old, fresh[len(old) :].to(old)])


def fit_buffers(module: nn.Module, state: Mapping[str, Any], prefix: str, *names: str) -> None:
    """Before loading, give the buffers whose length depends on the stream that of a state.

    :param module: whose buffers they are.
    :param state: tensors by name, as ``load_state_dict`` takes them.
    :param prefix: of the module's names in the state.
    :param names: of the buffers; one that the state does not have stays as it is.

    >>> layer = nn.Module()
    >>> layer.register_buffer("rows", torch.zeros(0, 2))
    >>> fit_buffers(layer, {"rows": torch.ones(3, 2)}, "", "rows")
    >>> layer.rows.shape
    torch.Size([3, 2])
    """
    for name in names:
        value = state.get(prefix + name)
        if isinstance(value, Tensor):
            setattr(module, name, torch.empty_like(value, device=getattr(module, name).device))


def _place(cls: type, name: str) -> int:
    """How many steps up its bases a class finds a method."""
    return next(i for i, base in enumerate(cls.__mro__) if name in vars(base))


class Head(nn.Module, ABC):
    """A map from features [B, F] to logits [B, C].

    A subclass writes the map once: as :meth:`linear_form`, or, if its logits are not linear in some
    function of the features, as :meth:`forward`. Every loss and mask uses that one map. Of a class
    that inherits one and overrides the other, the one written last counts.

    :param in_features: width F of the features.
    :param num_classes: number of classes C to begin with.
    :raises UsageError: if a size is no whole number of at least 1, or there is no map.

    >>> class Doubled(Head):
    ...     def linear_form(self, features):
    ...         return 2 * features, torch.eye(self.num_classes, self.in_features), None
    >>> Doubled(3, 2)(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[2., 4.]])
    """

    closed_form: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if _place(cls, "linear_form") < _place(cls, "forward"):
            cls.forward = Head.forward  # type: ignore[method-assign]  # not the one inherited

    @takes(in_features=Whole(), num_classes=Whole())
    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        if type(self).forward is Head.forward and not self.is_linear():
            raise UsageError(f"{type(self).__name__} must have a forward or a linear_form.")
        self.in_features = in_features
        self.num_classes = num_classes

    def linear_form(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Inputs h [B, K], weights W [C, K] and bias [C] with logits = h W^T + bias.

        For what needs a gradient by class in closed form (MVP): dl/dW_c = (dl/dlogit_c) h.

        Of a head whose forward was written later it is not the map: see :meth:`is_linear`.

        :raises NotImplementedError: for a head that has a forward alone.
        """
        raise NotImplementedError(f"{type(self).__name__} has no linear form.")

    @classmethod
    def is_linear(cls) -> bool:
        """Whether its logits are those of :meth:`linear_form`."""
        own = cls.linear_form is not Head.linear_form
        return own and (
            cls.forward is Head.forward or _place(cls, "linear_form") <= _place(cls, "forward")
        )

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, F] -> logits [B, C]."""
        return F.linear(*self.linear_form(features))

    def in_training(self, features: Tensor) -> Tensor:
        """Logits [B, C] for what is logged during training; closed forms may answer late."""
        return self(features)

    def observe(self, features: Tensor, targets: Tensor) -> None:
        """Take in a batch: features [B, F], targets [B]. Linear and cosine heads ignore it."""

    def grow(self, num_classes: int) -> None:
        """Make room for `num_classes` classes in all; fewer than now is ignored."""
        self.num_classes = max(self.num_classes, num_classes)


HEADS: Registry[type[Head]] = Registry(
    "head",
    "avalanche_rwf.models.heads",
    order=lambda name: HEADS.entries[name].closed_form,
)


def register_head(name: str) -> Callable[[type[Head]], type[Head]]:
    """Register a class made from :class:`Head` under `name` (decorator).

    It is made as ``kind(in_features, num_classes)``: further arguments are options, each with a
    default. Its docstring's first line is in the listing.

    :param name: for ``--head`` and :func:`create_head`.
    :returns: the decorator.
    :raises ValueError: if the name is taken, it is no such class, or an option has no default.

    >>> @register_head("halved")
    ... class Halved(HEADS["linear"]):
    ...     "Half of a linear head's logits."
    ...     def forward(self, features):
    ...         return super().forward(features) / 2
    >>> "halved" in list_heads() and HEADS.entries.pop("halved") is Halved
    True
    """

    def register(kind: type[Head]) -> type[Head]:
        if not (isinstance(kind, type) and issubclass(kind, Head)):
            raise ValueError(f"The head {name!r} must be a class made from Head, not {kind!r}.")
        check_call("head", name, kind, ("in_features", "num_classes"))
        HEADS.add(name, kind, kind)
        return kind

    return register


def list_heads() -> list[str]:
    """Names of the heads.

    :returns: those trained by gradient first.

    >>> "white" in list_heads()
    True
    """
    return HEADS.names()


def create_head(name: str, in_features: int, num_classes: int, **options: Any) -> Head:
    """A head by name.

    :param name: one of :func:`list_heads`.
    :param in_features: width F of the features.
    :param num_classes: C.
    :param options: of the head, such as ``tau`` or ``shrinkage``.
    :returns: the head, before any sample.
    :raises UsageError: for an unknown name or an option out of range.

    >>> create_head("cosine", 8, 3, tau=0.05)(torch.randn(2, 8)).shape
    torch.Size([2, 3])
    """
    Choice(list_heads()).check("head", name)
    return HEADS[name](in_features, num_classes, **options)
