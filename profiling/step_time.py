"""Time of a training step, as ratios to one frozen forward in the same process.

    python profiling/step_time.py                   # ViT-S of 9 blocks, random weights, no file
    python profiling/step_time.py --threads 1 --precision bf16 --json step_time.json

Every repetition runs each case once, in turn (A/B/C/A/B/C), and a ratio is the median over
repetitions of (time of the case / time of its neighbour in the same repetition): what else the
machine does hits all cases alike. A step is the whole of what the strategy does for a batch:
forward, statistics of the head, loss, backward, clipping, optimizer. The whitened head renews its
transform in some steps only (an eigendecomposition), none of which is timed; its statistics of a
stream of ``--stream-steps`` steps, renewals included, are timed by themselves and spread over its
steps: "step" means the two together.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from timm import create_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from avalanche_rwf.models.blockwise import tokens_entering
from avalanche_rwf.models.classifier import FrozenViT
from avalanche_rwf.models.heads import WhiteHead
from avalanche_rwf.models.masks import mask_logits, training_mask
from avalanche_rwf.strategies.base import FrozenBackboneStrategy
from avalanche_rwf.strategies.registry import create_strategy

CLASSES = 50
LIMITS = {
    "routing layers over static prompts, forward": 1.15,
    "routing layers over static prompts, step": 1.15,
    "rwf step, first 5 blocks": 3.4,
    "rwf step, last 5 blocks": 2.4,
    "recompute over not, step, first5": 1.35,
    "recompute over not, kept for the backward pass, first5": 0.55,
    "rwf over static prompts, kept for the backward pass, first5": 1.05,
    "strategy loop over a bare loop, rwf": 1.05,
    "strategy loop over a bare loop, linear-probe": 1.05,
    "training on a stream over frozen forwards, ncm": 1.10,
    "training on a stream over frozen forwards, slda": 1.10,
    "training on a stream over frozen forwards, rp-ridge": 1.10,
}


# ----------------------------------------------------------------------------------------- timing


class Clock:
    """Seconds of a call; on a GPU until the device is idle."""

    def __init__(self, device: str, kind: str) -> None:
        self.cuda = device.startswith("cuda")
        self._now = time.process_time if kind == "cpu" else time.perf_counter

    def __call__(self, run: Callable[[], object]) -> float:
        """Run it once and return its time."""
        if self.cuda:
            torch.cuda.synchronize()
        start = self._now()
        run()
        if self.cuda:
            torch.cuda.synchronize()
        return self._now() - start


def interleave(
    cases: dict[str, Callable[[], object]], repeats: int, clock: Clock, label: str
) -> dict[str, list[float]]:
    """Time every case once per repetition, after one repetition that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for repeat in range(repeats + 1):
        print(f"\r{label}: {repeat}/{repeats} ", end="", file=sys.stderr, flush=True)
        # Back and forth, so that no case always runs after the same neighbour.
        names = list(cases) if repeat % 2 == 0 else list(reversed(cases))
        for name in names:
            seconds = clock(cases[name])
            if repeat:
                times[name].append(seconds)
    print(file=sys.stderr)
    return times


def ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """Median of a / b over repetitions; NaN in `a` marks repetitions that are left out."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True) if x == x)


# ----------------------------------------------------------------------------------------- models


def make_backbone(args: argparse.Namespace) -> VisionTransformer:
    """A ViT with random weights: time does not depend on them, and no file is needed."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = create_model(
            args.model, pretrained=False, num_classes=0, img_size=args.image_size, depth=args.depth
        )
    return model.eval().requires_grad_(False).to(args.device)


def make_strategy(
    name: str, backbone: VisionTransformer, args: argparse.Namespace, **options: Any
) -> Any:
    """The method as users get it, with no metrics and nothing printed."""
    torch.manual_seed(1)
    loop = {
        "train_mb_size": args.batch_size,
        "device": args.device,
        "precision": args.precision,
        "evaluator": None,
    }
    return create_strategy(name, backbone=backbone, num_classes=CLASSES, loop=loop, **options)


def autocast(args: argparse.Namespace) -> Any:
    """Bfloat16 where it is asked for."""
    if args.precision == "bf16":
        return torch.autocast(torch.device(args.device).type, dtype=torch.bfloat16)
    return nullcontext()


