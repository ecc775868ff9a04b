"""What a GPU does here, in one script: one JSON file and one page.

    python profiling/gpu.py --out gpu                # on one card, below 8 minutes
    python profiling/gpu.py --out gpu --rehearse     # the same code with tiny sizes on the CPU

No network and no file is needed: weights are random, images are the embedded digits or noise. A
part that fails is recorded with its error and the others go on; none is begun after ``--minutes``.
 The exit status is 1 if a part failed or a figure is out of its bound.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from timm import create_model
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from avalanche_rwf.experiments.device import set_arithmetic
from avalanche_rwf.experiments.precision import auto_precision
from avalanche_rwf.strategies.registry import create_strategy, list_methods

TOLERANCE = 2e-3
"""Of the largest difference of logits between GPU and CPU after some steps in float32, over their
spread: kernels round differently, and steps add it up."""

SEED_NOISE = 0.03
"""Accuracy on split-digits by which two precisions may differ: twice the spread over seeds."""

# Dense matrix rates of the data sheets, in 1e12 operations per second: bf16 or fp16, and fp32.
RATES = {
    "H200": (989, 67), "H100 PCIe": (756, 51), "H100": (989, 67), "A100": (312, 19.5),
    "L40S": (362, 91.6), "L4": (121, 30.3), "A10": (125, 31.2), "RTX 4090": (165, 82.6),
    "RTX 3090": (71, 35.6), "V100": (125, 15.7), "T4": (65, 8.1),
}  # fmt: skip


class Sizes:
    """What is measured, on a card or in a rehearsal."""

    def __init__(self, rehearse: bool) -> None:
        self.model = "vit_tiny_patch16_224" if rehearse else "vit_base_patch16_224"
        self.options: dict[str, Any] = {"depth": 5} if rehearse else {}
        self.size = 32 if rehearse else 224
        self.batches = (2, 4) if rehearse else (16, 64)
        self.repeats = 2 if rehearse else 10
        self.methods = ["linear-probe", "rwf", "slda", "er"] if rehearse else list_methods()
        self.timed = ["linear-probe", "rwf"] if rehearse else [
            "linear-probe", "rwf", "rwf-lda", "l2p", "dualprompt", "coda-prompt", "mvp",
            "single-prompt", "er", "slda",
        ]  # fmt: skip
        self.accuracy = "--stream k-shot --shots 4 --experiences 2" if rehearse else ""
        self.images = 64 if rehearse else 4096


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def seconds(call: Callable[[], object], device: str, repeats: int) -> float:
    """Median time of a call, until the device is idle; the first two calls do not count."""
    times = []
    for index in range(repeats + 2):
        synchronise(device)
        start = time.perf_counter()
        call()
        synchronise(device)
        if index >= 2:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def backbone(sizes: Sizes) -> nn.Module:
    torch.manual_seed(0)
    made = create_model(
        sizes.model, pretrained=False, num_classes=0, img_size=sizes.size, **sizes.options
    )
    return made.eval().requires_grad_(False)


def strategy(name: str, device: str, sizes: Sizes, precision: str, batch: int) -> Any:
    vit = backbone(sizes)
    torch.manual_seed(1)
    loop = {
        "train_mb_size": batch, "device": device, "precision": precision, "evaluator": None,
    }  # fmt: skip
    return create_strategy(name, backbone=vit, num_classes=20, loop=loop)


def experience(images: Tensor, labels: Tensor) -> Any:
    from avalanche.benchmarks import nc_benchmark

    data = TensorDataset(images, labels)
    data.targets = labels.tolist()  # type: ignore[attr-defined]
    return nc_benchmark(data, data, 1, task_labels=False, shuffle=False).train_stream[0]


def noise(count: int, sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Images [count, 3, H, W] and sorted labels of 20 classes."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(count, 3, sizes.size, sizes.size, generator=generator)
    return images, torch.arange(count) * 20 // count


# ------------------------------------------------------------------------------------------- parts


def against_the_cpu(device: str, sizes: Sizes, precision: str) -> dict[str, Any]:
    """Every method for three steps in float32: largest difference of logits over their spread."""
    small = Sizes(rehearse=True)  # the CPU does it too
    images, labels = noise(12, small)
    found: dict[str, Any] = {}
    for name in sizes.methods:
        logits = []
        for where in (device, "cpu"):
            made = strategy(name, where, small, "fp32", 4)
            made.train(experience(images, labels), shuffle=False)
            made.model.eval()
            with torch.no_grad():
                out = made.model(images.to(where)) if hasattr(made.model, "seen") else None
            logits.append(None if out is None else out.float().cpu())
        a, b = logits
        if a is None or b is None:
            found[name] = None  # a model of Avalanche's own, which gives no logits by itself
            continue
        known = torch.isfinite(a) & torch.isfinite(b)
        spread = float(b[known].std().clamp_min(1e-6))
        found[name] = float((a - b)[known].abs().max()) / spread
    largest = max(value for value in found.values() if value is not None)
    return {"difference": found, "largest": largest, "bound": TOLERANCE,
            "ok": largest <= TOLERANCE}  # fmt: skip


def command(arguments: str, out: Path, device: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "avalanche_rwf", "compare", "--quiet", "--device", device]
    return subprocess.Popen(
        [*words, "--out", str(out), *arguments.split()],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def summaries(out: Path) -> list[dict[str, Any]]:
    return [json.loads(p.read_text()) for p in sorted(out.glob("runs/*/*/*/seed*/summary.json"))]


def accuracy_by_precision(device: str, sizes: Sizes, precision: str) -> dict[str, Any]:
    """rwf on split-digits in each precision: the final accuracies differ by seed noise alone."""
    found: dict[str, Any] = {}
    kinds = ("fp32", "bf16") if device == "cpu" else ("fp32", "bf16", "fp16")
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            words = f"--methods rwf --seeds 0 --eval-every-samples 0 --precision {kind} "
            done = command(words + sizes.accuracy, Path(folder) / kind, device)
            _, said = done.communicate(timeout=240)
            if done.returncode:
                raise RuntimeError(said[-500:])
            found[kind] = summaries(Path(folder) / kind)[0]["a_last"]
    spread = max(found.values()) - min(found.values())
    return {"a_last": found, "spread": spread, "bound": SEED_NOISE, "ok": spread <= SEED_NOISE}


def resume_after_sigkill(device: str, sizes: Sizes, precision: str) -> dict[str, Any]:
    """A command that is killed and given again ends with the numbers of one that was not."""
    words = "--methods er --seeds 0 --eval-every-samples 0 --checkpoint-every 2 --precision fp32 "
    words += sizes.accuracy
    with tempfile.TemporaryDirectory() as folder:
        whole, cut = Path(folder) / "whole", Path(folder) / "cut"
        done = command(words, whole, device)
        _, said = done.communicate(timeout=240)
        if done.returncode:
            raise RuntimeError(said[-500:])
        killed = command(words, cut, device)
        deadline = time.monotonic() + 120
        while not list(cut.glob("runs/*/*/*/*/checkpoint*")) and killed.poll() is None:
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        was_running = killed.poll() is None
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        time.sleep(1)  # its workers see that it is gone
        again = command(words, cut, device)
        _, said = again.communicate(timeout=240)
        if again.returncode:
            raise RuntimeError(said[-500:])
        a, b = (summaries(path)[0]["a_last"] for path in (whole, cut))
        log = next(cut.glob("runs/*/*/*/*/log.txt")).read_text()
    return {"killed_while_running": was_running, "resumed": "resumed" in log, "a_last": [a, b],
            "ok": abs(a - b) < 0.01}  # fmt: skip


def out_of_memory(device: str, sizes: Sizes, precision: str) -> dict[str, Any]:
    """A batch that no card holds: what is said, and that the memory is given back."""
    from avalanche_rwf.experiments.failures import out_of_memory as sentence

    if not device.startswith("cuda"):
        return {"says": sentence(64, 32), "ok": True}
    before = torch.cuda.memory_allocated()
    with tempfile.TemporaryDirectory() as folder:
        # Half of what a card has left is not enough for the activations of such a batch.
        words = (
            f"--methods linear-probe --seeds 0 --eval-every-samples 0 --backbone {sizes.model} "
            "--backbone-arg pretrained=false --batch-size 8192 --image-size 224 --precision fp32 "
            "--stream k-shot --shots 900"
        )
        done = command(words, Path(folder), device)
        _, said = done.communicate(timeout=200)
        found = summaries(Path(folder))
    says = found[0].get("error", "it fits") if found else said[-300:]
    return {"says": says, "allocated_after": torch.cuda.memory_allocated() - before,
            "ok": "memory" in says or says == "it fits"}  # fmt: skip


def _flops(vit: Any, size: int) -> float:
    """Operations of a forward of one image: two for each multiplication of its matrices."""
    depth, width = len(vit.blocks), vit.embed_dim
    tokens = (size // 16) ** 2 + 1
    return depth * tokens * (24 * width**2 + 4 * tokens * width)


def _rate(precision: str) -> float | None:
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name(0)
    found = next((rates for key, rates in RATES.items() if key in name), None)
    return None if found is None else found[precision == "fp32"] * 1e12


def speed(device: str, sizes: Sizes, precision: str) -> dict[str, Any]:
    """Step and inference: images per second, frozen forwards, share of the card's matrix rate."""
    rows: dict[str, Any] = {}
    for batch in sizes.batches:
        images, labels = noise(batch, sizes)
        x, y = images.to(device), labels.to(device)
        for name in ("frozen forward", *sizes.timed):
            made = strategy("linear-probe" if name == "frozen forward" else name, device, sizes,
                            precision, batch)  # fmt: skip
            if device.startswith("cuda"):
                torch.cuda.reset_peak_memory_stats()

            def forward(made: Any = made, x: Tensor = x) -> None:
                made.model.eval()
                with torch.no_grad():
                    made._encode(x)

            def step(made: Any = made, x: Tensor = x, y: Tensor = y) -> None:
                made.is_training, made._observed = True, False
                made.model.train()
                made.mbatch = [x, y, torch.zeros_like(y)]
                made._training_step()

            once = seconds(forward, device, sizes.repeats)
            row: dict[str, Any] = {"inference_images_per_second": batch / once}
            if name == "frozen forward":
                base, rate = once, _rate(precision)
                work = _flops(made.model.backbone, sizes.size) * batch
                row["share_of_matrix_rate"] = None if rate is None else work / once / rate
            else:
                taken = seconds(step, device, sizes.repeats)
                row["step_images_per_second"] = batch / taken
                row["step_in_frozen_forwards"] = taken / base
            if device.startswith("cuda"):
                row["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
            rows[f"{name}, batch {batch}"] = row
            del made
    return {"precision": precision, "rows": rows, "ok": True}


def loading(device: str, sizes: Sizes, precision: str) -> dict[str, Any]:
    """JPEGs of usual size decoded by loading processes against what the device takes."""
    import numpy as np
    from PIL import Image

    from avalanche_rwf.benchmarks import create_benchmark

    count = 24 if sizes.size < 224 else 480
    with tempfile.TemporaryDirectory() as folder:
        drawn = np.random.RandomState(0)
        for split, share in (("train", count), ("test", 4)):
            for index in range(share):
                place = Path(folder) / split / str(index % 2)
                place.mkdir(parents=True, exist_ok=True)
                small = drawn.randint(0, 256, (30, 40, 3)).astype(np.uint8)
                Image.fromarray(small).resize((500, 375)).save(place / f"{index}.jpg")
        stream = create_benchmark(
            f"folder:{folder}", seed=0, experiences=1, image_size=sizes.size, mean=(0.5,) * 3,
            std=(0.5,) * 3,
        )  # fmt: skip
        data = stream.train_stream[0].dataset
        workers = max(1, min(16, os.cpu_count() or 1))
        loader = DataLoader(data, 16, num_workers=workers, pin_memory=device.startswith("cuda"))
        start = time.perf_counter()
        seen = sum(len(batch[0].to(device, non_blocking=True)) for batch in loader)
        rate = seen / (time.perf_counter() - start)
    return {"images_per_second": rate, "processes": workers, "ok": True}


def compiled(device: str, sizes: Sizes, precision: str) -> dict[str, Any]:
    """``torch.compile`` of the backbone's blocks against the plain forward."""
    if not device.startswith("cuda"):
        return {"speed_up": None, "said": "measured on a GPU alone", "ok": True}
    vit = backbone(sizes).to(device)
    x = noise(sizes.batches[0], sizes)[0].to(device)
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}

    def run(model: nn.Module) -> Callable[[], object]:
        def call() -> object:
            enabled = precision in kinds
            dtype = kinds.get(precision, torch.bfloat16)
            with torch.no_grad(), torch.autocast("cuda", dtype=dtype, enabled=enabled):
                return model(x)

        return call

    plain = seconds(run(vit), device, sizes.repeats)
    begun = time.perf_counter()
    fast: Any = torch.compile(vit)
    run(fast)()
    synchronise(device)
    took = time.perf_counter() - begun
    ratio = plain / seconds(run(fast), device, sizes.repeats)
    return {"speed_up": ratio, "compile_seconds": took, "ok": True}


