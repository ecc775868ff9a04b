"""CODA-Prompt against loops over images and components; slices by task."""

import pytest
import torch

from avalanche_rwf.methods.coda_prompt import CodaPromptViT

SIZES = {"blocks": "0,2", "prompt_length": 4, "components": 6}


def composed(model, q, i, names, cos, upto=None):
    """sum_m cos(q * A_m, K_m) P_m for block number i."""
    components, keys, attention = (
        torch.cat([getattr(s, n)[i] for s in model.slices])[:upto] for n in names
    )
    p = torch.zeros(components.shape[1])
    for m in range(len(components)):
        p += cos(q * attention[m], keys[m]) * components[m]
    return p.reshape(model.prompt_length, -1)


NAMES = ("components", "keys", "attention")


def by_hand(model, vit, image, cos, upto=None):
    q, x = vit.query(image), vit.embed(image)
    for index in range(model.depth):
        if index not in (0, 2):
            x = vit.block(index, x)
            continue
        p = composed(model, q, (0, 2).index(index), NAMES, cos, upto)
        if model.insert == "prefix":
            x = vit.block(index, x, p[:2], p[2:])
        else:
            x = vit.with_tokens(index, x, p + model.backbone.pos_embed[0, 0])
    return vit.finish(x)[0]


@torch.no_grad()
@pytest.mark.parametrize("insert", ["prefix", "token"])
def test_forward_against_loops(vit, images, slow, cos, insert):
    torch.manual_seed(0)
    model = CodaPromptViT(vit, 5, insert=insert, **SIZES)
    for p in model.slices.parameters():
        p.mul_(3).add_(0.2 * torch.randn_like(p))  # as training leaves them
    features = model.features(images)
    for b, image in enumerate(images):
        expected = by_hand(model, slow(vit), image, cos)
        torch.testing.assert_close(features[b], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_orthogonality_loss_by_hand_and_the_start_has_none(vit):
    torch.manual_seed(0)
    model = CodaPromptViT(vit, 5, ortho=0.1, **SIZES)
    assert float(model.auxiliary_loss(None)) < 1e-9
    for p in model.slices.parameters():
        p.add_(0.1 * torch.randn_like(p))
    total = 0.0
    for name in NAMES:
        for i in range(2):
            rows = getattr(model.slices[0], name)[i]
            squares = [
                (float(rows[a] @ rows[b]) - (a == b)) ** 2 for a in range(6) for b in range(6)
            ]
            total += sum(squares) / len(squares)
    assert float(model.auxiliary_loss(None)) == pytest.approx(0.1 * total, rel=1e-4)
    assert CodaPromptViT(vit, 5, **SIZES).auxiliary_loss(None) is None


def test_by_task_slices_are_held_and_no_momentum_moves_them(vit, images, slow, cos):
    torch.manual_seed(0)
    model = CodaPromptViT(vit, 5, slices="task", tasks=3, **SIZES).train()
    optimizer = torch.optim.Adam(model.prompt_groups()["prompt"], lr=0.01)

    def step():
        optimizer.zero_grad()
        model.features(images).square().sum().backward()
        optimizer.step()

    model.begin_experience()
    for _ in range(3):
        step()
    first = [p.detach().clone() for p in model.slices[0].parameters()]
    later = [p.detach().clone() for s in model.slices[1:] for p in s.parameters()]
    with torch.no_grad():
        expected = by_hand(model, slow(vit), images[0], cos, upto=2)
        torch.testing.assert_close(model.features(images)[0], expected, rtol=1e-4, atol=1e-5)
    model.begin_experience()
    for a, b in zip(model.slices[0].parameters(), model.slices[1].parameters(), strict=True):
        # (Keys and attention: 2 new rows orthogonal to the 2 trained ones, of length one.)
        product = b.detach() @ a.detach().transpose(1, 2)
        torch.testing.assert_close(product, torch.zeros_like(product), rtol=0, atol=1e-5)
        gram = b.detach() @ b.detach().transpose(1, 2)
        torch.testing.assert_close(gram, torch.eye(2).expand_as(gram), rtol=0, atol=1e-5)
    start = [p.detach().clone() for p in model.slices[1].parameters()]
    for _ in range(3):
        step()
    for p, q in zip(model.slices[0].parameters(), first, strict=True):
        assert torch.equal(p, q)
    for p, q in zip(model.slices[1].parameters(), start, strict=True):
        assert not torch.equal(p, q)
    for p, q in zip(model.slices[2].parameters(), later[3:], strict=True):
        assert torch.equal(p, q)
    model.begin_experience()
    with pytest.raises(ValueError, match="room for 3 experiences, and experience 3 began"):
        model.begin_experience()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"prompt_length": 3}, "prompt_length must be even for a prefix, not 3"),
        ({"components": 33}, "components must be at most the width D = 32, not 33"),
        ({"slices": "task", "tasks": 7}, "tasks must be at most components=6, not 7"),
        ({"blocks": "none"}, "blocks must name a block"),
    ],
)
def test_bad_arguments_are_named(vit, options, text):
    with pytest.raises(ValueError, match=text):
        CodaPromptViT(vit, 5, **{**SIZES, **options})
