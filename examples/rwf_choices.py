"""What each open choice of RwF does to the accuracy: one choice at a time, all else as by default.

    python examples/rwf_choices.py --seeds 0,1,2 --out results-choices   # options of `compare`
    avalanche-rwf leaderboard results-choices                           # the table again

The accuracies are on test images, to be read and not to be chosen by: a setting is chosen with
`--budget tuned`, `--grid` or `tune`, on held-out training images."""
import sys
from typing import Any

from avalanche_rwf.cli import main

CHOICES: dict[str, list[Any]] = {
    "routed_blocks": ["none", "first 1", "first 3", "all", "last 1", "last 3"],
    "num_prompts": [1, 4, 30],
    "heads": [2, 4],
    "beta": [0.02, 1.0],
    "query_std": [0.02],
    "trainable": ["queries", "o", "queries,o,beta"],
    "insert": ["prefix"],
    "values": ["normed"],
    "mask": ["batch", "seen", "none"],
    "head": ["cosine", "linear"],
    "readout": ["cls", "mean"],
}
"""Option of rwf -> values other than the default."""


def run(arguments: list[str]) -> int:
    settings = [f"{option}={value}" for option, values in CHOICES.items() for value in values]
    status = main(["compare", "--methods", "rwf", "--quiet", *arguments])
    for setting in settings:
        print(f"\nrwf {setting}", flush=True)
        one = ["--methods", "rwf", "--set", f"rwf.{setting}", "--quiet"]
        status = max(status, main(["compare", *one, *arguments]))
    return status


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
