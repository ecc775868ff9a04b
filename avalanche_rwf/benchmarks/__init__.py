"""Benchmarks: image sources, one a file under `datasets/`, and the streams made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from avalanche_rwf.utils.lazy import lazy

if TYPE_CHECKING:
    from avalanche_rwf.benchmarks.benchmark import (
        Benchmark,
    )
    from avalanche_rwf.benchmarks.registry import (
        BenchmarkSpec,
        StreamOptions,
        create_benchmark,
        get_benchmark,
        list_benchmarks,
        register_benchmark,
    )
    from avalanche_rwf.benchmarks.splits import (
        ImageSource,
    )

_HOMES = {
    "Benchmark": "benchmark",
    "BenchmarkSpec": "registry",
    "StreamOptions": "registry",
    "create_benchmark": "registry",
    "get_benchmark": "registry",
    "list_benchmarks": "registry",
    "register_benchmark": "registry",
    "ImageSource": "splits",
}

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

__getattr__, __dir__ = lazy(__name__, _HOMES)
