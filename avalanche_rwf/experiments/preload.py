"""What the fork server imports once for all workers."""

import contextlib
import gc
import importlib
import importlib.util
import sys
import types
import warnings
from typing import Any

# qpsolvers, which Avalanche imports for GEM, looks for solvers that nothing here needs.
warnings.filterwarnings("ignore", message="no QP solver found")



class _Delayed(types.ModuleType):
    """The package qpsolvers, imported when Avalanche's GEM uses it and not with Avalanche.

    It imports every solver that is installed, JAX among them: 1.3 seconds, and 170 MB that each
    worker would share.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        sys.modules.pop(self.__name__)
        vars(self).update(vars(importlib.import_module(self.__name__)))
        return vars(self)[name]


_found = importlib.util.find_spec("qpsolvers")
if _found is not None and "qpsolvers" not in sys.modules:
    sys.modules["qpsolvers"] = _Delayed("qpsolvers")
    vars(sys.modules["qpsolvers"]).update(__file__=_found.origin, __spec__=_found)

import avalanche_rwf.experiments.run  # noqa: E402
import avalanche_rwf.strategies.registry  # noqa: E402

# What --import names may fail; the command says so itself, and this process must live on.
with contextlib.suppress(Exception):
    avalanche_rwf.strategies.registry.list_methods()

# The benchmark's modules are imported where they are used; here they are used by every run.
import avalanche.benchmarks  # noqa: E402,F401
import sklearn.datasets  # noqa: E402,F401

# A worker's garbage collection would copy the memory that it shares with this process.
gc.collect()
gc.freeze()
