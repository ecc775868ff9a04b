"""A comparison's list of runs."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import timm

from avalanche_rwf.errors import UsageError
from avalanche_rwf.experiments import compare
from avalanche_rwf.experiments.build import build_strategy, load_backbone
from avalanche_rwf.experiments.compare import (
    method_options,
    plan,
    resolve_device,
    select_methods,
    write_left_out,
)
from avalanche_rwf.experiments.run import run
from avalanche_rwf.experiments.selection import exclude_methods, named_methods
from avalanche_rwf.experiments.store import read_json
from avalanche_rwf.models.backbone import PACKAGED, backbone_info, list_backbones
from avalanche_rwf.strategies.registry import (
    create_strategy,
    get_method,
    list_methods,
    resolve_options,
)


def test_methods_by_name_pattern_and_default():
    assert select_methods("ncm, slda,ncm") == ["ncm", "slda"]
    assert select_methods("rwf*") == list_methods("rwf*")
    assert select_methods("slda,rwf-li*") == ["slda", "rwf-literal"]
    assert select_methods("all") == list_methods()
    assert select_methods(None) == [n for n in list_methods() if get_method(n).default]
    assert {"rwf", "avalanche-l2p", "linear-probe", "fine-tune"} <= set(select_methods(None))
    with pytest.raises(UsageError, match="nearest names are 'rwf'"):
        select_methods("ncm,rfw")


def test_a_method_of_a_module_is_chosen_or_what_is_wrong_with_it_is_said():
    name = "avalanche.training.supervised:Naive"
    assert select_methods(f"ncm,{name},{name}") == ["ncm", name]
    with pytest.raises(UsageError, match=r"'collections:OrderedDict' is a class that is neither"):
        select_methods("ncm,collections:OrderedDict")
    with pytest.raises(UsageError, match=r"there is no module 'no_such_module'"):
        select_methods("no_such_module:Mine")
    with pytest.raises(UsageError, match=r"--methods takes names or patterns, not ' , '"):
        select_methods(" , ")


def test_a_device_is_found_or_refused(monkeypatch):
    monkeypatch.setattr(compare.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(compare.torch.cuda, "device_count", lambda: 2)
    assert [resolve_device(n) for n in ("auto", "cpu", "cuda", "cuda:1")] == [
        "cuda", "cpu", "cuda", "cuda:1",
    ]  # fmt: skip
    for name in ("cuda:2", "cuda:", "cuda:x", "gpu", ""):
        with pytest.raises(UsageError, match="--device"):
            resolve_device(name)
    monkeypatch.setattr(compare.torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == "cpu"
    with pytest.raises(UsageError, match="--device cuda was asked for"):
        resolve_device("cuda")


def test_common_options_go_to_the_methods_that_have_them():
    common = {"head": "cosine", "mask": None, "readout": "cls"}
    settings = [("rwf", "num_prompts", "3"), ("*", "lr", "0.5"), ("rwf", "beta", "none")]
    options, notes = method_options(["rwf", "linear-probe", "ncm"], common, settings)
    assert options["rwf"] == {
        **resolve_options("rwf", {}),
        "head": "cosine", "readout": "cls", "num_prompts": 3, "lr": 0.5, "beta": None,
    }  # fmt: skip
    assert options["linear-probe"]["lr"] == 0.5
    assert options["ncm"] == {**get_method("ncm").options, "readout": "cls"}
    assert notes == ["ncm has no choice of head: --head leaves it as it is."]


def test_a_pattern_may_name_methods_without_the_option_but_not_only_such():
    none = {"head": None}
    assert method_options(["rwf", "ncm"], none, [("*", "num_prompts", "3")])[0]["rwf"]
    with pytest.raises(UsageError, match="no such option"):
        method_options(["ncm", "slda"], none, [("*", "num_prompts", "3")])


def test_the_plan_lists_seed_by_seed_and_leaves_out_what_is_done(configure, tmp_path):
    base = replace(configure("ncm"), method="", options={}, eval_every_samples=0)
    options = {name: dict(get_method(name).options) for name in ("slda", "ncm")}

    def make(**more):
        return plan(base, ["slda", "ncm"], [4, 2], options, tmp_path, ["a note"], **more)

    first = make()
    assert [(c.method, c.seed) for c in first.configs] == [
        ("slda", 4), ("ncm", 4), ("slda", 2), ("ncm", 2),
    ]  # fmt: skip
    assert first.todo == first.configs
    assert first.samples == 24
    assert first.notes == ("a note",)
    sha256 = backbone_info(load_backbone(base)).sha256
    assert {c.weights_sha256 for c in first.configs} == {sha256}
    assert {c.eval_every_samples for c in first.configs} == {0}
    assert {c.eval_every_samples for c in make(choose_evaluation=True).configs} == {6}

    run(first.configs[1], tmp_path)
    assert make().todo == (first.configs[0], *first.configs[2:])


def test_runs_that_read_what_others_compute_come_after_them(configure, tmp_path):
    base = replace(configure("ncm"), method="", options={})
    methods = ["ncm", "rwf", "layers-lda", "linear-probe"]
    options = {name: dict(get_method(name).options) for name in methods}
    made = plan(base, methods, [1, 0], options, tmp_path)
    assert made.methods == methods
    assert [(c.method, c.seed) for c in made.todo] == [
        (name, seed) for seed in (1, 0) for name in ("layers-lda", "rwf", "ncm", "linear-probe")
    ]


def test_the_plan_builds_every_method_before_any_run(configure, tmp_path):
    base = replace(configure("ncm"), method="", options={})
    options = {"ncm": {}, "rwf": {**get_method("rwf").options, "routed_blocks": "first 9"}}
    with pytest.raises(UsageError, match=r"^rwf: .*first 9"):
        plan(base, ["ncm", "rwf"], [0], options, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("method", "options"),
    [("coda-prompt", {"slices": "task", "tasks": 2}), ("dualprompt", {"slots": "task",
                                                                     "pool_size": 2})],
)  # fmt: skip
def test_a_model_by_task_has_room_for_the_stream(method, options, configure, tmp_path):
    base = replace(configure("ncm"), method="", options={})  # three experiences
    options = {method: resolve_options(method, options)}
    with pytest.raises(UsageError) as said:
        plan(base, [method], [0], options, tmp_path)
    assert str(said.value) == (
        f"{method}: by task it has room for 2 experiences (pool_size or tasks), and the stream "
        "has 3."
    )
    assert plan(replace(base, experiences=2), [method], [0], options, tmp_path).todo


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (RuntimeError("shape '[5]' is invalid\n  for input of size 3."),
         "shape '[5]' is invalid for input of size 3"),
        (KeyError(), "KeyError"),
        (SystemExit(0), "it calls sys.exit: 0"),
    ],
)  # fmt: skip
def test_a_method_that_cannot_be_built_is_named_before_any_run(
    error, why, configure, tmp_path, monkeypatch
):
    def build(config, *args):
        if config.method == "slda":
            raise error
        return build_strategy(config, *args)

    monkeypatch.setattr(compare, "build_strategy", build)
    base = replace(configure("ncm"), method="", options={})
    options = {name: dict(get_method(name).options) for name in ("ncm", "slda")}
    with pytest.raises(UsageError) as said:
        plan(base, ["ncm", "slda"], [0], options, tmp_path)
    assert str(said.value) == f"slda cannot be built with these options ({why})."
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("named", [None, "avalanche-l2p"])
def test_what_does_not_fit_is_an_error_only_if_it_was_named(named, configure, tmp_path, tools):
    """A backbone with registers, which Avalanche's own transformer does not know."""
    base = replace(configure("ncm"), method="", options={})
    base = replace(base, backbone_args={**base.backbone_args, "reg_tokens": 2})
    methods = select_methods(named and f"ncm,{named}")
    options = method_options(methods, {}, [])[0]
    if named:
        with pytest.raises(UsageError, match=r"^avalanche-l2p: .*register tokens"):
            plan(base, methods, [0], options, tmp_path, named=named_methods(f"ncm,{named}"))
        return
    planned = plan(base, methods, [0], options, tmp_path, named=named_methods(None))
    assert set(planned.left_out) == {"avalanche-l2p"}
    assert "register tokens" in planned.left_out["avalanche-l2p"]
    assert planned.methods == [m for m in methods if m != "avalanche-l2p"]
    # A value that was typed is to blame itself, also where a pattern named the method.
    options = method_options(methods, {}, [("rwf", "routed_blocks", "first 99")])[0]
    with pytest.raises(UsageError, match=r"^rwf: .*the backbone has \d+ blocks"):
        plan(base, methods, [0], options, tmp_path, named=set())
    with pytest.raises(UsageError, match=r"^No method .* fits\. avalanche-l2p: backbone has"):
        plan(base, ["avalanche-l2p"], [0], method_options(["avalanche-l2p"], {}, [])[0], tmp_path,
             named=set())  # fmt: skip


