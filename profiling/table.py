"""The table of docs/speed.md: what this revision costs against the limits that are set.

    python profiling/table.py                        # an hour of one core
    python profiling/table.py --parts steps,loop --rounds 1
    python profiling/table.py --base b120491         # comparisons against this revision's

Every part is measured `--rounds` times, in a process of its own on one thread, in CPU seconds, and
mostly as ratios of what is run in turn. A row has the median of the rounds, the lowest and the
highest, and the limit. Parts:

- ``compare``: CPU of a whole comparison over the base's; without ``--base`` over ``--no-cache``;
- ``looked-up``: a run whose images were seen before over one that computes all;
- ``evaluations``: a run with 20 evaluations over one that evaluates after experiences alone;
- ``steps``, ``steps-vit-b``, ``steps-bf16``, ``loop``: of ``step_time.py``;
- ``heads``: of ``heads.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from compare import command, environment, unpack  # type: ignore[import-not-found]

HERE = Path(__file__).parent
FIXED = "ncm,slda,linear-probe,rp-ridge,layers-lda,rwf-lda"
VIT_S = "ViT-S/9, 70 px, batch 16"
VIT_B = "ViT-B/16, 224 px, batch 4"

Numbers = dict[str, float]

LIMITS = {
    "six fixed-feature methods, three seeds, CPU over the base's": 0.35,
    "default comparison, 24 runs, CPU over the base's": 0.6,
    **{f"20 evaluations over none within experiences, {m}": 1.2 for m in FIXED.split(",")},
    f"{VIT_S}: step of rwf, first 5 blocks": 2.08,
    f"{VIT_S}: step of rwf, last 5 blocks": 1.65,
    f"{VIT_B}: step of rwf, first 5 blocks": 2.08,
    f"{VIT_B}: step of rwf, last 5 blocks": 1.47,
    **{
        f"{vit}: {what}": limit
        for vit in (VIT_S, VIT_B)
        for what, limit in (
            ("forward of rwf over static prompts", 1.08),
            ("kept for backward, rwf over static prompts, first 5 blocks", 1.05),
            ("kept for backward, rwf over static prompts, last 5 blocks", 1.05),
            ("kept for backward, recompute over not", 0.55),
            ("step, recompute over not", 1.35),
        )
    },
    "slda, F=4608, 6,000 images: longest observe over the mean": 3.0,
    "rp-ridge, M=C=10,000, 2,000 images: peak, GB": 1.0,
    "rp-ridge, M=C=10,000, 2,000 images: a solution, s": 5.0,
    "white, F=1536: a renewal in forwards of 4 images, a step": 0.1,
    "sub-experiences over a bare loop, ncm, ms a mini-batch": 1.0,
    "sub-experiences over a bare loop, rwf, ms a mini-batch": 1.0,
}
# A name of step_time.py -> the name here.
STEPS = {
    "rwf (first5) step without renewals": "step of rwf, first 5 blocks",
    "rwf (last5) step without renewals": "step of rwf, last 5 blocks",
    "statistics of the white head, spread over a step": (
        "statistics of the white head, spread over a step"
    ),
    "routing layers over static prompts, forward": "forward of rwf over static prompts",
    "routing layers over static prompts, step": "step of rwf over static prompts",
    "rwf over static prompts, kept for the backward pass, first5": (
        "kept for backward, rwf over static prompts, first 5 blocks"
    ),
    "rwf over static prompts, kept for the backward pass, last5": (
        "kept for backward, rwf over static prompts, last 5 blocks"
    ),
    "recompute over not, kept for the backward pass, first5": (
        "kept for backward, recompute over not"
    ),
    "recompute over not, step, first5": "step, recompute over not",
    "frozen forward, seconds": "frozen forward, s",
}


def script(name: str, *words: str) -> str:
    """What a script of this folder prints."""
    done = subprocess.run(
        [sys.executable, str(HERE / name), *words], env=environment(HERE.parent), text=True,
        capture_output=True,
    )  # fmt: skip
    if done.returncode not in (0, 1):  # 1: a limit of the script's own is missed
        sys.exit(f"{name} {' '.join(words)}: {done.stderr.strip()[-500:]}")
    return done.stdout


def step_time(*words: str) -> Numbers:
    """The ratios of step_time.py on one thread, in CPU seconds."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ratios.json"
        script("step_time.py", "--threads", "1", "--clock", "cpu", "--json", str(file), *words)
        ratios: Numbers = json.loads(file.read_text())["ratios"]
    return ratios


def steps(vit: str, *words: str) -> Numbers:
    """A step of RwF, and what it keeps."""
    found = step_time("--part", "steps", "--limits-only", *words)
    return {f"{vit}: {name}": found[theirs] for theirs, name in STEPS.items()}


def loop() -> Numbers:
    """The loop over mini-batches, with the modules of a ViT-B and little to compute."""
    found = step_time(
        "--part", "loop", "--model", "vit_tiny_patch16_224", "--depth", "12",
        "--image-size", "32", "--batch-size", "4", "--loop-steps", "16", "--repeats", "5",
    )  # fmt: skip
    return {
        f"sub-experiences over a bare loop, {name}, ms a mini-batch": found[
            f"strategy loop, {name}, sub-experiences, extra ms per step"
        ]
        for name in ("ncm", "linear-probe", "rwf")
    }


