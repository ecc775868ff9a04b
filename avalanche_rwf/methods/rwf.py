r"""Routing without Forgetting: the presets and their controls, each a dictionary of options.

With retrieve the association of the queries S with the block's tokens (:mod:`.functional`), the
prompts of block l are

.. math:: P_l = W_o \, \mathrm{retrieve}(S, \mathrm{LN}(X_l), X_l)

- ``rwf``: queries S and W_o are trained; the default;
- ``rwf-literal``: the closest reading, P_l = retrieve(S, LN(X_l), LN(X_l)), only S trained, few
  early blocks;
- ``rwf-mean``: P_l = W_o (mean_i x_i + u s_l): uniform association; the queries are the slots'
  offsets;
- ``rwf-static``: P_l = W_o (c + u s_l) for every image; c, u: mean token and spread of the first
  batch;
- ``rwf-random``: as ``rwf`` with the queries held at their random start.

Source: arXiv 2603.09576.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from torch import nn

from avalanche_rwf.routing.model import RoutedViT
from avalanche_rwf.strategies.registry import register_method
from avalanche_rwf.strategies.rwf import RwFStrategy

PAPER = "Routing without Forgetting, arXiv 2603.09576"


def _names(text: str | Collection[str]) -> Collection[str]:
    """"queries,o" or "queries o" -> ("queries", "o"); a collection is as it is."""
    if not isinstance(text, str):
        return text
    return tuple(word for word in re.split(r"[,+\s]+", text) if word)


def build_rwf(
    *,
    backbone: nn.Module,
    num_classes: int,
    loop: dict[str, Any],
    trainable: str = "queries,o",
    mask: str = "decoupled",
    buffer: int = 0,
    replay: str = "er",
    buffer_policy: str = "reservoir",
    lr: float = 5e-3,
    lr_queries: float = 1e-3,
    lr_maps: float = 3e-6,
    heads: int = 1,
    beta: float | None = None,
    num_prompts: int = 10,
    query_std: float = 1.0,
    **model: Any,
) -> RwFStrategy:
    """Options of :class:`RoutedViT`, its layers and :class:`RwFStrategy`; see the module's text."""
    routed = RoutedViT(
        backbone,
        num_classes,
        trainable=_names(trainable),
        heads=heads,
        beta=beta,
        num_prompts=num_prompts,
        query_std=query_std,
        **model,
    )
    return RwFStrategy(
        model=routed,
        mask=mask,
        buffer=buffer,
        replay=replay,
        buffer_policy=buffer_policy,
        lr=lr,
        lr_queries=lr_queries,
        lr_maps=lr_maps,
        **loop,
    )


_MODEL = {"routed_blocks": "first 5", "num_prompts": 10, "head": "white", "readout": "cls+mean"}
_RATES = {"mask": "decoupled", "lr": 5e-3, "lr_queries": 1e-3, "lr_maps": 3e-6}
_REPLAY = {"buffer": 0, "replay": "er", "buffer_policy": "reservoir"}
_ROUTING = {
    "heads": 1, "beta": None, "trainable": "queries,o", "insert": "token", "values": "raw",
    "query_std": 1.0, "stop_gradient": False,
}

register_method(
    "rwf",
    summary="RwF: prompts retrieved from each block's tokens; whitened head (defaults are ours)",
    paper=PAPER,
    default=True,
    options={**_MODEL, **_ROUTING, **_REPLAY, **_RATES, "recompute": False},
    young=("recompute",),
)(build_rwf)

register_method(
    "rwf-literal",
    summary="RwF, closest to what is public: learned queries, identity values, linear head",
    paper=PAPER,
    options={
        "routed_blocks": "first 3", "num_prompts": 10, "head": "linear", "readout": "cls",
        "query_std": 1.0, "mask": "batch", "lr": 5e-3, "lr_queries": 5e-3,
    },
    fixed={"lr_maps": 0.0, "trainable": "queries", "values": "normed"},
)(build_rwf)

for _name, _summary in (
    ("mean", "control of rwf, same parameters: the mean token instead of a retrieved one"),
    ("static", "control of rwf, same parameters: learned prompts that ignore the image"),
):
    register_method(
        f"rwf-{_name}",
        summary=_summary,
        options={**_MODEL, **_RATES},
        fixed={"trainable": "queries,o", "source": _name},
    )(build_rwf)

register_method(
    "rwf-random",
    summary="control of rwf: random queries that are never trained, only W_o is",
    options={**_MODEL, **{key: value for key, value in _RATES.items() if key != "lr_queries"}},
    fixed={"lr_queries": 0.0, "trainable": "o"},
)(build_rwf)
