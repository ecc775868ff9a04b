"""The kinds of timm vision transformers that methods can put prompts into, each taken apart.

One :class:`Form` a kind of block says how images become tokens, what attention is told of the
tokens' positions, and how to get at a block's queries, keys and values, so that the one forward
(:mod:`.blockwise`) can let it see more keys and values. A further kind is one more class here;
``docs/backbones.md`` has the table of timm's families.

What is said of a whole image, the class token or the model's own pooling, is here too, always with
the norms that timm applies (:func:`final_norm`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias, cast

import torch
import torch.nn.functional as F
from timm.layers import AttentionRope, PatchEmbed, apply_rot_embed_cat
from timm.models import beit, eva, vision_transformer
from timm.models.beit import Beit
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn

from avalanche_rwf.errors import UsageError

ViT: TypeAlias = VisionTransformer | Eva | Beit


class Form:
    """timm's ``VisionTransformer`` with its plain blocks; subclasses say what differs."""

    model: ClassVar[type[nn.Module]] = VisionTransformer
    block: ClassVar[type[nn.Module]] = Block
    attentions: ClassVar[tuple[type[nn.Module], ...]] = (Attention,)
    # Whether norm1 is applied before the attention.
    enter_normed: ClassVar[bool] = True
    # timm's function that fits published weights to a model.
    convert: ClassVar[Callable[..., Any]] = staticmethod(vision_transformer.checkpoint_filter_fn)
    convert_options: ClassVar[Mapping[str, Any]] = {"adapt_layer_scale": True}

    def embed(self, vit: Any, images: Tensor) -> tuple[Tensor, Sequence[Tensor | None]]:
        """Images [B, C, H, W] -> tokens [B, N, D] as they enter block 0, and for each block what
        its attention is told of positions besides (timm's own steps)."""
        x = vit.patch_drop(vit._pos_embed(vit.patch_embed(images)))
        return vit.norm_pre(x), [None] * len(vit.blocks)

    def longer(self, place: Tensor | None, extra: int) -> Tensor | None:
        """The same with `extra` more tokens at the end, which have no position."""
        return place

    def whole(self, block: Any, x: Tensor, place: Tensor | None) -> Tensor | None:
        """The block itself on tokens [B, N, D]; None if it cannot take so many."""
        return block(x)

    def enter(self, block: Any, x: Tensor) -> Tensor:
        """What the block's attention gets of the tokens that enter: [B, N, D]."""
        return block.norm1(x) if self.enter_normed else x

    def project(self, attn: Any, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, N, width] of what :meth:`enter` gave."""
        q, k, v = attn.qkv(h).chunk(3, -1)
        return q, k, v

    def placed(
        self, attn: Any, q: Tensor, k: Tensor, place: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Queries and keys [B, heads, N, d] as their scores are taken: normed, in their places."""
        return attn.q_norm(q), attn.k_norm(k)

    def maps(self, attn: Any) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Weight and bias of the keys' map, then of the values'."""
        width = attn.qkv.out_features // 3
        bias = attn.qkv.bias
        weight_k, weight_v = attn.qkv.weight[width:].split(width)
        bias_k, bias_v = (None, None) if bias is None else bias[width:].split(width)
        return weight_k, bias_k, weight_v, bias_v

    def keys_values(self, attn: Any, h: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [.., L, D] of tokens without a position, not yet split into heads."""
        width, bias = attn.qkv.out_features // 3, attn.qkv.bias
        kv = F.linear(h, attn.qkv.weight[width:], None if bias is None else bias[width:])
        keys, values = kv.chunk(2, -1)
        return keys, values

    def bias(self, attn: Any, place: Tensor | None, prompts: int, length: int) -> Tensor | None:
        """What is added to the scores of `length` queries with `prompts` + `length` keys."""
        return None

    def attended(self, block: Any, x: Tensor, out: Tensor) -> Tensor:
        """The tokens that enter the MLP's part, from the block's own and the attention's output."""
        return x + block.drop_path1(block.ls1(out))

    def leave(self, block: Any, x: Tensor) -> Tensor:
        """The tokens after the block, from what :meth:`attended` gave."""
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


