"""Avalanche's L2P on any backbone: its network, and each repair beside the defect it repairs."""

import copy

import pytest
import torch
import torch.nn.functional as F
from avalanche.benchmarks import nc_benchmark
from avalanche.benchmarks.scenarios import (
    class_incremental_benchmark,
    split_online_stream,
    with_classes_timeline,
)
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.models import Prompt
from avalanche.training.plugins import (
    EvaluationPlugin,
    LRSchedulerPlugin,
    LwFPlugin,
    ReplayPlugin,
    SupervisedPlugin,
)
from avalanche.training.supervised.l2p import LearningToPrompt
from timm.models.vision_transformer import VisionTransformer
from torch.utils.data import TensorDataset

from avalanche_rwf.compat import import_timm_vit, timm_compat
from avalanche_rwf.errors import UsageError
from avalanche_rwf.models.backbone import build_packaged_architecture, weights_sha256
from avalanche_rwf.models.heads import HEADS
from avalanche_rwf.models.masks import MASKS
from avalanche_rwf.strategies.avalanche_l2p import (
    LearningToPromptAsShipped,
    OnlineL2P,
    PromptPoolViT,
    prompted_vit,
)
from avalanche_rwf.strategies.registry import create_strategy, get_method

pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified")

SIZES = {"img_size": 32, "patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 2}
POOL = {"pool_size": 6, "prompt_length": 2, "top_k": 3}
BOTH = ("avalanche-l2p", "avalanche-l2p-as-shipped")
CLASSES, BATCH = 4, 5


def make_backbone(**kwargs):
    torch.manual_seed(0)
    vit = VisionTransformer(num_classes=0, **{**SIZES, **kwargs}).eval()
    with torch.no_grad():  # nothing at zero or one, so that nothing can be left out unseen
        for parameter in vit.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return vit


@pytest.fixture
def backbone():
    return make_backbone()


@pytest.fixture
def images():
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def make_data():
    """40 images of 4 classes; a class is a colour and noise."""
    generator = torch.Generator().manual_seed(2)
    targets = torch.arange(CLASSES).repeat_interleave(2 * BATCH)
    colours = 2 * torch.randn(CLASSES, 3, 1, 1, generator=generator)
    x = colours[targets] + 0.3 * torch.randn(len(targets), 3, 32, 32, generator=generator)
    data = TensorDataset(x, targets)
    data.targets = targets.tolist()
    return data


def make_stream(kind):
    """The same 40 images as two experiences, in each of Avalanche's forms: train, test."""
    data = make_data()
    if kind.startswith("nc"):
        benchmark = nc_benchmark(
            data, data, 2, task_labels=False, fixed_class_order=list(range(CLASSES))
        )
    else:
        sets = {"train": as_classification_dataset(data), "test": as_classification_dataset(data)}
        benchmark = class_incremental_benchmark(sets, num_experiences=2, class_order=range(CLASSES))
    train = benchmark.train_stream
    if kind in ("nc-online", "online", "timeline"):
        train = split_online_stream(train, experience_size=BATCH, shuffle=False)
    if kind == "timeline":
        train = with_classes_timeline(train)
    return train, benchmark.test_stream


def make(name, backbone, loop=None, seed=3, **options):
    torch.manual_seed(seed)
    loop = {"train_mb_size": BATCH, "eval_mb_size": 20, "evaluator": None, **(loop or {})}
    options = {**POOL, **options}
    return create_strategy(name, backbone=backbone, num_classes=CLASSES, loop=loop, **options)


def online(backbone, loop=None, **options):
    return make("avalanche-l2p", backbone, loop, **options)


def shipped(backbone, loop=None, **options):
    return make("avalanche-l2p-as-shipped", backbone, loop, **options)


def train(strategy, stream, shuffle=False):
    for experience in stream:
        strategy.train(experience, shuffle=shuffle, drop_last=False)


class Watch(SupervisedPlugin):
    """Keeps what a function of the strategy gives at one of its events."""

    def __init__(self, event, look):
        super().__init__()
        self.seen = []
        setattr(self, event, lambda strategy, **kwargs: self.seen.append(look(strategy)))


# -- the network ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"patch_size": 8},
        {"init_values": 0.1, "img_size": 70, "patch_size": 14},
        {"qkv_bias": False, "mlp_ratio": 2.0},
        {"qk_norm": True, "norm_layer": torch.nn.LayerNorm},
    ],
)
def test_without_prompts_equals_timm(kwargs):
    vit = make_backbone(**kwargs)
    x = torch.randn(3, 3, *vit.patch_embed.img_size)
    ours = prompted_vit(vit).eval()
    assert type(ours) is import_timm_vit().ViTWithPrompt
    assert torch.equal(ours(x)["pre_logits"], vit(x))
    assert torch.equal(ours(x)["x"], vit.forward_features(x))


