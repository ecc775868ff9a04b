"""Features of test images that several methods share: computed once in a comparison.

A frozen backbone without prompts maps a test batch to the same features in every evaluation of a
run and in every run of a comparison: the query of L2P, DualPrompt, CODA-Prompt and MVP, and all
that a linear probe, NCM, SLDA or ridge regression reads. They are kept in this process's memory
and, while a comparison shares a folder, in files that its worker processes read.

A stored answer is what the computation on this very batch, with these very weights, gave: looking
it up changes no bit of a result. Where somebody would see that nothing was computed, it is
computed: with hooks on a module (or on all of PyTorch's), in a profile, a trace or under a mode of
PyTorch's such as ``FlopCounterMode``, and with code of one's own in a module. Training batches are
never remembered, so that training times stay comparable: only evaluation looks here.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as every_module

__all__ = ["MEMORY", "FeatureMemory", "fingerprint", "is_watched", "settings"]

# Whose code the backbones are made of.
_KNOWN = ("torch", "timm", "avalanche_rwf")
_SETTINGS = frozenset({bool, int, float, str, tuple})
_CODE = frozenset({FunctionType, MethodType})


def is_watched(images: Tensor) -> bool:
    """Whether something outside the model sees, counts or records what is computed."""
    return bool(
        type(images) is not Tensor
        or every_module._global_forward_hooks
        or every_module._global_forward_pre_hooks
        or torch.utils._python_dispatch._get_current_dispatch_mode() is not None
        or torch._C._len_torch_function_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd._profiler_enabled()
        or torch.jit.is_tracing()
        or torch.compiler.is_compiling()
    )


@functools.cache
def _is_known(kind: Any, forward: Any) -> bool:
    """Whether a class and its ``forward`` (it may have been replaced) are of those packages."""
    return all(part.__module__.partition(".")[0] in _KNOWN for part in (kind, forward))


def fingerprint(modules: Iterable[nn.Module], tensors: Iterable[Tensor]) -> int | None:
    """What differs after a change: of a tensor in place, of which stands where, of a setting.

    None if a module has hooks or code of one's own, which no tensor and no setting tells.
    """
    found: list[Any] = [(tensor.data_ptr(), tensor._version) for tensor in tensors]
    for module in modules:
        kind: Any = type(module)
        if (
            module._forward_hooks
            or module._forward_pre_hooks
            or not _is_known(kind, kind.forward)
        ):
            return None
        for value in vars(module).values():
            if type(value) in _SETTINGS:
                found.append(value if type(value) is not tuple else str(value))
            elif type(value) in _CODE:
                return None
    return hash(tuple(found))


def settings(model: nn.Module) -> str:
    """What is set in the modules besides their tensors, such as numbers of heads and scales."""
    return str([
        (name, key, value)
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if type(value) in _SETTINGS and key != "training"
    ])  # fmt: skip


class FeatureMemory:
    """Tensors by key, oldest forgotten first.

    :param limit: bytes kept in memory.
    """

    def __init__(self, limit: int = 256 * 2**20) -> None:
        self.limit = limit
        self._answers: dict[str, Tensor] = {}
        self._size = 0
        self._folder: Path | None = None

    def share(self, folder: Path | None) -> None:
        """Use `folder` together with other processes; None uses this process's memory alone.

        The folder must be made for one comparison and trusted by it: what is found there is taken
        for the features of the images.
        """
        self._folder = folder

    def clear(self) -> None:
        """Forget what is in memory."""
        self._answers, self._size = {}, 0

    def get(self, key: str, compute: Callable[[], Tensor], shared: bool = True) -> Tensor:
        """What is kept under `key` (hexadecimal digits), or ``compute()``, kept from now on.

        :param shared: whether other processes may have it too.
        """
        if key not in self._answers:
            answer = self._read(key) if shared else None
            if answer is None:
                answer = compute().clone()  # of a view, the whole would be kept
                if shared:
                    self._write(key, answer)
            size = answer.numel() * answer.element_size()
            while self._answers and self._size + size > self.limit:
                oldest = self._answers.pop(next(iter(self._answers)))
                self._size -= oldest.numel() * oldest.element_size()
            self._answers[key] = answer
            self._size += size
        return self._answers[key].clone()  # the caller may write into its own

    def _read(self, key: str) -> Tensor | None:
        if self._folder is None:
            return None
        try:
            return torch.from_numpy(np.load(self._folder / f"{key}.npy", allow_pickle=False))
        except (OSError, ValueError, EOFError):
            return None

    def _write(self, key: str, answer: Tensor) -> None:
        if self._folder is None:
            return
        part = self._folder / f"{key}.{os.getpid()}.part"
        try:
            with part.open("wb") as file:
                np.save(file, answer.numpy(), allow_pickle=False)
            part.replace(self._folder / f"{key}.npy")
        except OSError:  # a full disk: other processes compute it for themselves
            part.unlink(missing_ok=True)


MEMORY = FeatureMemory()
"""The one of this process."""