class _EvaForm(Form):
    """timm's ``Eva``: DINOv3, EVA-02, Perception Encoder and ViTs with rotary positions.

    The patches' queries and keys are rotated; class token, registers and prompts have no position
    in it and are not.
    """

    model = Eva
    block = EvaBlock
    attentions: ClassVar[tuple[type[nn.Module], ...]] = (EvaAttention, AttentionRope)
    convert = staticmethod(eva.checkpoint_filter_fn)
    convert_options: ClassVar[Mapping[str, Any]] = {}

    def embed(self, vit: Any, images: Tensor) -> tuple[Tensor, Sequence[Tensor | None]]:
        x, rotation = vit._pos_embed(vit.patch_embed(images))
        one_each = rotation is not None and vit.rope_mixed
        places = list(rotation) if one_each else [rotation] * len(vit.blocks)
        return vit.norm_pre(x), places

    def longer(self, place: Tensor | None, extra: int) -> Tensor | None:
        if place is None:
            return None
        sine = torch.zeros(*place.shape[:-2], extra, place.shape[-1] // 2).to(place)
        return torch.cat([place, torch.cat([sine, torch.ones_like(sine)], -1)], -2)

    def whole(self, block: Any, x: Tensor, place: Tensor | None) -> Tensor | None:
        return block(x, rope=place)

    def project(self, attn: Any, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if attn.qkv is None:
            return attn.q_proj(h), attn.k_proj(h), attn.v_proj(h)
        q, k, v = F.linear(h, attn.qkv.weight, _bias_of(attn)).chunk(3, -1)
        return q, k, v

    def placed(
        self, attn: Any, q: Tensor, k: Tensor, place: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        kind = q.dtype  # a rotation may be in more bits
        q, k = attn.q_norm(q), attn.k_norm(k)
        if place is not None:
            q, k = (_rotated(x, place, attn).to(kind) for x in (q, k))
        return q, k

    def maps(self, attn: Any) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        if attn.qkv is None:
            return attn.k_proj.weight, attn.k_proj.bias, attn.v_proj.weight, attn.v_proj.bias
        _, weight_k, weight_v = attn.qkv.weight.chunk(3)
        bias = _bias_of(attn)
        _, bias_k, bias_v = (None, None, None) if bias is None else bias.chunk(3)
        return weight_k, bias_k, weight_v, bias_v

    def keys_values(self, attn: Any, h: Tensor) -> tuple[Tensor, Tensor]:
        weight_k, bias_k, weight_v, bias_v = self.maps(attn)
        return F.linear(h, weight_k, bias_k), F.linear(h, weight_v, bias_v)

    def attended(self, block: Any, x: Tensor, out: Tensor) -> Tensor:
        return x + block.drop_path1(_scaled(block.gamma_1, out))

    def leave(self, block: Any, x: Tensor) -> Tensor:
        return x + block.drop_path2(_scaled(block.gamma_2, block.mlp(block.norm2(x))))


class _EvaPostNormForm(_EvaForm):
    """``Eva`` with norms behind attention and MLP instead of before (EVA-02 enormous)."""

    block = EvaBlockPostNorm
    enter_normed = False

    def attended(self, block: Any, x: Tensor, out: Tensor) -> Tensor:
        return x + block.drop_path1(block.norm1(out))

    def leave(self, block: Any, x: Tensor) -> Tensor:
        return x + block.drop_path2(block.norm2(block.mlp(x)))


class _BeitForm(_EvaForm):
    """timm's ``Beit``: scores have a bias by the tokens' relative positions; prompts have none."""

    model = Beit
    block = beit.Block
    attentions = (beit.Attention,)
    convert = staticmethod(beit.checkpoint_filter_fn)

    def embed(self, vit: Any, images: Tensor) -> tuple[Tensor, Sequence[Tensor | None]]:
        x = vit.patch_embed(images)
        x = torch.cat((vit.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        if vit.pos_embed is not None:
            x = x + vit.pos_embed
        shared = vit.rel_pos_bias() if vit.rel_pos_bias is not None else None
        return vit.pos_drop(x), [shared] * len(vit.blocks)

    def longer(self, place: Tensor | None, extra: int) -> Tensor | None:
        return place

    def whole(self, block: Any, x: Tensor, place: Tensor | None) -> Tensor | None:
        own = block.attn.relative_position_index
        known = own if own is not None else place
        if known is not None and known.shape[-1] != x.shape[1]:
            return None  # its table has no entry for tokens without a position
        return block(x, shared_rel_pos_bias=place)

    def placed(
        self, attn: Any, q: Tensor, k: Tensor, place: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return q, k

    def bias(self, attn: Any, place: Tensor | None, prompts: int, length: int) -> Tensor | None:
        bias = place
        if attn.relative_position_index is not None:
            own = cast(Tensor, attn._get_rel_pos_bias())
            bias = own if place is None else own + place
        if bias is None:
            return None
        more = length - bias.shape[-1]
        return F.pad(bias, (prompts, more, 0, more))


def _bias_of(attn: Any) -> Tensor | None:
    """The bias of a fused q, k, v projection; the keys' part is fixed at zero in EVA and BEiT."""
    if getattr(attn, "q_bias", None) is None:
        return attn.qkv.bias
    return torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))


def _rotated(x: Tensor, rotation: Tensor, attn: Any) -> Tensor:
    """Queries or keys [B, heads, N, d] with all but the prefix tokens rotated."""
    start = attn.num_prefix_tokens
    turned = apply_rot_embed_cat(x[:, :, start:], rotation, half=attn.rotate_half)
    return torch.cat([x[:, :, :start], turned], dim=2)


def _scaled(gamma: Tensor | None, x: Tensor) -> Tensor:
    return x if gamma is None else gamma * x


_FORMS: Mapping[type[nn.Module], Form] = {
    form.block: form for form in (Form(), _EvaForm(), _EvaPostNormForm(), _BeitForm())
}


def form_of(block: nn.Module) -> Form:
    """How a block is taken apart, and its model with it.

    :raises UsageError: for another kind of block, such as one put there after the model was built.
    """
    if type(block) not in _FORMS:
        raise UsageError(
            f"backbone must have blocks of timm's own types, not {type(block).__name__}: what it "
            "does differently would be left out."
        )
    return _FORMS[type(block)]


def forms_of(kind: type[nn.Module]) -> list[Form]:
    """The forms whose model is exactly of this class; none of an unknown one."""
    return [form for form in _FORMS.values() if form.model is kind]


def unsupported_because(model: nn.Module) -> str | None:
    """Why methods cannot put prompts into a model, to follow its name; None if they can."""
    # Exact types: a subclass may change the forward pass that blockwise prompts rely on.
    if not forms_of(type(model)):
        return f"is a {type(model).__name__}"
    vit: Any = model
    if type(vit.patch_embed) is not PatchEmbed:
        return f"embeds patches by {type(vit.patch_embed).__name__}"
    if vit.patch_embed.proj.in_channels != 3:
        return f"takes {vit.patch_embed.proj.in_channels} channels instead of 3"
    for block in vit.blocks:
        form = _FORMS.get(type(block))
        if form is None or form.model is not type(model):
            return f"has blocks of type {type(block).__name__}"
        if type(block.attn) not in form.attentions:
            return f"has attention of type {type(block.attn).__name__}"
        if getattr(block.attn, "num_kv_groups", 1) > 1:
            return "has attention with fewer heads of keys than of queries"
    return None


# -------------------------------------------------------------------------------------------------
# What is said of a whole image.
def final_norm(vit: Any, pooled: Tensor) -> Tensor:
    """The norm that timm applies after pooling: ``fc_norm``, the identity where there is none.

    Every read-out of tokens after the last block ([B, .., D], pooled or a single token) goes
    through it. Models that pool before they norm have no other one: their ``norm`` is the identity.
    """
    fc_norm = getattr(vit, "fc_norm", None)
    return pooled if fc_norm is None else fc_norm(pooled)


def pooling(vit: Any) -> str:
    """What stands for a whole image: "token" (the class token), or the pooling of a model without
    one: "avg", "map" (its attention pooling) and timm's other names."""
    if vit.cls_token is not None:
        return "token"
    return "map" if getattr(vit, "attn_pool", None) is not None else vit.global_pool or "avg"


def summary(vit: Any, tokens: Tensor, inner: bool = False) -> Tensor:
    """What stands for a whole image, of tokens [B, N, D]: [B, D].

    :param inner: whether the tokens are those before a block: no final norm, and the mean patch
        where there is no class token, because a pooling is made for the last block's.
    """
    if vit.cls_token is not None:
        pooled = tokens[:, 0]
    elif inner:
        return tokens[:, vit.num_prefix_tokens :].mean(1)
    else:
        pooled = vit.pool(tokens, pool_type=pooling(vit))
    return pooled if inner else final_norm(vit, pooled)


def class_position(vit: Any) -> Tensor:
    """The class token's position embedding [D]; zero where the backbone adds none to it.

    Online descendants of L2P and Avalanche's L2P add it to inserted tokens.
    """
    embedding = vit.pos_embed
    if embedding is None or vit.cls_token is None or getattr(vit, "no_embed_class", False):
        return torch.zeros(int(vit.embed_dim), device=vit.patch_embed.proj.weight.device)
    return cast(Tensor, embedding)[0, 0].detach()
