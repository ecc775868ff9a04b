"""A slow transformer, written apart from the package: one image, one head, one row at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


class Slow:
    """A timm ViT without registers, by hand: [N, D] tokens of a single image."""

    def __init__(self, vit):
        self.vit = vit

    def embed(self, image):
        v = self.vit
        patches = F.conv2d(image[None], v.patch_embed.proj.weight, v.patch_embed.proj.bias,
                           stride=v.patch_embed.patch_size)[0].flatten(1).T
        return torch.cat([v.cls_token[0], patches]) + v.pos_embed[0]

    @staticmethod
    def norm(layer, x):
        return F.layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)

    def block(self, index, x, keys=None, values=None, branch=None):
        """Prefixes are rows before the split into heads; every head and row has its own loop.

        `branch` is added beside the MLP, of the tokens after the attention.
        """
        block = self.vit.blocks[index]
        attn, width = block.attn, x.shape[1]
        h = self.norm(block.norm1, x)
        q, k, v = (h @ attn.qkv.weight[i * width : (i + 1) * width].T
                   + attn.qkv.bias[i * width : (i + 1) * width] for i in range(3))
        if keys is not None:
            k, v = torch.cat([keys, k]), torch.cat([values, v])
        size = width // attn.num_heads
        out = torch.zeros_like(x)
        for head in range(attn.num_heads):
            part = slice(head * size, (head + 1) * size)
            for row in range(len(x)):
                scores = k[:, part] @ q[row, part] / size**0.5
                out[row, part] = scores.softmax(0) @ v[:, part]
        scale1 = getattr(block.ls1, "gamma", 1.0)
        scale2 = getattr(block.ls2, "gamma", 1.0)
        x = x + scale1 * (out @ attn.proj.weight.T + attn.proj.bias)
        added = 0.0 if branch is None else branch(x)
        h = self.norm(block.norm2, x)
        h = F.gelu(h @ block.mlp.fc1.weight.T + block.mlp.fc1.bias)
        return x + scale2 * (h @ block.mlp.fc2.weight.T + block.mlp.fc2.bias) + added

    def with_tokens(self, index, x, tokens):
        """Real insertion: the block on N + L tokens, then the L are dropped."""
        return self.block(index, torch.cat([x, tokens]))[: len(x)]

    def finish(self, x):
        return self.norm(self.vit.norm, x)

    def query(self, image):
        x = self.embed(image)
        for index in range(len(self.vit.blocks)):
            x = self.block(index, x)
        return self.finish(x)[0]


@pytest.fixture
def slow():
    return Slow


@pytest.fixture
def cos():
    return cosine