def test_without_prompts_equals_packaged_architecture(images):
    vit = build_packaged_architecture().eval()
    assert torch.equal(prompted_vit(vit).eval()(images)["pre_logits"], vit(images))


@pytest.mark.parametrize("name", BOTH)
def test_both_start_from_the_backbone(backbone, images, name):
    strategy = make(name, backbone)
    assert isinstance(strategy, LearningToPrompt)
    assert torch.equal(strategy.original_vit(images)["pre_logits"], backbone(images))
    vit = strategy.model.vit if name == "avalanche-l2p" else strategy.model
    for part in ("patch_embed", "blocks", "norm"):
        assert weights_sha256(getattr(vit, part)) == weights_sha256(getattr(backbone, part))
    # One copy of the weights where that is safe, separate ones where train() switches modes.
    shared = vit.blocks[0].attn.qkv.weight is backbone.blocks[0].attn.qkv.weight
    assert shared == (name == "avalanche-l2p")


def test_prompted_forward_equals_the_equations(backbone, images):
    """x_e = [cls; P_s1; ..; P_sN; patches] + positions, s = top-N of cos(q, k); mean of prompts."""
    vit = prompted_vit(backbone, **POOL).eval()
    query = backbone(images)
    result = vit(images, cls_features=query)
    cosine = F.cosine_similarity(query[:, None], vit.prompt.prompt_key[None], dim=-1)
    best, index = cosine.topk(POOL["top_k"], dim=1)
    prompts = vit.prompt.prompt[index].flatten(1, 2)
    positions = backbone.pos_embed
    tokens = torch.cat(
        [
            (backbone.cls_token + positions[:, :1]).expand(len(images), -1, -1),
            prompts + positions[:, :1],
            backbone.patch_embed(images) + positions[:, 1:],
        ],
        dim=1,
    )
    expected = backbone.norm(backbone.blocks(tokens))
    torch.testing.assert_close(result["x"], expected)
    torch.testing.assert_close(result["logits"], expected[:, 1:7].mean(1))
    torch.testing.assert_close(result["reduce_sim"], best.sum(1).mean())


def test_positions_are_those_avalanche_would_load(backbone):
    vit = prompted_vit(backbone, **POOL)
    loaded = import_timm_vit().checkpoint_filter_fn({"pos_embed": backbone.pos_embed}, vit)
    torch.testing.assert_close(vit.pos_embed.data, loaded["pos_embed"].data)


def test_readouts_are_prompts_class_token_and_mean_patch(backbone, images):
    for readout, width in (("prompt", 64), ("cls", 64), ("cls+mean", 128)):
        torch.manual_seed(0)
        model = PromptPoolViT(backbone, CLASSES, readout=readout, **POOL)
        features = model.features(images)
        tokens = model.vit(images, cls_features=backbone(images))["x"]
        expected = {
            "prompt": tokens[:, 1:7].mean(1),
            "cls": tokens[:, 0],
            "cls+mean": torch.cat([tokens[:, 0], tokens[:, 7:].mean(1)], 1),
        }[readout]
        assert model.feature_width() == model.head.in_features == width
        assert tokens.shape[1] == 1 + 6 + 4
        torch.testing.assert_close(features, expected)


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"pre_norm": True}, "norm_pre"),
        ({"reg_tokens": 2}, "register tokens"),
        ({"no_embed_class": True}, "no_embed_class"),
        ({"fc_norm": True}, "fc_norm"),
        ({"class_token": False, "global_pool": "avg", "fc_norm": False}, "no class token"),
        ({"dynamic_img_size": True}, "dynamic image size"),
    ],
)
@pytest.mark.parametrize("name", BOTH)
def test_refuses_what_avalanche_would_ignore(name, kwargs, reason):
    with pytest.raises(UsageError, match=reason):
        make(name, make_backbone(**kwargs))


