"""Avalanche's own strategies and a user's by name, and methods from outside the package."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import avalanche.training.supervised as supervised
import pytest
import torch
from avalanche.training.templates import SupervisedTemplate

from avalanche_rwf import cli
from avalanche_rwf.cli.values import read_settings
from avalanche_rwf.errors import UsageError
from avalanche_rwf.evaluation.recorder import PredictionRecorder
from avalanche_rwf.experiments import run as run_module
from avalanche_rwf.experiments.checkpoint import Checkpoints
from avalanche_rwf.experiments.compare import method_options, select_methods
from avalanche_rwf.experiments.config import run_directory, slug
from avalanche_rwf.experiments.run import run, run_strategy
from avalanche_rwf.models.classifier import FrozenViT
from avalanche_rwf.strategies.adapter import REFUSED, RUNNING, AdaptedViT
from avalanche_rwf.strategies.registry import (
    create_strategy,
    get_method,
    list_methods,
    resolve_options,
)
from avalanche_rwf.utils import user_code

RUN = sorted(f"avalanche:{name}" for name in RUNNING)
MINE = '''
"""A user's strategies."""
from avalanche.training.supervised import Naive
from avalanche.training.templates import SupervisedTemplate

from avalanche_rwf.strategies.registry import register_method


class Mine(SupervisedTemplate):
    """Cross-entropy times a factor.

    More text.
    """

    def __init__(self, *, factor=2, name: str | None = None, steps: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.factor, self.steps = factor, steps

    def criterion(self):
        return self.factor * super().criterion()


class Free(Naive):
    uses_boundaries = False


class Builds(SupervisedTemplate):
    def __init__(self, *, backbone, num_classes, rate=0.01, **kwargs):
        import torch

        backbone.head = torch.nn.Linear(backbone.embed_dim, num_classes)
        optimizer = torch.optim.SGD(backbone.head.parameters(), lr=rate)
        super().__init__(model=backbone, optimizer=optimizer, **kwargs)


class Needs(Naive):
    def __init__(self, *, teacher, **kwargs):
        super().__init__(**kwargs)


class Raises(Naive):
    def __init__(self, *, size=3, **kwargs):
        raise KeyError("size")


class Plain:
    pass


def function():
    pass


@register_method("mine-registered", summary="registered")
def mine_registered(*, backbone, num_classes, loop, lr=1e-3, size=1, name=None):
    """Registered."""
    from avalanche_rwf import FrozenBackboneStrategy, FrozenViT

    return FrozenBackboneStrategy(
        model=FrozenViT(backbone, num_classes), learning_rates={"head": lr}, **loop
    )
'''


@pytest.fixture
def mine(outside) -> Path:
    (outside / "mine.py").write_text(MINE)
    return outside / "mine.py"


def build(tools, method, /, loop=None, **options):
    torch.manual_seed(0)
    vit = tools.vit(init_values=None)
    settings = {"train_mb_size": 8, "eval_mb_size": 64, "evaluator": tools.silent(), **(loop or {})}
    return create_strategy(method, backbone=vit, num_classes=6, loop=settings, **options)


# ---- Avalanche's own


def test_every_strategy_of_avalanche_runs_or_is_refused_with_a_reason():
    there = {
        name
        for name, value in vars(supervised).items()
        if isinstance(value, type) and issubclass(value, SupervisedTemplate)
    }
    assert there <= set(RUNNING) | set(REFUSED)
    assert not set(RUNNING) & set(REFUSED)
    assert list_methods("avalanche:*") == RUN
    assert not [name for name in list_methods() if ":" in name]
    for name in REFUSED:
        with pytest.raises(UsageError, match=r"does not run here: .*[^.]\.$"):
            get_method(f"avalanche:{name}")


@pytest.mark.parametrize("name", RUN)
def test_it_runs_on_a_frozen_vit_and_sees_each_sample_once(name, tools, scenario):
    per_class = 12
    if name == "avalanche:GSS_greedy":  # fails while its memory is smaller than a mini-batch
        per_class, scenario = 40, tools.scenario(per_class=40)
    recorder = PredictionRecorder()
    s = build(tools, name, loop={"plugins": [recorder]})
    fresh = tools.vit(init_values=None)
    for index, experience in enumerate(scenario.train_stream):
        s.train(experience, eval_streams=[], shuffle=False)
        recorder.begin(index)
        s.eval(scenario.test_stream[: index + 1])
        assert set(s.seen_classes().nonzero().flatten().tolist()) == set(recorder.exposed)
    assert recorder.samples_seen == 6 * per_class
    backbone = next(m for m in s.model.modules() if hasattr(m, "backbone")).backbone
    for key, tensor in fresh.state_dict().items():
        assert torch.equal(backbone.state_dict()[key], tensor), key
    assert not any(m.training for m in backbone.modules())
    if s.trains:
        held = [p for group in s.optimizer.param_groups for p in group["params"]]
        assert any(p in s.optimizer.state for p in held)  # kept over experiences
        assert s.optimizer.state[held[0]]["step"] >= 9 or name == "avalanche:CWRStar"


@pytest.mark.parametrize("name", ["avalanche:Naive", "avalanche:StreamingLDA"])
def test_bf16_is_an_autocast_of_the_backbone_alone(name, tools, scenario):
    s = build(tools, name, loop={"precision": "bf16", "gradient_steps": 1})
    s.train(scenario.train_stream[0], eval_streams=[], shuffle=False)
    x = torch.randn(4, 3, 32, 32)
    exact = build(tools, name).model.features(x)
    features = s.model.features(x)
    assert features.dtype == s.model(x).dtype == torch.float32
    assert not torch.equal(features, exact)
    torch.testing.assert_close(features, exact, rtol=0.1, atol=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # weights that are cast in this forward
        assert torch.equal(FrozenViT._encode(s.model, x)[0].float(), features)


def test_the_loss_in_evaluation_is_finite_for_classes_not_seen(tools, scenario):
    from avalanche.evaluation.metrics import loss_metrics
    from avalanche.training.plugins import EvaluationPlugin

    evaluator = EvaluationPlugin(loss_metrics(stream=True), loggers=[])
    s = build(tools, "avalanche:Naive", loop={"evaluator": evaluator})
    s.train(scenario.train_stream[0], eval_streams=[], shuffle=False)
    assert math.isfinite(s.eval(scenario.test_stream)["Loss_Stream/eval_phase/test_stream/Task000"])


def test_naive_learns_what_avalanche_learns_with_the_same_head(tools, scenario):
    """The adapter changes no number: the same loop written by hand."""
    from avalanche.training.supervised import Naive

    s = build(tools, "avalanche:Naive", lr=0.01)
    torch.manual_seed(0)
    model = AdaptedViT(tools.vit(init_values=None), 6)
    by_hand = Naive(
        model=model, optimizer=torch.optim.Adam(model.head.parameters(), lr=0.01),
        criterion=torch.nn.CrossEntropyLoss(), train_mb_size=8, evaluator=tools.silent(),
    )  # fmt: skip
    model.load_state_dict(s.model.state_dict())
    for experience in scenario.train_stream:
        for strategy in (s, by_hand):
            strategy.train(experience, eval_streams=[], shuffle=False)
    assert torch.equal(s.model.head.weight, model.head.weight)


def test_plugins_keep_copies_of_trained_parameters_only(tools, scenario):
    s = build(tools, "avalanche:EWC")
    s.train(scenario.train_stream[0], eval_streams=[], shuffle=False)
    assert {name for name, _ in s.model.named_parameters()} == {"head.weight", "head.bias"}
    (plugin,) = (p for p in s.plugins if type(p).__name__ == "EWCPlugin")
    assert set(plugin.importances[0]) == {"head.weight", "head.bias"}
    assert s.optimizer.param_groups[0]["params"] == list(s.model.parameters())


def test_options_and_their_types():
    spec = get_method("avalanche:EWC")
    assert spec.options == {
        "head": "linear", "readout": "cls", "lr": 5e-3, "ewc_lambda": 1.0, "mode": "separate",
        "decay_factor": None, "keep_importance_data": False,
    }  # fmt: skip
    assert spec.uses_boundaries and not get_method("avalanche:Naive").uses_boundaries
    settings = read_settings(["avalanche:EWC.ewc_lambda=10", "avalanche:*.lr=0.1"])
    options, _ = method_options(["avalanche:EWC", "avalanche:StreamingLDA"], {}, settings)
    assert options["avalanche:EWC"]["ewc_lambda"] == 10.0
    assert options["avalanche:EWC"]["lr"] == 0.1
    assert set(options["avalanche:StreamingLDA"]) == {
        "readout", "output_layer_name", "shrinkage_param", "streaming_update_sigma"
    }  # fmt: skip
    assert resolve_options("avalanche:DER", {"mem_size": "50"})["mem_size"] == 50
    with pytest.raises(UsageError, match=r"avalanche:EWC.ewc_lambda takes float, not 'x'"):
        resolve_options("avalanche:EWC", {"ewc_lambda": "x"})


@pytest.mark.parametrize(
    ("loop", "options", "text"),
    [
        ({"gradient_steps": 2}, {}, "1 update per mini-batch.*gradient_steps must be 1.*not 2"),
        ({"precision": "fp16"}, {}, "precision must be 'fp32' or 'bf16', not 'fp16'"),
        ({}, {"head": "slda"}, "head takes linear or cosine, not 'slda'"),
        ({}, {"lr": -1.0}, r"lr must be a finite number of at least 0, not -1\.0"),
        ({}, {"mode": "twice"}, "cannot be built with these arguments"),
    ],
)
def test_what_a_class_cannot_do_is_one_sentence(loop, options, text, tools):
    with pytest.raises(UsageError, match=text):
        build(tools, "avalanche:EWC", loop=loop, **options)


# ---- runs


class Killed(BaseException):
    pass


@pytest.mark.parametrize("method", ["avalanche:EWC", "avalanche:Replay", "avalanche:StreamingLDA"])
def test_a_run_that_was_cut_starts_again_and_gives_the_same_numbers(
    method, tools, scenario, tmp_path
):
    """No checkpoint: importances and buffers are in none."""

    class Benchmark:
        train_stream, test_stream = scenario.train_stream, scenario.test_stream
        classes_per_experience = [[0, 1], [2, 3], [4, 5]]

    Benchmark.scenario = scenario

    def go(cut: int | None):
        recorder, log = PredictionRecorder(), []
        s = build(tools, method, loop={"plugins": [recorder]})
        train, calls = s.train, []

        def cutting(*args, **kwargs):
            if len(calls) == cut:
                raise Killed
            calls.append(1)
            return train(*args, **kwargs)

        s.train = cutting
        checkpoints = Checkpoints(tmp_path, {}, log.append, every=1)
        run_strategy(s, Benchmark, recorder, checkpoints, log.append)
        return recorder.points, len(calls), log

    whole, trained, _ = go(None)
    assert trained == 3
    with pytest.raises(Killed):
        go(2)
    assert list(tmp_path.iterdir()) == []
    again, trained, log = go(None)
    assert trained == 3 and not any("resumed" in line for line in log)
    for a, b in zip(whole, again, strict=True):
        assert (a.predictions == b.predictions).all()


def test_a_strategy_that_says_nothing_is_not_checkpointed(tools, scenario):
    from avalanche.training.supervised import Naive

    plain = Naive(model=torch.nn.Linear(1, 1), optimizer=torch.optim.SGD([torch.zeros(1)], lr=0.1))
    assert not getattr(plain, "resumable", hasattr(plain, "trained_state"))
    assert get_method("avalanche-l2p-as-shipped") is not None
    assert build(tools, "avalanche-l2p-as-shipped").resumable


# ---- a user's own


@pytest.mark.parametrize("where", ["mine", "mine.py", "./mine.py"])
def test_a_class_from_a_module_or_file_here(where, mine, tools, scenario):
    (name,) = select_methods(f"{where}:Mine")
    spec = get_method(name)
    assert spec.summary == "Cross-entropy times a factor."
    assert spec.uses_boundaries  # not known, so said
    assert spec.options == {
        "head": "linear", "readout": "cls", "lr": 5e-3, "factor": 2, "name": None, "steps": 1,
    }  # fmt: skip
    assert spec.origin["file"] == str(mine) and len(spec.origin["sha256"]) == 64
    settings = read_settings([f"{where}:Mine.factor=0.5", f"{where}:Mine.name=x"])
    options, _ = method_options([name], {"head": "cosine"}, settings)
    assert (options[name]["factor"], options[name]["name"]) == (0.5, "x")
    s = build(tools, name, **options[name])
    assert (type(s).__name__, s.factor, s.mask) == ("Mine", 0.5, "own")
    s.train(scenario.train_stream[0], eval_streams=[], shuffle=False)
    s.eval(scenario.test_stream[:1])
    twin = copy.deepcopy(s)
    assert torch.equal(twin.model.head.weight, s.model.head.weight)
    with pytest.raises(UsageError, match="steps takes int, not"):
        resolve_options(name, {"steps": "1.5"})


def test_a_class_says_that_it_uses_no_boundaries(mine):
    assert not get_method("mine:Free").uses_boundaries


def test_a_class_that_asks_for_the_backbone_builds_its_own_model(mine, tools, scenario):
    assert set(get_method("mine:Builds").options) == {"rate"}
    s = build(tools, "mine:Builds")
    s.train(scenario.train_stream[0], eval_streams=[], shuffle=False)
    s.experience, s.is_training = scenario.test_stream[2], False
    s.mbatch = [torch.randn(3, 3, 32, 32), torch.zeros(3).long(), torch.zeros(3).long()]
    logits = s.forward()
    assert torch.isfinite(logits).sum(1).tolist() == [2, 2, 2]
    with pytest.raises(UsageError, match="--precision must be fp32 for it, not 'bf16'"):
        build(tools, "mine:Builds", loop={"precision": "bf16"})


def test_a_registered_name_from_a_module(mine, tools):
    spec = get_method("mine:mine-registered")
    assert spec.name == "mine:mine-registered"
    assert "mine-registered" in list_methods()
    assert resolve_options("mine-registered", {"size": "3"})["size"] == 3
    assert build(tools, "mine:mine-registered").trains


def test_one_file_under_two_names_is_registered_once(mine):
    get_method("mine:mine-registered")
    user_code.add_imports(["mine.py"])
    assert "mine-registered" in list_methods()
    (mine.parent / "other.py").write_text(MINE)
    with pytest.raises(UsageError, match="registered twice"):
        get_method("other.py:Mine")


BAD = {
    "avalanche:Nope": ["avalanche:Nope", "nearest names are"],
    "avalanche:JointTraining": ["does not run here", "all experiences at once"],
    "avalanche:zz*": ["avalanche:zz*"],
    "nomodule:X": ["there is no module 'nomodule'"],
    "nil.py:X": ["there is no file 'nil.py'"],
    "mine.py:Mini": ["'Mini'", "'Mine'"],
    "mine:Plain": ["mine:Plain", "SupervisedTemplate", "class"],
    "mine.py:function": ["mine.py:function", "SupervisedTemplate", "function"],
    "mine:Needs": ["'teacher'", "default"],
    "mine:Raises": ["mine:Raises", "size"],
    "broken.py:X": ["broken.py", "ZeroDivisionError"],
    "exits.py:X": ["exits.py", "SystemExit"],
    "mine:": ["MODULE:NAME", "'mine:'"],
    ":Mine": ["MODULE:NAME", "':Mine'"],
}


def say(capsys, *arguments) -> str:
    """The one sentence of a command line that is wrong."""
    capsys.readouterr()
    status = cli.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    assert (status, captured.out) == (2, ""), captured
    assert captured.err.startswith("avalanche-rwf: ")
    assert captured.err.endswith(".\n")
    assert captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize("name", BAD)
def test_bad_names_are_one_sentence_and_status_2(name, mine, capsys):
    (mine.parent / "broken.py").write_text("1 / 0\n")
    (mine.parent / "exits.py").write_text("raise SystemExit(3)\n")
    said = say(capsys, "compare", "--jobs", 1, "--seeds", 0, "--out", "out", "--methods", name)
    for text in BAD[name]:
        assert text in said, said


@pytest.mark.parametrize("name", ["nomodule", "nil.py", "broken.py"])
@pytest.mark.parametrize("verb", ["compare", "list"])
def test_a_bad_import_is_one_sentence_and_status_2(name, verb, outside, capsys):
    (outside / "broken.py").write_text("1 / 0\n")
    line = ["compare", "--jobs", 1, "--out", "out"] if verb == "compare" else ["list", "methods"]
    said = say(capsys, *line, "--import", name)
    assert "--import" in said and name in said


def test_slugs_of_methods_are_names_of_folders():
    assert slug("avalanche:EWC") == "avalanche-EWC"
    assert slug("pkg.mod:Mine") == "pkg.mod-Mine"
    assert slug("../a folder/my.py:Mine") == slug("/x/my.py:Mine") == "my.py-Mine"


def test_names_that_give_one_folder_differ_in_the_hash(tmp_path):
    from avalanche_rwf.experiments.config import RunConfig

    a, b = (RunConfig("split-digits", method) for method in ("a/my.py:Mine", "b/my.py:Mine"))
    assert run_directory(tmp_path, a) != run_directory(tmp_path, b)
    assert run_directory(tmp_path, a).parents[1] == run_directory(tmp_path, b).parents[1]


def test_changed_code_is_another_configuration(mine, tmp_path):
    from avalanche_rwf.experiments.config import RunConfig

    config = RunConfig("split-digits", "mine.py:Mine", code="0" * 64)
    assert config.config_hash() != RunConfig("split-digits", "mine.py:Mine").config_hash()
    with pytest.raises(RuntimeError, match=r"code of .* has changed"):
        run_module._run(_tiny(config), tmp_path, "cpu", print, progress=None, logger=None)


def _tiny(config):
    from dataclasses import replace

    sizes = {"pretrained": False, "depth": 2, "embed_dim": 16, "num_heads": 2, "patch_size": 8}
    return replace(config, backbone="vit_tiny_patch16_224", backbone_args=sizes, image_size=16)


def test_a_run_records_where_the_code_is(mine, tmp_path):
    from avalanche_rwf.experiments.config import RunConfig

    for method in ("mine.py:Mine", "avalanche:LwF"):
        options = get_method(method).options
        config = _tiny(RunConfig("split-digits", method, options, experiences=5, batch_size=64))
        assert run(config, tmp_path)["status"] == "done"
        content = json.loads((run_directory(tmp_path, config) / "config.json").read_text())
        assert content["method_origin"] == get_method(method).origin
        assert content["uses_boundaries"]
    assert content["method_origin"]["version"].startswith("avalanche-lib ")


def test_an_installed_package_adds_methods(outside, monkeypatch):
    package = outside / "site" / "plugin"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(MINE)
    info = outside / "site" / "plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[avalanche_rwf.methods]\nmine = plugin\nlost = no_such_plugin\n"
    )
    monkeypatch.syspath_prepend(str(package.parent))
    user_code._LOADED.discard(f"{user_code.ENTRY_POINTS}methods")
    with pytest.warns(UserWarning, match="no_such_plugin.*left out"):
        assert "mine-registered" in list_methods()


def test_the_command_line_with_workers(mine, tmp_path, capsys):
    """Workers import what --import names, and a class from the current folder."""
    (tmp_path / "extra.py").write_text(MINE.replace("mine-registered", "extra-method"))
    line = [
        "compare", "--backbone", "vit_tiny_patch16_224",
        "--image-size", "16", "--seeds", "0", "--jobs", "2", "--quiet", "--out", "out",
        "--import", "extra.py", "--methods", "mine:Mine,mine.py:Free,extra-method,avalanche:Naive",
        "--batch-size", "64", "--set", "mine:Mine.factor=3",
    ]  # fmt: skip
    for pair in ("depth=2", "embed_dim=16", "num_heads=2", "patch_size=8", "pretrained=False"):
        line += ["--backbone-arg", pair]
    status = cli.main(line)
    said = capsys.readouterr()
    assert status == 0, said.err
    assert "Traceback" not in said.err
    for name in ("mine:Mine", "mine.py:Free", "extra-method", "avalanche:Naive"):
        assert name in said.out, said.out
    folders = {p.name for p in (tmp_path / "out/runs/split-digits").iterdir()}
    assert folders == {"mine-Mine", "mine.py-Free", "extra-method", "avalanche-Naive"}
    for config in tmp_path.glob("out/runs/*/mine-Mine/*/seed0/config.json"):
        content = json.loads(config.read_text())
        assert content["config"]["options"]["factor"] == 3
        assert content["config"]["code"] == content["method_origin"]["sha256"]
        assert content["method_origin"]["file"] == str(mine)
