"""What each experience of a stream brings: a table, JSON and a picture, before any training."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avalanche_rwf.benchmarks.splits import StreamPlan
from avalanche_rwf.errors import UsageError
from avalanche_rwf.utils.untrusted_io import drawable, printable

PLOT_SUFFIXES = (".png", ".svg", ".pdf")
_MOST_LINES = 60  # classes with a line between each other in the picture


def describe(plan: StreamPlan) -> dict[str, Any]:
    """The stream as plain values, for JSON.

    :returns: `experiences`, a list with per experience `size`, `classes` (names), `class_counts`
        (name -> training samples), `labels` (numbers of `classes` in the stream), `first_seen`
        (names) and `test_size`; `class_names`, by label; `num_classes`; `options`; `notes`, where
        there are any.
    """
    names = plan.class_names
    return {
        **({"notes": list(plan.notes)} if plan.notes else {}),
        "num_classes": len(names),
        "class_names": names,
        "options": plan.options,
        "experiences": [
            {
                "size": sum(counts.values()),
                "classes": [names[label] for label in counts],
                "class_counts": {names[label]: n for label, n in counts.items()},
                "labels": list(counts),
                "first_seen": [names[label] for label in new],
                "test_size": len(test),
            }
            for counts, new, test in zip(
                plan.class_counts, plan.first_seen, plan.test, strict=True
            )
        ],
    }


def stream_table(plan: StreamPlan, width: int | None = None) -> str:
    """One line per experience, numbered from 1: samples, classes, first seen, seen before, names.

    "seen before" is how many of the classes an earlier experience had, and their share of the
    samples; "per class" the smallest and the largest number of samples of a class.

    :param width: characters per line; None is the terminal's.
    """
    width = width or shutil.get_terminal_size((100, 24)).columns
    header = ("exp", "samples", "test", "classes", "first seen", "seen before", "per class")
    rows = [header]
    for number, counts in enumerate(plan.class_counts, 1):
        new = set(plan.first_seen[number - 1])
        size = sum(counts.values())
        before = [n for label, n in counts.items() if label not in new]
        back = f"{len(before)} ({100 * sum(before) / size:.0f} %)" if before else "0"
        spread = sorted({min(counts.values()), max(counts.values())}) if counts else [0]
        rows.append(
            (
                *(str(number), str(size), str(len(plan.test[number - 1]))),
                *(str(len(counts)), str(len(new)), back, "-".join(map(str, spread))),
            )
        )
    total = sum(sum(counts.values()) for counts in plan.class_counts)
    tests = sum(map(len, plan.test))
    rows.append(("all", str(total), str(tests), str(len(plan.class_names)), "", "", ""))
    wide = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = ["  ".join(cell.rjust(w) for cell, w in zip(row, wide, strict=True)) for row in rows]
    room = width - len(lines[0]) - 2
    names = [
        "classes first seen",
        *(", ".join(printable(plan.class_names[label]) for label in new)
          for new in plan.first_seen),
        "",
    ]
    if room >= len(names[0]):
        lines = [f"{line}  {_cut(text, room)}" for line, text in zip(lines, names, strict=True)]
    return "\n".join(line.rstrip() for line in lines)


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 1] + "…"


def check_plot(path: Path) -> Path:
    """Check that a picture can be written there.

    :raises UsageError: another ending than of `PLOT_SUFFIXES`, or no such folder.
    """
    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise UsageError(f"--plot takes a file {', '.join(PLOT_SUFFIXES)}, not {str(path)!r}.")
    if not path.parent.is_dir():
        raise UsageError(f"--plot: the folder {str(path.parent)!r} does not exist.")
    return path


def plot_stream(plan: StreamPlan, path: Path, title: str = "") -> None:
    """Draw which classes are present when, as a stacked area chart.

    To the right: training samples, so that an experience is as wide as it is long. Upwards: the
    share of each class in the experience. A class has the shade of the experience that brings it
    first, darker the later, which a grey print keeps.

    :raises UsageError: as :func:`check_plot`, or if the file cannot be written.
    """
    check_plot(path)
    # The object-oriented interface: pyplot would choose a window system and keep the figure.
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shares = _shares(plan.class_counts, len(plan.class_names))
    sizes = np.array([sum(counts.values()) for counts in plan.class_counts])
    ends = np.cumsum(sizes)
    # Two points per experience, its ends: areas with steps between experiences.
    x = np.repeat(np.concatenate([[0], ends]), 2)[1:-1]
    y = np.repeat(shares, 2, axis=0).T
    # From light to dark in luminance, without the palest end, which is nearly the paper.
    shade = colormaps["cividis_r"](np.linspace(0.08, 1.0, max(len(sizes), 2)))
    first = np.empty(len(plan.class_names), dtype=int)
    for number, labels in enumerate(plan.first_seen):
        first[labels] = number

    figure = Figure(figsize=(9, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    few = len(first) <= _MOST_LINES
    areas = axes.stackplot(x, y, colors=[shade[i] for i in first])
    for area in areas:
        area.set(edgecolor="white" if few else "face", linewidth=0.6 if few else 0)
    for end in ends[:-1]:
        axes.axvline(end, color="black", linewidth=1.0)
    _name_classes(axes, plan, shares, sizes, shade, first)
    for number, (size, end) in enumerate(zip(sizes, ends, strict=True), 1):
        if size > 0.02 * ends[-1]:
            said = f"experience {number}" if size > 0.13 * ends[-1] else str(number)
            axes.text(end - size / 2, 102, said, ha="center", va="bottom", fontsize=8)
    axes.set(
        xlim=(0, ends[-1]),
        ylim=(0, 100),
        xlabel="training samples seen",
        ylabel="share of the experience's samples in %",
    )
    axes.set_title(drawable(title), fontsize=10, pad=20)
    _legend(axes, areas, first)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise UsageError(
            f"--plot: {str(path)!r} cannot be written ({error.strerror or error})."
        ) from None


def _legend(axes: Any, areas: Sequence[Any], first: np.ndarray) -> None:
    """Name the shades by the experience that brings their classes first."""
    numbers, one_of_each = np.unique(first, return_index=True)
    axes.legend(
        [areas[i] for i in one_of_each], [str(number + 1) for number in numbers], fontsize=8,
        title="class first\nseen in\nexperience", title_fontsize=8, frameon=False, reverse=True,
        loc="center left", bbox_to_anchor=(1.01, 0.5), ncols=1 + len(numbers) // 20,
    )  # fmt: skip


def _shares(class_counts: Sequence[Mapping[int, int]], num_classes: int) -> np.ndarray:
    """Share of each class in each experience in per cent, [T, C]; zero where it has no samples."""
    counts = np.zeros((len(class_counts), num_classes))
    for row, of in zip(counts, class_counts, strict=True):
        row[list(of)] = list(of.values())
    return 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def _name_classes(
    axes: Any,
    plan: StreamPlan,
    shares: np.ndarray,
    sizes: np.ndarray,
    shade: np.ndarray,
    first: np.ndarray,
) -> None:
    """Write a class's name, in quotes, into each of its areas that has room for it."""
    starts = np.cumsum(sizes) - sizes
    tops = np.cumsum(shares, axis=1)
    for number, label in zip(*np.nonzero(shares), strict=True):
        name = f"“{printable(plan.class_names[label])}”"
        # In units of the picture: about 120 letters of this size fit across, 30 lines upwards.
        wide = 120 * sizes[number] / sizes.sum()
        if shares[number, label] < 4 or wide < len(name) + 1:
            continue
        red, green, blue, _ = shade[first[label]]
        light = 0.299 * red + 0.587 * green + 0.114 * blue
        axes.text(
            starts[number] + sizes[number] / 2,
            tops[number, label] - shares[number, label] / 2,
            drawable(name),
            ha="center",
            va="center",
            fontsize=7,
            color="black" if light > 0.5 else "white",
        )
