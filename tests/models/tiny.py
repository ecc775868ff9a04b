"""The tiny ViT that the tests of backbones and weight files share."""

from __future__ import annotations

import torch

from avalanche_rwf.models.backbone import create_backbone

TINY = "vit_tiny_patch16_224"
SMALL = {"depth": 2, "embed_dim": 16, "num_heads": 2}


def tiny(**kwargs):
    torch.manual_seed(0)
    return create_backbone(TINY, pretrained=False, image_size=32, **{**SMALL, **kwargs})


def normal():
    """A tiny ViT whose every parameter is drawn anew."""
    model = tiny()
    with torch.no_grad():  # timm starts biases and the class token at (nearly) zero
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


def same(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[key], theirs[key]) for key in ours)


def load(path, **kwargs):
    return create_backbone(TINY, weights=path, image_size=32, **{**SMALL, **kwargs})