def test_ignored_parts_would_change_the_features(images):
    """Why they are refused: Avalanche's forward leaves norm_pre out and says nothing."""
    vit = make_backbone(pre_norm=True)
    arguments = {**SIZES, "pre_norm": True, "norm_layer": None}
    with timm_compat(**arguments):
        from avalanche.models.vit import create_model

        theirs = create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0).eval()
    theirs.load_state_dict(vit.state_dict())
    assert (theirs(images)["pre_logits"] - vit(images)).abs().max() > 0.01


@pytest.mark.parametrize("name", BOTH)
def test_refuses_what_is_no_vit(name, backbone):
    backbone.pos_embed = None
    with pytest.raises(UsageError, match="no position embedding"):
        make(name, backbone)
    with pytest.raises(UsageError, match="not a Linear"):
        make(name, torch.nn.Linear(2, 2))


# -- as shipped -------------------------------------------------------------------------------


def test_as_shipped_trains_as_the_raw_class_does():
    """Where the raw class can be built (width 768), every weight is equal after two experiences."""
    wide = {**SIZES, "embed_dim": 768, "depth": 1, "num_heads": 12, "mlp_ratio": 1.0}
    loop = {"train_mb_size": BATCH, "eval_mb_size": 20, "evaluator": None}
    torch.manual_seed(0)
    with timm_compat(**wide):
        raw = LearningToPrompt(
            model_name="vit_tiny_patch16_224", pretrained=False, num_classes=CLASSES, **POOL, **loop
        )
    vit = VisionTransformer(num_classes=0, **wide).eval()
    state = raw.original_vit.state_dict()
    vit.load_state_dict(state)
    ours = LearningToPromptAsShipped(backbone=vit, num_classes=CLASSES, **POOL, **loop)
    # With random weights Avalanche's two networks differ; a checkpoint would make them equal.
    start = {k: v for k, v in ours.model.state_dict().items() if not k.startswith(("prompt", "he"))}
    raw.model.load_state_dict(start, strict=False)
    for part in ("prompt", "head"):
        getattr(ours.model, part).load_state_dict(getattr(raw.model, part).state_dict())
    stream, test = make_stream("nc")
    for strategy in (raw, ours):
        train(strategy, stream)
        strategy.eval(test)
    assert raw.model.state_dict().keys() == ours.model.state_dict().keys()
    for name, tensor in raw.model.state_dict().items():
        assert torch.equal(tensor, ours.model.state_dict()[name]), name
    assert not torch.equal(ours.model.head.weight, torch.zeros(1)) and ours.clock.train_iterations


def test_as_shipped_overrides_no_semantics():
    for name in ("criterion", "_before_training_exp", "training_epoch", "make_optimizer"):
        assert getattr(LearningToPromptAsShipped, name) is getattr(LearningToPrompt, name)
    assert get_method("avalanche-l2p-as-shipped").uses_boundaries
    assert not get_method("avalanche-l2p").uses_boundaries


def test_as_shipped_leaves_the_backbone_alone():
    vit = make_backbone(drop_path_rate=0.5)
    before = weights_sha256(vit)
    strategy = shipped(vit)
    train(strategy, make_stream("nc")[0])
    assert weights_sha256(vit) == before
    assert not any(module.training for module in vit.modules())
    assert all(parameter.requires_grad for parameter in vit.parameters())


# -- what is repaired, one defect a test ------------------------------------------------------


def test_head_has_the_width_of_the_vit(images):
    loop = {"train_mb_size": BATCH, "evaluator": None}
    with timm_compat(**SIZES):
        raw = LearningToPrompt(
            model_name="vit_tiny_patch16_224", pretrained=False, num_classes=CLASSES, **POOL, **loop
        )
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        train(raw, make_stream("nc")[0])


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("incremental", AssertionError, "Task label not found"),
        ("online", AssertionError, "Task label not found"),
        ("nc-online", AttributeError, "classes_in_this_experience"),
    ],
)
def test_as_shipped_fails_on_other_streams(backbone, kind, error, message):
    with pytest.raises(error, match=message):
        train(shipped(backbone), make_stream(kind)[0])


def test_as_shipped_is_dead_where_classes_are_a_set(backbone):
    """class_incremental_benchmark gives sets; with task labels nothing raises, all is masked."""
    losses = Watch("after_training_iteration", lambda s: s.loss.item())
    strategy = shipped(backbone, {"plugins": [losses]})
    experience = make_stream("nc")[0][0]
    experience.classes_in_this_experience = set(experience.classes_in_this_experience)
    strategy.train(experience)
    assert all(loss != loss for loss in losses.seen)


