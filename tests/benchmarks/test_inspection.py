"""What a stream brings when: the numbers, the table, the picture."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from avalanche_rwf.benchmarks.inspection import describe, plot_stream, stream_table
from avalanche_rwf.benchmarks.registry import plan_benchmark
from avalanche_rwf.benchmarks.splits import StreamPlan
from avalanche_rwf.errors import UsageError


@pytest.fixture
def plan():
    """Two experiences and an empty one; the second brings one class back."""
    return StreamPlan(
        order=[2, 0, 1],
        class_names=["c", "a", "b<&"],
        train=[np.arange(4), np.arange(4, 10), np.arange(0)],
        test=[np.arange(4), np.arange(4, 6), np.arange(0)],
        class_counts=[{0: 3, 1: 1}, {1: 3, 2: 3}, {}],
        first_seen=[[0, 1], [2], []],
        options={"repeat": 0.5},
    )


def test_the_description_is_json_with_names(plan):
    values = json.loads(json.dumps(describe(plan)))
    assert [e["size"] for e in values["experiences"]] == [4, 6, 0]
    second = values["experiences"][1]
    assert second == {
        "size": 6, "classes": ["a", "b<&"], "class_counts": {"a": 3, "b<&": 3}, "labels": [1, 2],
        "first_seen": ["b<&"], "test_size": 2,
    }  # fmt: skip


def test_the_table_says_what_is_new_and_what_comes_back(plan):
    lines = stream_table(plan, 100).splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [
        ["1", "4", "4"], ["2", "6", "2"], ["3", "0", "0"], ["all", "10", "6"],
    ]  # fmt: skip
    assert "1 (50 %)" in lines[2] and lines[2].endswith("b<&")
    assert lines[1].split()[-3] == "1-3"
    narrow = stream_table(plan, 40).splitlines()
    assert "b<&" not in narrow[2]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_picture_shows_all_of_the_stream(plan, suffix, tmp_path):
    path = tmp_path / f"stream.{suffix}"
    plot_stream(plan, path, "a title & more")
    if suffix == "svg":
        text = path.read_text()
        assert text.startswith("<?xml") and "training samples seen" not in text[:500]
        return
    pixels = np.asarray(Image.open(path).convert("L")).astype(int)
    # In grey, too, the class that comes second is darker than the ones before.
    height, width = pixels.shape
    row = pixels[int(0.3 * height)]
    assert row[int(0.6 * width)] + 60 < row[int(0.2 * width)]


def test_a_picture_that_cannot_be_written_is_refused(plan, tmp_path):
    with pytest.raises(UsageError, match=r"--plot takes a file \.png, \.svg, \.pdf, not"):
        plot_stream(plan, tmp_path / "x.jpg")
    with pytest.raises(UsageError, match="does not exist"):
        plot_stream(plan, tmp_path / "nil" / "x.png")
    (tmp_path / "dir.png").mkdir()
    with pytest.raises(UsageError, match="cannot be written"):
        plot_stream(plan, tmp_path / "dir.png")


def test_a_plan_is_the_stream_that_is_made():
    from avalanche_rwf.benchmarks.registry import create_benchmark

    options = {"seed": 4, "stream": "si-blurry", "stream_options": {"blurry": 30}}
    plan = plan_benchmark("split-digits", **options)
    made = create_benchmark(
        "split-digits", image_size=8, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="nearest",
        **options,
    )  # fmt: skip
    assert plan.class_counts == made.class_counts
    assert plan.options == made.stream_options == {
        "disjoint": 50, "blurry": 30, "remainder": "keep",
    }  # fmt: skip
    for i, experience in enumerate(made.train_stream):
        assert len(experience.dataset) == len(plan.train[i])
        found = np.unique(list(experience.dataset.targets), return_counts=True)
        counts = dict(zip(*found, strict=True))
        assert counts == plan.class_counts[i]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["\x1b[2J\nx", "\udcff", "$x^", r"\$x^$", "\x00"])
def test_classes_and_folders_of_any_name_are_shown_and_drawn(name, plan, tmp_path):
    plan.class_names[0] = name
    lines = stream_table(plan, 100).splitlines()
    assert len(lines) == 5
    assert all(line.isprintable() for line in lines)
    plot_stream(plan, tmp_path / "a.svg", f"folder:{name}")
    assert (tmp_path / "a.svg").stat().st_size > 1000
