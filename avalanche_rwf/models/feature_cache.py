"""Features of images that methods, seeds and evaluations share: computed once in a comparison.

A frozen backbone without prompts maps an image to the same features in every evaluation of a run
and in every run of a comparison: the query of L2P, DualPrompt, CODA-Prompt and MVP, and all that a
linear probe, NCM, SLDA or ridge regression reads. They are kept image by image, in this process's
memory up to a limit and, while a comparison shares a folder, in files that its processes map.

Looking up changes no bit of a result. A stored row is what a batch gave for the image on this
device, with these very weights. That a row does not depend on its batch mates and on their number
is not taken for granted: the first time that a batch is put together from others of some size, it
is computed too, and if one bit differs, batches of these two sizes have nothing in common from then
on; within one size only whole batches are looked up then. Where somebody would see that nothing was
computed, it is computed: with hooks on a module (or on all of PyTorch's), in a profile, a trace or
under a mode of PyTorch's such as ``FlopCounterMode``, and with code of one's own in a module.

Training images are looked up in the runs of a comparison alone (:attr:`FeatureMemory.training`).
What computing them took is then charged to the run, so that training times and forward passes of
methods stay comparable.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as every_module

# Packages that the modules of backbones come from.
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


def counts_only(hook: Callable[..., None]) -> Callable[..., None]:
    """Mark a hook that counts a run's images; looked-up features are charged to it separately."""
    hook.counts_only = True  # type: ignore[attr-defined]
    return hook


def _counts_only(hook: Any) -> bool:
    return getattr(hook, "counts_only", False)


def fingerprint(modules: Iterable[nn.Module], tensors: Iterable[Tensor] = ()) -> int | None:
    """A key that changes with a tensor, in place or replaced, and with a setting.

    None if a module has hooks or a user's code, whose changes no key can show.

    :param modules: with their own tensors.
    :param tensors: more of them.
    """
    found: list[Any] = [(tensor.data_ptr(), tensor._version) for tensor in tensors]
    for module in modules:
        kind: Any = type(module)
        own = vars(module)
        if not _is_known(kind, kind.forward):
            return None
        for hooks in (own["_forward_pre_hooks"], own["_forward_hooks"]):
            if hooks and not all(map(_counts_only, hooks.values())):
                return None
        for tensor in (*own["_parameters"].values(), *own["_buffers"].values()):
            if tensor is not None:
                found += (tensor.data_ptr(), tensor._version)
        for value in own.values():
            sort = type(value)
            if sort in _SETTINGS:
                found.append(value if sort is not tuple else str(value))
            elif sort in _CODE:
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


def arithmetic(device: torch.device) -> str:
    """What decides, besides numbers and their sizes, how sums on a device are rounded."""
    kind, how = device.type, f"{torch.get_num_threads()}"
    if kind != "cpu":
        how = f"{torch.cuda.get_device_name(device)} {torch.backends.cudnn.allow_tf32}"
    lower = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else ""
    return f"{kind} {how} {torch.get_float32_matmul_precision()} {lower}"


def image_digests(images: Tensor) -> list[bytes]:
    """16 bytes for each image of [B, ...], of its values and type.

    Of images on a GPU sums are made there, so that only 16 bytes of each come to the host.
    """
    kind = f"{images.dtype} {tuple(images.shape[1:])}".encode()
    rows = images.detach().contiguous().flatten(1)
    if rows.device.type == "cpu":
        words = rows.view(torch.uint8).numpy()
    else:
        words = _sums(rows).cpu().numpy()
    return [hashlib.blake2b(row.data, digest_size=16, key=kind[:64]).digest() for row in words]


_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _sums(rows: Tensor) -> Tensor:
    """Two sums, modulo 2^64, of each row's words times random numbers: whole numbers [B, 2].

    Two rows that differ have the same sums for at most one in 2^66 draws of the numbers (for words
    of 32 bits, whose difference may be 2^31).
    """
    words = rows.view(_WORDS[rows.element_size()]).long()
    factors = _factors(words.shape[1], rows.device)
    return torch.stack([(words * factor).sum(1) for factor in factors], 1)


@functools.lru_cache(maxsize=4)
def _factors(width: int, device: torch.device) -> Tensor:
    """The same in each process: [2, width]."""
    generator = torch.Generator().manual_seed(20260309)
    ends = torch.iinfo(torch.int64)
    return torch.randint(ends.min, ends.max, (2, width), generator=generator).to(device)


# Errors of reading a damaged file of features.
_BROKEN = (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, RuntimeError)
# Bytes of the disk that are left free.
_SPARE = 2**30


