"""Print the table of ``docs/backbones.md``: which of timm's families can be backbones, and how.

Every model of the installed timm is looked at, built with one tiny block; nothing is downloaded::

    python profiling/backbones.py
"""

from __future__ import annotations

import sys
import warnings
from collections import defaultdict
from typing import Any

import timm
import torch

from avalanche_rwf.models.backbone import _TINY, _survey
from avalanche_rwf.models.families import pooling

POOLINGS = {"token": "class token", "avg": "mean patch", "map": "attention pooling"}


def _module(arch: str) -> str:
    return timm.models.model_entrypoint(arch).__module__.rpartition(".")[2]


def _kind(arch: str) -> tuple[str, str]:
    """timm's class of a model, and what stands for a whole image in it."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model: Any = timm.create_model(arch, **_TINY)
        except AssertionError:  # sizes that belong together
            with torch.device("meta"):
                model = timm.create_model(arch, pretrained=False, num_classes=0)
    return type(model).__name__, POOLINGS.get(pooling(model), pooling(model))


def table() -> list[str]:
    """The table's lines, as Markdown."""
    rows: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    others = set()
    for arch, why in _survey().items():
        if why is None:
            kind, stands = _kind(arch)
            rows["yes", f"`{kind}`, in timm's `{_module(arch)}`", stands].append(arch)
        elif "of its module" in why:
            others.add(_module(arch))
        else:
            rows["no", f"in timm's `{_module(arch)}`", why].append(arch)
    lines = [
        "| supported | models | for an image stands, or why not | number | such as |",
        "| --- | --- | --- | ---: | --- |",
    ]
    for (supported, kind, said), names in sorted(rows.items(), key=lambda row: row[0][0] == "no"):
        shown = ", ".join(f"`{name}`" for name in names[:: max(1, len(names) // 3)][:3])
        lines.append(f"| {supported} | {kind} | {said} | {len(names)} | {shown} |")
    lines.append(
        f"| no | all of {len(others)} further modules | of classes that are not taken apart here "
        "| | "
        "`cait`, `convnext`, `swin_transformer`, `vision_transformer_hybrid` |"
    )
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
    sys.exit(0)
