"""A simulated accelerator on the CPU: finds device faults without a GPU.

``install()`` once per process; from then on ``device="cuda"`` gives tensors that say they are on
``cuda:0`` and hold a CPU tensor. Mixing devices raises as CUDA does, and each wait of the host for
the device (and each blocking copy) is counted with the line it came from.

How: the C++ part of a tensor is a storage-less wrapper on PrivateUse1 (the one device type that a
machine without a GPU can run autograd for); Python sees ``cuda:0``. A TorchDispatchMode catches
factories and copies from the CPU, ``__torch_dispatch__`` of the wrapper all else. What a copy to
the host has that is not waited for is wrong until the host waits for the device.

Not simulated: kernels (numbers, limits and dtypes of CUDA's own), streams and races, memory, time,
nondeterminism of atomics, device asserts (an index out of range raises here as on the CPU), several
devices.
"""

# PyTorch is patched all over:
# mypy: ignore-errors

from __future__ import annotations

import contextlib
import os
import sys
import weakref
from collections import Counter

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["SimTensor", "counting", "install", "lacking", "state", "syncs", "waits"]

NAME = "sim"
aten = torch.ops.aten
_POINTWISE, _SEEDED = torch.Tag.pointwise, torch.Tag.nondeterministic_seeded
CUDA0 = torch.device("cuda", 0)


class _State:
    rng = "own"  # "shared": device ops draw from the CPU's generator, so that runs can be compared
    pid = os.getpid()
    initialized = False
    generator: torch.Generator
    allocated = 0  # elements of the largest result so far
    oom_above: int | None = None  # a result of more elements is out of memory
    count = True
    dead: str | None = None  # a sticky error: the context is of no use any more


state = _State()
syncs: Counter[tuple[str, str, str]] = Counter()  # (kind, op, file:line function)


@contextlib.contextmanager
def counting():
    """A fresh Counter of the syncs in here."""
    before = syncs.copy()
    found: Counter = Counter()
    yield found
    found.update(syncs - before)


def waits(found) -> int:
    """How often the host waited, of what :func:`counting` gave."""
    return sum(count for (kind, _, _), count in found.items() if not kind.endswith("async"))


def _where() -> str:
    frame, outer = sys._getframe(2), None
    while frame is not None:
        name = frame.f_code.co_filename
        if "/avalanche_rwf/" in name or (
            outer is None and "/torch/" not in name and name != __file__
        ):
            short = f"{'/'.join(name.split('/')[-2:])}:{frame.f_lineno} {frame.f_code.co_name}"
            if "/avalanche_rwf/" in name:
                return short
            outer = short
        frame = frame.f_back
    return outer or "(backward)"


_coming: list[tuple[torch.Tensor, torch.Tensor]] = []


def _later(copy: torch.Tensor) -> torch.Tensor:
    """A copy to the host that has not been waited for: wrong until the next wait."""
    values = copy.clone()
    with torch.no_grad():
        copy.fill_(1 if copy.dtype == torch.bool else 99)
    _coming.append((copy, values))
    return copy


def _arrive() -> None:
    while _coming:
        copy, values = _coming.pop()
        copy.copy_(values)


def _sync(kind: str, func) -> None:
    if not kind.endswith("-async"):
        _arrive()
    if state.count:
        syncs[kind, str(func).replace("aten.", ""), _where()] += 1


def _use() -> None:
    if os.getpid() != state.pid and state.initialized:
        raise RuntimeError(
            "Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, "
            "you must use the 'spawn' start method"
        )
    state.initialized, state.pid = True, os.getpid()
    if state.dead:
        raise torch.AcceleratorError(state.dead)


def _on_device(device) -> bool:
    if device is None:
        return False
    device = torch.device(device)
    if device.type == "cuda" and device.index not in (None, 0):
        raise torch.AcceleratorError("CUDA error: invalid device ordinal")
    return device.type in ("cuda", NAME)


# -- the tensor -----------------------------------------------------------------------------------


_to = torch.Tensor.to


