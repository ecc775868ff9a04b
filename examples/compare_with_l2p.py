"""RwF and Avalanche's own L2P on the same stream, with Avalanche's loggers and metrics.

    python examples/compare_with_l2p.py           # split-digits, about a minute on two cores
    python examples/compare_with_l2p.py --smoke   # the first experience only, seconds

One logger object (InteractiveLogger, or TextLogger with ``--log FILE``) is shared by both
strategies; a DataFrameLogger each collects the same metrics as tidy rows for a pandas table.
Both are ordinary Avalanche strategies: plugins, evaluators and the loop below know neither.
"""

from __future__ import annotations

import argparse

import pandas as pd
import torch
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.logging import InteractiveLogger, TextLogger
from avalanche.training.plugins import EvaluationPlugin

from avalanche_rwf import PACKAGED, DataFrameLogger, create_backbone, create_benchmark
from avalanche_rwf.models.backbone import backbone_info
from avalanche_rwf.strategies.registry import create_strategy

METHODS = ("rwf", "avalanche-l2p")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of the stream and of the methods")
    parser.add_argument("--log", metavar="FILE", help="write Avalanche's log there, no bars")
    parser.add_argument("--csv", metavar="FILE", help="write every logged metric there")
    parser.add_argument("--smoke", action="store_true", help="one experience, seconds")
    args = parser.parse_args(argv)
    if args.log:
        with open(args.log, "w", encoding="utf-8") as file:  # noqa: PTH123
            frames = compare(args.seed, TextLogger(file), 1 if args.smoke else 5)
    else:
        frames = compare(args.seed, InteractiveLogger(), 1 if args.smoke else 5)
    rows = pd.concat(frames, names=["method"]).reset_index(level="method")
    if args.csv:
        rows.to_csv(args.csv, index=False)
    print()
    print(summarise(rows).to_string(float_format="%.1f"))


def compare(seed, shared_logger, experiences):
    """Run every method on the same samples in the same order; its metrics by method."""
    frames = {}
    for name in METHODS:
        torch.manual_seed(seed)
        backbone = create_backbone(PACKAGED)
        info = backbone_info(backbone)
        benchmark = create_benchmark(
            "split-digits", seed=seed, image_size=info.image_size, mean=info.mean, std=info.std,
            interpolation=info.interpolation,
        )  # fmt: skip
        table = DataFrameLogger()
        evaluator = EvaluationPlugin(
            accuracy_metrics(epoch=True, experience=True, stream=True),
            loss_metrics(epoch=True),
            loggers=[shared_logger, table],
        )
        strategy = create_strategy(
            name,
            backbone=backbone,
            num_classes=benchmark.num_classes,
            loop={"train_mb_size": 16, "evaluator": evaluator},
        )
        for number, experience in enumerate(benchmark.train_stream[:experiences]):
            strategy.train(experience, shuffle=False)  # one pass; samples are mixed already
            strategy.eval(benchmark.test_stream[: number + 1])
        frames[name] = table.to_frame()
    return frames


def summarise(rows):
    """Accuracy in per cent over the classes seen, after each experience, by method."""
    streams = rows[(rows["phase"] == "eval") & (rows["metric"] == "Top1_Acc_Stream")]
    table = streams.pivot_table(index="method", columns="trained_experience", values="value")
    table.columns = [f"after {number + 1}" for number in table.columns]
    return (100 * table.assign(mean=table.mean(axis=1))).sort_values("mean", ascending=False)


if __name__ == "__main__":
    main()
