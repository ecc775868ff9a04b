import torch

from avalanche_rwf.models.lower import lowered


def test_kept_casts_change_no_bit_and_follow_the_weights(vit, images):
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(2):
            plain = vit(images)
            with lowered(vit):
                assert vit.blocks[0].attn.qkv.weight.dtype == torch.bfloat16
                assert torch.equal(vit(images), plain)
            vit.blocks[0].attn.qkv.weight.mul_(1.5)  # a cast of before is of no use
    assert {p.dtype for p in vit.parameters()} == {torch.float32}


def test_trained_weights_and_other_precisions_are_left_alone(vit):
    vit.blocks[0].attn.qkv.weight.requires_grad_(True)
    with lowered(vit):
        assert vit.patch_embed.proj.weight.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16), lowered(vit):
        assert vit.blocks[0].attn.qkv.weight.dtype == torch.float32
        assert vit.patch_embed.proj.weight.dtype == torch.bfloat16
