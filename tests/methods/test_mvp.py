"""MVP against loops: choice, masks, key loss, per-image gradients by real backward passes."""

import math

import pytest
import torch
import torch.nn.functional as F

from avalanche_rwf.methods.mvp import MVPViT, ignored, mvp_losses
from avalanche_rwf.models.masks import mask_logits

SIZES = {
    "general_blocks": "0", "expert_blocks": "1,2",
    "general_length": 2, "expert_length": 3, "pool_size": 4,
}


@pytest.fixture
def model(vit):
    torch.manual_seed(0)
    model = MVPViT(vit, 5, **SIZES)
    with torch.no_grad():
        model.gates.add_(torch.randn_like(model.gates))
        model.counts += torch.tensor([2, 0, 0, 1])
    return model


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
def test_forward_masks_and_key_loss_against_loops(model, vit, images, slow, cos, training):
    hand, counts, total = slow(vit), [2, 0, 0, 1], 0.0
    queries = model.query(images)
    model.keys.copy_((queries - queries.mean(0))[:4])  # so that images choose differently
    features, selection = model.train(training).encode(images)
    logits = model.logits(features, selection)
    assert torch.equal(logits, model(images))
    loss = float(model.auxiliary_loss(selection))
    assert len(set(selection.indices.tolist())) > 1
    for b, image in enumerate(images):
        x = hand.embed(image)
        for index in range(3):
            x = hand.block(index, x)
        q = x[0]  # enters the last block, not normalised
        distance = [1 - cos(q, key) for key in model.keys]
        t = min(range(4), key=lambda m: distance[m] * (counts[m] + 1))
        assert int(selection.indices[b]) == t
        position = vit.pos_embed[0, 0]
        x = hand.with_tokens(0, hand.embed(image), model.general[0, 0] + position)
        for index in (1, 2):
            x = hand.with_tokens(index, x, model.experts[index - 1, t, 0] + position)
        f = hand.finish(hand.block(3, x))[0]
        for c in range(5):
            z = model.head.weight[c] @ f + model.head.bias[c]
            expected = z * 2 / (1 + math.exp(-model.gates[c, t]))
            torch.testing.assert_close(logits[b, c], expected, rtol=1e-4, atol=1e-5)
        mass = counts[t] + 1
        apart = [1 - cos(model.keys[t], model.keys[j]) for j in range(4) if j != t]
        far = sum(math.exp(a / mass) for a in apart) / 3
        near = math.exp(distance[t] / mass)
        total += -math.log(far / (near + far)) if training else distance[t]
    assert loss == pytest.approx(total / len(images), rel=1e-4)


def test_closed_form_gradients_are_those_of_one_backward_pass_per_image():
    torch.manual_seed(0)
    h, w, bias = torch.randn(7, 8), torch.randn(5, 8, requires_grad=True), torch.randn(5)
    gate, y = 2 * torch.rand(7, 5), torch.tensor([0, 1, 1, 3, 0, 0, 1])
    allowed = torch.tensor([1, 1, 0, 1, 1], dtype=torch.bool)

    def logits(i):
        return mask_logits((h[i] @ w.T + bias) * gate[i], allowed)

    every = slice(None)
    (batch,) = torch.autograd.grad(F.cross_entropy(logits(every), y), w)
    expected = []
    for i in range(7):
        (own,) = torch.autograd.grad(F.cross_entropy(logits(slice(i, i + 1)), y[i : i + 1]), w)
        expected.append(1 - F.cosine_similarity(own[y[i]], batch[y[i]], dim=0))
    got = ignored(h, logits(every).detach(), y, gate)
    torch.testing.assert_close(got, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_losses_weigh_each_image_by_itself():
    torch.manual_seed(0)
    h, w, bias = torch.randn(6, 8), torch.randn(5, 8), torch.randn(5)
    gate, y = 2 * torch.rand(6, 5), torch.tensor([0, 1, 1, 3, 0, 4])
    allowed = torch.tensor([1, 1, 0, 1, 1], dtype=torch.bool)
    got = mvp_losses(h, w, bias, y, gate, allowed, 0.5, 0.3, 2.0)
    ign = ignored(h, mask_logits((h @ w.T + bias) * gate, allowed), y, gate)
    for i in range(6):
        scale = 1 - F.cosine_similarity(w[y[i]], h[i], dim=0) + 0.5
        z = (w @ (h[i] / scale) + bias) * gate[i]
        loss = torch.logsumexp(z[allowed], 0) - z[y[i]]
        torch.testing.assert_close(got[i], (0.7 + 0.3 * ign[i] ** 2) * loss, rtol=1e-4, atol=1e-5)
    # One factor for the whole batch, as in public code, would not be this.
    plain = mvp_losses(h, w, bias, y, gate, allowed, 0.5, 0.0, 2.0)
    assert (got / plain).std() > 0.01


def test_a_learned_mask_multiplies_but_the_seen_mask_decides(model, images):
    """Gates near zero cannot let a class win that has not been seen."""
    with torch.no_grad():
        model.gates[:2] = -20  # the logits of seen classes all but vanish
        model.head.bias[:] = torch.tensor([-9.0, -8, 3, 4, 5])
    model.seen[:2] = True
    with torch.no_grad():
        winners = mask_logits(model.eval()(images), model.seen).argmax(1)
    assert set(winners.tolist()) <= {0, 1}


def test_masks_grow_with_the_classes(model):
    before = model.gates.detach().clone()
    model.grow(7)
    assert torch.equal(model.gates[:5], before) and (model.gates[5:] == -1).all()
    assert model.gates.requires_grad and model.head.num_classes == 7