def heads() -> Numbers:
    """The longest steps of heads, and their memory."""

    def row(*words: str) -> tuple[list[str], float]:
        """The cells of one head's row, and the seconds of a forward."""
        text = script("heads.py", *words)
        cells = [cell.strip() for cell in text.splitlines()[-1].split("|")]
        return cells, float(text.split("images, ")[1].split(" s")[0])

    slda, _ = row("--heads", "slda", "--widths", "4608", "--classes", "", "--samples", "6000")
    ridge, unit = row(
        "--heads", "rp-ridge", "--widths", "", "--classes", "10000", "--projections", "10000"
    )
    white, _ = row("--heads", "white", "--widths", "1536", "--classes", "")
    return {
        "slda, F=4608, 6,000 images: longest observe over the mean": float(slda[6]),
        "rp-ridge, M=C=10,000, 2,000 images: peak, GB": float(ridge[11]) / 1e3,
        "rp-ridge, M=C=10,000, 2,000 images: a solution, s": float(ridge[7]) * unit,
        # heads.py has forwards of 16 images; the mean `observe` holds its share of renewals.
        "white, F=1536: a renewal in forwards of 4 images, a step": 4 * float(white[5]),
        "white, F=1536: the longest step in forwards of 4 images": (
            4 * float(white[5]) * float(white[6])
        ),
    }


def comparisons(base: Path | None) -> Numbers:
    """CPU of whole comparisons over the base's, start-up included."""
    found: Numbers = {}
    for name, words in (
        ("six fixed-feature methods, three seeds", ["--methods", FIXED]),
        ("default comparison, 24 runs", []),
    ):
        with tempfile.TemporaryDirectory() as out:
            words = ["compare", *words, "--seeds", "0-2", "--jobs", "1", "--quiet", "--out"]
            if base is None:
                slow = command(HERE.parent, [*words, f"{out}/base", "--no-cache"])
            else:
                slow = command(base, [*words, f"{out}/base"])
            fast = command(HERE.parent, [*words, f"{out}/head"])
        of = "over the base's" if base else "over --no-cache"
        found |= {f"{name}, CPU {of}": fast / slow, f"{name}, CPU s": fast}
    return found


def runs(kind: str) -> Numbers:
    """CPU of a run over that of another one, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--runs", kind], env=environment(HERE.parent), text=True,
        capture_output=True,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr.strip()[-500:])
    numbers: Numbers = json.loads(done.stdout.splitlines()[-1])
    return numbers


def answer_runs(kind: str) -> None:
    """In that process: print the numbers."""
    import torch

    from avalanche_rwf.experiments.config import RunConfig
    from avalanche_rwf.experiments.run import run
    from avalanche_rwf.models.backbone import PACKAGED
    from avalanche_rwf.models.feature_cache import MEMORY
    from avalanche_rwf.strategies.registry import resolve_options

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)

    def seconds(method: str, every: int = 0, keep: bool = False) -> float:
        if not keep:
            MEMORY.clear()
        config = RunConfig(
            benchmark="split-digits", backbone=PACKAGED, method=method,
            options=resolve_options(method, {}), eval_every_samples=every,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as out:
            start = time.process_time()
            summary = run(config, Path(out))
            used = time.process_time() - start
        if summary["status"] != "done":
            sys.exit(str(summary["error"]))
        return used

    found = {}
    for method in FIXED.split(","):
        seconds(method)
        once = seconds(method)
        if kind == "evaluations":
            every = seconds(method, every=67)  # of 1,347 images
            found[f"20 evaluations over none within experiences, {method}"] = every / once
        else:
            again = seconds(method, keep=True)
            found[f"a run over images seen before over one that computes, {method}"] = again / once
    print(json.dumps(found))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", help="names, see the module's text (default: all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--base", help="a revision that comparisons are held against")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = unpack(args.base, Path(folder)) if args.base else None
        parts: dict[str, Callable[[], Numbers]] = {
            "compare": lambda: comparisons(base),
            "looked-up": lambda: runs("looked-up"),
            "evaluations": lambda: runs("evaluations"),
            "steps": lambda: steps(VIT_S, "--repeats", "9"),
            "steps-vit-b": lambda: steps(
                VIT_B, "--model", "vit_base_patch16_224", "--depth", "12", "--image-size", "224",
                "--batch-size", "4", "--repeats", "5",
            ),
            "steps-bf16": lambda: steps(f"{VIT_S}, bf16", "--repeats", "9", "--precision", "bf16"),
            "loop": loop,
            "heads": heads,
        }  # fmt: skip
        names = args.parts.split(",") if args.parts else list(parts)
        unknown = [name for name in names if name not in parts]
        if unknown:
            parser.error(f"--parts takes {', '.join(parts)}, not {unknown[0]!r}.")
        print(f"| what | median | lowest | highest | limit | |\n|{' --- |' * 6}")
        for name in names:
            loads = [os.getloadavg()[0]]
            rounds = []
            for _ in range(args.rounds):
                rounds.append(parts[name]())
                loads.append(os.getloadavg()[0])
            for line in rows(rounds):
                print(line)
            load = f"{min(loads):.1f} to {max(loads):.1f}"
            print(f"| *load of the machine in `{name}`* | | {load} | | | |", flush=True)


def rows(rounds: list[Numbers]) -> Iterator[str]:
    """Lines of the table.

    >>> print(*rows([{"default comparison, 24 runs, CPU over the base's": x} for x in (0.5, 0.7)]))
    | default comparison, 24 runs, CPU over the base's | 0.6 | 0.5 | 0.7 | 0.6 | met |
    """
    for name in rounds[0]:
        values = [found[name] for found in rounds]
        middle, limit = statistics.median(values), LIMITS.get(name)
        figures = " | ".join(f"{x:.3g}" for x in (middle, min(values), max(values)))
        verdict = "" if limit is None else "met" if middle <= limit else "missed"
        yield f"| {name} | {figures} | {'' if limit is None else f'{limit:g}'} | {verdict} |"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--runs"]:
        answer_runs(sys.argv[2])
    else:
        main()
