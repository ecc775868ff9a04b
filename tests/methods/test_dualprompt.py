"""DualPrompt against loops over images; slots by query and by task."""

import pytest
import torch

from avalanche_rwf.methods.dualprompt import DualPromptViT

SIZES = {
    "general_blocks": "0", "expert_blocks": "1,3",
    "general_length": 2, "expert_length": 3, "pool_size": 4,
}


def by_hand(model, vit, image, chosen):
    x = vit.embed(image)
    for index in range(model.depth):
        if index == 0:
            parts = model.general[0]
        elif index in (1, 3):
            parts = model.experts[(1, 3).index(index), chosen]
        else:
            x = vit.block(index, x)
            continue
        if model.insert == "prefix":
            x = vit.block(index, x, parts[0], parts[1])
        else:
            x = vit.with_tokens(index, x, parts[0] + model.backbone.pos_embed[0, 0])
    return vit.finish(x)[0]


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("insert", ["prefix", "token"])
def test_forward_and_loss_against_loops(vit, images, slow, cos, insert, training):
    """Every image by itself: a prefix that mixes samples, keys or values would show here."""
    torch.manual_seed(0)
    model = DualPromptViT(vit, 5, insert=insert, pull=0.7, **SIZES).train(training)
    hand = slow(vit)
    queries = torch.stack([hand.query(image) for image in images])
    model.keys.copy_((queries - queries.mean(0))[:4])  # so that images choose differently
    (features, selection), total, used = model.encode(images), 0.0, set()
    for b, image in enumerate(images):
        distance = [1 - cos(hand.query(image), key) for key in model.keys]
        chosen = min(range(4), key=distance.__getitem__)
        used.add(chosen)
        expected = by_hand(model, hand, image, chosen)
        torch.testing.assert_close(features[b], expected, rtol=1e-4, atol=1e-5)
        total += distance[chosen]
    assert len(used) > 1
    loss = float(model.auxiliary_loss(selection))
    assert loss == pytest.approx(0.7 * total / len(images), rel=1e-4)


@torch.no_grad()
def test_by_task_an_experience_trains_its_own_slot_and_the_test_chooses_among_those_so_far(
    vit, images, slow, cos
):
    torch.manual_seed(0)
    model = DualPromptViT(vit, 5, slots="task", **SIZES).train()
    model.begin_experience()
    _, selection = model.encode(images)
    assert selection.indices.tolist() == [0] * len(images)
    model.experts[:, 0] += 1
    model.keys[0] += 1
    key = model.keys[1].clone()
    model.begin_experience()
    assert torch.equal(model.experts[:, 1], model.experts[:, 0])
    assert torch.equal(model.keys[1], key)  # a copied key would always be the nearer one
    features, selection = model.encode(images)
    assert selection.indices.tolist() == [1] * len(images)
    hand = slow(vit)
    expected = by_hand(model, hand, images[0], 1)
    torch.testing.assert_close(features[0], expected, rtol=1e-4, atol=1e-5)
    _, selection = model.eval().encode(images)
    for b, image in enumerate(images):
        q = hand.query(image)
        assert int(selection.indices[b]) == int(cos(q, model.keys[1]) > cos(q, model.keys[0]))
    for _ in range(2):
        model.begin_experience()
    with pytest.raises(ValueError, match="room for 4 experiences, and experience 4 began"):
        model.begin_experience()


def test_where_training_stands_is_part_of_the_state(vit):
    model = DualPromptViT(vit, 5, slots="task", **SIZES)
    model.begin_experience()
    model.begin_experience()
    twin = DualPromptViT(vit, 5, slots="task", **SIZES)
    twin.load_state_dict(model.state_dict())
    assert twin.current_experience == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"expert_blocks": "0"}, "must have no block of general_blocks"),
        ({"expert_blocks": "none"}, "expert_blocks must name a block"),
    ],
)
def test_bad_arguments_are_named(vit, options, text):
    with pytest.raises(ValueError, match=text):
        DualPromptViT(vit, 5, **{**SIZES, **options})
