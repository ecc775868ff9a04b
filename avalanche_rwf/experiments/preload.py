"""What the fork server imports once for all workers."""

import contextlib
import gc

import avalanche_rwf.experiments.run
import avalanche_rwf.strategies.registry

# An import may fail: the command reports it, and the fork server must go on.
with contextlib.suppress(Exception):
    avalanche_rwf.strategies.registry.list_methods()

# The benchmark's modules are imported where they are used; here they are used by every run.
import avalanche.benchmarks  # noqa: F401
import sklearn.datasets  # noqa: F401

# A worker's garbage collection would copy the memory that it shares with this process.
gc.collect()
gc.freeze()