class SimTensor(torch.Tensor):
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        out = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, layout=inner.layout, device=torch.device(NAME, 0),
        )  # fmt: skip
        out._inner = inner
        return out

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    device = property(lambda self: CUDA0)
    is_cuda = property(lambda self: True)

    def to(self, *args, **kwargs):
        copy = kwargs.pop("copy", False)
        device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        if device is None or _on_device(device):
            device = None  # it is there
        more = {} if memory_format is None else {"memory_format": memory_format}
        return _to(
            self, device=device, dtype=dtype or self.dtype, non_blocking=non_blocking, copy=copy,
            **more,
        )  # fmt: skip

    def cuda(self, device=None, non_blocking=False, **kwargs):
        return self.to(device or "cuda", non_blocking=non_blocking)

    def numpy(self, *, force=False):
        if force:
            return self.detach().cpu().numpy(force=True)
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor "
            "to host memory first."
        )

    def __array__(self, *args, **kwargs):
        return self.numpy()

    def tolist(self):
        _sync("item", "tolist")
        return self._inner.tolist()

    def __repr__(self, **kwargs):
        return f"{self._inner!r}[cuda:0]"

    def __format__(self, spec):
        one = self.dim() == 0 and not getattr(self, "_is_param", False)
        return self.item().__format__(spec) if one else object.__format__(self, spec)

    def data_ptr(self):
        return self._inner.data_ptr()

    def untyped_storage(self):
        return self._inner.untyped_storage()

    def _set_data(self, value):
        if not isinstance(value, SimTensor):
            raise RuntimeError("incompatible tensor type: .data of another device")
        if value.shape != self.shape or value.dtype != self.dtype:
            raise NotImplementedError("simcuda: .data of another shape")
        self._inner = value._inner

    data = property(lambda self: torch._C.TensorBase.data.__get__(self), _set_data)

    def __deepcopy__(self, memo):
        if id(self) in memo:
            return memo[id(self)]
        if not self.is_leaf:
            raise RuntimeError("Only Tensors created explicitly by the user support deepcopy")
        with torch.no_grad():
            new = SimTensor(self._inner.clone())
        new.requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            new._is_param = True
        if self.grad is not None:
            new.grad = self.grad.__deepcopy__(memo)
        memo[id(self)] = new
        return new

    def __reduce_ex__(self, protocol):
        param = getattr(self, "_is_param", False)
        if not _saving:
            return _rebuild, (self._inner, param, self.requires_grad)
        _tagged.add(self._inner.untyped_storage().data_ptr())
        plain = self._inner.detach()
        if param:
            plain = torch.nn.Parameter(plain, self.requires_grad)
        else:
            plain.requires_grad_(self.requires_grad and self.is_leaf)
        return plain.__reduce_ex__(protocol)


def _rebuild(inner, param, requires_grad):
    _use()
    new = SimTensor(inner.detach()).requires_grad_(requires_grad)
    if param:
        new._is_param = True
    return new


# -- operations -----------------------------------------------------------------------------------

# CUDA's own implementation of these waits for the device, to learn a size or an error code.
_WAITS = {
    *("nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive"),
    *("bincount", "equal", "histc", "_linalg_eigh", "_linalg_svd", "linalg_eig", "argwhere"),
    *("repeat_interleave", "_linalg_check_errors", "linalg_pinv", "is_nonzero"),
}
_INDEX = {
    aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put.default, aten.index_put_.default,
    aten._index_put_impl_.default, aten._unsafe_index_put.default,
}  # fmt: skip
_MIXED_SCALARS = {"fill_", "fill", "masked_fill_", "masked_fill", "index_fill_", "index_fill"}
_MATMUL = {"mm", "bmm", "addmm", "baddbmm", "mv", "addmv", "dot"}
_RESHAPED = {"resize_", "set_", "t_", "squeeze_", "unsqueeze_", "transpose_", "as_strided_"}
_TWO = (
    "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
)


def _plain(x):
    return x._inner if isinstance(x, SimTensor) else x


