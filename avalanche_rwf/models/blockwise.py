"""One frozen forward with prompts per block: every method's only way into the backbone.

A method says, for block l and the tokens that enter it, which prompts to use; this module does
the rest, with the timm model's own modules. A prompt acts on a block as extra keys and values, or
on what its own modules compute:

- :class:`TokenPrompt`: L tokens inserted into the block and dropped after it. Dropped tokens can
  act on the others through that block's keys and values only, so just norm1 and the K/V
  projection run on them: no queries, no MLP. That equals real insertion exactly. They have no
  position: where a backbone rotates keys or adds a bias by position, theirs are left alone.
- :class:`PrefixPrompt`: L keys and L values given directly (prefix tuning).
- :class:`Adapter`: a branch beside the block's MLP.
- :class:`AttentionAdapter`: branches beside the maps of queries and of values (LoRA).

Tokens that stay from the first block to the last (L2P's) are an input of :func:`forward_blocks`.

Source: insertion as described for Routing without Forgetting (arXiv 2603.09576); prefix tuning as
in DualPrompt (arXiv 2204.04799) and LoRA (arXiv 2106.09685), written from the equations.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from avalanche_rwf.models.families import ViT, form_of
from avalanche_rwf.models.lower import lowered

__all__ = [
    "Adapter",
    "AttentionAdapter",
    "Forwarded",
    "PrefixPrompt",
    "PromptFunction",
    "TokenPrompt",
    "block_forward",
    "embed_images",
    "forward_blocks",
    "full_precision",
    "tokens_entering",
]


@dataclass(frozen=True)
class TokenPrompt:
    """L tokens to insert into a block: [B or 1, L, D] (1 = the same for every image)."""

    tokens: Tensor


@dataclass(frozen=True)
class PrefixPrompt:
    """L keys and values for a block's attention, each [B or 1, L, D], not yet split into heads."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class Adapter:
    """What is added to a block's output, of the tokens [B, N, D] that enter its MLP's part."""

    branch: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class AttentionAdapter:
    """What is added to a block's queries and values, of the tokens [B, N, D] that its attention
    gets: each [B, N, width], before heads are split, normed or rotated."""

    queries: Callable[[Tensor], Tensor]
    values: Callable[[Tensor], Tensor]


Prompt = TokenPrompt | PrefixPrompt | Adapter | AttentionAdapter
PromptFunction = Callable[[int, Tensor], Prompt | None]
"""Called with the block's index and the tokens [B, N, D] that enter it."""


@dataclass
class Forwarded:
    """What a forward leaves: the final normalised tokens and what was collected on the way.

    :param tokens: [B, N, D] after the last block and the backbone's final norm.
    :param collected: block index -> tokens [B, N, D] that entered the block.
    :param extra: [B, E, D], what became of the extra tokens; None without them.
    """

    tokens: Tensor
    collected: dict[int, Tensor] = field(default_factory=dict)
    extra: Tensor | None = None


def full_precision(values: Tensor) -> Tensor:
    """Values in float32; those of a model in float64 as they are."""
    return values if values.dtype == torch.float64 else values.float()


def embed_images(backbone: ViT, images: Tensor) -> Tensor:
    """Images [B, C, H, W] -> tokens [B, N, D] as they enter block 0 (timm's own steps)."""
    return form_of(backbone.blocks[0]).embed(backbone, images)[0]


@torch.no_grad()
def tokens_entering(backbone: ViT, images: Tensor, block: int) -> Tensor:
    """The tokens [B, N, D] that enter a block of the plain backbone; later blocks are not run."""
    x, places = form_of(backbone.blocks[0]).embed(backbone, images)
    for earlier, place in zip(backbone.blocks[:block], places, strict=False):
        x = block_forward(earlier, x, None, place)
    return x


def _split_heads(x: Tensor, heads: int, batch: int) -> Tensor:
    """[B or 1, L, D] -> [B, heads, L, D / heads]; each image keeps its own rows."""
    x = x.expand(batch, -1, -1)
    return x.reshape(batch, x.shape[1], heads, -1).transpose(1, 2)


def _prompt_keys_values(
    block: Any, prompt: TokenPrompt | PrefixPrompt, x: Tensor, q: Tensor
) -> tuple[Tensor, Tensor]:
    """Keys and values [B, heads, L, d] of a prompt, for tokens [B, N, D] with their queries.

    :raises ValueError: for a prompt of another shape.
    """
    attn, batch = block.attn, len(x)
    width = x.shape[2] if isinstance(prompt, TokenPrompt) else q.shape[1] * q.shape[3]
    for name, part in vars(prompt).items():
        if part.ndim != 3 or part.shape[0] not in (1, batch) or part.shape[2] != width:
            raise ValueError(
                f"{name} of a {type(prompt).__name__} must be [B or 1, L, D], here "
                f"[{batch} or 1, L, {width}], not {list(part.shape)}."
            )
    if isinstance(prompt, TokenPrompt):
        # Only K and V of the inserted tokens can be seen by the others: two thirds of qkv.
        form = form_of(block)
        keys, values = form.keys_values(attn, form.enter(block, prompt.tokens))
    else:
        keys, values = prompt.keys, prompt.values
    k = _split_heads(keys, attn.num_heads, batch)
    norm = getattr(attn, "k_norm", None)
    return k if norm is None else norm(k), _split_heads(values, attn.num_heads, batch)


