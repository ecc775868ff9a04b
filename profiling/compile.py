"""Whether ``torch.compile`` pays on a CPU: its gain in a step against its own time.

    python profiling/compile.py                      # ViT-S of 9 blocks, random weights, no file
    python profiling/compile.py --model vit_base_patch16_224 --depth 12 --image-size 224

One block of the backbone with prompts that learn, as methods run it, eager and compiled in turn in
one process: forward, and forward and backward. Blocks share what is compiled, so a backbone gains
what a block does times their number.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # the time is that of a first run

import torch
from step_time import (  # type: ignore[import-not-found]  # a neighbour, not a package's
    Clock,
    autocast,
    interleave,
    make_backbone,
    ratio,
)
from torch import Tensor

from avalanche_rwf.models.blockwise import TokenPrompt, block_forward, embed_images


def main() -> int:
    """Measure and print; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="vit_small_patch14_dinov2", help="a timm ViT")
    parser.add_argument("--depth", type=int, default=9)
    parser.add_argument("--image-size", type=int, default=70)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--repeats", type=int, default=21)
    parser.set_defaults(device="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    vit = make_backbone(args)
    with torch.no_grad():
        tokens = embed_images(
            vit, torch.randn(args.batch_size, 3, args.image_size, args.image_size)
        )
    tokens, prompts = (x.requires_grad_() for x in (tokens, torch.randn_like(tokens[:, :10])))

    def block(tokens: Tensor, prompts: Tensor | None) -> Tensor:
        prompt = None if prompts is None else TokenPrompt(prompts)
        return block_forward(vit.blocks[0], tokens, prompt)

    def forward(run: Callable[..., Tensor]) -> list[Tensor]:
        with torch.no_grad(), autocast(args):
            return [run(tokens, None)]

    def step(run: Callable[..., Tensor]) -> list[Tensor]:
        with autocast(args):
            out = run(tokens, prompts)
        return [out.detach(), *torch.autograd.grad(out.float().square().sum(), (tokens, prompts))]

    compiled = torch.compile(block)
    print(f"{args.model}, {args.image_size} px, batch {args.batch_size}, {args.precision}, "
          f"{args.threads} thread(s)")  # fmt: skip
    for kind in (forward, step):
        start = time.perf_counter()
        found = kind(compiled)
        seconds = time.perf_counter() - start
        apart = max(
            float((a - b).abs().max() / a.abs().max())
            for a, b in zip(kind(block), found, strict=True)
        )
        cases = {"eager": partial(kind, block), "compiled": partial(kind, compiled)}
        times = interleave(cases, args.repeats, Clock("cpu", "cpu"), kind.__name__)
        share = ratio(times["compiled"], times["eager"])
        gain = args.depth * statistics.median(times["eager"]) * (1 - share)
        pays = f"{seconds / gain:.0f} of them pay" if gain > 0 else "nothing pays"
        print(f"{kind.__name__}: {share:.3f} of eager; {pays} for {seconds:.0f} s of compiling; "
              f"values differ by {apart:.1e}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