@pytest.mark.parametrize("kinds", [("nc", "nc-online"), ("incremental", "online", "timeline")])
def test_one_result_on_every_kind_of_stream(backbone, kinds):
    """No boundary, task label or class list is read: the weights are equal to the last bit.

    (The two ways of splitting by class put the classes of an experience into different orders.)
    """
    states = []
    for kind in kinds:
        losses = Watch("after_training_iteration", lambda s: s.loss.item())
        strategy = online(backbone, {"plugins": [losses]})
        stream, test = make_stream(kind)
        train(strategy, stream)
        strategy.eval(test)
        assert len(losses.seen) == 8 and all(abs(loss) < 100 for loss in losses.seen)
        states.append(strategy.model.state_without_backbone())
    assert "head.weight" in states[0] and "pool.prompt_key" in states[0]
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(state[name], states[0][name]) for name in state)


@pytest.mark.parametrize("mask", ["seen", "decoupled"])
def test_replayed_classes_do_not_make_the_loss_infinite(backbone, mask):
    losses = {}
    for build, options in ((shipped, {}), (online, {"mask": mask})):
        torch.manual_seed(0)
        watch = Watch("after_training_iteration", lambda s: s.loss.item())
        strategy = build(backbone, {"plugins": [ReplayPlugin(mem_size=20), watch]}, **options)
        train(strategy, make_stream("nc")[0])
        losses[build] = torch.tensor(watch.seen)
    assert torch.isinf(losses[shipped]).any()
    assert torch.isfinite(losses[online]).all()


def test_unseen_classes_are_masked_at_test(backbone):
    outputs = {}
    for build in (shipped, online):
        watch = Watch("after_eval_forward", lambda s: s.mb_output.clone())
        strategy = build(backbone, {"plugins": [watch]})
        stream, test = make_stream("nc")
        strategy.train(stream[0])
        strategy.eval(test)
        outputs[build] = torch.cat(watch.seen)
    assert torch.isfinite(outputs[shipped]).all()
    assert (outputs[online][:, 2:] == float("-inf")).all()
    assert torch.isfinite(outputs[online][:, :2]).all()


def adam_steps(strategy):
    """Steps of Adam for the trained tensors."""
    return {int(state["step"]) for state in strategy.optimizer.state.values()}


def test_adam_is_kept_over_experiences(backbone):
    steps = {}
    for build in (shipped, online):
        strategy = build(backbone)
        first = strategy.optimizer
        train(strategy, make_stream("nc")[0])  # 2 experiences of 4 mini-batches
        steps[build] = adam_steps(strategy)
        assert (strategy.optimizer is first) == (build is online)
    assert steps == {shipped: {4}, online: {8}}


def test_schedulers_reach_the_live_optimizer(backbone):
    rates = {}
    for build in (shipped, online):
        strategy = build(backbone)
        scheduler = torch.optim.lr_scheduler.StepLR(strategy.optimizer, step_size=1, gamma=0.5)
        strategy.plugins.insert(
            0,
            LRSchedulerPlugin(
                scheduler, step_granularity="iteration", reset_scheduler=False, reset_lr=False
            ),
        )
        train(strategy, make_stream("nc")[0])
        rates[build] = strategy.optimizer.param_groups[0]["lr"]
    assert rates[shipped] == 0.03
    assert rates[online] == pytest.approx(0.03 * 0.5**8)


def test_a_user_given_optimizer_is_used(backbone):
    model = PromptPoolViT(backbone, CLASSES, **POOL)
    own = torch.optim.SGD([*model.pool.parameters(), *model.head.parameters()], lr=0.1)
    before = model.pool.prompt_key.detach().clone()
    strategy = OnlineL2P(model=model, optimizer=own, train_mb_size=BATCH, evaluator=None)
    train(strategy, make_stream("nc")[0])
    assert strategy.optimizer is own
    assert not torch.equal(model.pool.prompt_key, before)