@dataclass
class _Batch:
    """Features that were computed together.

    :param rows: bytes of each image's, uint8 [B, bytes]; perhaps a map of a file.
    :param seconds: that one image took.
    :param file: where they are too.
    """

    rows: np.ndarray
    dtype: torch.dtype
    shape: tuple[int, ...]
    seconds: float
    keys: tuple[bytes, ...] = ()
    file: Path | None = None

    @classmethod
    def of(cls, answer: Tensor, keys: Sequence[bytes], seconds: float) -> _Batch:
        """A copy: of a view, the whole would be kept."""
        here = answer.detach().flatten(1).to("cpu", copy=True)
        rows = here.view(torch.uint8).numpy()
        return cls(rows, answer.dtype, tuple(answer.shape[1:]), seconds, tuple(keys))

    def tensor(self, rows: np.ndarray) -> Tensor:
        """Rows as features, which the caller may write into."""
        return torch.from_numpy(np.array(rows)).view(self.dtype).view(len(rows), *self.shape)


_Place = tuple[_Batch, int]


class FeatureMemory:
    """Features by image, and answers of one model by batch; the oldest are forgotten first.

    :param limit: bytes kept in memory; what is in the folder is not forgotten.
    :param disk_limit: bytes that this process writes to one folder.
    """

    off: bool = False
    """Whether everything is computed."""
    training: bool = False
    """Whether training images are looked up and kept too."""

    def __init__(self, limit: int = 256 * 2**20, disk_limit: int = 8 * 2**30) -> None:
        self.limit = limit
        self.disk_limit = disk_limit
        self.charged_seconds = 0.0
        self.charged_images = 0
        self.share(None)
        self.clear()

    @contextlib.contextmanager
    def looking(self, off: bool, training: bool) -> Iterator[None]:
        """Within it, :attr:`off` and :attr:`training` are these."""
        before = self.off, self.training
        self.off, self.training = off, training
        try:
            yield
        finally:
            self.off, self.training = before

    def share(self, folder: Path | None, alone: bool = False) -> None:
        """Use `folder` together with other processes; None uses this process's memory alone.

        The folder must be made for one comparison and trusted by it: what is found there is taken
        for the features of the images.

        :param alone: whether no other process uses it: only what memory has no room for is written.
        """
        self._folder, self._alone = folder, alone
        self._written = 0
        self._listed: set[str] = set()
        self._changed = -1

    def clear(self) -> None:
        """Forget what is in memory."""
        self._answers: dict[str, Tensor] = {}
        self._whole: dict[tuple[bytes, ...], _Batch] = {}
        self._places: dict[bytes, dict[int, _Place]] = {}  # by the size of the batch
        self._batches: list[_Batch] = []
        # Whether batches of two sizes, the smaller one first, have the same rows, by feature.
        self._agree: dict[tuple[str, int, int], bool] = {}
        self._size = 0
        self._listed, self._changed = set(), -1

    def get(self, key: str, compute: Callable[[], Tensor]) -> Tensor:
        """What is kept of a batch under `key`, or ``compute()``, kept from now on."""
        if key not in self._answers:
            answer = compute().clone()  # of a view, the whole would be kept
            self._make_room(answer.numel() * answer.element_size())
            self._answers[key] = answer
        return self._answers[key].clone()  # the caller may write into its own

    def rows(
        self,
        digests: Sequence[bytes],
        what: str,
        compute: Callable[[], Tensor],
        *,
        part: tuple[str, int] | None = None,
        charge: bool = False,
    ) -> Tensor:
        """Features [B, ...] of a batch, found image by image or computed together.

        :param digests: of :func:`image_digests`.
        :param what: names the features, with the backbone's weights and its :func:`arithmetic`.
        :param compute: gives them for the whole batch.
        :param part: another name, and the first columns of the features, which it stands for.
        :param charge: whether what is looked up is charged: :attr:`charged_seconds` and
            :attr:`charged_images`.
        :returns: on the host, if they were found.
        """
        keys, size = _keys(digests, what), len(digests)
        found = self._find(keys, what) if keys else None
        sizes = [len(batch.keys) for batch, _ in found or []]
        unproven: set[int] = set()
        if found is not None:
            whole = found[0][0].keys == tuple(keys)
            if not whole:
                unproven = {n for n in sizes if _pair(what, size, n) not in self._agree}
            if not unproven:
                if charge:
                    self.charged_images += size
                    self.charged_seconds += sum(batch.seconds for batch, _ in found)
                return _together(found, whole)
        start = time.perf_counter()
        answer = compute()
        if answer.requires_grad or len(answer) != size:
            return answer
        if found is None:
            batch = _Batch.of(answer, keys, 0.0)
            # A GPU has done it when it is here.
            batch.seconds = (time.perf_counter() - start) / max(1, size)
            self._keep(batch)
            if part is not None:
                name, width = part
                named = _keys(digests, name)
                self._keep(_Batch.of(answer[:, :width], named, batch.seconds))
        else:
            looked_up, computed = _together(found), answer.cpu()
            for other in unproven:
                those = torch.tensor([n == other for n in sizes])
                agree = torch.equal(looked_up[those], computed[those])
                self._agree[_pair(what, size, other)] = agree
        return answer

    def _find(self, keys: Sequence[bytes], what: str) -> list[_Place] | None:
        """A place for each image: in this very batch, or in others that may agree with it."""
        size = len(keys)
        while True:
            whole = self._whole.get(tuple(keys))
            if whole is not None:
                return [(whole, place) for place in range(size)]
            found = []
            for key in keys:
                places = self._places.get(key, {})
                usable = (n for n in (size, *places) if self._agree.get(_pair(what, size, n), True))
                place = next((places[n] for n in usable if n in places), None)
                if place is None:
                    break
                found.append(place)
            else:
                return found
            if not self._list():
                return None

    def _keep(self, batch: _Batch) -> None:
        if not self._alone:
            self._write(batch)
        self._make_room(batch.rows.nbytes)
        self._batches.append(batch)
        self._note(batch)

    def _note(self, batch: _Batch) -> None:
        self._whole.setdefault(batch.keys, batch)
        for place, key in enumerate(batch.keys):
            self._places.setdefault(key, {}).setdefault(len(batch.keys), (batch, place))

    def _make_room(self, size: int) -> None:
        while self._size + size > self.limit and (self._answers or self._batches):
            if self._answers:
                oldest = self._answers.pop(next(iter(self._answers)))
                self._size -= oldest.numel() * oldest.element_size()
                continue
            batch = self._batches.pop(0)
            self._size -= batch.rows.nbytes
            if batch.file is None:
                self._write(batch)
            if batch.file is not None:
                with contextlib.suppress(*_BROKEN):
                    batch.rows = np.load(batch.file, mmap_mode="r", allow_pickle=False)
                    continue
            if self._whole.get(batch.keys) is batch:
                del self._whole[batch.keys]
            for key in batch.keys:
                places = self._places.get(key, {})
                if places.get(len(batch.keys), (None,))[0] is batch:
                    del places[len(batch.keys)]
                if not places:
                    self._places.pop(key, None)
        self._size += size

    # -- the folder: NAME.npy has the rows, NAME.json what they are -----------------------------

    def _list(self) -> bool:
        """Find what other processes have written since the last look; whether there is any."""
        if self._folder is None or self._alone:
            return False
        try:
            changed = self._folder.stat().st_mtime_ns
            if changed == self._changed:
                return False
            self._changed = changed
            names = {path.name for path in self._folder.glob("*.json")} - self._listed
        except OSError:
            return False
        for name in names:
            self._listed.add(name)
            try:
                about = json.loads((self._folder / name).read_text())
                file = self._folder / f"{name.removesuffix('.json')}.npy"
                keys = tuple(map(bytes.fromhex, about["keys"]))
                dtype, shape = getattr(torch, about["dtype"]), tuple(about["shape"])
                rows = np.load(file, mmap_mode="r", allow_pickle=False)
                batch = _Batch(rows, dtype, shape, float(about["seconds"]), keys, file)
                batch.tensor(rows[:1])
                if len(rows) != len(keys):
                    continue
            except _BROKEN:  # it is computed
                continue
            self._note(batch)
        return bool(names)

    def _write(self, batch: _Batch) -> None:
        if self._folder is None or not self._has_room(batch.rows.nbytes):
            return
        name = f"{batch.keys[0].hex()}-{len(batch.keys)}-{os.getpid()}"
        about = {
            "keys": [key.hex() for key in batch.keys],
            "dtype": str(batch.dtype).removeprefix("torch."),
            "shape": list(batch.shape),
            "seconds": batch.seconds,
        }
        file, index = self._folder / f"{name}.npy", self._folder / f"{name}.part"
        try:
            np.save(file, batch.rows, allow_pickle=False)
            index.write_text(json.dumps(about))
            index.replace(self._folder / f"{name}.json")
        except OSError:  # a full disk: other processes compute it for themselves
            file.unlink(missing_ok=True)
            index.unlink(missing_ok=True)
            return
        batch.file = file
        self._written += batch.rows.nbytes
        self._listed.add(f"{name}.json")

    def _has_room(self, size: int) -> bool:
        """Whether the folder may take so many bytes: the disk is not filled to its end."""
        assert self._folder is not None
        try:
            free = shutil.disk_usage(self._folder).free
        except OSError:
            return False
        return self._written + size <= self.disk_limit and size + _SPARE <= free


def _pair(what: str, size: int, other: int) -> tuple[str, int, int]:
    return what, min(size, other), max(size, other)


def _together(found: Sequence[_Place], whole: bool = False) -> Tensor:
    """The features of images in their places; `whole` if these are one batch."""
    first = found[0][0]
    rows = first.rows if whole else [batch.rows[place] for batch, place in found]
    return first.tensor(np.asarray(rows))


def _keys(digests: Sequence[bytes], what: str) -> list[bytes]:
    start = hashlib.blake2b(what.encode(), digest_size=16)
    keys = []
    for digest in digests:
        key = start.copy()
        key.update(digest)
        keys.append(key.digest())
    return keys


MEMORY = FeatureMemory()
"""This process's."""
