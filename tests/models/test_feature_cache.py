"""The memory of features: nothing is changed by looking up, and processes share a folder."""

import contextlib
import functools
import json

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from avalanche_rwf.models import feature_cache
from avalanche_rwf.models.classifier import FrozenViT
from avalanche_rwf.models.feature_cache import MEMORY, FeatureMemory
from avalanche_rwf.models.lower import lowered


def counted(value):
    calls = []

    def compute():
        calls.append(1)
        return value

    return compute, calls


def digests(*numbers):
    return [bytes([n]) * 16 for n in numbers]


def test_a_batch_of_one_model_is_computed_once_and_the_oldest_goes_first():
    memory = FeatureMemory(limit=2 * 40)
    a, calls = counted(torch.arange(10.0))
    assert torch.equal(memory.get("a", a), memory.get("a", a)) and len(calls) == 1
    memory.get("b", lambda: torch.zeros(10))
    memory.get("c", lambda: torch.zeros(10))
    memory.get("a", a)
    assert len(calls) == 2


def test_images_are_found_in_any_order_after_a_look_whether_their_mates_matter():
    memory = FeatureMemory()
    values = torch.randn(4, 3)
    compute, calls = counted(values)
    assert torch.equal(memory.rows(digests(1, 2, 3, 4), "cls", compute), values)
    assert torch.equal(memory.rows(digests(1, 2, 3, 4), "cls", compute), values)
    assert len(calls) == 1
    back, looks = counted(values.flip(0))
    for _ in range(3):
        assert torch.equal(memory.rows(digests(4, 3, 2, 1), "cls", back), values.flip(0))
    assert len(looks) == 1  # that once
    memory.rows(digests(1, 2, 3, 4), "mean", compute)
    assert len(calls) == 2  # other features are others


def test_batches_of_other_sizes_are_used_after_a_look_whether_they_agree():
    memory = FeatureMemory()
    values = torch.randn(6, 3)
    memory.rows(digests(1, 2, 3, 4), "cls", lambda: values[:4])
    memory.rows(digests(5, 6), "cls", lambda: values[4:])
    few, calls = counted(values[1:4])
    many, all_calls = counted(values)
    for _ in range(3):
        assert torch.equal(memory.rows(digests(2, 3, 4), "cls", few), values[1:4])
        assert torch.equal(memory.rows(digests(1, 2, 3, 4, 5, 6), "cls", many), values)
    assert len(calls) == 1  # that once
    assert len(all_calls) == 1  # for both sizes
    memory.rows(digests(5, 6), "mean", lambda: values[4:])
    memory.rows(digests(5), "mean", counted(values[4:5])[0])
    other, calls = counted(values[4:5] + 1)
    memory.rows(digests(5), "mean", other)
    assert not calls  # one and two images agree in it


def test_a_batch_of_another_size_that_does_not_agree_is_never_used():
    memory = FeatureMemory()
    values = torch.randn(4, 3)
    memory.rows(digests(1, 2, 3, 4), "cls", lambda: values)
    alone = values[:2] + 1e-7
    for _ in range(3):
        assert torch.equal(memory.rows(digests(1, 2), "cls", lambda: alone), alone)
    compute, calls = counted(alone)
    memory.rows(digests(1, 2), "cls", compute)
    assert not calls  # it was kept by itself
    assert torch.equal(memory.rows(digests(1, 2, 3, 4), "cls", compute), values) and not calls
    one, calls = counted(alone[1:])
    for _ in range(3):  # one image does not agree with four, and does with two
        assert torch.equal(memory.rows(digests(2), "cls", one), alone[1:])
    assert len(calls) == 2


def test_images_whose_features_depend_on_their_mates_are_found_in_whole_batches_alone():
    memory = FeatureMemory()
    first, other = torch.zeros(2, 1), torch.full((2, 1), 1e-7)
    memory.rows(digests(1, 2), "cls", lambda: first)
    for _ in range(3):
        assert torch.equal(memory.rows(digests(2, 1), "cls", lambda: other), other)
    assert torch.equal(memory.rows(digests(1, 2), "cls", lambda: other), first)


def test_a_part_of_the_features_stands_for_others():
    memory = FeatureMemory()
    values = torch.randn(2, 5)
    memory.rows(digests(1, 2), "layers", lambda: values, part=("cls", 2))
    compute, calls = counted(values)
    assert torch.equal(memory.rows(digests(1, 2), "cls", compute), values[:, :2]) and not calls


