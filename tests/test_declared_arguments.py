"""Every argument that a function or class of the package declares refuses what it does not take.

What is declared is in one table, so a class needs no test of its own for wrong values of single
arguments. How arguments go together is tested where it is written.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
import re
from itertools import chain

import pytest
import torch

import avalanche_rwf
from avalanche_rwf.errors import UsageError
from avalanche_rwf.models.backbone import check_architecture
from avalanche_rwf.routing.layer import _check_prior
from avalanche_rwf.routing.priors import _check_grid
from avalanche_rwf.utils.validation import (
    DECLARED,
    AnyPath,
    By,
    Choice,
    Either,
    Flag,
    Instance,
    Number,
    Options,
    Subset,
    Text,
    Whole,
)

for module in pkgutil.walk_packages(avalanche_rwf.__path__, "avalanche_rwf."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)

ARGUMENTS = [
    pytest.param(code, name, constraint, id=f"{place.removeprefix('avalanche_rwf.')}-{name}")
    for place, (code, constraints) in sorted(DECLARED.items())
    if place.startswith("avalanche_rwf.")
    for name, constraint in constraints.items()
]


class _Thing:
    """Of a class that nothing knows."""


NAN, INFINITY = math.nan, math.inf
NO_SCALAR = [[], {}, _Thing(), torch.zeros(2)]
NO_TEXT = [-1, 0, 1, 1.5, True, NAN, 10**5000, *NO_SCALAR]
WRONG = {
    Whole: ["x", "1", 1.0, 1.5, True, False, NAN, INFINITY, *NO_SCALAR],
    Number: ["x", "1", 1j, True, False, NAN, INFINITY, -INFINITY, 10**400, 10**5000, *NO_SCALAR],
    Choice: ["", "no such name", *NO_TEXT],
    Subset: ["", 3, True, [3], [[]], ["no such name"], _Thing(), torch.zeros(2)],
    Flag: [-1, 0, 1, 1.5, "True", "x", NAN, 10**5000, *NO_SCALAR],
    Text: NO_TEXT,
    AnyPath: NO_TEXT,
    Options: ["x", 0, 1, True, [], [("a", 1)], {1: 2}, _Thing()],
    Instance: ["x", 0, 1.5, True, 10**5000, *NO_SCALAR],
    check_architecture: [None, "x", 0, 1.5, _Thing(), torch.nn.Linear(2, 2)],
    _check_grid: [None, 4, "4x", (4,), (4, 0), (4, 2.0), (True, 2), torch.zeros(2)],
    _check_prior: ["x", 3, [0.0], torch.zeros(2, 2), torch.tensor([0.0, NAN])],
}
"""By the kind of a constraint, or the function that checks: what it must refuse."""


def nonsense(constraint):
    """What a constraint must refuse whatever its bounds."""
    if isinstance(constraint, Either):
        of_each = [nonsense(kind) for kind in constraint.kinds]
        common = [{id(value) for value in values} for values in of_each]
        return [value for value in of_each[0] if id(value) in set.intersection(*common)]
    if isinstance(constraint, Instance):
        return [value for value in WRONG[Instance] if not isinstance(value, constraint.kind)]
    return WRONG[constraint.function if isinstance(constraint, By) else type(constraint)]


def bounds(constraint):
    """The outermost values that a constraint takes, and the nearest that it does not."""
    if isinstance(constraint, Whole):
        ends = {constraint.least: -1, constraint.most: 1}
        right = [end for end in ends if end is not None]
        return right, [end + step for end, step in ends.items() if end is not None] + [-(10**5000)]
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
    if isinstance(constraint, Either):
        right, wrong = zip(*map(bounds, constraint.kinds), strict=True)
        return [*chain(*right)], [*chain(*wrong)]
    if isinstance(constraint, Choice):
        return list(constraint.known()), []
    if isinstance(constraint, Subset):
        names = list(constraint.names)
        return [names, {names[0]}], [] if constraint.empty else [()]
    return [], []


@pytest.mark.parametrize(("code", "name", "constraint"), ARGUMENTS)
def test_a_wrong_value_is_refused_in_one_sentence(code, name, constraint):
    _, beyond = bounds(constraint)
    wrong = [*nonsense(constraint), *beyond]
    if getattr(constraint, "optional", True) is False:
        wrong.append(None)
    # An object is not there yet where its constructor checks, and other arguments are missing.
    first = [None] if next(iter(inspect.signature(code).parameters)) == "self" else []
    for value in wrong:
        with pytest.raises(UsageError) as error:
            code(*first, **{name: value})
        sentence = str(error.value)
        assert re.match(rf"{name}\b", sentence) and sentence.endswith("."), sentence
        assert len(sentence) < 600 and "\n" not in sentence


@pytest.mark.parametrize(("code", "name", "constraint"), ARGUMENTS)
def test_bounds_and_the_default_are_taken(code, name, constraint):
    right, _ = bounds(constraint)
    parameters = inspect.signature(code).parameters
    if name not in parameters:  # it is passed on
        assert any(p.kind is p.VAR_KEYWORD for p in parameters.values()), f"{name} is no argument"
    elif parameters[name].default is not inspect.Parameter.empty:
        right.append(parameters[name].default)
    if getattr(constraint, "optional", False):
        right.append(None)
    for value in right:
        constraint.check(name, value)


def test_a_table_is_there():
    assert len(ARGUMENTS) > 15
