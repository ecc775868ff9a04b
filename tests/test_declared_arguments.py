"""Every argument that a function or class of the package declares refuses what it does not take.

What is declared is in one table, so a class needs no test of its own for wrong values of single
arguments. How arguments go together is tested where it is written.
"""

from __future__ import annotations

import importlib
import inspect
import pickle
import pkgutil
import re

import pytest

import avalanche_rwf
from avalanche_rwf.benchmarks.options import StreamOptions
from avalanche_rwf.errors import UsageError
from avalanche_rwf.models.classifier import FrozenViT
from avalanche_rwf.models.heads import HEADS, list_heads
from avalanche_rwf.routing.layer import RoutingLayer
from avalanche_rwf.strategies.base import FrozenBackboneStrategy
from avalanche_rwf.strategies.replay import Replay
from avalanche_rwf.utils.validation import DECLARED, Either, Number, Whole

from .wrong_values import extreme_values, wrong_values

for module in pkgutil.walk_packages(avalanche_rwf.__path__, "avalanche_rwf."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)

PLACES = {place: found for place, found in DECLARED.items() if place.startswith("avalanche_rwf.")}
ARGUMENTS = [
    pytest.param(code, name, constraint, id=f"{place.removeprefix('avalanche_rwf.')}-{name}")
    for place, (code, constraints) in sorted(PLACES.items())
    for name, constraint in constraints.items()
]


MADE = inspect.signature(StreamOptions).parameters["stream_options"].default
"""Stands for a default that a dataclass makes anew for each object."""


@pytest.mark.parametrize(("code", "name", "constraint"), ARGUMENTS)
def test_a_wrong_value_is_refused_in_one_sentence(code, name, constraint):
    # An object is not there yet where its constructor checks, and other arguments are missing.
    first = [None] if {"self", "cls"} & {*list(inspect.signature(code).parameters)[:1]} else []
    for value in wrong_values(constraint):
        with pytest.raises(UsageError) as error:
            code(*first, **{name: value})
        sentence = str(error.value)
        assert re.match(rf"{name}\b", sentence) and sentence.endswith("."), sentence
        assert len(sentence) < 600 and "\n" not in sentence


@pytest.mark.parametrize(("code", "name", "constraint"), ARGUMENTS)
def test_bounds_and_the_default_are_taken(code, name, constraint):
    right, parameters = extreme_values(constraint), inspect.signature(code).parameters
    if name not in parameters:  # it is passed on
        assert any(p.kind is p.VAR_KEYWORD for p in parameters.values()), f"{name} is no argument"
    elif parameters[name].default not in (inspect.Parameter.empty, MADE):
        right.append(parameters[name].default)
    for value in right:
        constraint.check(name, value)


@pytest.mark.parametrize("place", sorted(p for p in PLACES if not p.endswith("__init__")))
def test_no_number_or_flag_is_forgotten_where_others_are_declared(place):
    code, constraints = PLACES[place]
    kinds = {"int", "float", "bool", "int | None", "float | None"}
    parameters = inspect.signature(code).parameters.values()
    assert {p.name for p in parameters if p.annotation in kinds} <= constraints.keys()


BOUNDS = {
    "whole, from 1": "bottleneck buffer components dim epochs eval_mb_size every experiences "
    "expert_length general_length gradient_steps heads hold_after in_features n_classes "
    "n_experiences num_classes num_queries pool_size projections prompt_length rank replay_batch "
    "session_batch size steps subset "
    "tasks top_k train_epochs train_mb_size window",
    "whole, from 0": "experience num_prefix_tokens num_prompts samples_seen",
    "whole, from 0 to 4294967295": "seed split_seed",
    "whole, from 1 to 16384": "image_size",
    "whole, from -1": "eval_every",  # Avalanche's: never
    "from 0": "alpha diagonal lr_maps lr_queries ortho power pull query_std rest sim_coefficient "
    "strength",
    "above 0": "beta centre gamma lr lr_head margin mean_centre penalty plateau_mean "
    "plateau_variance tau width",
    "from 1": "refresh",
    "from 0 to 1": "share",
    "above 0 to 1": "shrinkage",
    "from 0 to below 1": "holdout",
    "from 0.05 to 1": "crop_pct",
}
OTHER_BOUNDS = {
    "RwFStrategy buffer": "whole, from 0",  # none
    "prompted_vit pool_size": "whole, from 0",  # by its prompts
    "RidgeHead projections": "whole, from 0",  # none
    "CheckpointPlugin every": "whole, from 0",  # at experience ends alone
    "create_strategy num_classes": "whole, from 1 to 4611686018427387904",
    "Replay beta": "from 0",  # the weight of a loss
    "RwFStrategy lr": "from 0", "prompt_rates lr": "from 0", "prompt_rates lr_head": "from 0",
}  # fmt: skip
"""What numbers are meant to take, by name, and where one of that name takes something else.

It is written a second time, so that a slip in a declaration is not its own measure."""


def _written(constraint):
    """Bounds as in `BOUNDS`; of what takes a name as well, those of its numbers."""
    if isinstance(constraint, Either):
        return next(filter(None, map(_written, constraint.kinds)), "")
    if isinstance(constraint, Whole):
        top = "" if constraint.most is None else f" to {constraint.most}"
        return f"whole, from {constraint.least}{top}"
    if not isinstance(constraint, Number):
        return ""
    parts = {"from": constraint.least, "above": constraint.above, "to": constraint.most,
             "to below": constraint.below}  # fmt: skip
    return " ".join(f"{word} {end}" for word, end in parts.items() if end is not None)


def test_the_bounds_of_numbers_are_those_that_are_meant():
    meant = {name: text for text, names in BOUNDS.items() for name in names.split()}
    found = {
        (place.removesuffix(".__init__").rpartition(".")[2], name): _written(constraint)
        for place, (_, constraints) in PLACES.items()
        for name, constraint in constraints.items()
    }
    found = {key: text for key, text in found.items() if text}
    assert len(found) > 100
    for (code, name), text in found.items():
        assert text == OTHER_BOUNDS.get(f"{code} {name}", meant.get(name)), (code, name)
    assert {name for _, name in found} >= meant.keys()


CHECKED_WITH_OTHERS = {
    *("self", "blocks", "general_blocks", "expert_blocks", "routed_blocks", "readout_blocks"),
    *("head", "readout", "mask", "precision", "model_name", "weights"),
}
"""What depends on the backbone, or on another argument."""


def _declared(code):
    if not inspect.isfunction(code):  # object's
        return set()
    return DECLARED.get(f"{code.__module__}.{code.__qualname__}", (None, {}))[1].keys()


def test_every_argument_of_heads_models_and_strategies_is_declared():
    classes = [RoutingLayer, Replay, *(HEADS[name] for name in list_heads())]
    waiting = [FrozenViT, FrozenBackboneStrategy]
    while waiting:
        classes.append(waiting.pop())
        waiting += classes[-1].__subclasses__()
    assert len(classes) > 20
    for kind in classes:
        if kind.__module__.startswith("avalanche_rwf.") and "__init__" in vars(kind):
            parameters = inspect.signature(kind.__init__).parameters.values()
            names = {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
            # What it passes on to a base class is declared there.
            declared = set().union(*(_declared(one.__init__) for one in kind.__mro__))
            assert names - CHECKED_WITH_OTHERS <= declared, kind


def test_a_declared_function_is_still_itself():
    for place, (code, _) in PLACES.items():
        assert code.__doc__ == inspect.unwrap(code).__doc__
        if not place.endswith("__init__"):
            assert pickle.loads(pickle.dumps(code)) is code
