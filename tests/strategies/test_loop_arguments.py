"""What every strategy's loop takes is checked by every strategy, before it is built."""

from __future__ import annotations

import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin

from avalanche_rwf import FrozenViT, OnlineL2P, RoutedViT, RwFStrategy
from avalanche_rwf.errors import UsageError
from avalanche_rwf.strategies.avalanche_l2p import LearningToPromptAsShipped
from avalanche_rwf.strategies.base import FrozenBackboneStrategy
from avalanche_rwf.strategies.loop_arguments import LOOP, check_loop
from avalanche_rwf.strategies.registry import create_strategy

from ..wrong_values import INFINITY, NO_NAME, wrong_values

METHODS = ["rwf-literal", "er", "avalanche-l2p", "avalanche-l2p-as-shipped", "avalanche:EWC"]


@pytest.mark.parametrize("name", [n for n in LOOP if n not in ("clip_norm", "criterion")])
@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_strategy_refuses_nonsense(method, name, tools):
    vit = tools.vit(init_values=None, depth=2)
    options = {"routed_blocks": "all"} if method == "rwf-literal" else {}
    loop = {"evaluator": tools.silent(), name: wrong_values(LOOP[name])[-1]}
    with pytest.raises(UsageError, match=rf"^{name} must "):
        create_strategy(method, backbone=vit, num_classes=4, loop=loop, **options)


def test_what_is_right_passes(tools):
    class Mine:
        def after_training_exp(self, strategy, **kwargs):
            """Called by its name alone."""

    check_loop({
        "train_mb_size": 1, "eval_every": -1, "peval_mode": "iteration", "precision": "bf16",
        "clip_norm": INFINITY, "device": torch.device("cpu"), "plugins": [ReplayPlugin(4), Mine()],
        "evaluator": lambda: EvaluationPlugin(), "criterion": torch.nn.functional.cross_entropy,
        "something": "else",
    })  # fmt: skip
    check_loop({"clip_norm": None, "plugins": None, "evaluator": None, "criterion": None})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"learning_rates": {"haed": 1e-3}}, "'haed' is none; the nearest names are 'head'"),
        ({"learning_rates": {"head": True}}, "rate of 'head' must be a finite number of at least"),
        ({"learning_rates": {"head": None}}, "rate of 'head' must be a finite number of at least"),
    ],
)
def test_what_a_strategy_is_put_together_from(options, said, vit, tools):
    arguments = {"model": FrozenViT(vit, 4), "evaluator": tools.silent(), **options}
    with pytest.raises(UsageError, match=said):
        FrozenBackboneStrategy(**arguments)


def test_an_optimizer_of_another_model_would_train_nothing(vit, tools):
    other = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(UsageError, match="optimizer must have parameters of the model"):
        FrozenBackboneStrategy(
            model=FrozenViT(vit, 4), optimizer=other, evaluator=tools.silent()
        )


@pytest.mark.parametrize("head", ["slda", "linear"])
def test_an_optimizer_of_frozen_parameters_would_train_nothing(head, vit, tools):
    model = FrozenViT(vit, 4, head=head)
    frozen = torch.optim.SGD(model.backbone.parameters(), lr=0.1)
    with pytest.raises(UsageError, match="all that it has are frozen: leave it out"):
        FrozenBackboneStrategy(model=model, optimizer=frozen, evaluator=tools.silent())


def test_a_criterion_gives_one_number(vit, tools):
    criterion = torch.nn.CrossEntropyLoss(reduction="none")
    with pytest.raises(UsageError, match="one number for a batch, and its reduction is 'none'"):
        FrozenBackboneStrategy(
            model=FrozenViT(vit, 4), criterion=criterion, evaluator=tools.silent()
        )


