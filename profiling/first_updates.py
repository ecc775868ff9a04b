"""How far the first updates move prompts and head: each baseline as its authors run it, and here.

    python profiling/first_updates.py                       # the embedded stream, packaged backbone
    python profiling/first_updates.py --methods l2p,mvp --held-out --seeds 0,1,2

Both settings train on the first ten mini-batches of the stream, with the same initial values.
"Movement" is the root mean square, over entries, of the change

- of the prompts that the first mini-batch's images get, with the choice that was made for them at
  first: what a composed prompt moves by depends on the number of its components;
- of the head's rows of the classes in these mini-batches.

The authors' options are those that a method is registered with (``published``). ``--held-out`` adds
the accuracy on held-out *training* images after one pass, under both. No test image is used.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from dataclasses import astuple, replace
from typing import Any, NamedTuple

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor

from avalanche_rwf.experiments.build import build_benchmark, build_strategy
from avalanche_rwf.experiments.config import RunConfig
from avalanche_rwf.experiments.tuning import held_out_accuracy
from avalanche_rwf.models.backbone import PACKAGED
from avalanche_rwf.models.classifier import optional
from avalanche_rwf.strategies.registry import get_method, list_methods, resolve_options

STEPS = 10


class Movement(NamedTuple):
    """Root mean square of the change; NaN where there is nothing to move."""

    prompts: float
    head: float


def published_methods() -> list[str]:
    """Methods with prompts that are registered with their authors' options."""
    return [name for name in list_methods() if get_method(name).published is not None]


def authors_options(name: str) -> dict[str, Any]:
    """A method's options as its authors run it."""
    return resolve_options(name, get_method(name).published or {})


class _EnoughError(Exception):
    """Ends the training."""


class _Watch(SupervisedPlugin):
    """Copies prompts and head before the first step and after ten."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.classes: set[int] = set()
        self.copies: list[tuple[Tensor, Tensor]] = []

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        self.classes |= set(strategy.mb_y.tolist()) if self.steps < STEPS else set()
        if self.steps == 0:
            self.images = strategy.mb_x
            self.chosen = None
            self.chosen = self._copy(strategy.model)

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.steps += 1
        if self.steps == STEPS:
            self._copy(strategy.model)
            raise _EnoughError

    def _copy(self, model: Any) -> Tensor | None:
        """Note prompts and head; returns which prompts were chosen, if any are."""
        with torch.no_grad():
            selection = model.select(model.query(self.images), model.training)
            chosen = getattr(selection, "indices", None)
            if self.chosen is not None:
                selection = replace(selection, indices=self.chosen)
            given = optional(selection)
            parts = [
                part.flatten()
                for block in model.prompted_blocks()
                for part in astuple(model.prompt(block, self.images, *given))
            ]
            extra = model.extra_tokens(selection)
            if extra is not None:
                parts.append(extra.flatten())
            if not parts:  # a network of its own: all of its prompts
                parts = [p.flatten() for group in model.prompt_groups().values() for p in group]
            weight = next(iter(model.head.parameters())).detach()
            self.copies.append((torch.cat(parts).clone(), weight.clone()))
        return chosen

    def movement(self) -> Movement:
        (prompts, weight), (later, trained) = self.copies
        rows = sorted(self.classes)
        moved = later - prompts
        moved = moved[moved != 0] if moved.any() else moved
        return Movement(
            float(moved.square().mean().sqrt()),
            float((trained - weight)[rows].square().mean().sqrt()),
        )


def movement(name: str, options: Mapping[str, Any], seed: int = 0) -> Movement:
    """How far ten updates on the embedded stream move a method's prompts and head."""
    config = RunConfig(
        benchmark="split-digits",
        backbone=PACKAGED,
        method=name,
        options=resolve_options(name, options),
        seed=seed,
    ).validate()
    benchmark = build_benchmark(config)
    watch = _Watch()
    strategy = build_strategy(config, benchmark.num_classes, "cpu", [watch])
    try:
        for experience in benchmark.train_stream:
            strategy.train(experience)
    except _EnoughError:
        return watch.movement()
    raise ValueError(f"The stream has fewer than {STEPS} mini-batches.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", help="names; all with published options if left out")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--held-out", action="store_true", help="add held-out accuracy")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in args.seeds.split(",")]
    columns = ["method", "options", "prompts moved", "head moved", "held-out, %"]
    print(f"| {' | '.join(columns)} |\n|{' :--- |' * len(columns)}")
    for name in args.methods.split(",") if args.methods else published_methods():
        own = dict(get_method(name).options)
        theirs = authors_options(name)
        settings = {"authors": theirs, "here": own} if theirs != own else {"both": own}
        for who, options in settings.items():
            moved = [movement(name, options, seed) for seed in seeds]
            prompts, head = (statistics.mean(v) for v in zip(*moved, strict=True))
            said = " ".join(f"{k}={v}" for k, v in options.items() if theirs[k] != own[k])
            held = _held_out(name, options, seeds) if args.held_out else "-"
            cells = [name, f"{who}: {said}" if said else who, f"{prompts:.4f}", f"{head:.4f}", held]
            print(f"| {' | '.join(cells)} |", flush=True)


def _held_out(name: str, options: Mapping[str, Any], seeds: list[int]) -> str:
    base = RunConfig(
        benchmark="split-digits", backbone=PACKAGED, method=name, options=options, holdout=0.25
    ).validate()
    scores = [100 * held_out_accuracy(replace(base, seed=seed)) for seed in seeds]
    spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.1f}{spread}"


if __name__ == "__main__":
    main()