def _check_index(func, args) -> bool:
    """As CUDA: indices may be on the host, values too if they are one number. Whether on device."""
    there = isinstance(args[0], SimTensor)
    for index in args[1]:
        if index is None:
            continue
        here = not isinstance(index, SimTensor)
        if not there and not here:
            raise RuntimeError(
                "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
            )
        if there and here:
            _sync("h2d", func)
    value = args[2] if len(args) > 2 else None
    if value is not None and isinstance(value, SimTensor) != there and value.dim():
        raise RuntimeError(_TWO)
    # What Python's numbers become stays on the host for CUDA, and is a masked_fill.
    host = not isinstance(value, SimTensor) or getattr(value, "_from_number", False)
    number = value is not None and host and value.numel() == 1
    if value is not None and not there and isinstance(value, SimTensor):
        _sync("d2h", func)
    if there and not number:
        for index in args[1]:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                _sync("nonzero", func)
    return there


def _check_mixed(func, name, args, sims, hosts) -> None:
    if not hosts or not sims or name in ("copy_", "_to_copy"):
        return
    writes = [
        value
        for argument, value in zip(func._schema.arguments, args, strict=False)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    if any(isinstance(x, torch.Tensor) and not isinstance(x, SimTensor) for x in writes):
        raise RuntimeError(_TWO)
    scalars = _POINTWISE in func.tags or name in _MIXED_SCALARS
    if not scalars or any(x.dim() for x in hosts):
        raise RuntimeError(f"{_TWO} (when checking {func})")


def _run(func, args, kwargs):
    leaves = tree_leaves((args, kwargs))
    tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
    sims = [x for x in tensors if isinstance(x, SimTensor)]
    device = kwargs.get("device")
    there = _on_device(device) if device is not None else bool(sims)
    generator = next((x for x in leaves if isinstance(x, torch._C.Generator)), None)
    if generator is not None and (generator._cdata in SimGenerator.made) != there:
        kinds = ("cuda", "cpu") if there else ("cpu", "cuda")
        raise RuntimeError(
            f"Expected a {kinds[0]!r} device type for generator but found {kinds[1]!r}"
        )
    if not sims and not there:
        return func(*args, **kwargs)
    _use()
    name = func._schema.name.removeprefix("aten::")
    if func in _INDEX:
        there = _check_index(func, args)
    else:
        _check_mixed(func, name, args, sims, [x for x in tensors if not isinstance(x, SimTensor)])
    if name == "_to_copy":
        if isinstance(args[0], SimTensor) != there:
            kind = "d2h" if sims else "h2d"
            _sync(f"{kind}-async" if kwargs.get("non_blocking") else kind, func)
    elif name == "copy_":
        if isinstance(args[0], SimTensor) != isinstance(args[1], SimTensor):
            kind = "d2h" if isinstance(args[1], SimTensor) else "h2d"
            late = (args[2] if len(args) > 2 else kwargs.get("non_blocking")) and kind == "h2d"
            _sync(f"{kind}-async" if late else kind, func)
    elif name == "_local_scalar_dense":
        _sync("item", func)
    elif name in _WAITS or (name.endswith("_ex") and kwargs.get("check_errors")):
        _sync("waits", func)
    elif name in _MATMUL and not (args[0].is_floating_point() or args[0].is_complex()):
        raise RuntimeError(f'"{name}_cuda" not implemented for {str(args[0].dtype)!r}')
    elif name in _RESHAPED:
        raise NotImplementedError(f"simcuda: {func}")
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if kwargs.get("pin_memory") is not None:
        kwargs = {**kwargs, "pin_memory": None}
    own = state.rng == "own" and there and _SEEDED in func.tags and generator is None
    with _drawing(state.generator) if own else contextlib.nullcontext():
        try:
            result = func(*tree_map(_plain, args), **tree_map(_plain, kwargs))
        except IndexError as error:  # an index out of range ends the process's use of the device
            if not there:
                raise
            state.dead = "CUDA error: device-side assert triggered"
            raise torch.AcceleratorError(state.dead) from error
    if name == "_to_copy" and not there:
        return _later(result) if kwargs.get("non_blocking") else result
    known = {id(x._inner): x for x in sims}

    def wrap(x):
        if not isinstance(x, torch.Tensor):
            return x
        if id(x) in known:
            return known[id(x)]
        if not there:
            return x
        if state.oom_above is not None and x.numel() > state.oom_above:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate (simulated).")
        state.allocated = max(state.allocated, x.numel())
        new = SimTensor(x)
        if name == "scalar_tensor":
            new._from_number = True
        return new

    return tree_map(wrap, result)


@contextlib.contextmanager
def _drawing(generator):
    before = torch.default_generator.get_state()
    torch.default_generator.set_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(torch.default_generator.get_state())
        torch.default_generator.set_state(before)


class SimMode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


# -- generators, autocast, attention, files --------------------------------------------------------

_Generator = torch._C.Generator


class SimGenerator(_Generator):
    made: weakref.WeakValueDictionary = weakref.WeakValueDictionary()  # C++ hands out others

    def __new__(cls, device=None):
        new = super().__new__(cls, "cpu")
        cls.made[new._cdata] = new
        return new

    device = property(lambda self: CUDA0)


class _GeneratorMeta(type):
    def __instancecheck__(cls, x):
        return isinstance(x, _Generator)


class Generator(metaclass=_GeneratorMeta):
    """Stands for torch.Generator."""

    def __new__(cls, device="cpu"):
        if _on_device(device):
            _use()
            return SimGenerator()
        return _Generator(device)


class _Autocast(torch.amp.autocast_mode.autocast):
    def __init__(self, device_type, *args, **kwargs):
        super().__init__(NAME if _on_device(device_type) else device_type, *args, **kwargs)


# CUDA's lists (autocast_mode.h), which differ from the CPU's: layer norms and sums give float32.
_LOWER = """
    conv1d conv2d conv3d convolution prelu addmm addmv addr matmul einsum mm mv linalg_vecdot linear
    addbmm baddbmm bmm chain_matmul linalg_multi_dot
"""
_FLOAT = """
    acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow softplus
    layer_norm native_layer_norm group_norm cosine_similarity cosine_embedding_loss nll_loss
    nll_loss_nd cross_entropy_loss kl_div l1_loss smooth_l1_loss huber_loss mse_loss
    margin_ranking_loss dist pdist cdist renorm logsumexp binary_cross_entropy_with_logits prod
    softmax log_softmax cumprod cumsum sum linalg_vector_norm linalg_matrix_norm norm
"""
_lib, _all = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")


def _register_autocast() -> None:
    _all.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    this_key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def kernel(op, low):
        def run(*args, **kwargs):
            dtype = torch.get_autocast_dtype(NAME) if low else torch.float32

            def cast(x):
                if not isinstance(x, SimTensor) or not x.is_floating_point():
                    return x
                return x if x.dtype in (dtype, torch.float64) else x.to(dtype)

            with torch._C._ExcludeDispatchKeyGuard(this_key):
                return op(*tree_map(cast, args), **tree_map(cast, kwargs))

        return run

    for names, low in ((_LOWER, True), (_FLOAT, False)):
        for name in names.split():
            packet = getattr(aten, name, None)
            for overload in packet.overloads() if packet is not None else ():
                op = getattr(packet, overload)
                if "out" in overload or op._schema.is_mutable:
                    continue
                full = name if overload == "default" else f"{name}.{overload}"
                _lib.impl(full, kernel(op, low), "AutocastPrivateUse1")


_sdpa = torch.nn.functional.scaled_dot_product_attention


def _attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None,
               enable_gqa=False):
    """The kernel that the CPU would take, so that numbers are the same."""
    given = [query, key, value, attn_mask]
    if not any(isinstance(x, SimTensor) for x in given):
        return _sdpa(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)
    if not all(x is None or isinstance(x, SimTensor) for x in given):
        raise RuntimeError(_TWO)
    if torch.is_autocast_enabled(NAME):
        low = torch.get_autocast_dtype(NAME)
        given = [x.to(low) if x is not None and x.is_floating_point() else x for x in given]
        query, key, value, attn_mask = given
    if not query.dtype == key.dtype == value.dtype:
        raise RuntimeError(
            "Expected query, key, and value to have the same dtype, but got query.dtype: "
            f"{query.dtype} key.dtype: {key.dtype} and value.dtype: {value.dtype} instead."
        )
    if attn_mask is not None and attn_mask.dtype not in (torch.bool, query.dtype):
        raise RuntimeError(f"Expected attn_mask dtype to be bool or {query.dtype}")
    probes = [_plain(x).detach().requires_grad_(x.requires_grad) for x in (query, key, value)]
    choice = torch._fused_sdp_choice(*probes, _plain(attn_mask), dropout_p, is_causal, scale=scale)
    if choice == 1 and query.dim() == 4:
        return aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
        )[0]
    return aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale
    )[0]