class BareStep:
    """What ``FrozenBackboneStrategy`` computes for a batch, in plain PyTorch."""

    def __init__(self, strategy: FrozenBackboneStrategy, args: argparse.Namespace) -> None:
        self.model: FrozenViT = strategy.model
        self.optimizer = strategy.optimizer
        self.trains, self.mask = strategy.trains, strategy.mask
        self.args = args

    def __call__(self, x: Tensor, y: Tensor) -> None:
        """One training step on images x and labels y."""
        model = self.model
        if self.trains:
            self.optimizer.zero_grad()
        with autocast(self.args):
            features = model.features(x)
        features = features.float()
        model.observe(features.detach(), y)
        raw = model.head.in_training(features).float()
        mask_logits(raw, model.seen)
        if not self.trains:
            return
        if self.mask == "decoupled":
            loss = self._loss(model.training_logits(features.detach()).float(), y, "seen")
            if features.requires_grad:
                fixed = model.training_logits(features, freeze_head=True)
                loss = loss + self._loss(fixed.float(), y, "batch")
        else:
            loss = self._loss(raw, y, self.mask)
        loss.backward()
        norms = [
            nn.utils.clip_grad_norm_(group["params"], 1.0)
            for group in self.optimizer.param_groups
        ]
        if not bool(torch.isfinite(torch.stack([loss.detach(), *norms])).all()):
            raise RuntimeError("the loss is not finite")
        self.optimizer.step()

    def _loss(self, logits: Tensor, y: Tensor, mask: str) -> Tensor:
        allowed = training_mask(mask, y, self.model.seen)
        return nn.functional.cross_entropy(mask_logits(logits, allowed), y)


def strategy_step(strategy: Any, x: Tensor, y: Tensor) -> Callable[[], object]:
    """One training step of a strategy on a fixed batch, outside Avalanche's loop."""
    strategy.is_training = True
    strategy.model.train()

    def run() -> None:
        strategy.mbatch = [x, y, torch.zeros_like(y)]
        strategy._observed = False
        strategy._training_step()

    return run


def kept(strategy: Any, x: Tensor, y: Tensor) -> float:
    """Bytes that are there after the forward and the loss of a step and were not before."""
    strategy.is_training = True
    strategy.model.train()
    strategy_step(strategy, x, y)()  # what is made once
    strategy.mbatch = [x, y, torch.zeros_like(y)]
    strategy._observed = False
    strategy.optimizer.zero_grad()
    strategy.mb_output = strategy._features = strategy.loss = strategy._selection = None
    strategy._asked = {}
    activity = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity], profile_memory=True) as profile:
        strategy.mb_output = strategy.forward()
        loss = strategy.criterion()
    found = sum(event.self_cpu_memory_usage for event in profile.key_averages())
    loss.backward()
    return float(found)


def statistics_of_a_stream(head: WhiteHead, steps: int, y: Tensor) -> Callable[[], object]:
    """What a head like this one takes in of a stream of so many steps, its renewals among it."""
    features = torch.randn(steps, len(y), head.in_features, device=y.device)

    def run() -> None:
        fresh = WhiteHead(head.in_features, CLASSES).to(y.device)
        for batch in features:
            fresh.observe(batch, y)

    return run


# ------------------------------------------------------------------------------------ measurements


