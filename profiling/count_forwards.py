"""Notes each image that goes through a frozen backbone, for ``compare --import`` of this file.

    COUNT_FORWARDS=forwards.txt avalanche-rwf compare ... --import profiling/count_forwards.py
    awk '{n[$1] += $2} END {for (kind in n) print kind, n[kind]}' forwards.txt

A line is "training" or "evaluation" and the images of a batch, over all processes. Images that the
feature memory finds are in none. Avalanche's own L2P and the queries of `avalanche:*` do not count.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from avalanche_rwf.models.classifier import FrozenViT

FILE = Path(os.environ["COUNT_FORWARDS"])


def counted(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A method of a model's that notes its images."""

    @functools.wraps(forward)
    def noting(self: FrozenViT, images: Any, *args: Any) -> Any:
        with FILE.open("a") as file:
            file.write(f"{'training' if self.training else 'evaluation'} {len(images)}\n")
        return forward(self, images, *args)

    return noting


for name in ("_forward_blocks", "_frozen_query"):
    setattr(FrozenViT, name, counted(getattr(FrozenViT, name)))
