"""What each kind of constraint must refuse, each of which something once took in silence."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import torch
from avalanche.training.plugins import ReplayPlugin

from avalanche_rwf.benchmarks.options import _check_test_share
from avalanche_rwf.evaluation.metrics import _check_points
from avalanche_rwf.models.backbone import check_architecture
from avalanche_rwf.routing.layer import _check_prior
from avalanche_rwf.routing.priors import _check_grid
from avalanche_rwf.strategies import avalanche_l2p
from avalanche_rwf.strategies.loop_arguments import LOOP
from avalanche_rwf.utils.validation import (
    AnyPath,
    By,
    Choice,
    Constraint,
    Either,
    Flag,
    Instance,
    Number,
    Options,
    Subset,
    Text,
    Whole,
)


class _Thing:
    def __repr__(self) -> str:
        return "thing"  # where in memory it is would be another name for a test in each process


NAN, INFINITY = math.nan, math.inf
NO_SCALAR = [[], {}, _Thing(), torch.zeros(2)]
NO_TEXT = [-1, 0, 1, 1.5, True, NAN, 10**5000, *NO_SCALAR]
NO_NAME = ["", "no such name", *NO_TEXT]
NO_BACKBONE = [None, "vit", 3, 1.5, _Thing(), torch.nn.Linear(2, 2)]
WRONG: dict[Any, list[Any]] = {
    Whole: ["x", "1", 1.0, 1.5, True, False, NAN, INFINITY, *NO_SCALAR],
    Number: ["x", "1", 1j, True, False, NAN, INFINITY, -INFINITY, 10**400, 10**5000, *NO_SCALAR],
    Choice: NO_NAME,
    Subset: ["", 3, True, [3], [[]], ["no such name"], _Thing(), torch.zeros(2)],
    Flag: [-1, 0, 1, 1.5, "True", "x", NAN, 10**5000, *NO_SCALAR],
    Text: NO_TEXT,
    AnyPath: NO_TEXT,
    Options: ["x", 0, 1, True, [], [("a", 1)], {1: 2}, _Thing()],
    Instance: ["x", 0, 1.5, True, 10**5000, type, *NO_SCALAR],
    LOOP["clip_norm"]: [-1, 0, True, NAN, "x", []],
    LOOP["criterion"]: ["x", 3, torch.nn.CrossEntropyLoss, torch.nn.MSELoss(reduction="none")],
    LOOP["device"]: [None, "x", "cuda:99", -1, True, 1.5, _Thing()],
    LOOP["plugins"]: ["x", 3, torch.zeros(2), [3], ["x"], [None], [ReplayPlugin]],
    LOOP["evaluator"]: ["x", 3, [], _Thing()],
    By(check_architecture): NO_BACKBONE,
    By(avalanche_l2p._check_backbone): NO_BACKBONE,
    By(_check_grid): [None, 4, "4x", (4,), (4, 0), (4, 2.0), (True, 2), torch.zeros(2)],
    By(_check_points): [None, 3, "x", [3], [], _Thing(), torch.zeros(2)],
    By(_check_test_share): [None, "half", True, 1, -0.1, NAN],
    By(_check_prior): ["x", 3, [0.0], torch.zeros(2, 2), torch.tensor([0.0, NAN])],
}
"""By the kind of a constraint; one that a function checks stands for itself."""


def wrong_values(constraint: Constraint) -> list[Any]:
    """What a constraint must refuse: of another kind, and just beyond its bounds."""
    found = [*_of_another_kind(constraint), *_bounds(constraint)[1]]
    return found if getattr(constraint, "optional", True) else [*found, None]


def extreme_values(constraint: Constraint) -> list[Any]:
    """The outermost values that a constraint takes."""
    return [*_bounds(constraint)[0], *([None] if getattr(constraint, "optional", False) else [])]


def _of_another_kind(constraint: Constraint) -> list[Any]:
    if isinstance(constraint, Either):
        of_each = [_of_another_kind(kind) for kind in constraint.kinds]
        common = set.intersection(*({id(value) for value in values} for values in of_each))
        return [value for value in of_each[0] if id(value) in common]
    if isinstance(constraint, Instance):
        return [value for value in WRONG[Instance] if not isinstance(value, constraint.kind)]
    return WRONG[constraint if isinstance(constraint, By) else type(constraint)]


def _bounds(constraint: Constraint) -> tuple[list[Any], list[Any]]:
    """The outermost values that are taken, and the nearest that are not."""
    if isinstance(constraint, Either):
        right, wrong = zip(*map(_bounds, constraint.kinds), strict=True)
        return [*chain(*right)], [*chain(*wrong)]
    if isinstance(constraint, Whole):
        low, high = constraint.least, constraint.most
        right, wrong = [low], [low - 1, -(10**5000)]
        return (right, wrong) if high is None else ([*right, high], [*wrong, high + 1, 10**5000])
    if isinstance(constraint, Number):
        right, wrong = [], []
        for end, outward, within in (
            (constraint.least, -INFINITY, True),
            (constraint.above, -INFINITY, False),
            (constraint.most, INFINITY, True),
            (constraint.below, INFINITY, False),
        ):
            if end is not None:
                right.append(end if within else math.nextafter(end, -outward))
                wrong.append(math.nextafter(end, outward) if within else end)
        return right, wrong
    if isinstance(constraint, Choice):
        return list(constraint.known()), []
    if isinstance(constraint, Subset):
        names = list(constraint.names)
        return [names, {names[0]}], [] if constraint.empty else [()]
    return [], []