def measure_steps(
    backbone: VisionTransformer, args: argparse.Namespace, clock: Clock
) -> dict[str, float]:
    """Forwards and steps of every method in frozen forwards, and routing over static prompts."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(args.batch_size, 3, args.image_size, args.image_size, generator=generator)
    y = torch.randint(CLASSES, (args.batch_size,), generator=generator)
    x, y = x.to(args.device), y.to(args.device)

    def frozen() -> None:
        with torch.no_grad(), autocast(args):
            backbone(x)

    cases: dict[str, Callable[[], object]] = {"frozen forward": frozen}
    heads: dict[str, WhiteHead] = {}

    def forward_of(model: FrozenViT) -> Callable[[], object]:
        def run() -> None:
            with torch.no_grad(), autocast(args):
                model.features(x)

        return run

    def backward_alone(first: int) -> Callable[[], object]:
        """What no step can do without: the frozen blocks forward, and back to block `first`."""

        def run() -> None:
            with autocast(args):
                tokens = tokens_entering(backbone, x, first).requires_grad_()
                for block in backbone.blocks[first:]:
                    tokens = block(tokens)
                backbone.norm(tokens).float().sum().backward()

        return run

    def add(label: str, name: str, forward: bool = False, **options: Any) -> None:
        model_backbone = copy.deepcopy(backbone) if name == "fine-tune" else backbone
        strategy = make_strategy(name, model_backbone, args, **options)
        if forward:
            cases[f"{label} forward"] = forward_of(strategy.model)
        cases[f"{label} step"] = strategy_step(strategy, x, y)
        head = strategy.model.training_head or strategy.model.head
        if isinstance(head, WhiteHead):
            heads[f"{label} step"] = head
            head.observe(torch.randn(4096, head.in_features, device=x.device), y.repeat(256)[:4096])

    memory = {}
    for where in ("first 5", "last 5"):
        short = where.replace(" ", "")
        first = 0 if where == "first 5" else args.depth - 5
        cases[f"backward alone ({short})"] = backward_alone(first)
        add(f"rwf-static ({short})", "rwf-static", forward=True, routed_blocks=where)
        add(f"rwf ({short})", "rwf", forward=True, routed_blocks=where)
        add(f"rwf ({short}, recompute)", "rwf", routed_blocks=where, recompute=True)
        for name, more in (("rwf-static", {}), ("rwf", {}), ("rwf", {"recompute": True})):
            strategy = make_strategy(name, backbone, args, routed_blocks=where, **more)
            memory[f"{name} ({short}{', recompute' if more else ''})"] = kept(strategy, x, y)
    if not args.limits_only:
        prompts = ("single-prompt", "l2p", "dualprompt", "coda-prompt", "mvp", "avalanche-l2p")
        for name in ("linear-probe", "fine-tune", "rwf-lda", *prompts):
            add(name, name)
    if heads:
        white = next(iter(heads.values()))
        cases["statistics"] = statistics_of_a_stream(white, args.stream_steps, y)

    times = interleave(cases, args.repeats, clock, "steps")
    base = times["frozen forward"]
    results = {name: ratio(values, base) for name, values in times.items()}
    share = 0.0
    if heads:
        share = results.pop("statistics") / args.stream_steps
        results["statistics of the white head, spread over a step"] = share
    for name in heads:
        results[f"{name} without renewals"] = results[name]  # its statistics are in it
        results[name] += share
    for where, short in (("first", "first5"), ("last", "last5")):
        results[f"rwf step, {where} 5 blocks"] = results[f"rwf ({short}) step"]
    results["routing layers over static prompts, forward"] = max(
        ratio(times[f"rwf ({s}) forward"], times[f"rwf-static ({s}) forward"])
        for s in ("first5", "last5")
    )
    # Renewals are the same on both sides and would only make this ratio smaller.
    results["routing layers over static prompts, step"] = max(
        ratio(times[f"rwf ({s}) step"], times[f"rwf-static ({s}) step"])
        for s in ("first5", "last5")
    )
    for short in ("first5", "last5"):
        results[f"recompute over not, step, {short}"] = ratio(
            times[f"rwf ({short}, recompute) step"], times[f"rwf ({short}) step"]
        )
        results[f"recompute over not, kept for the backward pass, {short}"] = (
            memory[f"rwf ({short}, recompute)"] / memory[f"rwf ({short})"]
        )
        results[f"rwf over static prompts, kept for the backward pass, {short}"] = (
            memory[f"rwf ({short})"] / memory[f"rwf-static ({short})"]
        )
    results |= {f"{name}, MiB kept for the backward pass": m / 2**20 for name, m in memory.items()}
    results["frozen forward, seconds"] = statistics.median(base)
    return results


def measure_loop(
    backbone: VisionTransformer, args: argparse.Namespace, clock: Clock
) -> dict[str, float]:
    """``strategy.train`` over an experience, whole and one mini-batch at a time, against the bare
    loop over the same tensors."""
    from avalanche.benchmarks import nc_benchmark
    from avalanche.benchmarks.scenarios.online import split_online_stream

    generator = torch.Generator().manual_seed(3)
    size = args.loop_steps * args.batch_size
    x = torch.randn(size, 3, args.image_size, args.image_size, generator=generator)
    y = torch.arange(size) * 2 // size  # nc_benchmark sorts the samples by class: so do we
    data = TensorDataset(x, y)
    data.targets = y.tolist()  # type: ignore[attr-defined]
    scenario = nc_benchmark(data, data, 1, task_labels=False, shuffle=False)
    experience = scenario.train_stream[0]
    size = args.batch_size
    batches = list(split_online_stream(scenario.train_stream, experience_size=size, shuffle=False))
    loader = DataLoader(data, batch_size=args.batch_size)
    results = {}
    for name in ("rwf", "linear-probe", "ncm"):
        strategy, other = (make_strategy(name, backbone, args) for _ in range(2))
        step = BareStep(make_strategy(name, backbone, args), args)

        def bare(step: BareStep = step) -> None:
            step.model.train()
            for images, labels in loader:
                step(images.to(args.device), labels.to(args.device))

        def avalanche(strategy: Any = strategy) -> None:
            strategy.train(experience, shuffle=False)

        def sub_experiences(strategy: Any = other) -> None:
            for sub_experience in batches:
                strategy.train(sub_experience, shuffle=False)

        cases: dict[str, Callable[[], object]]
        cases = {"bare": bare, "avalanche": avalanche, "sub-experiences": sub_experiences}
        times = interleave(cases, args.repeats, clock, f"loop, {name}")
        results[f"strategy loop over a bare loop, {name}"] = ratio(
            times["avalanche"], times["bare"]
        )
        for case in ("avalanche", "sub-experiences"):
            extra = [a - b for a, b in zip(times[case], times["bare"], strict=True)]
            results[f"strategy loop, {name}, {case}, extra ms per step"] = (
                1e3 * statistics.median(extra) / args.loop_steps
            )
        _check_same(step.model, strategy.model)
        _check_same(step.model, other.model)
    return results


def measure_closed_forms(
    backbone: VisionTransformer, args: argparse.Namespace, clock: Clock
) -> dict[str, float]:
    """A stream through ``strategy.train``, statistics and solving included, over its forwards."""
    from avalanche.benchmarks import nc_benchmark

    size = args.stream_steps * args.batch_size
    x = torch.randn(size, 3, args.image_size, args.image_size)
    y = torch.arange(size) * CLASSES // size
    data = TensorDataset(x, y)
    data.targets = y.tolist()  # type: ignore[attr-defined]
    scenario = nc_benchmark(data, data, 1, task_labels=False, shuffle=False)
    experience = scenario.train_stream[0]
    loader = DataLoader(data, batch_size=args.batch_size)

    def forwards() -> None:
        with torch.no_grad(), autocast(args):
            for images, _ in loader:
                backbone(images.to(args.device))

    cases: dict[str, Callable[[], object]] = {"forwards": forwards}
    names = ("ncm", "slda", "rp-ridge")
    for name in names:

        def train(name: str = name) -> None:
            strategy = make_strategy(name, backbone, args)
            strategy.train(experience, shuffle=False)
            strategy.predict(x[:1])  # solves what has been gathered

        cases[name] = train
    # A whole stream a time: a few repetitions are as long as many of one step.
    times = interleave(cases, max(1, args.repeats // 4), clock, "closed forms")
    return {
        f"training on a stream over frozen forwards, {name}": ratio(
            times[name], times["forwards"]
        )
        for name in names
    }


def _check_same(a: FrozenViT, b: FrozenViT) -> None:
    """Both sides must have done the same: their trained weights are equal."""
    mine, theirs = a.state_without_backbone(), b.state_without_backbone()
    for name, tensor in mine.items():
        if not torch.allclose(tensor, theirs[name], rtol=1e-4, atol=1e-5):
            raise RuntimeError(f"the two loops do not compute the same: {name} differs.")


# -------------------------------------------------------------------------------------- the script


def table(results: dict[str, float]) -> str:
    """The results as text: first what has a limit, then the rest."""
    width = max(map(len, results))
    lines = [f"{'ratio':<{width}}  {'measured':>8}  {'target':>8}  verdict", "-" * (width + 30)]
    for name, limit in LIMITS.items():
        if name in results:
            verdict = "met" if results[name] <= limit else "MISSED"
            lines.append(f"{name:<{width}}  {results[name]:8.3f}  <= {limit:5.2f}  {verdict}")
    lines += ["", "for information, in frozen forwards"]
    lines += [f"{k:<{width}}  {v:8.3f}" for k, v in results.items() if k not in LIMITS]
    return "\n".join(lines)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="vit_small_patch14_dinov2", help="a timm ViT")
    parser.add_argument("--depth", type=int, default=9)
    parser.add_argument("--image-size", type=int, default=70)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves PyTorch's choice")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--stream-steps", type=int, default=90, help="length of a typical stream")
    parser.add_argument("--loop-steps", type=int, default=6, help="steps in an experience")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: processor time of this process, for one thread on a machine that is busy",
    )
    parser.add_argument("--part", choices=("all", "steps", "loop", "closed"), default="all")
    parser.add_argument("--limits-only", action="store_true", help="leave out what has no limit")
    parser.add_argument("--json", metavar="FILE", help="also write the results there")
    args = parser.parse_args(argv)
    for name in ("depth", "image_size", "batch_size", "repeats", "stream_steps", "loop_steps"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1.")
    if args.depth < 5:
        parser.error("--depth must be at least 5: five blocks are routed.")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, return 1 if a limit is missed."""
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    backbone = make_backbone(args)
    clock = Clock(args.device, args.clock)
    results: dict[str, float] = {}
    if args.part in ("all", "steps"):
        results |= measure_steps(backbone, args, clock)
    if args.part in ("all", "loop"):
        results |= measure_loop(backbone, args, clock)
    if args.part in ("all", "closed"):
        results |= measure_closed_forms(backbone, args, clock)
    print(
        f"{args.model}, depth {args.depth}, {args.image_size} px, batch {args.batch_size}, "
        f"{args.device}, {args.precision}, {torch.get_num_threads()} thread(s), "
        f"{args.repeats} repetitions, {args.clock} time"
    )
    print(table(results))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:  # noqa: PTH123
            report = {"arguments": vars(args), "ratios": results, "limits": LIMITS}
            json.dump(report, file, indent=1)
    return int(any(results[name] > limit for name, limit in LIMITS.items() if name in results))


if __name__ == "__main__":
    sys.exit(main())
