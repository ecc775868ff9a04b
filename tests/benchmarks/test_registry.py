"""Names, options and what is said when they are wrong."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from avalanche_rwf.benchmarks import registry
from avalanche_rwf.benchmarks.registry import create_benchmark, get_benchmark, list_benchmarks
from avalanche_rwf.cli import main
from avalanche_rwf.errors import UsageError

GOOD = {
    "seed": 0,
    "image_size": 8,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "interpolation": "bilinear",
}


def test_benchmarks_are_listed_by_pattern():
    assert {"folder:", "split-digits"} <= set(list_benchmarks())
    assert list_benchmarks("split-d*") == ["split-digits"]
    assert list_benchmarks("no such*") == []
    assert all(get_benchmark(name).summary for name in list_benchmarks())
    assert get_benchmark("folder:some/where:else").name == "folder:"


def test_listing_imports_nothing_heavy():
    code = (
        "import sys; from avalanche_rwf.benchmarks.registry import list_benchmarks; "
        "assert list_benchmarks(); print([m for m in ('avalanche', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("split-digit", "unknown benchmark 'split-digit'; the nearest names are 'split-digits'"),
        ("folders:x", "nearest names are 'folder:'"),
        ("folder", "nearest names are 'folder:'"),
        ("folder:", "needs a path after the colon"),
        ("", "unknown benchmark"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        create_benchmark(name, **GOOD)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("mean", [0.5, (0.5, 0.5), "abc", (0.5, 0.5, float("nan")), (0.5, 0.5, "x"), b"abc"]),
        ("mean", [(0, 0, 10**400), (0, 0, 1e39), np.zeros(2), np.zeros((3, 1)), {1: 2}]),
        ("std", [(0.5, 0.5), (0.5, 0.5, 0.0), (0.5, 0.5, -1), (1, 1, 1e-320), np.ones(4)]),
        ("stream", [None, 3, []]),
    ],
)
def test_options_out_of_range_are_refused(field, values):
    for value in values:
        with pytest.raises(UsageError, match=f"^{field} (\\(--\\S+\\) )?(is|must be) ") as error:
            create_benchmark("split-digits", **{**GOOD, field: value})
        assert "\n" not in str(error.value)


def test_a_new_source_is_found_by_its_name(monkeypatch):
    monkeypatch.setattr(registry.BENCHMARKS, "entries", dict(registry.BENCHMARKS.entries))

    @registry.register_benchmark("unit-test")
    def load(options):
        """One line.

        More.
        """

    assert get_benchmark("unit-test").load is load
    assert get_benchmark("unit-test").summary == "One line."
    load.__module__ = "elsewhere"
    with pytest.raises(ValueError, match="registered already"):
        registry.register_benchmark("split-digits")(load)


@pytest.mark.parametrize("three", [[0.5] * 3, np.full(3, 0.5), torch.full((3,), 0.5)])
def test_numbers_by_channel_may_be_an_array(three):
    made = create_benchmark("split-digits", **{**GOOD, "mean": three, "std": three})
    same = create_benchmark("split-digits", **{**GOOD, "mean": (0.5,) * 3, "std": (0.5,) * 3})
    images = [b.train_stream[0].dataset[0][0] for b in (made, same)]
    assert torch.equal(*images)


@pytest.mark.parametrize("path", ["a" * 5000, "~nobody-of-that-name/x", "\0"])
def test_a_path_that_cannot_be_is_no_folder(path, capsys):
    with pytest.raises(UsageError, match="does not exist"):
        create_benchmark(f"folder:{path}", **GOOD)
    assert main(["inspect", "--benchmark", f"folder:{path}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
