"""What the fork server imports once for all workers."""

import contextlib
import warnings

# qpsolvers, which Avalanche imports for GEM, looks for solvers that nothing here needs.
warnings.filterwarnings("ignore", message="no QP solver found")

import avalanche_rwf.experiments.run  # noqa: E402
import avalanche_rwf.strategies.registry  # noqa: E402

# What --import names may fail; the command says so itself, and this process must live on.
with contextlib.suppress(Exception):
    avalanche_rwf.strategies.registry.list_methods()

# The benchmark's modules are imported where they are used; here they are used by every run.
import avalanche.benchmarks  # noqa: E402,F401
import sklearn.datasets  # noqa: E402,F401