def test_what_is_looked_up_is_charged_where_it_is_asked_for():
    memory = FeatureMemory()
    compute = counted(torch.zeros(2, 1))[0]
    memory.rows(digests(1, 2), "cls", compute, charge=True)
    assert memory.charged_images == 0  # it was computed
    memory.rows(digests(1, 2), "cls", compute)
    assert memory.charged_images == 0
    memory.rows(digests(1, 2), "cls", compute, charge=True)
    assert memory.charged_images == 2 and memory.charged_seconds > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_processes_share_a_folder_and_do_without_a_broken_file(tmp_path, dtype):
    first, second = FeatureMemory(), FeatureMemory()
    first.share(tmp_path)
    second.share(tmp_path)
    value = torch.randn(3, 4, 2).to(dtype)
    first.rows(digests(1, 2, 3), "cls", lambda: value)
    compute, calls = counted(torch.zeros(3, 4, 2))
    assert torch.equal(second.rows(digests(1, 2, 3), "cls", compute), value) and not calls
    for broken in ("[]", "{}", "nonsense", json.dumps({"keys": ["00"], "dtype": "load"})):
        (tmp_path / f"{len(broken)}.json").write_text(broken)
    pickled = {"keys": [d.hex() for d in digests(7)], "dtype": "float32", "shape": [1]}
    np.save(tmp_path / "p.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "p.json").write_text(json.dumps({**pickled, "seconds": 0}))
    second.rows(digests(4, 5, 6), "cls", compute)
    assert len(calls) == 1


def test_what_is_forgotten_in_memory_is_still_in_the_folder(tmp_path):
    memory = FeatureMemory(limit=8)
    memory.share(tmp_path)
    values = [torch.randn(2, 1) for _ in range(3)]
    for number, value in enumerate(values):
        memory.rows(digests(2 * number, 2 * number + 1), "cls", lambda v=value: v)
    compute, calls = counted(values[0])
    assert torch.equal(memory.rows(digests(0, 1), "cls", compute), values[0]) and not calls
    alone = FeatureMemory(limit=8)
    for number, value in enumerate(values):
        alone.rows(digests(2 * number, 2 * number + 1), "cls", lambda v=value: v)
    alone.rows(digests(0, 1), "cls", compute)
    assert len(calls) == 1


def test_used_alone_a_folder_gets_what_memory_has_no_room_for(tmp_path):
    memory = FeatureMemory(limit=16)
    memory.share(tmp_path, alone=True)
    values = [torch.randn(2, 1) for _ in range(4)]
    for number, value in enumerate(values):
        memory.rows(digests(2 * number, 2 * number + 1), "cls", lambda v=value: v)
    assert len(list(tmp_path.glob("*.npy"))) == 2
    for number, value in enumerate(values):
        compute, calls = counted(value)
        found = memory.rows(digests(2 * number, 2 * number + 1), "cls", compute)
        assert torch.equal(found, value) and not calls
    memory.clear()
    assert not memory._whole and not memory._places


def test_a_folder_is_filled_to_its_limit_and_no_disk_to_its_end(tmp_path, monkeypatch):
    memory = FeatureMemory(disk_limit=16)
    memory.share(tmp_path)
    for number in range(3):
        memory.rows(digests(2 * number, 2 * number + 1), "cls", lambda: torch.zeros(2, 1))
    assert len(list(tmp_path.glob("*.npy"))) == 2
    (tmp_path / "next").mkdir()
    memory.share(tmp_path / "next")
    memory.rows(digests(7, 8), "cls", lambda: torch.zeros(2, 1))
    assert len(list((tmp_path / "next").glob("*.npy"))) == 1
    nearly_full = type("Usage", (), {"free": 2**30})
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda _: nearly_full)
    memory = FeatureMemory()
    memory.share(tmp_path)
    memory.rows(digests(9), "cls", lambda: torch.zeros(1, 1))
    assert len(list(tmp_path.glob("*.npy"))) == 2


def test_what_is_forgotten_leaves_nothing_behind():
    memory = FeatureMemory(limit=8)
    for number in range(3):
        memory.rows(digests(2 * number, 2 * number + 1), "cls", lambda: torch.zeros(2, 1))
    assert len(memory._places) == 2 and len(memory._whole) == 1


