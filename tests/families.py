"""Small models of each family of backbones, as arguments of ``tools.vit``."""

from timm.models.beit import Beit
from timm.models.eva import Eva

_ROPE = {"use_rot_pos_emb": True, "global_pool": "token"}
FAMILIES = {
    # DINOv3: registers, no learned positions, rotation by half, projections in one.
    "dinov3": {
        "kind": Eva, **_ROPE, "rope_type": "dinov3", "rope_rotate_half": True,
        "num_reg_tokens": 2, "use_abs_pos_emb": False, "dynamic_img_size": True,
    },
    # EVA-02: pooled before the norm, projections apart, SwiGLU, norms inside attention and MLP.
    "eva02": {
        "kind": Eva, **_ROPE, "global_pool": "avg", "qkv_fused": False, "swiglu_mlp": True,
        "scale_mlp": True, "scale_attn_inner": True, "init_values": None,
    },
    "eva post-norm": {
        "kind": Eva, "use_post_norm": True, "init_values": None, "global_pool": "token",
    },
    "rope mixed": {
        "kind": Eva, **_ROPE, "rope_type": "mixed", "attn_type": "rope", "qk_norm": True,
        "use_pre_transformer_norm": True,
    },
    "rope gap": {
        "kind": Eva, "use_rot_pos_emb": True, "class_token": False, "num_reg_tokens": 1,
        "no_embed_class": True, "global_pool": "avg",
    },
    "beit": {"kind": Beit, "use_abs_pos_emb": False, "use_rel_pos_bias": True},
    "beit shared": {"kind": Beit, "use_shared_rel_pos_bias": True, "global_pool": "token"},
    "siglip": {"class_token": False, "global_pool": "map", "init_values": None},
    "gap": {"class_token": False, "global_pool": "avg", "reg_tokens": 2, "fc_norm": True},
    "mean of prefix": {
        "class_token": False, "global_pool": "avg", "reg_tokens": 2, "pool_include_prefix": True,
    },
}  # fmt: skip
