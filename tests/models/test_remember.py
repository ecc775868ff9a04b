"""The memory of features: nothing is changed by looking up, and processes share a folder."""

import numpy as np
import torch

from avalanche_rwf.models.classifier import FrozenViT
from avalanche_rwf.models.remember import MEMORY, FeatureMemory


def counted(value):
    calls = []

    def compute():
        calls.append(1)
        return value

    return compute, calls


def test_what_is_kept_is_computed_once_and_the_oldest_goes_first():
    memory = FeatureMemory(limit=2 * 40)
    a, calls = counted(torch.arange(10.0))
    assert torch.equal(memory.get("a", a), memory.get("a", a)) and len(calls) == 1
    memory.get("b", lambda: torch.zeros(10))
    memory.get("c", lambda: torch.zeros(10))
    memory.get("a", a)
    assert len(calls) == 2


def test_processes_share_a_folder_and_do_without_a_broken_file(tmp_path):
    first, second = FeatureMemory(), FeatureMemory()
    first.share(tmp_path)
    second.share(tmp_path)
    value = torch.randn(3, 4)
    first.get("ab", lambda: value)
    compute, calls = counted(torch.zeros(1))
    assert torch.equal(second.get("ab", compute), value) and not calls
    first.get("cd", lambda: value, shared=False)
    second.get("cd", compute)
    assert len(calls) == 1
    (tmp_path / "ef.npy").write_bytes(b"\x93NUMPY broken")
    second.get("ef", compute)
    assert len(calls) == 2
    np.save(tmp_path / "gh.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    second.get("gh", compute)  # a pickle is not opened
    assert len(calls) == 3


def test_methods_on_one_backbone_share_its_features_and_others_do_not(tools, images):
    forwards = []

    def model(seed=0, **options):
        made = FrozenViT(tools.vit(seed), 5, **options).eval()
        made.backbone.blocks[-1].register_forward_hook(lambda *_: forwards.append(1))
        return made

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
def test_what_is_kept_is_no_view_and_what_is_given_is_a_copy(tools, images):
    model = FrozenViT(tools.vit(), 5).eval()
    first = model.features(images)
    kept = next(iter(MEMORY._answers.values()))
    assert kept.untyped_storage().nbytes() == kept.numel() * 4
    first.zero_()
    assert model.features(images).abs().sum() > 0


def test_nothing_is_remembered_in_training_or_with_a_graph(tools, images):
    made = FrozenViT(tools.vit(), 5).train()
    made.features(images)
    made.eval().features(images)  # a graph may be wanted
    made.remembers = False
    with torch.no_grad():
        made.features(images)
    assert not MEMORY._answers


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
        model.renew_name()
        after = model.features(images)
        assert not torch.equal(after, before)
        assert torch.equal(after, model._features(images))