def test_only_trained_tensors_are_optimized(backbone):
    def in_optimizer(strategy):
        held = {id(p) for group in strategy.optimizer.param_groups for p in group["params"]}
        return {name for name, p in strategy.model.named_parameters() if id(p) in held}

    ours, theirs = online(backbone), shipped(backbone)
    trained = {"pool.prompt", "pool.prompt_key", "head.weight", "head.bias"}
    for strategy in (ours, theirs):
        train(strategy, make_stream("nc")[0])
    assert in_optimizer(ours) == trained
    assert {n for n, p in ours.model.named_parameters() if p.requires_grad} == trained
    assert "blocks.0.attn.qkv.weight" in in_optimizer(theirs)


def test_raw_class_trains_fc_norm_by_oversight():
    """Here such a backbone is refused, and the optimizer has the pool and the head only."""
    with timm_compat(**SIZES, fc_norm=True):
        raw = LearningToPrompt(
            model_name="vit_tiny_patch16_224", pretrained=False, num_classes=CLASSES, evaluator=None
        )
    assert raw.model.fc_norm.weight.requires_grad
    with pytest.raises(UsageError, match="fc_norm"):
        online(make_backbone(fc_norm=True))


def test_backbone_is_in_eval_mode_in_training(images):
    vit = make_backbone(proj_drop_rate=0.5, drop_path_rate=0.5)
    modes = {}
    for build in (shipped, online):
        watch = Watch(
            "before_forward",
            lambda s: {
                module.training
                for net in (getattr(s.model, "vit", s.model), s.original_vit)
                for part in (net, net.blocks)
                for module in part.modules()
                if not isinstance(module, Prompt)
            },
        )
        strategy = build(vit, {"plugins": [watch], "eval_every": 1, "peval_mode": "iteration"})
        train(strategy, make_stream("nc")[0])
        modes[build] = set().union(*watch.seen)
        query = strategy.original_vit
        same = torch.equal(query(images)["pre_logits"], query(images)["pre_logits"])
        assert query.training == (build is shipped) and same == (build is online)
    assert modes == {shipped: {True}, online: {False}}


def test_everything_moves_with_the_model(backbone):
    strategy = online(backbone)
    strategy.model.to(torch.float64)
    for net in (strategy.model.vit, strategy.original_vit):
        assert {p.dtype for p in net.parameters()} == {torch.float64}
    theirs = shipped(make_backbone())
    theirs.model.to(torch.float64)
    assert {p.dtype for p in theirs.original_vit.parameters()} == {torch.float32}


def test_evaluation_loss_is_cross_entropy(backbone):
    error = {}
    for build in (shipped, online):
        watch = Watch(
            "after_eval_iteration",
            lambda s: float(s.loss - F.cross_entropy(s.mb_output, s.mb_y)),
        )
        strategy = build(backbone, {"plugins": [watch]})
        stream, test = make_stream("nc")
        train(strategy, stream)
        strategy.eval(test)
        error[build] = max(abs(e) for e in watch.seen)
    assert error[shipped] > 1e-3
    assert error[online] < 1e-6


def test_training_loss_has_the_key_term(backbone):
    """With coefficient 0 keys get no gradient; with the default they approach the queries."""
    similarity = {}
    for coefficient in (0.0, 0.1):
        strategy = online(backbone, sim_coefficient=coefficient)
        key = strategy.model.pool.prompt_key.detach().clone()
        train(strategy, make_stream("nc")[0])
        assert torch.equal(key, strategy.model.pool.prompt_key) == (coefficient == 0)
        x = make_data().tensors[0]
        similarity[coefficient] = strategy.model.eval().encode(x)[1].similarity.item()
    assert similarity[0.1] > similarity[0.0] + 0.1


def test_a_trained_strategy_can_be_copied(backbone, images):
    for build in (shipped, online):
        strategy = build(backbone)
        stream, test = make_stream("nc")
        train(strategy, stream)
        if build is shipped:
            with pytest.raises(RuntimeError, match="deepcopy"):
                copy.deepcopy(strategy)
            continue
        twin = copy.deepcopy(strategy)
        assert twin.model.vit.blocks is twin.model.backbone.blocks is twin.original_vit.blocks
        assert twin.model.backbone is not backbone and twin.model.vit.prompt is twin.model.pool
        assert torch.equal(twin.model(images), strategy.model(images))
        strategy.eval(test)
        copy.deepcopy(strategy)


def test_plugins_that_call_the_model_work(backbone, images):
    assert isinstance(shipped(backbone).model(images), dict)
    assert online(backbone).model(images).shape == (5, CLASSES)
    with pytest.raises(TypeError):
        train(shipped(backbone, {"plugins": [LwFPlugin()]}), make_stream("nc")[0])
    train(online(backbone, {"plugins": [LwFPlugin()]}), make_stream("nc")[0])


