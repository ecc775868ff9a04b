import warnings

import pytest
import torch
from avalanche.benchmarks import class_incremental_benchmark
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.training import EWC
from avalanche.training.plugins import EvaluationPlugin, EWCPlugin, LwFPlugin, ReplayPlugin

from avalanche_rwf import DataFrameLogger, RoutedViT, RwFStrategy

SMALL = {"depth": 2, "embed_dim": 32, "num_heads": 2}


def small(tools, **options):
    """As a user builds it: by a timm name, here without weights and small."""
    torch.manual_seed(0)
    return RwFStrategy(**{
        "model_name": "vit_tiny_patch16_224.augreg_in21k", "pretrained": False,
        "image_size": 32, "backbone_kwargs": SMALL, "num_classes": 6, "num_prompts": 2,
        "routed_blocks": "all", "train_mb_size": 8, "evaluator": tools.silent(), **options,
    })


def test_a_drop_in_for_learning_to_prompt_with_their_evaluator_and_loggers(tools, scenario):
    logger = DataFrameLogger()
    evaluator = EvaluationPlugin(
        accuracy_metrics(epoch=True, experience=True, stream=True),
        loss_metrics(epoch=True), loggers=[logger],
    )
    s = small(tools, evaluator=evaluator, eval_every=0)
    for experience in scenario.train_stream:
        s.train(experience, eval_streams=[scenario.test_stream])
        result = s.eval(scenario.test_stream)
    last = [v for k, v in result.items() if k.startswith("Top1_Acc_Stream/eval")]
    assert len(last) == 1 and 0 < last[0] <= 1
    frame = logger.to_frame()
    assert {"train", "eval"} == set(frame["phase"].dropna())
    losses = frame[frame.metric.str.startswith("Loss")]["value"].astype(float)
    assert torch.isfinite(torch.tensor(losses.values)).all()


def test_new_style_benchmarks_without_task_labels(tools):
    data = as_classification_dataset(tools.data())
    test = as_classification_dataset(tools.data(seed=5))
    benchmark = class_incremental_benchmark({"train": data, "test": test}, num_experiences=3)
    s = small(tools)
    for experience in benchmark.train_stream:
        s.train(experience, eval_streams=[])
    s.eval(benchmark.test_stream)
    assert int(s.model.seen.sum()) == 6


@pytest.mark.parametrize(
    "plugin",
    [lambda: ReplayPlugin(mem_size=10), lambda: EWCPlugin(ewc_lambda=0.1),
     lambda: LwFPlugin(alpha=1.0, temperature=2.0)],
    ids=["replay", "ewc", "lwf"],
)
def test_avalanche_plugins_run(tools, scenario, plugin):
    s = small(tools, plugins=[plugin()], head="linear", mask="seen")
    for experience in scenario.train_stream:
        s.train(experience, eval_streams=[])
    assert all(torch.isfinite(p).all() for p in s.model.parameters())


def test_a_model_and_an_optimizer_of_ones_own(tools, scenario):
    model = RoutedViT(tools.vit(), 6, routed_blocks="last 1", num_prompts=2, head="linear")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    s = RwFStrategy(model=model, optimizer=optimizer, mask="seen", evaluator=tools.silent())
    s.train(scenario.train_stream[0], eval_streams=[])
    assert s.optimizer is optimizer and s.model is model


def test_routed_model_serves_avalanches_own_strategies(tools, scenario):
    """A tensor of logits comes out, so any Avalanche strategy can train it."""
    model = RoutedViT(tools.vit(), 6, num_prompts=2, routed_blocks="first 1", head="linear")
    s = EWC(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.01), ewc_lambda=0.1,
            criterion=torch.nn.CrossEntropyLoss(), train_mb_size=8, evaluator=tools.silent())
    before = {n: p.clone() for n, p in model.backbone.state_dict().items()}
    for experience in scenario.train_stream:
        s.train(experience, eval_streams=[])
    assert all(torch.equal(p, before[n]) for n, p in model.backbone.state_dict().items())


def test_classes_need_not_be_known(tools, scenario):
    s = small(tools, num_classes=None)
    for experience in scenario.train_stream:
        s.train(experience, eval_streams=[], shuffle=False)
    assert s.model.num_classes == 6
    assert s.predict(torch.randn(3, 3, 32, 32)).shape == (3,)


def test_no_warning_reaches_a_user(tools, scenario):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        s = small(tools)
        s.train(scenario.train_stream[0], eval_streams=[])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"head": "mlp"}, "head must be one of"),
        ({"routing_kwargs": {"heads": 5}}, "heads must divide"),
        ({"image_size": -3}, "image_size"),
        ({"model_name": "resnet18"}, "VisionTransformer"),
    ],
)
def test_bad_arguments_are_named(tools, options, text):
    with pytest.raises(ValueError, match=text):
        small(tools, **options)


def test_a_model_and_the_name_of_one_are_too_much(tools):
    model = RoutedViT(tools.vit(), 4, routed_blocks="all")
    with pytest.raises(ValueError, match="either model or model_name"):
        small(tools, model=model)