def test_what_was_left_out_is_in_a_file_by_benchmark_and_backbone(tmp_path):
    path = tmp_path / "left_out.json"
    write_left_out(tmp_path, "digits", "a", {})
    assert not path.exists()
    write_left_out(tmp_path, "digits", "a", {"l2p": "why"})
    write_left_out(tmp_path, "digits", "b", {"mvp": "why not"})
    expected = {"digits on a": {"l2p": "why"}, "digits on b": {"mvp": "why not"}}
    assert read_json(path) == expected
    write_left_out(tmp_path, "digits", "a", {})
    assert read_json(path) == {"digits on b": {"mvp": "why not"}}


def test_methods_can_be_left_out_by_name_and_pattern():
    assert exclude_methods(["ncm", "rwf", "rwf-lda"], None) == ["ncm", "rwf", "rwf-lda"]
    assert exclude_methods(["ncm", "rwf", "rwf-lda"], "rwf*") == ["ncm"]
    assert exclude_methods(["ncm", "rwf", "rwf-lda"], "ncm, rwf") == ["rwf-lda"]
    with pytest.raises(UsageError, match=r"--exclude rfw names no method .* nearest"):
        exclude_methods(["ncm", "rwf"], "rfw")
    with pytest.raises(UsageError, match="leaves no method of ncm"):
        exclude_methods(["ncm"], "*")
    assert named_methods("ncm,rwf*,all, avalanche:EWC") == {"ncm", "avalanche:EWC"}


