import copy
import re

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block

from avalanche_rwf.errors import UsageError
from avalanche_rwf.models.blockwise import (
    Adapter,
    AttentionAdapter,
    PrefixPrompt,
    TokenPrompt,
    block_forward,
    embed_images,
    forward_blocks,
    tokens_entering,
)
from avalanche_rwf.models.families import form_of
from avalanche_rwf.models.lower import lowered

from ..families import FAMILIES

VARIANTS = {
    "plain": {"init_values": None},
    "layerscale": {},
    "registers": {"reg_tokens": 3, "no_embed_class": True},
    "norm_pre": {"pre_norm": True},
    "qk_norm": {"qk_norm": True},
    "no bias": {"qkv_bias": False},
    "fc_norm": {"fc_norm": True},
    **FAMILIES,
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def any_vit(request, tools):
    return tools.vit(**request.param)


def test_without_prompts_it_is_the_plain_backbone_to_the_last_bit(any_vit, images):
    with torch.no_grad():
        plain = any_vit.forward_features(images)
    out = forward_blocks(any_vit, images)
    assert torch.equal(out.tokens, plain)
    assert not out.tokens.requires_grad


@pytest.mark.parametrize("kind", ["token", "prefix"])
def test_prompts_of_length_zero_are_no_prompts(any_vit, images, kind):
    empty = torch.zeros(1, 0, any_vit.embed_dim)
    prompt = TokenPrompt(empty) if kind == "token" else PrefixPrompt(empty, empty)
    out = forward_blocks(any_vit, images, lambda i, x: prompt, range(4))
    with torch.no_grad():
        assert torch.equal(out.tokens, any_vit.forward_features(images))


def test_a_branch_is_added_beside_the_mlp_of_what_enters_it(any_vit, images):
    """The branch's input is read off the block's own norm of the MLP's part, or off the MLP."""
    entered = {}

    def keep(name, module, args):
        entered[name] = args[0]

    hooks = []
    for i, block in enumerate(any_vit.blocks):
        before = block.norm2 if form_of(block).enter_normed else block.mlp
        hooks.append(before.register_forward_pre_hook(lambda m, a, i=i: keep(i, m, a)))
    given = {}

    def branch(index):
        def added(tokens):
            given[index] = tokens
            return torch.zeros_like(tokens) + (index == 3)
        return added

    with torch.no_grad():
        plain = forward_blocks(any_vit, images, collect=(4,)).collected[4]
        out = forward_blocks(any_vit, images, lambda i, x: Adapter(branch(i)), range(4), (4,))
    for hook in hooks:
        hook.remove()
    assert sorted(given) == [0, 1, 2, 3]
    for index, tokens in given.items():
        assert torch.equal(tokens, entered[index])
    torch.testing.assert_close(out.collected[4], plain + 1, atol=1e-5, rtol=1e-5)


def with_maps(vit, maps):
    """A copy of a backbone with maps [2, width, D] of each block added to its W_q and W_v."""
    changed = copy.deepcopy(vit)
    for block, (of_queries, of_values) in zip(changed.blocks, maps, strict=True):
        attn = block.attn
        if attn.qkv is None:
            attn.q_proj.weight += of_queries
            attn.v_proj.weight += of_values
        else:
            attn.qkv.weight += torch.cat([of_queries, torch.zeros_like(of_queries), of_values])
    return changed


def adapters(maps):
    return [AttentionAdapter(*(lambda h, m=m: F.linear(h, m) for m in pair)) for pair in maps]


def test_maps_beside_queries_and_values_are_those_added_to_the_weights(any_vit, images):
    torch.manual_seed(0)
    width = form_of(any_vit.blocks[0]).maps(any_vit.blocks[0].attn)[0].shape[0]
    maps = 0.3 * torch.randn(4, 2, width, any_vit.embed_dim)
    with torch.no_grad():
        found = forward_blocks(any_vit, images, lambda i, x: adapters(maps)[i], range(4)).tokens
        expected = with_maps(any_vit, maps).forward_features(images)
        plain = any_vit.forward_features(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
    assert (found - plain).abs().max() > 1e-2


def test_maps_of_zero_are_the_plain_backbone_to_the_last_bit(any_vit, images):
    zero = torch.zeros(4, 2, any_vit.embed_dim, any_vit.embed_dim)
    with torch.no_grad():
        found = forward_blocks(any_vit, images, lambda i, x: adapters(zero)[i], range(4)).tokens
        assert torch.equal(found, any_vit.forward_features(images))


def real_block(block, x, place, inserted):
    """timm's own block on tokens of which `inserted`, behind the prefix, have no position."""
    kind = type(block).__module__.rpartition(".")[2]
    if kind == "vision_transformer":
        return block(x)
    if kind == "eva":
        if place is not None:  # cosine 1, sine 0
            sine = torch.zeros(*place.shape[:-2], inserted, place.shape[-1] // 2)
            place = torch.cat([torch.cat([sine, sine + 1], -1), place], -2)
        return block(x, rope=place)
    # BEiT looks its bias up by the window's size, so the larger one stands in the table's place.
    attn = block.attn
    bias = place if attn.relative_position_index is None else attn._get_rel_pos_bias()
    grown = torch.zeros(*bias.shape[:-2], x.shape[1], x.shape[1])
    old = [0, *range(1 + inserted, x.shape[1])]
    grown[..., torch.tensor(old)[:, None], torch.tensor(old)] = bias
    index, attn.relative_position_bias_table = attn.relative_position_bias_table, None
    try:
        return block(x, shared_rel_pos_bias=grown)
    finally:
        attn.relative_position_bias_table = index


def test_inserted_tokens_equal_real_insertion_and_removal(any_vit, images):
    torch.manual_seed(0)
    prompts = torch.randn(4, len(images), 5, any_vit.embed_dim)
    prefix = any_vit.num_prefix_tokens
    with torch.no_grad():
        out = forward_blocks(any_vit, images, lambda i, x: TokenPrompt(prompts[i]), range(4))
        x, places = form_of(any_vit.blocks[0]).embed(any_vit, images)
        for block, p, place in zip(any_vit.blocks, prompts, places, strict=True):
            longer = torch.cat([x[:, :prefix], p, x[:, prefix:]], dim=1)
            longer = real_block(block, longer, place, 5)
            x = torch.cat([longer[:, :prefix], longer[:, prefix + 5 :]], dim=1)
        plain = any_vit.forward_features(images)
    torch.testing.assert_close(out.tokens, any_vit.norm(x), rtol=1e-4, atol=1e-5)
    assert (out.tokens - plain).abs().max() > 1e-2


def test_extra_tokens_go_through_all_blocks_as_real_ones_without_a_position(any_vit, images):
    torch.manual_seed(0)
    extra, prefix = torch.randn(len(images), 3, any_vit.embed_dim), any_vit.num_prefix_tokens
    with torch.no_grad():
        out = forward_blocks(any_vit, images, extra=extra)
        x, places = form_of(any_vit.blocks[0]).embed(any_vit, images)
        norm_pre = getattr(any_vit, "norm_pre", torch.nn.Identity())
        x = torch.cat([x[:, :prefix], norm_pre(extra), x[:, prefix:]], dim=1)
        for block, place in zip(any_vit.blocks, places, strict=True):
            x = real_block(block, x, place, 3)
        x = any_vit.norm(x)
    rest = torch.cat([x[:, :prefix], x[:, prefix + 3 :]], dim=1)
    torch.testing.assert_close(out.tokens, rest, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.extra, x[:, prefix : prefix + 3], rtol=1e-4, atol=1e-5)


def test_a_prefix_of_the_projected_tokens_equals_inserting_them(any_vit, images):
    torch.manual_seed(0)
    p = torch.randn(1, 3, any_vit.embed_dim)
    with torch.no_grad():
        x, places = form_of(any_vit.blocks[0]).embed(any_vit, images)
        block = any_vit.blocks[0]
        form = form_of(block)
        weight_k, bias_k, weight_v, bias_v = form.maps(block.attn)
        h = form.enter(block, p)
        prefix = PrefixPrompt(F.linear(h, weight_k, bias_k), F.linear(h, weight_v, bias_v))
        a = block_forward(block, x, TokenPrompt(p), places[0])
        b = block_forward(block, x, prefix, places[0])
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_tokens_entering_a_block_are_those_of_the_plain_backbone(any_vit, images):
    forwarded = forward_blocks(any_vit, images, collect=range(4))
    for i in range(4):
        assert torch.equal(tokens_entering(any_vit, images, i), forwarded.collected[i])


def test_prefix_against_a_slow_attention_per_sample_and_head(vit, images):
    """Loops over samples and heads: what catches a reshape that mixes samples."""
    torch.manual_seed(0)
    block, attn = vit.blocks[0], vit.blocks[0].attn
    B, L, D, H = len(images), 3, vit.embed_dim, attn.num_heads
    d = D // H
    keys, values = torch.randn(B, L, D), torch.randn(B, L, D)
    with torch.no_grad():
        x = embed_images(vit, images)
        fast = block_forward(block, x, PrefixPrompt(keys, values))
        for b in range(B):
            h = block.norm1(x[b])
            q, k, v = attn.qkv(h).split(D, dim=1)
            heads = []
            for i in range(H):
                part = slice(i * d, (i + 1) * d)
                kk = torch.cat([keys[b][:, part], k[:, part]])
                vv = torch.cat([values[b][:, part], v[:, part]])
                heads.append((q[:, part] @ kk.T / d**0.5).softmax(1) @ vv)
            y = x[b] + block.ls1(attn.proj(torch.cat(heads, dim=1)))
            y = y + block.ls2(block.mlp(block.norm2(y)))
            torch.testing.assert_close(fast[b], y, rtol=1e-4, atol=1e-5)


def test_one_prompt_for_all_images_equals_a_copy_for_each(vit, images):
    torch.manual_seed(0)
    one = torch.randn(1, 3, vit.embed_dim)
    with torch.no_grad():
        x = embed_images(vit, images)
        a = block_forward(vit.blocks[0], x, TokenPrompt(one))
        b = block_forward(vit.blocks[0], x, TokenPrompt(one.repeat(len(images), 1, 1)))
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shape", [(2, 3, 5), (3, 4, 64), (4, 64)])
def test_a_prompt_of_another_shape_is_named(vit, images, shape):
    wrong = torch.zeros(shape)
    for prompt, said in (
        (TokenPrompt(wrong), "tokens of a TokenPrompt"),
        (PrefixPrompt(wrong, wrong), "keys of a PrefixPrompt"),
    ):
        with pytest.raises(ValueError, match=f"{said} must be .*, not {re.escape(str([*shape]))}"):
            forward_blocks(vit, images, lambda block, tokens, p=prompt: p, [1])


def test_no_gradient_is_kept_below_the_first_prompted_block(vit, images):
    prompt = torch.randn(1, 2, vit.embed_dim, requires_grad=True)
    seen = {}

    def prompts(index, tokens):
        seen[index] = tokens.requires_grad
        return TokenPrompt(prompt)

    out = forward_blocks(vit, images, prompts, (2, 3), collect=(0, 1, 2))
    assert seen == {2: False, 3: True}
    assert sorted(out.collected) == [0, 1, 2]
    assert not any(x.requires_grad for x in out.collected.values())
    out.tokens[:, 0].sum().backward()
    assert prompt.grad is not None
    assert all(p.grad is None for p in vit.parameters())


def test_fine_tuning_reaches_every_weight(tools, images):
    vit = tools.vit().requires_grad_(True)
    forward_blocks(vit, images, frozen=False).tokens.square().sum().backward()
    assert all(p.grad is not None for p in vit.parameters())


def test_a_block_put_in_later_is_refused_and_not_passed_over(vit, images):
    class Doubled(Block):
        def forward(self, x):
            return 2 * super().forward(x)

    vit.blocks[1].__class__ = Doubled
    with pytest.raises(UsageError, match="not Doubled"):
        forward_blocks(vit, images)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_blocks_computed_again_give_the_same_gradients_to_the_last_bit(any_vit, images, precision):
    """Of every second block only what enters it is kept until the backward pass."""
    torch.manual_seed(0)
    tokens = torch.randn(1, 3, any_vit.embed_dim)
    found = []
    for again in (False, True):
        prompt, entered = tokens.clone().requires_grad_(), []
        hooks = [b.attn.proj.register_forward_hook(lambda *a, i=i, e=entered: e.append(i))
                 for i, b in enumerate(any_vit.blocks)]  # fmt: skip
        with torch.autocast("cpu", enabled=precision == "bf16"), lowered(any_vit):
            out = forward_blocks(
                any_vit, images, lambda i, x, p=prompt: TokenPrompt(p), (1, 3), recompute=again
            ).tokens
        assert entered == [0, 1, 2, 3]
        out.float().square().sum().backward()
        for hook in hooks:
            hook.remove()
        assert sorted(entered[4:]) == ([1, 3] if again else [])
        found.append((out.detach(), prompt.grad))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert bool(found[0][1].any())
