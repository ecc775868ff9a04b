import pytest
import torch

from avalanche_rwf.models.masks import (
    batch_classes,
    mask_logits,
    training_mask,
)


def test_masks_by_hand():
    targets = torch.tensor([1, 3, 1])
    seen = torch.tensor([True, True, False, True, False])
    assert training_mask("none", targets, seen).all()
    assert torch.equal(training_mask("seen", targets, seen), seen)
    assert training_mask("batch", targets, seen).nonzero().flatten().tolist() == [1, 3]
    assert batch_classes(targets, 5).tolist() == [False, True, False, True, False]
    with pytest.raises(ValueError, match="not 'all'"):
        training_mask("all", targets, seen)


def test_a_mask_never_changes_the_winner_among_what_remains():
    """All logits negative: a mask that multiplies by zero would let a masked class win."""
    torch.manual_seed(0)
    logits = torch.randn(50, 8) - 10
    allowed = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0], dtype=torch.bool)
    keep = allowed.nonzero().flatten()
    expected = keep[logits[:, keep].argmax(1)]
    assert torch.equal(mask_logits(logits, allowed).argmax(1), expected)


def test_nothing_seen_masks_nothing():
    logits = torch.randn(3, 4)
    assert torch.equal(mask_logits(logits, torch.zeros(4, dtype=torch.bool)), logits)


def test_masked_loss_is_the_loss_over_the_remaining_columns_and_has_no_gradient_outside():
    torch.manual_seed(0)
    logits = torch.randn(6, 5, requires_grad=True)
    targets = torch.tensor([0, 2, 2, 0, 4, 2])
    allowed = batch_classes(targets, 5)
    loss = torch.nn.functional.cross_entropy(mask_logits(logits, allowed), targets)
    columns = logits[:, [0, 2, 4]]
    expected = torch.nn.functional.cross_entropy(columns, torch.tensor([0, 1, 1, 0, 2, 1]))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[:, [1, 3]] == 0).all()


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="A mask of 3 classes does not fit logits of 4"):
        mask_logits(torch.randn(2, 4), torch.ones(3, dtype=torch.bool))