@torch.no_grad()
def test_what_a_head_counts_does_not_make_features_new(tools, images, monkeypatch):
    from avalanche_rwf.strategies.registry import create_strategy

    loop = {"evaluator": tools.silent()}
    s = create_strategy("rwf-lda", backbone=tools.vit(depth=5), num_classes=5, loop=loop)
    model, passes = s.model.eval(), counted_passes(monkeypatch)
    features = model.features(images)
    model.observe(features, torch.arange(len(images)) % 5)
    passes.clear()
    assert torch.equal(model.features(images), features) and not passes


def counted_passes(monkeypatch):
    """A list that has one more entry after each pass through a backbone, as it cuts patches."""
    passes, cut = [], torch.nn.Conv2d.forward
    counting = functools.wraps(cut)(lambda *a: (passes.append(1), cut(*a))[1])
    monkeypatch.setattr(torch.nn.Conv2d, "forward", counting)
    return passes


def test_methods_on_one_backbone_share_its_features_and_others_do_not(
    tools, images, monkeypatch
):
    forwards = counted_passes(monkeypatch)

    def model(seed=0, **options):
        return FrozenViT(tools.vit(seed), 5, **options).eval()

    def used(made, query=False):
        forwards.clear()
        with torch.no_grad():
            answer = made.frozen_query(images) if query else made.features(images)
        return answer, len(forwards)

    first, n = used(model(head="linear"))
    assert n == 1
    for other in (model(head="slda"), model(head="ncm")):
        answer, n = used(other)
        assert n == 0 and torch.equal(answer, first)
    answer, n = used(model(), query=True)
    assert n == 0 and torch.equal(answer, first)
    assert used(model(readout="cls+mean"))[1] == 1
    assert used(model(seed=1))[1] == 1
    changed = model()
    assert used(changed)[1] == 0
    with torch.no_grad():
        changed.backbone.blocks[0].attn.qkv.weight.mul_(1.1)
    assert used(changed)[1] == 1
    trained = model(frozen=False)
    assert used(trained)[1] == 1 and used(trained)[1] == 1


@torch.no_grad()
def test_a_model_that_reads_in_its_own_way_shares_nothing(tools, images):
    class Mine(FrozenViT):
        def read(self, forwarded):
            return forwarded.tokens[:, 1:].mean(1)

    mine, plain = Mine(tools.vit(), 5).eval(), FrozenViT(tools.vit(), 5).eval()
    plain.features(images)
    expected = tools.vit().forward_features(images)[:, 1:].mean(1)
    torch.testing.assert_close(mine.features(images), expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(mine.features(images), plain.features(images))


@torch.no_grad()
def test_what_is_given_is_a_copy(tools, images):
    model = FrozenViT(tools.vit(), 5).eval()
    model.features(images).zero_()
    assert model.features(images).abs().sum() > 0


def in_bfloat16(model):
    """The state in which a strategy asks a model for features with precision="bf16"."""
    stack = contextlib.ExitStack()
    stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16))
    stack.enter_context(lowered(model.backbone))
    return stack


@pytest.mark.parametrize("state", [lambda model: contextlib.nullcontext(), in_bfloat16])
@pytest.mark.parametrize("readout", ["cls", "cls+mean", "layers"])
def test_training_images_have_the_same_features_looked_up_to_the_last_bit(
    tools, monkeypatch, readout, state
):
    """In other batches, as another seed has them."""
    monkeypatch.setattr(MEMORY, "training", True)
    images = torch.randn(24, 3, 32, 32)
    model = FrozenViT(tools.vit(), 5, readout=readout).train()
    plain = FrozenViT(tools.vit(), 5, readout=readout).train()
    plain.use_cache = False
    passes = counted_passes(monkeypatch)
    for seed in range(3):
        order = torch.randperm(24, generator=torch.Generator().manual_seed(seed))
        for part in order.split(8):
            with state(model):
                found = model.features(images[part])
            before = len(passes)
            with state(plain):
                assert torch.equal(found, plain.features(images[part]))
            del passes[before:]
    assert len(passes) == 4  # the first seed's, and one look
    assert MEMORY.charged_images >= 40