def _kind(vit):
    """What of a backbone decides whether a method fits, not its sizes."""
    block = vit.blocks[0]
    parts = ("norm_pre", "fc_norm", "pos_embed", "cls_token", "reg_token", "rope", "attn_pool")
    flags = ("no_embed_class", "dynamic_img_size", "global_pool", "num_prefix_tokens")
    return (
        type(vit), type(block), type(block.attn), *(type(getattr(vit, p, None)) for p in parts),
        *(getattr(vit, flag, None) for flag in flags),
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_the_default_comparison_has_methods_to_run_on_every_listed_backbone(tools):
    kinds = {}
    for arch in dict.fromkeys(name.split(".")[0] for name in list_backbones()):
        if arch != PACKAGED:
            try:
                vit = timm.create_model(
                    arch, num_classes=0, depth=2, embed_dim=8, num_heads=1, pretrained=False
                )
            except AssertionError:  # its sizes belong together
                continue
            kinds.setdefault(_kind(vit), (arch, vit))
    for arch, vit in kinds.values():
        fit = set()
        for method in select_methods(None):
            with contextlib.suppress(UsageError):
                create_strategy(method, backbone=vit, num_classes=4,
                                loop={"evaluator": tools.silent()})  # fmt: skip
                fit.add(method)
        assert set(select_methods(None)) - fit <= {"avalanche-l2p"}, arch
    assert len(kinds) > 20
