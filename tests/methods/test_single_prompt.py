"""SinglePrompt against loops over images and heads."""

import pytest
import torch

from avalanche_rwf.methods.single_prompt import SinglePromptViT


@torch.no_grad()
@pytest.mark.parametrize("insert", ["prefix", "token"])
def test_forward_against_loops(vit, images, slow, insert):
    torch.manual_seed(0)
    model = SinglePromptViT(vit, 5, blocks="1,2", prompt_length=3, insert=insert, head="cosine")
    logits = model(images)
    hand = slow(vit)
    for b, image in enumerate(images):
        x = hand.embed(image)
        for index in range(4):
            if index not in (1, 2):
                x = hand.block(index, x)
            elif insert == "prefix":
                x = hand.block(index, x, *model.prompts[index - 1])
            else:
                tokens = model.prompts[index - 1, 0] + vit.pos_embed[0, 0]
                x = hand.with_tokens(index, x, tokens)
        f = hand.finish(x)[0]
        for c in range(5):
            w = model.head.weight[c]
            expected = w @ f / (w.norm() * f.norm()) / 0.1
            torch.testing.assert_close(logits[b, c], expected, rtol=1e-4, atol=1e-4)


def test_one_forward_pass_and_the_published_start(vit, images):
    passes = []
    vit.patch_embed.register_forward_hook(lambda *_: passes.append(1))
    model = SinglePromptViT(vit, 5, blocks="first 4").train()
    model(images).sum().backward()
    assert len(passes) == 1
    start = model.prompts.detach() - vit.pos_embed[0, 0]
    assert start.abs().max() <= 1 + 1e-5 and start.std() == pytest.approx(3**-0.5, rel=0.1)


def test_no_prompted_block_is_an_error(vit):
    with pytest.raises(ValueError, match="blocks must name a block"):
        SinglePromptViT(vit, 5, blocks="none")
