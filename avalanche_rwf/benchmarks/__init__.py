"""Benchmarks: image sources, one a file under `datasets/`, and the streams made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from avalanche_rwf.benchmarks.registry import (
    BenchmarkSpec,
    StreamOptions,
    create_benchmark,
    get_benchmark,
    list_benchmarks,
    register_benchmark,
)
from avalanche_rwf.benchmarks.splits import ImageSource

if TYPE_CHECKING:
    from avalanche_rwf.benchmarks.benchmark import Benchmark

__all__ = [
    "Benchmark",
    "BenchmarkSpec",
    "ImageSource",
    "StreamOptions",
    "create_benchmark",
    "get_benchmark",
    "list_benchmarks",
    "register_benchmark",
]


def __getattr__(name: str) -> Any:
    if name != "Benchmark":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Listings and plans need no Avalanche, whose import takes seconds.
    from avalanche_rwf.benchmarks.benchmark import Benchmark

    return Benchmark