_saving = False
_tagged: set[int] = set()  # storages that are written, or were read, as CUDA's


def _tag(storage):
    return "cuda:0" if storage.nbytes() and storage.data_ptr() in _tagged else None


def _restore(storage, location):
    if not str(location).startswith("cuda"):
        return None
    _tagged.add(storage.data_ptr())
    return storage


def _patch_files() -> None:
    save, load, rebuild = torch.save, torch.load, torch._utils._rebuild_tensor

    def save_(*args, **kwargs):
        global _saving
        _saving = True
        try:
            return save(*args, **kwargs)
        finally:
            _saving = False
            _tagged.clear()

    def load_(*args, **kwargs):
        try:
            return load(*args, **kwargs)
        finally:
            _tagged.clear()

    def rebuild_(storage, *args):
        made = rebuild(storage, *args)
        untyped = storage._untyped_storage
        there = untyped.nbytes() and untyped.data_ptr() in _tagged
        return SimTensor(made) if there else made

    torch.save, torch.load, torch._utils._rebuild_tensor = save_, load_, rebuild_
    torch.serialization.register_package(5, _tag, _restore)


class _Backend:
    """What PyTorch asks of a module torch.sim."""

    @staticmethod
    def get_amp_supported_dtype():
        return [torch.bfloat16, torch.float16]

    is_initialized = is_available = staticmethod(lambda: True)
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    _is_in_bad_fork = staticmethod(lambda: False)
    manual_seed_all = staticmethod(lambda seed: None)
    get_rng_state = staticmethod(lambda device=0: state.generator.get_state())
    set_rng_state = staticmethod(lambda new, device=0: state.generator.set_state(new))


