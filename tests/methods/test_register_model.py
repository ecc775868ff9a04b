"""A prompt method of a user's own: one file, one class, found and trained by its name."""

from __future__ import annotations

import pytest
import torch

from avalanche_rwf.errors import UsageError
from avalanche_rwf.models.classifier import FrozenViT
from avalanche_rwf.strategies.registry import create_strategy, get_method, register_model
from avalanche_rwf.utils.user_code import import_code

CODE = '''
from dataclasses import dataclass

import torch

from avalanche_rwf import FrozenViT, Selection, register_model
from avalanche_rwf.models.blockwise import TokenPrompt


@dataclass(frozen=True)
class Nearest(Selection):
    indices: torch.Tensor


@register_model("nearest", summary="the nearest key's tokens in one block", lr_head=0.01)
class NearestViT(FrozenViT):
    """The nearest of some keys decides.

    :param size: number of keys.
    """

    def __init__(self, backbone, num_classes, *, size: int = 4, **options):
        super().__init__(backbone, num_classes, **options)
        self.prompts = torch.nn.Parameter(torch.randn(size, 2, self.dim))
        self.keys = torch.nn.Parameter(torch.randn(size, self.dim))

    def select(self, query, training):
        return Nearest((query @ self.keys.T).argmax(1))

    def prompted_blocks(self):
        return [self.depth - 1]

    def prompt(self, block, tokens, selection):
        return TokenPrompt(self.prompts[selection.indices])

    def auxiliary_loss(self, selection):
        return self.keys[selection.indices].square().mean()
'''


@pytest.fixture
def nearest(outside):
    (outside / "mine.py").write_text(CODE)
    import_code(str(outside / "mine.py"), "a test")
    return get_method("nearest")


def test_its_options_are_the_constructors_and_the_usual_ones(nearest):
    usual = {"head": "linear", "readout": "cls", "mask": "batch", "lr": 5e-3, "lr_head": 0.01}
    assert nearest.options == {"size": 4, **usual} and nearest.types["size"] is int
    assert nearest.origin["file"].endswith("mine.py")
    with pytest.raises(UsageError, match=r"nearest\.size takes int, not 1.5"):
        create_strategy("nearest", backbone=torch.nn.Linear(1, 1), num_classes=2, size=1.5)


def test_an_option_without_a_default_is_refused_when_it_is_registered():
    class Needs(FrozenViT):
        def __init__(self, backbone, num_classes, *, size, **options):
            super().__init__(backbone, num_classes, **options)

    with pytest.raises(ValueError, match="The option 'size' of method 'needs' needs a default"):
        register_model("needs", summary="a method that lacks a default")(Needs)


def test_it_trains_with_its_own_loss(nearest, tools, scenario):
    loop = {"train_mb_size": 8, "evaluator": tools.silent()}
    s = create_strategy("nearest", backbone=tools.vit(), num_classes=6, loop=loop, size=3)
    before = {name: p.detach().clone() for name, p in s.model.named_parameters()}
    s.train(scenario.train_stream[0], eval_streams=[])
    moved = {name for name, p in s.model.named_parameters() if not torch.equal(p, before[name])}
    assert {"prompts", "keys", "head.weight"} <= moved
    assert not any(name.startswith("backbone.") for name in moved)
    assert s.predict(torch.randn(3, 3, 32, 32)).shape == (3,)
