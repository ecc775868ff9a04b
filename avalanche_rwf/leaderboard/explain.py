"""Where on an image each prompt was retrieved from, drawn with matplotlib."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from avalanche_rwf.benchmarks.images import Geometry, read_image, why_unreadable
from avalanche_rwf.errors import UsageError
from avalanche_rwf.evaluation.routing import Routes, read_routes, relative_entropy_of
from avalanche_rwf.experiments.config import RunConfig
from avalanche_rwf.experiments.load_run import load_routed
from avalanche_rwf.experiments.store import check_writable, write_text
from avalanche_rwf.models.backbone import BackboneInfo, backbone_info
from avalanche_rwf.routing.model import RoutedViT
from avalanche_rwf.utils.untrusted_io import drawable, read_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
_CELL = 1.05  # inches
_MOST_PROMPTS = 32
_LIMITS = (2, 4, 8, 16)
"""Ends of the colour scale, in multiples of the uniform share; the least that fits is taken."""


def read_pixels(path: Path, info: BackboneInfo) -> np.ndarray:
    """An image file as the backbone sees it, before normalisation: uint8 [3, S, S].

    :raises UsageError: if it cannot be read.
    """
    try:
        return read_image(path, Geometry.of(info))
    except MemoryError:
        raise
    except Exception as error:  # PIL and its plugins raise half a dozen kinds
        reason = getattr(error, "strerror", None) or why_unreadable(path)
        raise UsageError(
            f"explain takes image files, and {str(path)!r} is none ({reason})."
        ) from error


def _normalised(pixels: np.ndarray, info: BackboneInfo) -> Tensor:
    """uint8 [3, S, S] -> float32 [1, 3, S, S]."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (info.mean, info.std))
    return (torch.from_numpy(pixels)[None].float() / 255 - mean) / std


def route_rows(routes: dict[int, Routes], prefix: int) -> list[dict[str, Any]]:
    """One row per block, prompt and head of the first image: what the map shows, as numbers.

    :param prefix: number of tokens before the patches; their share is ``class_token`` (with any
        register tokens).
    """
    rows = []
    for block, found in sorted(routes.items()):
        assert found.diagnostics is not None
        relative = relative_entropy_of(found.diagnostics)[0]
        heads, slots = relative.shape
        for slot in range(slots):
            for head in range(heads):
                p = found.diagnostics.association[0, head, slot]
                rows.append(
                    {
                        "block": block,
                        "prompt": slot,
                        "head": head,
                        "relative_entropy": float(relative[head, slot]),
                        "entropy": float(found.diagnostics.entropy[0, head, slot]),
                        "free_energy": float(found.diagnostics.free_energy[0, head, slot]),
                        "class_token": float(p[:prefix].sum()),
                        "best_patch": int(p[prefix:].argmax()),
                        "best_patch_share": float(p[prefix:].max()),
                    }
                )
    return rows