PARTS: dict[str, Callable[[str, Sizes, str], dict[str, Any]]] = {
    "against the CPU": against_the_cpu,
    "speed": speed,
    "accuracy by precision": accuracy_by_precision,
    "resume after SIGKILL": resume_after_sigkill,
    "out of memory": out_of_memory,
    "loading": loading,
    "compile": compiled,
}


# ---------------------------------------------------------------------------------------- the page


def page(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    about = report["about"]
    lines = ["# What the card did", "", *(f"- {key}: {value}" for key, value in about.items()), ""]
    for name, part in report["parts"].items():
        verdict = "ok" if part.get("ok") else "NOT OK"
        lines += [f"## {name}: {verdict} ({part['seconds']:.0f} s)", ""]
        if "rows" in part:
            keys = sorted({key for row in part["rows"].values() for key in row})
            lines += ["| | " + " | ".join(keys) + " |", "|---" * (len(keys) + 1) + "|"]
            for row_name, row in part["rows"].items():
                cells = (_shown(row.get(key)) for key in keys)
                lines.append(f"| {row_name} | " + " | ".join(cells) + " |")
        lines += [
            f"- {key}: {_shown(value)}" for key, value in part.items()
            if key not in ("rows", "ok", "seconds")
        ]  # fmt: skip
        lines.append("")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(one)}" for key, one in value.items())
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return "" if value is None else f"{value:,}" if type(value) is int else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="gpu", help="OUT.json and OUT.md are written")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--minutes", type=float, default=7.0, help="begin no part after so many")
    parser.add_argument("--part", choices=tuple(PARTS), action="append", help="these alone")
    args = parser.parse_args(argv)
    if not args.rehearse and not torch.cuda.is_available():
        parser.error("there is no GPU here; --rehearse does the same with tiny sizes on the CPU.")
    device = "cpu" if args.rehearse else "cuda"
    warnings.simplefilter("ignore")
    set_arithmetic()
    precision, why = auto_precision(device)
    sizes = Sizes(args.rehearse)
    report: dict[str, Any] = {
        "about": {
            "device": "the CPU (rehearsal)" if args.rehearse else torch.cuda.get_device_name(0),
            "precision": f"{precision} ({why})", "model": f"{sizes.model}, {sizes.size} px",
            "torch": torch.__version__, "python": platform.python_version(),
        },
        "parts": {},
    }  # fmt: skip
    start = time.monotonic()
    for name, part in PARTS.items():
        if args.part and name not in args.part:
            continue
        begun = time.monotonic()
        if begun - start > 60 * args.minutes:
            found: dict[str, Any] = {"error": "no time was left for it", "ok": False}
        else:
            try:
                found = part(device, sizes, precision)
            except Exception as error:
                traceback.print_exc()
                found = {"error": f"{type(error).__name__}: {error}"[:500], "ok": False}
        report["parts"][name] = {**found, "seconds": time.monotonic() - begun}
        print(f"{name}: {'ok' if found['ok'] else 'NOT OK'}", file=sys.stderr, flush=True)
        # After each part: an error that ends the process takes nothing with it.
        Path(f"{args.out}.json").write_text(json.dumps(report, indent=1) + "\n")
        Path(f"{args.out}.md").write_text(page(report))
    print(page(report))
    return int(not all(part["ok"] for part in report["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
