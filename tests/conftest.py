"""Small real models and a small real stream, shared by the tests."""

from __future__ import annotations

import contextlib
import gc
import signal
import sys
import warnings

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.utils.data import TensorDataset

import avalanche_rwf  # noqa: F401  Avalanche imported before it takes seconds more

from .families import FAMILIES

torch.set_num_threads(1)

# A shell starts what runs in the background deaf to SIGINT, nohup to SIGHUP; tests send both.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler),
                          (getattr(signal, "SIGHUP", signal.SIGINT), signal.SIG_DFL)):  # fmt: skip
    with contextlib.suppress(ValueError):  # not in the main thread
        if signal.getsignal(_number) is signal.SIG_IGN:
            signal.signal(_number, _handler)


def pytest_collection_finish() -> None:
    """Each run begins with a garbage collection, which took most of a small one's time: it need not
    look at all modules that the tests have imported."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # else libraries in C++ call what is frozen leaked


def make_vit(seed: int = 0, kind: type = VisionTransformer, **kwargs):
    """A random ViT of 4 blocks whose LayerScale, biases and norms are not trivial."""
    torch.manual_seed(seed)
    settings = {
        "img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 4,
        "num_classes": 0, "init_values": 0.3, **kwargs,
    }
    vit = kind(**settings)
    for p in vit.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return vit.eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def forgetful():
    """No test finds features that another one left in the process's memory."""
    from avalanche_rwf.models.feature_cache import MEMORY

    MEMORY.clear()


@pytest.fixture
def vit() -> VisionTransformer:
    return make_vit()


@pytest.fixture
def images() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(6, 3, 32, 32)


def make_data(classes: int = 6, per_class: int = 12, seed: int = 0) -> TensorDataset:
    """Images whose class is written in their colour and in the brightness of a corner."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(classes).repeat_interleave(per_class)
    x = torch.randn(len(y), 3, 32, 32, generator=g)
    colours = torch.randn(classes, 3, generator=torch.Generator().manual_seed(99))
    x += colours[y][:, :, None, None]
    x[:, :, :8, :8] += (y % 2)[:, None, None, None] * 2.0
    order = torch.randperm(len(y), generator=g)
    data = TensorDataset(x[order], y[order])
    data.targets = y[order].tolist()  # type: ignore[attr-defined]
    return data


def make_scenario(classes: int = 6, experiences: int = 3, per_class: int = 12):
    """An Avalanche ``nc_benchmark`` of small images; class order by a fixed seed."""
    from avalanche.benchmarks import nc_benchmark

    return nc_benchmark(
        make_data(classes, per_class),
        make_data(classes, 6, seed=5),
        experiences,
        task_labels=False,
        seed=3,
        class_ids_from_zero_from_first_exp=True,
    )


@pytest.fixture(scope="session")
def scenario():
    return make_scenario()


def silent():
    """An evaluator that prints nothing."""
    from avalanche.training.plugins import EvaluationPlugin

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return EvaluationPlugin(collect_all=False)


@pytest.fixture
def outside(monkeypatch, tmp_path, tmp_path_factory):
    """A folder to stand in; nothing that code from outside registers or imports there stays, and no
    module of another test's folder is found."""
    from avalanche_rwf.benchmarks import registry, stream_registry
    from avalanche_rwf.models import heads
    from avalanche_rwf.strategies import registry as methods
    from avalanche_rwf.utils import user_code

    methods.list_methods(), registry.list_benchmarks(), stream_registry.list_streams()
    tables: list[dict] = [
        *(methods.METHODS.entries, registry.BENCHMARKS.entries, stream_registry.STREAMS.entries),
        *(stream_registry.OPTIONS, heads.HEADS.entries),
    ]
    copies = [dict(table) for table in tables]
    monkeypatch.setattr(user_code, "_LOADED", set(user_code._LOADED))
    folders = str(tmp_path_factory.getbasetemp())
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not p.startswith(folders)])
    monkeypatch.setenv(user_code.VARIABLE, "")
    monkeypatch.chdir(tmp_path)

    def forget() -> None:
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", "")).startswith(folders):
                del sys.modules[name]

    forget()
    yield tmp_path
    forget()
    for table, copy in zip(tables, copies, strict=True):
        table.clear(), table.update(copy)


@pytest.fixture
def tools():
    """The helpers of this file, for tests that need other sizes."""

    class Tools:
        vit = staticmethod(make_vit)
        families = FAMILIES
        data = staticmethod(make_data)
        scenario = staticmethod(make_scenario)
        silent = staticmethod(silent)

    return Tools
