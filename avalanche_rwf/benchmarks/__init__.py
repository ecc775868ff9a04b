"""Benchmarks: image sources, one a file under `datasets/`, and the streams made of them."""

from avalanche_rwf.benchmarks.registry import (
    BenchmarkSpec,
    StreamOptions,
    create_benchmark,
    get_benchmark,
    list_benchmarks,
    register_benchmark,
)
from avalanche_rwf.benchmarks.splits import Benchmark, ImageSource

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
