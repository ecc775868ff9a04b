"""The examples in docstrings run, and every public function and class of the core has one."""

import doctest
import importlib
import inspect

import pytest
import torch

CORE = [
    *(f"avalanche_rwf.routing.{name}" for name in ("functional", "layer", "priors", "queries")),
    "avalanche_rwf.models.masks",
    *(f"avalanche_rwf.models.heads.{name}" for name in ("base", "closed_form", "trained")),
    *(f"avalanche_rwf.evaluation.{name}" for name in ("metrics", "subset")),
]
# Records, which others' examples make; what would declare a metric, or needs a stream.
WITHOUT = {"RoutingDiagnostics", "Metric", "TestStream", "metric", "subset_experiences"}


class _Finder(doctest.DocTestFinder):
    def _from_module(self, module, object):  # a decorator's function is of another module
        return super()._from_module(module, inspect.unwrap(object))


@pytest.mark.parametrize("name", CORE)
def test_examples_run_and_none_is_missing(name):
    module = importlib.import_module(name)
    torch.manual_seed(0)
    runner = doctest.DocTestRunner()
    for test in _Finder().find(module, name, extraglobs={"torch": torch}):
        runner.run(test)
    found = runner.summarize(verbose=False)
    assert found.attempted and not found.failed
    for public in module.__all__:
        thing = getattr(module, public)
        if callable(thing) and thing.__module__ == name and public not in WITHOUT:
            assert ">>> " in (thing.__doc__ or ""), f"{public} has no example"