def draw_routes(
    pixels: np.ndarray, routes: dict[int, Routes], model: RoutedViT, title: str
) -> Figure:
    """One row of maps per routed block, one column per prompt: association over the patches.

    Heads are averaged. All maps have one scale: a patch's share as a multiple of the uniform one,
    on a logarithmic axis, so that a uniform association is white everywhere.

    :param pixels: the image, uint8 [3, S, S].
    :param routes: of that image alone, as :func:`read_routes` gives them.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    prefix = model.num_prefix_tokens
    rows, columns = model.backbone.patch_embed.grid_size
    image = pixels.transpose(1, 2, 0)
    side = image.shape[0]
    grey = image.mean(-1)
    slots = max(found.prompts.shape[1] for found in routes.values())
    figure = Figure(
        figsize=(_CELL * (slots + 1) + 1.2, (_CELL + 0.33) * len(routes) + 0.75),
        layout="constrained",
    )
    axes = figure.subplots(len(routes), slots + 1, squeeze=False)
    shares = _shares(routes, prefix)
    every = np.concatenate([share.ravel() for share in shares.values()])
    reached = float(np.quantile(every, 0.995))  # one patch must not make all others pale
    most = next((limit for limit in _LIMITS if limit >= reached), _LIMITS[-1])
    scale = ScalarMappable(LogNorm(1 / most, most), "PuOr_r")
    for line, (block, share) in enumerate(shares.items()):
        found = routes[block].diagnostics
        assert found is not None
        entropy = relative_entropy_of(found)[0].mean(0)
        energy = found.free_energy[0].mean(0)
        axes[line, 0].imshow(image, interpolation="nearest")
        axes[line, 0].set_ylabel(f"block {block}", fontsize=9)
        for slot in range(slots):
            axis = axes[line, slot + 1]
            axis.imshow(grey, cmap="gray", interpolation="nearest", vmin=0, vmax=255)
            axis.imshow(
                share[slot].reshape(rows, columns).clip(1 / most, most), alpha=0.72,
                cmap=scale.cmap, norm=scale.norm, interpolation="nearest",
                extent=(-0.5, side - 0.5, side - 0.5, -0.5),
            )  # fmt: skip
            axis.set_title(f"H {entropy[slot]:.2f}\nF {energy[slot]:.1f}", fontsize=7, pad=2)
            if line == len(routes) - 1:
                axis.set_xlabel(f"prompt {slot}", fontsize=8)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_visible(False)
    bar = figure.colorbar(scale, ax=axes, shrink=min(1.0, 2.2 / len(routes)), pad=0.02, aspect=15,
                          extend="both")
    _label_bar(bar, most)
    figure.suptitle(
        f"{title}\nOrange: the prompt was retrieved from here, more than from a patch in the mean; "
        "purple: less.\nH: entropy, 1 is uniform; F: free energy at the minimum.",
        fontsize=8, x=0.01, ha="left",
    )  # fmt: skip
    return figure


def _shares(routes: dict[int, Routes], prefix: int) -> dict[int, np.ndarray]:
    """By block, [L, patches]: the mean over heads, in multiples of the uniform share."""
    shares = {}
    for block, found in sorted(routes.items()):
        if found.diagnostics is not None:
            association = found.diagnostics.association
            mean = association[0].mean(0).numpy() * association.shape[-1]
            shares[block] = mean[:, prefix:]
    return shares


def _label_bar(bar: Any, most: int) -> None:
    """Name the powers of two on the colour bar, from 1 / most to most."""
    ticks = [2.0**power for power in range(-round(math.log2(most)), round(math.log2(most)) + 1)]
    names = ["uniform" if t == 1 else f"{t:.3g}" if t > 1 else f"1/{1 / t:.3g}" for t in ticks]
    bar.set_ticks(ticks, labels=names)
    bar.minorticks_off()
    bar.ax.tick_params(labelsize=7)
    bar.set_label("share of a patch, as a multiple\nof the uniform share", fontsize=7)


def _target(out: Path, stem: str, fmt: str, identity: str) -> Path:
    """The file of a map: the first that is not there yet, or that is of the same image and run."""
    for number in itertools.count(1):
        target = out / f"{stem}{'' if number == 1 else f'-{number}'}-routes.{fmt}"
        table = target.with_suffix(".csv")
        if not target.exists() and not table.exists():
            return target
        with contextlib.suppress(OSError, ValueError):
            if identity.encode() in read_file(target):
                return target
    raise AssertionError


def explain(
    images: Sequence[Path], run: Path, out: Path, fmt: str = "png"
) -> list[tuple[Path, list[dict[str, Any]]]]:
    """Draw the routes of images by a finished run's model, a figure and a CSV file each.

    :param images: image files; everything is checked before anything is drawn.
    :param run: a run directory.
    :param out: folder for ``<image>-routes.png`` and ``<image>-routes.csv``; what is there of
        another image or run is kept, and the name gets a number.
    :param fmt: one of :data:`FORMATS`.
    :returns: each figure's path with the rows of its table, see :func:`route_rows`.
    :raises UsageError: for a run without routing, an image that cannot be read, a folder that
        cannot be written to, or without matplotlib.
    """
    try:
        import matplotlib  # noqa: F401  (an extra, and slow to import)
    except ImportError:
        raise UsageError(
            "explain draws with matplotlib, which is not installed: "
            "pip install avalanche-rwf[report]."
        ) from None
    config, model = load_routed(run)
    _check_drawable(model, config, run)
    info = backbone_info(model.backbone)
    read = [(path, read_pixels(path, info)) for path in images]
    check_writable(out)
    written = []
    for path, pixels in read:
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem) or "image"
        identity = hashlib.sha256(f"{config.config_hash()} {config.seed} ".encode())
        identity.update(pixels.tobytes())
        target = _target(out, stem, fmt, identity.hexdigest())
        routes = read_routes(model, _normalised(pixels, info))
        benchmark = config.benchmark
        if benchmark.startswith("folder:"):  # the picture shows no path of this machine
            benchmark = f"the images of {Path(benchmark).name}"
        # A folder's or file's name may hold anything.
        title = drawable(f"{path.name}: {config.method} on {benchmark}, seed {config.seed}")
        figure = draw_routes(pixels, routes, model, title)
        # `_target` finds the file by its identity; without a date it is the same each time.
        dates: dict[str, None] = {"Date": None} if fmt == "svg" else {}
        figure.savefig(
            target, dpi=110, format=fmt, metadata={"Source": identity.hexdigest(), **dates}
        )
        rows = route_rows(routes, model.num_prefix_tokens)
        table = pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")
        write_text(target.with_suffix(".csv"), table)
        written.append((target, rows))
    return written


def _check_drawable(model: RoutedViT, config: RunConfig, run: Path) -> None:
    layers = [model.layer(block) for block in model.routed_blocks()]
    if any(layer.source != "tokens" for layer in layers):
        raise UsageError(
            f"explain takes a run whose prompts are retrieved from the image, and {config.method} "
            f"is a control that retrieves nothing ({str(run)!r})."
        )
    if layers[0].num_prompts > _MOST_PROMPTS:
        raise UsageError(
            f"explain draws at most {_MOST_PROMPTS} prompts per block, and the run {str(run)!r} "
            f"has {layers[0].num_prompts}."
        )