def _patch_cuda() -> None:
    cuda = torch.cuda

    def seed(value):
        state.generator.manual_seed(int(value))

    def get_state(device="cuda"):
        _use()
        return state.generator.get_state()

    def set_state(new, device="cuda"):
        if isinstance(new, SimTensor):
            raise TypeError("RNG state must be a torch.ByteTensor")
        state.generator.set_state(new)

    here = {
        "_lazy_init": _use, "init": _use, "is_available": lambda: True, "device_count": lambda: 1,
        "is_initialized": lambda: state.initialized and not cuda._is_in_bad_fork(),
        "_is_in_bad_fork": lambda: state.initialized and os.getpid() != state.pid,
        "current_device": lambda: (_use(), 0)[1],
        "synchronize": lambda device=None: (_use(), _arrive()),
        "get_device_name": lambda device=None: "Simulated", "empty_cache": _use,
        "get_device_capability": lambda device=None: (9, 0),
        "is_bf16_supported": lambda *a, **k: True,
        "manual_seed": seed, "manual_seed_all": seed, "get_rng_state": get_state,
        "set_rng_state": set_state, "get_rng_state_all": lambda: [get_state()],
        "set_rng_state_all": lambda new: [set_state(s) for s in new][:0],
        "max_memory_allocated": lambda device=None: 4 * state.allocated,
        "memory_allocated": lambda device=None: 4 * state.allocated,
        "reset_peak_memory_stats": lambda device=None: setattr(state, "allocated", 0),
        "is_current_stream_capturing": lambda: False,
        "device": lambda device=None: contextlib.nullcontext(),
    }  # fmt: skip
    for name, value in here.items():
        setattr(cuda, name, value)
    cuda.random.get_rng_state, cuda.random.set_rng_state = get_state, set_state
    cuda.random.get_rng_state_all = here["get_rng_state_all"]
    cuda.random.manual_seed_all = seed