def block_forward(
    block: nn.Module, x: Tensor, prompt: Prompt | None, place: Tensor | None = None
) -> Tensor:
    """One timm block on tokens [B, N, D], its attention seeing the prompt's keys and values too.

    Without a prompt, or with one of length zero, it is the block itself, bit for bit.

    :param place: what the block's attention is told of positions, as :meth:`.Form.embed` gives it.
    """
    form = form_of(block)
    timm_block: Any = block
    branches = isinstance(prompt, Adapter | AttentionAdapter)
    seen = None if isinstance(prompt, Adapter | AttentionAdapter) else prompt  # as keys and values
    prompts = 0
    if seen is not None:
        prompts = (seen.tokens if isinstance(seen, TokenPrompt) else seen.keys).shape[-2]
    if not prompts and not branches:
        whole = form.whole(timm_block, x, place)
        if whole is not None:
            return whole
    attn = timm_block.attn
    batch, length, _ = x.shape
    h = form.enter(timm_block, x)
    parts = form.project(attn, h)
    if isinstance(prompt, AttentionAdapter):
        parts = parts[0] + prompt.queries(h), parts[1], parts[2] + prompt.values(h)
    q, k, v = (part.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for part in parts)
    q, k = form.placed(attn, q, k, place)
    if seen is not None and prompts:
        prompt_k, prompt_v = _prompt_keys_values(timm_block, seen, x, q)
        k = torch.cat([prompt_k.to(k.dtype), k], dim=2)
        v = torch.cat([prompt_v.to(v.dtype), v], dim=2)
    bias = form.bias(attn, place, prompts, length)
    out = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=None if bias is None else bias.to(q.dtype),
        scale=attn.scale,
        dropout_p=attn.attn_drop.p if attn.training else 0.0,
    )
    out = out.transpose(1, 2).reshape(batch, length, -1)
    # Newer timm has a norm of the attention's output and a gate; older blocks have neither.
    norm = getattr(attn, "norm", None)
    if norm is not None:
        out = norm(out)
    gate = getattr(attn, "gate", None)
    if gate is not None:
        out = out * gate(h).sigmoid()
    x = form.attended(timm_block, x, attn.proj_drop(attn.proj(out)))
    left = form.leave(timm_block, x)
    return left + prompt.branch(x) if isinstance(prompt, Adapter) else left


def forward_blocks(
    backbone: ViT,
    images: Tensor,
    prompts: PromptFunction | None = None,
    prompted_blocks: Collection[int] = (),
    collect: Collection[int] = (),
    frozen: bool = True,
    extra: Tensor | None = None,
    recompute: bool = False,
) -> Forwarded:
    """The whole backbone, with prompts in some of its blocks.

    Blocks below the first prompted one run under ``no_grad``: no trained parameter stands below
    them, so nothing there needs a gradient.

    :param backbone: a timm transformer of one of the :mod:`.families`.
    :param images: [B, C, H, W], normalised.
    :param prompts: asked for a prompt at each block of `prompted_blocks`.
    :param prompted_blocks: indices of the blocks that take prompts.
    :param collect: indices of the blocks whose entering tokens are to be kept; the number of blocks
        stands for what leaves the last, before the final norm.
    :param frozen: False lets gradients reach the backbone's own weights (fine-tuning).
    :param extra: tokens [B or 1, E, D] that go through all blocks with the others, as embedded
        (their position included). They stand last, where attention does not mind, so that class
        token and patches are found where they always are.
    :param recompute: keep of every second block what enters it alone, and compute it again in the
        backward pass: the same bits from less memory. `prompts` is asked twice then, so it must
        be a function of its arguments and weights.
    """
    first = min(prompted_blocks, default=len(backbone.blocks)) if frozen else 0
    if extra is not None:
        first = 0
    collected: dict[int, Tensor] = {}
    with torch.no_grad() if frozen else nullcontext():
        x, places = form_of(backbone.blocks[0]).embed(backbone, images)
    length = x.shape[1]
    if extra is not None:
        norm_pre = getattr(backbone, "norm_pre", None)
        extra = (extra if norm_pre is None else norm_pre(extra)).expand(len(x), -1, -1)
        x = torch.cat([x, extra.to(x.dtype)], dim=1)
        count = extra.shape[1]
        places = [
            form_of(block).longer(place, count)
            for block, place in zip(backbone.blocks, places, strict=True)
        ]

    def through(x: Tensor, index: int) -> Tensor:
        prompt = None
        if prompts is not None and index in prompted_blocks:
            prompt = prompts(index, x[:, :length])
        return block_forward(backbone.blocks[index], x, prompt, places[index])

    for index in range(len(backbone.blocks)):
        with torch.no_grad() if index < first else nullcontext():
            if index in collect:
                collected[index] = x[:, :length]
            if recompute and torch.is_grad_enabled() and (index - first) % 2 == 0:
                x = checkpoint(
                    through,
                    x,
                    index,
                    use_reentrant=False,
                    preserve_rng_state=False,  # nothing in a block is random
                    context_fn=lambda: (nullcontext(), lowered(backbone)),
                )
            else:
                x = through(x, index)
    if len(backbone.blocks) in collect:
        collected[len(backbone.blocks)] = x[:, :length]
    with torch.no_grad() if frozen and first == len(backbone.blocks) else nullcontext():
        x = backbone.norm(x)
    if extra is None:
        return Forwarded(x, collected)
    return Forwarded(x[:, :length], collected, x[:, length:])