@torch.no_grad()
def test_features_in_bfloat16_and_float32_are_kept_apart(tools, images):
    model = FrozenViT(tools.vit(), 5).eval()
    first = model.features(images)
    with in_bfloat16(model):
        low = model.features(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # the weights themselves are as before
        assert torch.equal(model.features(images), low)
    assert not torch.equal(first, low)
    assert torch.equal(model.features(images), first)


def test_nothing_is_remembered_in_training_or_with_a_graph(tools, images):
    made = FrozenViT(tools.vit(), 5).train()
    made.features(images)
    made.eval().features(images)  # a graph may be wanted
    made.use_cache = False
    with torch.no_grad():
        made.features(images)
    assert not MEMORY._places and not MEMORY._answers


def test_a_backbone_in_bfloat16_is_told_by_its_bytes_too(tools, images):
    """NumPy has no such numbers."""
    model = FrozenViT(tools.vit().bfloat16(), 4, head="ncm").eval()
    other = FrozenViT(tools.vit(seed=1).bfloat16(), 4, head="ncm").eval()
    images = images.bfloat16()
    with torch.no_grad():
        found = model.features(images)
        assert torch.equal(model.features(images), found)
        assert not torch.equal(other.features(images), found)


def test_weights_changed_through_data_are_noticed_when_they_are_told(tools, images):
    model = FrozenViT(tools.vit(), 4, head="ncm").eval()
    with torch.no_grad():
        before = model.features(images)
        model.backbone.norm.weight.data.mul_(3)
        model.invalidate_cache()
        after = model.features(images)
        assert not torch.equal(after, before)
        assert torch.equal(after, model._encode(images)[0])


def a_hook(model):
    model.backbone.blocks[1].register_forward_hook(lambda *_: None)


def a_hook_before(model):
    model.backbone.norm.register_forward_pre_hook(lambda *_: None)


def a_forward_of_ones_own(model):
    kept = model.backbone.blocks[0].forward
    model.backbone.blocks[0].forward = lambda x: 2 * kept(x)


def a_class_of_ones_own(model):
    class Mlp(type(model.backbone.blocks[0].mlp)):
        def forward(self, x):
            return 2 * super().forward(x)

    model.backbone.blocks[0].mlp.__class__ = Mlp


def a_weight_to_train(model):
    model.backbone.norm.weight.requires_grad_(True)


def another_scale(model):
    model.backbone.blocks[0].attn.scale *= 3


def another_order(model):
    blocks = model.backbone.blocks
    blocks[0], blocks[1] = blocks[1], blocks[0]


@torch.no_grad()
@pytest.mark.parametrize("method", ["slda", "rwf-lda", "l2p"])
@pytest.mark.parametrize(
    "change",
    [
        a_hook, a_hook_before, a_forward_of_ones_own, a_class_of_ones_own, a_weight_to_train,
        another_scale, another_order,
    ],
)  # fmt: skip
def test_what_a_user_does_to_a_backbone_is_seen_by_the_next_evaluation(
    tools, images, change, method, monkeypatch
):
    from avalanche_rwf.strategies.registry import create_strategy

    loop = {"evaluator": tools.silent()}
    s = create_strategy(method, backbone=tools.vit(depth=5), num_classes=5, loop=loop)
    model, passes = s.model.eval(), counted_passes(monkeypatch)
    model.features(images)
    per_batch = len(passes)
    model.features(images)
    assert len(passes) < 2 * per_batch  # something is remembered
    change(model)
    passes.clear()
    found = model.features(images)
    assert len(passes) == per_batch
    model.use_cache = False
    assert torch.equal(found, model.features(images))


@torch.no_grad()
@pytest.mark.parametrize(
    "looker", ["all modules", "flops", "profile", "functions", "trace", "vmap"]
)
def test_whoever_looks_at_the_computation_finds_it(tools, images, looker, monkeypatch):
    model = FrozenViT(tools.vit(), 5).eval()
    model.features(images)
    passes = counted_passes(monkeypatch)
    model.features(images)
    assert not passes
    if looker == "all modules":
        handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
        model.features(images)
        handle.remove()
    elif looker == "flops":
        with FlopCounterMode(display=False) as counter:
            model.features(images)
        assert counter.get_total_flops() > 0
    elif looker == "profile":
        with torch.profiler.profile():
            model.features(images)
    elif looker == "functions":
        with torch.overrides.BaseTorchFunctionMode():
            model.features(images)
    elif looker == "trace":
        torch.jit.trace(model, images, check_trace=False)
    else:
        torch.vmap(lambda x: model.features(x[None])[0])(images)
    assert passes
