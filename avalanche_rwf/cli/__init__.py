"""The ``avalanche-rwf`` command: results on stdout, everything else on stderr. One file a verb.

Exit status 0: all runs done; 1: a run failed (named, with its log); 2: bad usage.
"""

from avalanche_rwf.cli.app import VERBS, build_parser, main
from avalanche_rwf.cli.values import backbone_args

# No code here: the verb `list` is a module of this name.
__all__ = ["VERBS", "backbone_args", "build_parser", "main"]
