"""What checkpoints take of a run's time, with the spacing that is set by itself.

    python profiling/checkpoints.py                      # embedded stream and backbone
    python profiling/checkpoints.py --methods er,rwf --checkpoint-every 10

Real runs, one after another; each logs how many checkpoints it wrote and what share of its time
that was. The methods differ in what they keep: `rwf` 0.3 MB, `er` the numbers of its buffer's
images, `slda` a covariance, `rp-ridge` one of 10,000 random features. Exit status 1 above 3 %
(`--checkpoint-every N` costs what it costs and has no limit).
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

from avalanche_rwf.cli.values import read_every
from avalanche_rwf.experiments.config import RunConfig, run_directory
from avalanche_rwf.experiments.execution import Execution, use_execution
from avalanche_rwf.experiments.run import run
from avalanche_rwf.strategies.registry import resolve_options

LIMIT = 3.0
"""Percent of the time."""


def main(argv: list[str] | None = None) -> int:
    """Do the runs and print their shares."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--methods", default="rwf,er,slda,rp-ridge")
    parser.add_argument("--benchmark", default="split-digits")
    parser.add_argument("--backbone", default="rwf_vit_mini_patch8_32")
    parser.add_argument("--checkpoint-every", default="auto")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    use_execution(Execution(checkpoint_every=read_every(args.checkpoint_every)))
    worst = 0.0
    print(f"{'method':14} {'seconds':>8} {'checkpoints':>12} {'share':>8}")
    for method in args.methods.split(","):
        config = RunConfig(
            benchmark=args.benchmark, method=method, options=resolve_options(method, {}),
            backbone=args.backbone,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as out:
            summary = run(config, Path(out), args.device)
            log = (run_directory(Path(out), config) / "log.txt").read_text()
        if summary["status"] != "done":
            print(f"{method}: {summary['error']}", file=sys.stderr)
            return 1
        written, share = re.findall(r"(\d+) checkpoints, ([\d.]+) % of the time", log)[-1]
        seconds = summary["train_seconds"] + summary["eval_seconds"]
        print(f"{method:14} {seconds:8.1f} {written:>12} {share:>6} %", flush=True)
        worst = max(worst, float(share))
    return 1 if args.checkpoint_every == "auto" and worst > LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
