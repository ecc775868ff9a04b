"""The examples in docstrings run, and everything public in the core has one, with its arguments."""

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch

import avalanche_rwf.models.heads
import avalanche_rwf.routing

CORE = [
    *(
        f"{package.__name__}.{module.name}"
        for package in (avalanche_rwf.routing, avalanche_rwf.models.heads)
        for module in pkgutil.iter_modules(package.__path__)
    ),
    "avalanche_rwf.models.masks",
    *(f"avalanche_rwf.evaluation.{name}" for name in ("metrics", "subset")),
]
# Records, which others' examples make; what would declare a metric, or needs a stream.
WITHOUT = {"RoutingDiagnostics", "Metric", "TestStream", "metric", "subset_experiences"}


class _Finder(doctest.DocTestFinder):
    def _from_module(self, module, object):  # a decorator's function is of another module
        return super()._from_module(module, inspect.unwrap(object))


def _public(name):
    module = importlib.import_module(name)
    things = {public: getattr(module, public) for public in module.__all__}
    return {k: v for k, v in things.items() if callable(v) and v.__module__ == name}


@pytest.mark.parametrize("name", CORE)
def test_examples_run_and_none_is_missing(name):
    module = importlib.import_module(name)
    torch.manual_seed(0)
    runner = doctest.DocTestRunner()
    for test in _Finder().find(module, name, extraglobs={"torch": torch}):
        runner.run(test)
    found = runner.summarize(verbose=False)
    assert found.attempted and not found.failed
    for public, thing in _public(name).items():
        assert public in WITHOUT or ">>> " in (thing.__doc__ or ""), f"{public} has no example"


@pytest.mark.parametrize("name", CORE)
def test_no_argument_or_result_is_left_unexplained(name):
    for public, thing in _public(name).items():
        # A subclass may leave its base's arguments to the base.
        told = "".join(c.__doc__ or "" for c in getattr(thing, "__mro__", [thing]))
        signature = inspect.signature(thing)
        fields = [
            f":param {p.name}:"
            for p in signature.parameters.values()
            if p.name != "self" and p.kind is not p.VAR_POSITIONAL
        ]
        if not inspect.isclass(thing) and signature.return_annotation != "None":
            fields.append(":returns:")
        assert not [field for field in fields if field not in told], public