def test_gradients_are_clipped(backbone):
    def norms(strategy):
        return max(
            float(p.grad.norm()) for g in strategy.optimizer.param_groups for p in g["params"]
        )

    largest = {}
    for clip in (None, 1e-3):
        watch = Watch("after_update", norms)
        train(online(backbone, {"plugins": [watch], "clip_norm": clip}), make_stream("nc")[0])
        largest[clip] = max(watch.seen)
    assert largest[None] > 1e-2 and largest[1e-3] <= 1.001e-3


# -- training and prediction ------------------------------------------------------------------


def test_predictions_do_not_depend_on_the_batch(backbone, images):
    strategy = online(backbone)
    train(strategy, make_stream("nc")[0])
    model = strategy.model.eval()
    with torch.no_grad():
        together = model(images)
        alone = torch.cat([model(image[None]) for image in images])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
        # What would make them depend: the option of Avalanche's that must stay off.
        model.pool.batchwise_prompt = True
        assert (model(images) - alone).abs().max() > 1e-3


@pytest.mark.parametrize("name", BOTH)
def test_frozen_weights_stay(backbone, name):
    before = weights_sha256(backbone)
    strategy = make(name, backbone)
    vit = strategy.model.vit if name == "avalanche-l2p" else strategy.model
    frozen = {k: v.clone() for k, v in vit.state_dict().items() if not k.startswith(("pr", "hea"))}
    assert "pos_embed" in frozen and "blocks.1.mlp.fc2.bias" in frozen
    train(strategy, make_stream("nc")[0])
    assert weights_sha256(backbone) == before
    assert all(torch.equal(vit.state_dict()[k], v) for k, v in frozen.items())


@pytest.mark.parametrize("readout", ["prompt", "cls", "mean", "cls+mean"])
def test_every_trained_tensor_gets_a_gradient(backbone, readout):
    """The pool as a tensor: in a step only the selected prompts and keys have one."""

    def gradients(strategy):
        return {n: p.grad.clone() for n, p in strategy.model.named_parameters() if p.requires_grad}

    watch = Watch("after_backward", gradients)
    strategy = online(backbone, {"plugins": [watch]}, readout=readout)
    strategy.train(make_stream("nc")[0][0])
    first = watch.seen[0]
    assert set(first) == {"pool.prompt", "pool.prompt_key", "head.weight", "head.bias"}
    assert all(g.abs().sum() > 0 for g in first.values())
    for name in ("pool.prompt", "pool.prompt_key"):
        touched = (first[name].flatten(1).abs().sum(1) > 0).sum()
        assert POOL["top_k"] <= touched <= POOL["pool_size"]


def test_each_mini_batch_gets_its_gradient_steps(backbone):
    counts = {}
    for steps in (1, 3):
        watch = Watch("after_training_iteration", lambda s: s.clock.train_iterations)
        strategy = online(backbone, {"plugins": [watch], "gradient_steps": steps})
        train(strategy, make_stream("nc")[0])
        counts[steps] = len(watch.seen), adam_steps(strategy)
    assert counts == {1: (8, {8}), 3: (8, {24})}


@pytest.mark.parametrize("name", BOTH)
def test_two_forward_passes_per_image(backbone, name):
    passes = []
    strategy = make(name, backbone)
    nets = (strategy.original_vit,) if name != "avalanche-l2p" else ()
    for net in (getattr(strategy.model, "vit", strategy.model), *nets):
        net.blocks[0].register_forward_hook(lambda module, args, out: passes.append(len(out)))
    stream, test = make_stream("nc")
    strategy.train(stream[0])
    assert sum(passes) == 2 * 20
    passes.clear()
    strategy.eval(test)
    assert sum(passes) == 2 * 40


@pytest.mark.parametrize(
    ("head", "mask"),
    [*((head, "decoupled") for head in HEADS), *(("linear", mask) for mask in MASKS)],
)
def test_every_head_and_every_mask(backbone, head, mask):
    losses = Watch("after_training_iteration", lambda s: s.loss.item())
    strategy = online(
        backbone, {"plugins": [losses]}, head=head, mask=mask, readout="cls+mean", lr=5e-3
    )
    stream, test = make_stream("nc")
    before = strategy.model.pool.prompt.detach().clone()
    train(strategy, stream, shuffle=True)  # a batch of one class has no loss under its own mask
    strategy.eval(test)
    assert all(abs(loss) < 100 for loss in losses.seen)
    assert not torch.equal(before, strategy.model.pool.prompt)
    assert strategy.predict(make_data().tensors[0]).shape == (40,)


