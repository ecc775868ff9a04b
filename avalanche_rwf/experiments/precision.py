"""Kinds of numbers that a comparison computes in, where the machine is to choose.

``--precision auto`` goes by what is known of the device: the same on every CPU. ``fastest`` is that
on a GPU; on a CPU a probe of two seconds tells whether bfloat16 pays. Its answer is kept beside the
results, because a second probe could come out otherwise and no comparison has rows of two kinds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from avalanche_rwf.experiments.build import load_backbone
from avalanche_rwf.experiments.config import RunConfig
from avalanche_rwf.experiments.store import read_json, write_json
from avalanche_rwf.models.backbone import backbone_info
from avalanche_rwf.models.blockwise import TokenPrompt, block_forward
from avalanche_rwf.models.families import form_of
from avalanche_rwf.models.lower import lowered

PAYS = 0.9
"""bfloat16 is taken if it needs at most this share of float32's time."""

_SECONDS = 1.5  # of timed steps; warming up takes at most about half a second besides

Times = Mapping[str, Sequence[float]]


def auto_precision(device: str) -> tuple[str, str]:
    """What ``--precision auto`` is on a device, and why.

    It is bfloat16 where the hardware has it, float16 where it has that alone, else float32.
    """
    if not device.startswith("cuda"):
        return "fp32", "on the CPU"
    name, major = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)[0]
    if major >= 8:
        return "bf16", f"{name} has bfloat16"
    if major >= 7:
        return "fp16", f"{name} has float16 and no bfloat16"
    return "fp32", f"{name} has no fast 16-bit numbers"


def faster_precision(times: Times) -> tuple[str, float]:
    """The precision to take, and the time of bfloat16 over that of float32.

    :param times: seconds of steps by precision, those of one repetition at the same place: what
        else the machine does hits both.

    >>> faster_precision({"fp32": [2.0, 9.0, 2.0], "bf16": [1.0, 4.5, 3.0]})
    ('bf16', 0.5)
    """
    ratio = statistics.median(b / f for b, f in zip(times["bf16"], times["fp32"], strict=True))
    return "bf16" if ratio <= PAYS else "fp32", ratio


def step_times(backbone: nn.Module, batch_size: int, threads: int) -> dict[str, list[float]]:
    """Seconds of training-like steps of one block on the CPU, in float32 and bfloat16 in turn.

    A step is forward and backward through the block with prompts that learn. It takes as many of
    the batch's images as leave time for several steps.
    """
    size = backbone_info(backbone).image_size
    block: nn.Module = backbone.blocks[0]  # type: ignore[index,assignment]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)

    def step(tokens: torch.Tensor, precision: str) -> float:
        start = time.perf_counter()
        bf16 = torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16")
        with torch.enable_grad(), bf16, lowered(block):
            prompt = TokenPrompt(torch.zeros(1, 10, tokens.shape[2], requires_grad=True))
            block_forward(block, tokens, prompt, place).float().sum().backward()
        return time.perf_counter() - start

    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            one = torch.randn(1, 3, size, size)
            tokens, places = form_of(block).embed(backbone, one)
            place = places[0]
        step(tokens, "bf16")  # casts the weights
        while len(tokens) < batch_size and step(tokens, "fp32") < 0.05:
            tokens = torch.cat([tokens, tokens])[:batch_size]
        times: dict[str, list[float]] = {"fp32": [], "bf16": []}
        end = time.perf_counter() + _SECONDS
        while not times["bf16"] or (time.perf_counter() < end and len(times["bf16"]) < 50):
            for precision, taken in times.items():
                taken.append(step(tokens, precision))
        return times
    finally:
        torch.set_num_threads(before)


def fastest_precision(config: RunConfig, out: Path, threads: int) -> tuple[str, str]:
    """What ``--precision fastest`` is for runs on the CPU in the folder `out`, and why.

    ``OUT/precision.json`` has the answer by backbone, size of the images and of the batch; what is
    there already is not probed again.
    """
    options = " ".join(f"{key}={value}" for key, value in sorted(config.backbone_args.items()))
    name = " ".join(f"{config.backbone} {options}".split())
    name += f", {config.image_size or 'its own'} pixels, batches of {config.batch_size}"
    path = out / "precision.json"
    kept, why = _answers(path), "precision.json of this folder has it: bf16 took {} of fp32's time"
    if name not in kept:
        times = step_times(load_backbone(config), config.batch_size, threads)
        precision, ratio = faster_precision(times)
        answer = {"precision": precision, "bf16_over_fp32": round(ratio, 2), "threads": threads}
        # Another process may have been here meanwhile: the first answer counts.
        kept, why = {name: answer, **_answers(path)}, "bf16 takes {} of fp32's time on this CPU"
        write_json(path, kept)
    return str(kept[name]["precision"]), why.format(kept[name]["bf16_over_fp32"])


def _answers(path: Path) -> dict[str, dict[str, Any]]:
    """The answers of a file, by name; what cannot be read is none."""
    kept = read_json(path) or {}
    return {
        name: answer
        for name, answer in kept.items()
        if isinstance(answer, dict)
        and answer.get("precision") in ("fp32", "bf16")
        and "bf16_over_fp32" in answer
    }
