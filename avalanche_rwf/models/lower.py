"""A frozen backbone's weights in 16 bits, kept: autocast would cast them anew in every forward.

Autocast keeps its casts of trained weights within a forward and those of frozen ones not at all.
What is put in their place for a forward is what autocast would make of them, bit for bit: the
weights and biases of linear layers and convolutions, which it runs in 16 bits.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_Cast = tuple[Tensor, int, Tensor]  # a weight, its version, the copy
_KEPT: weakref.WeakKeyDictionary[nn.Module, dict[str, _Cast]] = weakref.WeakKeyDictionary()


@contextmanager
def lowered(backbone: nn.Module) -> Iterator[None]:
    """Within it the frozen weights of `backbone` are in autocast's type, if autocast is on.

    A copy that is kept is renewed when its weight was changed in place (not through ``.data``, as
    everywhere) or moved.
    """
    first = next(backbone.parameters(), None)
    kind = "cpu" if first is None else first.device.type
    if first is None or not torch.is_autocast_enabled(kind):
        yield
        return
    dtype = torch.get_autocast_dtype(kind)
    replaced: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        for module in backbone.modules():
            if type(module) not in (nn.Linear, nn.Conv2d):
                continue
            kept = _KEPT.setdefault(module, {})
            for name, weight in module._parameters.items():
                if weight is None or weight.requires_grad or weight.dtype != torch.float32:
                    continue
                cast = kept.get(name)
                here = weight.device
                if (
                    cast is None
                    or cast[0] is not weight
                    or cast[1] != weight._version
                    or cast[2].dtype != dtype
                    or cast[2].device != here
                ):
                    cast = kept[name] = weight, weight._version, weight.detach().to(dtype)
                replaced.append((module, name, weight))
                module._parameters[name] = cast[2]  # type: ignore[assignment]
        yield
    finally:
        for module, name, weight in replaced:
            module._parameters[name] = weight
