"""Choose hyper-parameters: the same small budget for every method, on held-out training images.

    python examples/tune.py                                   # the embedded stream
    python examples/tune.py --benchmark folder:PATH --experiences 8 --backbone NAME ...

Each method gets four settings (what its publication leaves open: rates, and the mask, the start or
the shrinkage). A quarter of the *training* images stands in for the test set; no test image is
used. The stream's last accuracy decides. The package's defaults are the settings with the best mean
over the streams of ``docs/results.md``; of a published method, its authors' form where that is no
worse. ``avalanche-rwf compare --budget tuned`` chooses for one
stream, on its first experiences alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

from avalanche_rwf.cli import backbone_args
from avalanche_rwf.experiments.config import RunConfig

RATES = [
    {"lr_queries": q, "lr_maps": m} for q, m in itertools.product((5e-3, 1e-3), (1e-5, 3e-6))
]
MASKS = ("seen", "batch")
STARTS = ("original", "symmetric")
BLOCKS = [("last 3", 0.1), ("last 3", 0.2), ("last 5", 0.2), ("last 5", 0.4)]
GRID: dict[str, list[dict[str, Any]]] = {
    "rwf": RATES,
    "rwf-mean": RATES,
    "rwf-static": RATES,
    "rwf-random": [{"lr_maps": m} for m in (1e-6, 3e-6, 1e-5, 3e-5)],
    "rwf-literal": [{"lr": r, "mask": m} for r, m in itertools.product((5e-3, 2e-2), MASKS)],
    "linear-probe": [{"lr": r, "mask": m} for r, m in itertools.product((5e-3, 2e-2), MASKS)],
    "fine-tune": [{"lr_backbone": r, "mask": m} for r, m in itertools.product((1e-5, 1e-4), MASKS)],
    "avalanche-l2p": [{"lr": r, "mask": m} for r, m in itertools.product((5e-3, 3e-2), MASKS)],
    "l2p": [{"start": s, "diversify": d} for s, d in itertools.product(STARTS, (False, True))],
    "dualprompt": [{"start": s, "mask": m} for s, m in itertools.product(STARTS, MASKS)],
    "coda-prompt": [
        {"components": n, "lr": r} for n, r in itertools.product((10, 100), (1e-3, 5e-3))
    ],
    "mvp": [{"start": s, "mask": "seen"} for s in ("normal", *STARTS)] + [{"mask": "batch"}],
    "slda": [{"shrinkage": s} for s in (1e-4, 0.05, 0.1, 0.2)],
    "layers-lda": [{"blocks": b, "shrinkage": s} for b, s in BLOCKS],
    "rwf-lda": [{"blocks": b, "shrinkage": s} for b, s in BLOCKS],
}


def score(config: RunConfig, smoke: bool) -> float:
    """Last accuracy on the held-out images after one pass."""
    import torch

    from avalanche_rwf.experiments.tuning import held_out_accuracy

    torch.set_num_threads(1)
    return held_out_accuracy(config, 1 if smoke else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--benchmark", default="split-digits")
    parser.add_argument("--experiences", type=int)
    parser.add_argument("--backbone", default="rwf_vit_mini_patch8_32")
    parser.add_argument("--backbone-arg", action="append", default=[])
    parser.add_argument("--weights")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--methods", default=",".join(GRID))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results/tuning.json"))
    parser.add_argument("--smoke", action="store_true", help="one method, one experience")
    args = parser.parse_args()

    from avalanche_rwf.strategies.registry import resolve_options

    base = RunConfig(
        benchmark=args.benchmark,
        method="",
        experiences=args.experiences,
        backbone=args.backbone,
        backbone_args=backbone_args(args.backbone_arg),
        weights=args.weights,
        image_size=args.image_size,
        holdout=0.25,
    ).validate()
    methods = ["slda"] if args.smoke else args.methods.split(",")
    seeds = [int(seed) for seed in args.seeds.split(",")]
    work = {
        (method, json.dumps(setting), seed): replace(
            base, method=method, options=resolve_options(method, setting), seed=seed
        )
        for method in methods
        for setting in GRID[method]
        for seed in seeds
    }
    found: dict[str, dict[str, list[float]]] = {m: {} for m in methods}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1 if args.smoke else args.jobs, mp_context=context) as pool:
        futures = {pool.submit(score, config, args.smoke): key for key, config in work.items()}
        for future in as_completed(futures):
            method, setting, seed = futures[future]
            found[method].setdefault(setting, []).append(future.result())
            print(f"{method:14} seed {seed} {setting:45} {100 * future.result():5.1f}", flush=True)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(found, indent=1))
    for method, settings in found.items():
        best = max(settings, key=lambda s: sum(settings[s]))
        mean = 100 * sum(settings[best]) / len(seeds)
        print(f"best {method:14} {best:45} {mean:5.1f}")


if __name__ == "__main__":
    main()