ROUTED = {
    "model_name": [0, [], "", 1.5],
    "weights": [0, 1.5, [], "absent.pth", "absent"],
    "routed_blocks": [None, 0, 1.5, True, [0.5], [True], "first", torch.zeros(2)],
    "head": NO_NAME,
    "readout": NO_NAME,
    "mask": NO_NAME,
    "learning_rates": [{"queries": -1}],
}
# Said of the thing that the argument names.
SAID = {"model_name": "backbone", "weights": "weights", "learning_rates": "queries"}


@pytest.mark.parametrize("name", ROUTED)
def test_rwf_refuses_nonsense(name, tools):
    arguments = {
        "model_name": "vit_tiny_patch16_224", "pretrained": False, "image_size": 32,
        "backbone_kwargs": {"depth": 2, "embed_dim": 32, "num_heads": 2}, "num_classes": 4,
        "num_prompts": 2, "routed_blocks": [0], "evaluator": tools.silent(),
    }  # fmt: skip
    RwFStrategy(**arguments)
    for value in ROUTED[name]:
        with pytest.raises(UsageError, match=SAID.get(name, rf"^{name} must be ")):
            RwFStrategy(**{**arguments, name: value})


def test_a_model_has_its_number_of_classes(vit, tools):
    model = RoutedViT(vit, 4, routed_blocks="all")
    assert RwFStrategy(model=model, num_classes=4, evaluator=tools.silent()).model is model
    with pytest.raises(UsageError, match=r"num_classes must be left out .* its 4, not 100"):
        RwFStrategy(model=model, num_classes=100, evaluator=tools.silent())


def test_numbers_of_numpy_are_numbers_and_can_be_saved(tools, tmp_path):
    import numpy as np

    strategy = RwFStrategy(
        model_name="vit_tiny_patch16_224", pretrained=False, image_size=32, num_prompts=2,
        backbone_kwargs={"depth": 2, "embed_dim": 32, "num_heads": 2}, num_classes=np.int64(4),
        routed_blocks=np.arange(2), lr=np.float64(1e-3), evaluator=tools.silent(),
    )  # fmt: skip
    strategy.save(tmp_path / "rwf.pt", backbone=True)
    again = RwFStrategy.load(tmp_path / "rwf.pt", evaluator=tools.silent())
    assert again.model.num_classes == 4
    assert again.model.routed_blocks() == (0, 1)


@pytest.mark.parametrize("name", ["rwf-literal", "linear-probe"])
def test_a_backbone_in_float64_needs_a_model_in_float64(name, vit, tools):
    with pytest.raises(UsageError, match=r"not in float32 and float64: model.double\(\) puts"):
        create_strategy(
            name, backbone=vit.double(), num_classes=4, loop={"evaluator": tools.silent()}
        )


def test_numbers_of_two_kinds_that_do_not_work_together_are_named(vit, tools):
    s = create_strategy(
        "rwf-literal", backbone=vit.bfloat16(), num_classes=4, loop={"evaluator": tools.silent()}
    )
    with pytest.raises(UsageError, match="not in bfloat16 and float32: precision='bf16' is what"):
        s.predict(torch.zeros(2, 3, 32, 32, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("kind", "example"),
    [
        (RwFStrategy, "model=..., optimizer=..."),
        (FrozenBackboneStrategy, "model=..., optimizer=..."),
        (OnlineL2P, "model=..., optimizer=..."),
        (LearningToPromptAsShipped, "backbone=..., num_classes=..."),
    ],
)
def test_arguments_have_names(kind, example, vit):
    said = rf"^{kind.__name__} takes keyword-only .* {kind.__name__}\({example}\), and got 2 with"
    with pytest.raises(TypeError, match=said):
        kind(vit, 4)


def test_a_class_of_ones_own_may_have_positional_arguments(vit, tools):
    with pytest.warns(UserWarning, match="positional"):

        class Mine(FrozenBackboneStrategy):
            def __init__(self, model):
                super().__init__(model=model, evaluator=tools.silent())

        assert Mine(FrozenViT(vit, 4)).model.num_classes == 4
