"""What the fork server imports once for all workers."""

import avalanche_rwf.experiments.run
import avalanche_rwf.strategies.registry

avalanche_rwf.strategies.registry.list_methods()

# The benchmark's modules are imported where they are used; here they are used by every run.
import avalanche.benchmarks  # noqa: E402,F401
import sklearn.datasets  # noqa: E402,F401