@pytest.mark.parametrize("name", BOTH)
def test_bfloat16_learns_and_gives_float32_logits(backbone, images, name):
    outputs = Watch("after_eval_forward", lambda s: s.mb_output)
    strategy = make(name, backbone, {"precision": "bf16", "plugins": [outputs]})
    stream, test = make_stream("nc")
    pool = strategy.model.pool if name == "avalanche-l2p" else strategy.model.prompt
    before = pool.prompt.detach().clone()
    strategy.train(stream[0])
    assert not torch.equal(pool.prompt, before)
    strategy.eval(test[:1])
    assert outputs.seen[0].dtype == torch.float32
    strategy.precision = "fp32"
    strategy.eval(test[:1])
    low, full = (seen[:, :2] for seen in outputs.seen)
    assert 0 < (low - full).abs().max() < 0.05 * full.abs().max()


@pytest.mark.parametrize("name", BOTH)
def test_learns_with_avalanches_metrics(name):
    backbone = build_packaged_architecture(depth=2).eval()
    evaluator = EvaluationPlugin(
        accuracy_metrics(stream=True, epoch=True), loss_metrics(stream=True)
    )
    loop = {"evaluator": evaluator, "train_epochs": 3}
    strategy = make(name, backbone, loop)
    stream, test = make_stream("nc")
    strategy.train(stream[0])
    results = strategy.eval(test[:1])
    assert results["Top1_Acc_Stream/eval_phase/test_stream/Task000"] > 0.9
    assert results["Loss_Stream/eval_phase/test_stream/Task000"] < 1.0


def test_evaluation_before_training(backbone):
    """Nothing has been seen and nothing is masked; Avalanche evaluates before it trains."""
    strategy = online(backbone, {"eval_every": 1, "peval_mode": "iteration"})
    stream, test = make_stream("nc")
    strategy.train(stream[0], eval_streams=[test])


def test_training_goes_on_from_a_saved_state(backbone, tmp_path):
    stream, _ = make_stream("nc")
    through = online(backbone, head="white")
    train(through, stream)
    first = online(backbone, head="white")
    first.train(stream[0], shuffle=False)
    torch.save(first.trained_state(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert not any("blocks" in name for name in state["model"])
    second = online(backbone, head="white", seed=99)
    second.load_trained_state(state)
    second.train(stream[1], shuffle=False)
    expected = through.model.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in second.model.state_dict().items())
    assert adam_steps(second) == {8}


def test_the_head_has_a_rate_of_its_own(backbone):
    def rates(strategy):
        return {g["name"]: g["lr"] for g in strategy.optimizer.param_groups}

    assert rates(online(backbone)) == {"prompt": 0.03, "head": 0.03}
    assert rates(online(backbone, lr=0.1, lr_head=0.2)) == {"prompt": 0.1, "head": 0.2}


@pytest.mark.parametrize(
    ("name", "options", "loop", "message"),
    [
        (BOTH, {"top_k": 7}, {}, "top_k must be at most pool_size=6, not 7"),
        (BOTH[:1], {"readout": "layers"}, {}, "readout must be one of prompt, cls"),
        (BOTH[:1], {"head": "no"}, {}, "head must be one of"),
        (BOTH[:1], {"mask": "no"}, {}, "mask must be one of"),
        (BOTH[1:], {}, {"gradient_steps": 2}, "gradient_steps must be 1"),
        (BOTH[1:], {}, {"precision": "fp16"}, "precision must be"),
    ],
)
def test_options_that_do_not_fit_are_refused(backbone, name, options, loop, message):
    for one in name:
        with pytest.raises(ValueError, match=message):
            make(one, backbone, loop, **options)


def test_both_are_registered_and_only_the_repaired_one_is_a_default():
    spec = get_method("avalanche-l2p")
    assert spec.default and {"head", "mask", "readout"} <= set(spec.options)
    shipped_spec = get_method("avalanche-l2p-as-shipped")
    assert not shipped_spec.default and "head" not in shipped_spec.options
    assert shipped_spec.options["lr"] == 0.03