def _patch_autocast() -> None:
    enabled, dtype = torch.is_autocast_enabled, torch.get_autocast_dtype

    def name(device):
        return NAME if _on_device(device) else device

    torch.is_autocast_enabled = lambda d=None: enabled() if d is None else enabled(name(d))
    torch.get_autocast_dtype = lambda d: dtype(name(d))
    torch.autocast = torch.amp.autocast = torch.amp.autocast_mode.autocast = _Autocast


def _patch_tensor() -> None:
    """Where C++ would ask for CUDA's current device."""
    to, tensor, as_tensor = torch.Tensor.to, torch.tensor, torch.as_tensor

    def named(x):
        return torch.device(NAME, 0) if isinstance(x, (str, torch.device)) and _on_device(x) else x

    def to_(self, *args, **kwargs):
        return to(self, *map(named, args), **{key: named(x) for key, x in kwargs.items()})

    def made(make):
        def make_(data, *args, device=None, **kwargs):
            if device is None or not _on_device(device):
                return make(data, *args, device=device, **kwargs)
            grad = kwargs.pop("requires_grad", False)
            return make(data, *args, **kwargs).to(torch.device(NAME, 0)).requires_grad_(grad)

        return make_

    torch.Tensor.to = to_
    torch.Tensor.cuda = lambda self, device="cuda", non_blocking=False, **k: self.to(
        device if device is not None else "cuda", non_blocking=non_blocking
    )
    torch.tensor, torch.as_tensor = made(tensor), made(as_tensor)
    torch.Tensor.pin_memory = lambda self, device=None: self.clone()  # in a thread of its own


def _patch_module() -> None:
    """Parameters stay the objects that they are, as on CUDA: here by swapping them."""
    apply = torch.nn.Module._apply
    future = torch.__future__

    def _apply(self, fn, recurse=True):
        before = future.get_swap_module_params_on_conversion()
        future.set_swap_module_params_on_conversion(True)
        try:
            return apply(self, fn, recurse)
        finally:
            future.set_swap_module_params_on_conversion(before)

    torch.nn.Module._apply = _apply


_mode: SimMode | None = None


def lacking() -> str | None:
    """What this PyTorch lacks for the simulator, or None."""
    needed = {
        "torch.AcceleratorError": hasattr(torch, "AcceleratorError"),
        "a Python backend": hasattr(
            backend_registration, "_setup_privateuseone_for_python_backend"
        ),
        "_set_only_lift_cpu_tensors": hasattr(torch._C, "_set_only_lift_cpu_tensors"),
        "get_autocast_dtype": hasattr(torch, "get_autocast_dtype"),
    }
    return next((name for name, there in needed.items() if not there), None)


def install(rng: str = "own", foreach: bool = False) -> None:
    """Simulate from now on.

    :param rng: "own" generator of the device, or "shared" with the CPU.
    :param foreach: whether optimizers take their foreach path, as on a GPU. Its numbers differ
        from the single-tensor path in the last bits.
    """
    global _mode
    state.rng = rng
    if _mode is not None:
        return
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    state.generator = SimGenerator()
    state.generator.manual_seed(torch.initial_seed())
    _register_autocast()
    _patch_cuda()
    _patch_autocast()
    _patch_tensor()
    _patch_module()
    _patch_files()
    torch.Generator = Generator
    torch.nn.functional.scaled_dot_product_attention = _attention
    if foreach:
        for part in ("torch.optim.optimizer", "torch.utils._foreach_utils"):
            sys.modules[part]._foreach_supported_types.append(SimTensor)
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor's and indices' copies are to be seen
    _mode = SimMode()
    _mode.__enter__()
