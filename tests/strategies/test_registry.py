"""Every registered method, driven by the registry: a new method is tested by being registered."""

import copy
import functools
import pickle
import random
import typing

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, nc_benchmark
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.training.plugins import SupervisedPlugin
from torch import nn
from torch.utils.data import TensorDataset

from avalanche_rwf.benchmarks.registry import get_benchmark
from avalanche_rwf.errors import UsageError
from avalanche_rwf.models.backbone import weights_sha256
from avalanche_rwf.models.blocks import DefaultBlocks, FitWarning
from avalanche_rwf.strategies import registry
from avalanche_rwf.strategies.registry import (
    create_strategy,
    get_method,
    list_methods,
    register_method,
    resolve_options,
)

# Avalanche's own classes are in no list of registered methods; these four stand for them.
ADAPTED = ["avalanche:Naive", "avalanche:EWC", "avalanche:LwF", "avalanche:StreamingLDA"]
METHODS = [*list_methods(), *ADAPTED]
# Parameters that learn outside the usual steps and are held afterwards.
LEARNED_AND_HELD = {"ranpac": "parts."}
TRAINS_BACKBONE = {"fine-tune"}


def build(tools, name, seed=0, **options):
    vit = tools.vit(init_values=None, depth=5)
    torch.manual_seed(seed)
    return create_strategy(
        name,
        backbone=vit,
        num_classes=6,
        loop={"train_mb_size": 8, "eval_mb_size": 64, "evaluator": tools.silent()},
        **options,
    )


def train(s, scenario, upto=None):
    for experience in list(scenario.train_stream)[:upto]:
        s.train(experience, eval_streams=[], shuffle=False)
    return s


def predict(s, x):
    """Masked logits in the way Avalanche's evaluation gets them."""
    s.is_training, s.mbatch = False, [x, torch.zeros(len(x), dtype=torch.long),
                                      torch.zeros(len(x), dtype=torch.long)]
    s.model.eval()
    with torch.no_grad():
        return s.forward()


@pytest.fixture(scope="module")
def trained():
    return {}


@pytest.fixture
def method(request, tools, scenario, trained):
    """A trained strategy per method, trained once for all tests that only look at it."""
    name = request.param
    if name not in trained:
        s = build(tools, name)
        before = {n: p.detach().clone() for n, p in s.model.named_parameters()}
        trained[name] = train(s, scenario), before
        s.experience = scenario.test_stream[0]
    return name, *trained[name]


each = pytest.mark.parametrize("method", METHODS, indirect=True, ids=METHODS)


@each
def test_predictions_do_not_depend_on_batch_mates(method, scenario):
    _, s, _ = method
    s.experience = scenario.test_stream[0]
    torch.manual_seed(3)
    x = torch.randn(9, 3, 32, 32)
    together = predict(s, x)
    order = torch.randperm(9)
    torch.testing.assert_close(predict(s, x[order]), together[order], rtol=1e-4, atol=1e-5)
    for i in range(9):
        torch.testing.assert_close(predict(s, x[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-5)


@each
def test_features_in_training_do_not_depend_on_batch_mates(method):
    """Prompts are chosen image by image while training too: no vote of the batch."""
    _, s, _ = method
    if not hasattr(s.model, "features"):
        return  # Avalanche's own model
    torch.manual_seed(4)
    x = torch.randn(6, 3, 32, 32)
    s.model.train()
    with torch.no_grad():
        together = s.model.features(x)
        for i in range(6):
            alone = s.model.features(x[i : i + 1])[0]
            torch.testing.assert_close(alone, together[i], rtol=1e-4, atol=1e-5)


@each
def test_labels_and_tasks_are_not_used_at_test(method, scenario):
    _, s, _ = method
    s.experience = scenario.test_stream[0]
    x = torch.randn(5, 3, 32, 32)
    expected = predict(s, x)
    s.mbatch = [x, torch.tensor([5, 4, 0, 1, 2]), torch.tensor([2, 1, 0, 2, 1])]
    s.experience = scenario.test_stream[2]
    with torch.no_grad():
        assert torch.equal(s.forward(), expected)


@each
def test_state_can_be_saved_and_loaded_without_pickle(method, tools, scenario, tmp_path):
    name, s, _ = method
    if not hasattr(s, "trained_state"):
        return  # Avalanche's own strategies are saved by Avalanche
    torch.save(s.trained_state(), tmp_path / "state.pt")
    fresh = build(tools, name, seed=7)
    fresh.load_trained_state(torch.load(tmp_path / "state.pt", weights_only=True))
    fresh.experience = s.experience = scenario.test_stream[0]
    x = torch.randn(5, 3, 32, 32)
    assert torch.equal(predict(fresh, x), predict(s, x))


@each
def test_frozen_weights_are_unchanged_and_trained_ones_move(method, tools):
    name, s, before = method
    fresh = tools.vit(init_values=None, depth=5)
    for module in (getattr(s.model, "backbone", None), getattr(s, "original_vit", None)):
        if module is not None and name not in TRAINS_BACKBONE and hasattr(module, "blocks"):
            for key, p in module.blocks.state_dict().items():
                assert torch.equal(p, fresh.blocks.state_dict()[key]), key
    if hasattr(s.model, "backbone") and name not in TRAINS_BACKBONE:
        assert weights_sha256(s.model.backbone) == weights_sha256(fresh)
    for key, p in s.model.named_parameters():
        if p.requires_grad or key.startswith(LEARNED_AND_HELD.get(name, "nothing")):
            assert not torch.equal(p, before[key]), f"{key} did not move"
        elif not (getattr(s.model, "queries_from_data", False) and key.endswith(".queries")):
            # (Queries that the first batch sets in closed form are not trained, yet not the start.)
            assert torch.equal(p, before[key]), f"{key} is frozen and moved"


@each
def test_no_class_can_win_before_it_is_seen(method, tools, scenario):
    name, _, _ = method
    if name == "avalanche-l2p-as-shipped":
        return  # that it lets unseen classes win is one of the defects it is shipped with
    s = train(build(tools, name), scenario, upto=1)
    s.experience = scenario.test_stream[0]
    seen = {int(c) for c in scenario.train_stream[0].classes_in_this_experience}
    assert set(predict(s, torch.randn(40, 3, 32, 32)).argmax(1).tolist()) <= seen


@each
def test_deterministic_given_a_seed(method, tools, scenario):
    name, s, _ = method
    again = train(build(tools, name), scenario)
    for (key, p), q in zip(s.model.state_dict().items(), again.model.state_dict().values(),
                           strict=True):
        assert torch.equal(p, q), key


@each
def test_state_survives_deepcopy(method, scenario):
    _, s, _ = method
    x = torch.randn(5, 3, 32, 32)
    s.experience = scenario.test_stream[0]
    expected = predict(s, x)
    twin = copy.deepcopy(s)
    assert torch.equal(predict(twin, x), expected)


@pytest.mark.parametrize("name", METHODS)
def test_batches_of_one_class_or_one_sample_are_trained_on(tools, name):
    """One class in a batch, one sample in a batch, a class first met in the last batch."""
    s = build(tools, name)
    torch.manual_seed(0)
    y = torch.tensor([0] * 8 + [1] * 8 + [2])
    data = TensorDataset(torch.randn(17, 3, 32, 32), y)
    data.targets = y.tolist()
    stream = nc_benchmark(data, data, 1, task_labels=False, fixed_class_order=[0, 1, 2])
    s.train(stream.train_stream[0], eval_streams=[], shuffle=False)
    s.train(stream.train_stream[0], eval_streams=[], shuffle=False)  # classes come back
    s.eval(stream.test_stream)
    assert all(torch.isfinite(p).all() for p in s.model.parameters())


# A backbone with fewer blocks than any default asks for, one without a class token, an Eva.
UNUSUAL = {"1 block": {"depth": 1}, "siglip": {}, "dinov3": {}, "beit": {}}
# The two on Avalanche's own transformer take plain ViTs.
PLAIN_ONLY = {"avalanche-l2p", "avalanche-l2p-as-shipped"}


@pytest.mark.filterwarnings("ignore::avalanche_rwf.models.blocks.FitWarning")
@pytest.mark.parametrize("backbone", UNUSUAL)
@pytest.mark.parametrize("name", [n for n in METHODS if n not in ADAPTED[1:]])
def test_default_options_run_on_every_kind_of_backbone(tools, scenario, name, backbone):
    vit = tools.vit(**{"depth": 2, **tools.families.get(backbone, {}), **UNUSUAL[backbone]})
    torch.manual_seed(0)
    arguments = {"backbone": vit, "num_classes": 6, "loop": {
        "train_mb_size": 8, "eval_mb_size": 64, "evaluator": tools.silent()}}  # fmt: skip
    if name in PLAIN_ONLY and backbone in tools.families:
        with pytest.raises(UsageError, match=r"VisionTransformer|no class token"):
            create_strategy(name, **arguments)
        return
    s = train(create_strategy(name, **arguments), scenario, upto=1)
    s.experience = scenario.test_stream[0]
    x = torch.randn(5, 3, 32, 32)
    together = predict(s, x)
    assert torch.isfinite(together).any(1).all()
    assert len({int(c) for c in together.argmax(1)}) >= 1
    for i in range(5):
        torch.testing.assert_close(predict(s, x[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_blocks_that_a_user_typed_are_refused_where_a_default_gives_way(tools, name):
    """Typing the very text of the default is typing."""
    vit, options = tools.vit(depth=1), get_method(name).options
    arguments = {"backbone": vit, "num_classes": 6, "loop": {"evaluator": tools.silent()}}
    typed = {k: str(v) for k, v in options.items() if isinstance(v, DefaultBlocks)}
    for key, text in typed.items():
        with pytest.raises(UsageError, match=f"not {text!r}: the backbone has 1 blocks"):
            create_strategy(name, **arguments, **{key: text})
    if typed:
        with pytest.warns(FitWarning, match="The backbone has 1 blocks, so .* and not its default"):
            create_strategy(name, **arguments)
    assert bool(typed) == any("blocks" in key for key in options)


GRADIENT = [name for name in METHODS if {"mask", "lr"} <= set(get_method(name).options)]


def test_every_gradient_trained_method_has_the_common_options():
    """What is worth more than a method's idea is a choice for all of them."""
    for name in GRADIENT:
        assert {"head", "mask", "readout"} <= set(get_method(name).options), name
    assert {"rwf", "l2p", "dualprompt", "coda-prompt", "mvp", "single-prompt"} <= set(GRADIENT)


@pytest.mark.parametrize("name", GRADIENT)
@pytest.mark.parametrize(("head", "mask"), [("white", "decoupled"), ("slda", "batch")])
def test_every_gradient_trained_method_takes_the_same_head_mask_and_readout(
    tools, scenario, name, head, mask
):
    options = {"head": head, "readout": "cls+mean"}
    if name != "er-ace":  # its masks are its definition
        options["mask"] = mask
    s = train(build(tools, name, **options), scenario, upto=1)
    s.experience = scenario.test_stream[0]
    logits = predict(s, torch.randn(4, 3, 32, 32))
    assert torch.isfinite(logits[:, s.model.seen]).all()
    assert s.model.head.in_features == 64


def test_methods_with_a_frozen_query_share_it_on_test_images(tools, scenario, monkeypatch):
    """Computed once for all of them, and once for a whole run."""
    passes, calls, embed = {}, [], nn.Conv2d.forward
    monkeypatch.setattr(
        nn.Conv2d, "forward", functools.wraps(embed)(lambda *a: (calls.append(1), embed(*a))[1])
    )
    for name in ("l2p", "dualprompt", "coda-prompt", "ncm"):
        s = train(build(tools, name), scenario, upto=1)
        calls.clear()
        s.eval(scenario.test_stream[:1])
        first = len(calls)
        s.eval(scenario.test_stream[:1])
        passes[name] = first, len(calls) - first
    # 12 test images are one batch: the query's pass and the prompted one; then the latter alone.
    assert passes == {"l2p": (2, 1), "dualprompt": (1, 1), "coda-prompt": (1, 1), "ncm": (0, 0)}


@pytest.mark.parametrize(("name", "option"), [("dualprompt", "slots"), ("coda-prompt", "slices")])
def test_boundary_aware_originals_count_experiences_and_say_so(tools, scenario, name, option):
    from avalanche.benchmarks.scenarios import split_online_stream

    free = build(tools, name)
    assert not getattr(free, "uses_boundaries", False)
    s = train(build(tools, name, **{option: "task"}), scenario, upto=2)
    assert s.uses_boundaries and s.model.current_experience == 1
    online = build(tools, name, **{option: "task"})
    for experience in scenario.train_stream[:2]:
        for part in split_online_stream([experience], 8, shuffle=False):
            online.train(part, eval_streams=[], shuffle=False)
    assert online.model.current_experience == 1
    for (key, p), q in zip(s.model.state_dict().items(), online.model.state_dict().values(),
                           strict=True):
        assert torch.equal(p, q), key
    # Restored in the middle of an experience it does not count that one again.
    parts = list(split_online_stream([scenario.train_stream[0]], 8, shuffle=False))
    half, rest = build(tools, name, **{option: "task"}), build(tools, name, **{option: "task"})
    half.train(parts[0], eval_streams=[], shuffle=False)
    rest.load_trained_state(half.trained_state())
    rest.train(parts[1], eval_streams=[], shuffle=False)
    assert rest.model.current_experience == half.model.current_experience == 0
    if name == "dualprompt":  # what is held is held: no momentum moves it
        held = [s.model.experts[:, :2].detach().clone(), s.model.keys[:2].detach().clone()]
    # Goes on where it was: the third experience is the third for a restored strategy too.
    again = build(tools, name, seed=5, **{option: "task"})
    again.load_trained_state(s.trained_state())
    for t in (s, again):
        t.train(scenario.train_stream[2], eval_streams=[], shuffle=False)
        assert t.model.current_experience == 2
    for p, q in zip(s.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(p, q)
    if name == "dualprompt":
        assert torch.equal(s.model.experts[:, :2], held[0])
        assert torch.equal(s.model.keys[:2], held[1])


def test_keys_are_compared_in_float32_under_autocast(tools):
    for name, kept in (("l2p", "pull"), ("dualprompt", "pull"), ("coda-prompt", "weights")):
        model = build(tools, name).model
        with torch.autocast("cpu", dtype=torch.bfloat16):
            _, selection = model.encode(torch.randn(2, 3, 32, 32))
        assert getattr(selection, kept).dtype == torch.float32, name


def test_every_setting_of_the_tuning_budget_can_be_built_and_is_another_one(tools):
    from avalanche_rwf.experiments.tuning import settings

    for name in METHODS:
        tried = settings(get_method(name), get_method(name).options)
        for setting in tried:
            build(tools, name, **setting)
        assert len({str(sorted(setting.items(), key=str)) for setting in tried}) == len(tried)


def test_every_default_option_is_recorded_and_documented():
    for name in METHODS:
        spec = get_method(name)
        assert spec.summary and spec.build.__doc__
        for value in spec.options.values():
            assert value is None or isinstance(value, (bool, int, float, str))


def test_the_default_comparison_has_what_the_main_job_names():
    default = {name for name in METHODS if get_method(name).default}
    named = {"rwf", "rwf-lda", "avalanche-l2p", "linear-probe", "fine-tune", "ncm", "slda"}
    assert named <= default


def test_options_are_converted_by_their_type():
    options = resolve_options(
        "rwf", {"num_prompts": "4", "beta": "0.5", "stop_gradient": "true", "lr": "1e-3"}
    )
    assert options["num_prompts"] == 4 and options["beta"] == 0.5
    assert options["stop_gradient"] is True and options["lr"] == 1e-3
    assert resolve_options("rwf", {"beta": "none"})["beta"] is None
    for text, value in (("0.5", 0.5), ("1e-3", 1e-3), ("oas", "oas")):
        assert resolve_options("slda", {"shrinkage": text})["shrinkage"] == value


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: get_method("rfw"), "There is no method 'rfw'; the nearest names are 'rwf'"),
        (lambda: resolve_options("rwf", {"num_promts": 3}), "no option 'num_promts'.*num_prompts"),
        (lambda: resolve_options("rwf", {"num_prompts": "x"}), "takes int, not 'x'"),
        (lambda: resolve_options("rwf", {"beta": "x"}), "takes float, not 'x'"),
        (lambda: resolve_options("rwf", {"num_prompts": 10**30}), "takes int, not 1000"),
        (lambda: resolve_options("rwf", {"query_std": 10**30}), "takes float, not 1000"),
        (lambda: resolve_options("rwf", {"query_std": 10**400}), "takes float, not 1000"),
        (lambda: resolve_options("rwf", {"stop_gradient": "x"}), "takes bool, not 'x'"),
    ],
)
def test_bad_names_are_answered_with_the_nearest(call, text):
    with pytest.raises(UsageError, match=text):
        call()


def test_a_name_is_registered_once_and_options_need_defaults():
    with pytest.raises(ValueError, match="registered twice"):
        register_method("rwf", summary="again")(lambda *, backbone, num_classes, loop: None)
    with pytest.raises(ValueError, match="needs a default"):
        register_method("x", summary="x")(lambda *, backbone, num_classes, loop, size: None)
    # Else the lists of names would need PyTorch from now on.
    assert "rwf" not in registry.METHODS._outside


NUMBERS = {int, float, bool, type(None)}
OF_A_KIND = [
    (name, option)
    for name in METHODS
    for option, kind in get_method(name).types.items()
    if set(typing.get_args(kind) or (kind,)) <= NUMBERS
]


@pytest.mark.parametrize(("name", "option"), OF_A_KIND)
def test_an_option_of_another_kind_is_refused_by_name(name, option):
    spec = get_method(name)
    own = {key: value for key, value in spec.options.items() if key not in spec.young}
    assert resolve_options(name, {option: spec.options[option]}) == own
    kinds = set(typing.get_args(spec.types[option]) or (spec.types[option],))
    wrong = [[], {}, object(), torch.zeros(2)]
    wrong += [1, 0.5] if bool in kinds else [True]
    wrong += [None] if type(None) not in kinds else []
    wrong += [1.5] if int in kinds and float not in kinds else []
    wrong += [float("nan"), float("inf"), "nan", "-inf"]
    for value in wrong:
        with pytest.raises(UsageError, match=rf"^The option {name}\.{option} takes .*, not "):
            resolve_options(name, {option: value})


def test_names_and_patterns_are_texts():
    for value in (None, 3, []):
        for call in (get_method, get_benchmark):
            with pytest.raises(UsageError, match="name must be a text"):
                call(value)


class Onlooker(SupervisedPlugin):
    """Asks whatever can be asked, in the middle of each step and after it."""

    def __init__(self, stream, folder):
        super().__init__()
        self.stream, self.path = stream, folder / "state.pt"
        self.images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(7))

    def after_forward(self, strategy, **kwargs):
        self.look(strategy, strategy.mb_x, strategy.mb_y, strategy.mb_output, strategy.loss)

    after_training_iteration = after_forward

    def look(self, strategy, *step):
        modes = [module.training for module in strategy.model.modules()]
        drawn = generators()
        ours = hasattr(strategy, "trained_state")
        if ours:
            strategy.predict(self.images)
        repr(strategy.model), strategy.model.state_dict()
        strategy.eval(self.stream)
        if ours:
            strategy.trained_state()
            strategy.save(self.path, backbone=True)
        assert generators() == drawn
        assert [module.training for module in strategy.model.modules()] == modes
        now = strategy.mb_x, strategy.mb_y, strategy.mb_output, strategy.loss
        assert all(a is b for a, b in zip(step, now, strict=True))
        if ours:
            plugins, strategy.plugins = strategy.plugins, []
            copy.deepcopy(strategy), pickle.dumps(strategy.model)
            strategy.plugins = plugins
            assert generators() == drawn


def generators():
    _, numbers, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), numbers.tolist(), rest, random.getstate()


@pytest.mark.parametrize("name", METHODS)
def test_looking_at_a_strategy_changes_nothing(tools, scenario, name, tmp_path):
    ends = []
    for looked in (False, True):
        s = build(tools, name)
        if looked:
            s.plugins.insert(-1, Onlooker(scenario.test_stream[:1], tmp_path))
        random.seed(0), np.random.seed(0)
        s.train(scenario.train_stream[:1], eval_streams=[], shuffle=True)
        states = s.optimizer and s.optimizer.state_dict()["state"]
        ends.append((s.model.state_dict(), states, generators()))
    (a, mine, drawn), (b, others, again) = ends
    assert all(torch.equal(p, b[key]) for key, p in a.items())
    assert str(mine) == str(others) and drawn == again


def relabelled(scenario, change, plain=True):
    """The stream's first experience with other labels of the same classes.

    :param plain: False has experiences without a timeline, as Avalanche makes none of odd labels.
    """
    source = scenario.train_stream[0].dataset
    x = torch.stack([source[i][0] for i in range(len(source))])
    y = torch.tensor([int(source[i][1]) for i in range(len(source))])
    data = TensorDataset(x, change(y))
    data.targets = y.tolist()
    if plain:
        return nc_benchmark(data, data, 1, task_labels=False)
    data = as_classification_dataset(data)
    return benchmark_from_datasets(train=[data], test=[data])


def trained_on(tools, stream, name):
    s = build(tools, name)
    s.train(stream.train_stream, eval_streams=[], shuffle=False)
    s.eval(stream.test_stream)
    return s.model.state_dict()


@pytest.mark.parametrize("name", METHODS)
def test_labels_of_few_bits_are_the_numbers_that_they_are(tools, scenario, name):
    expected = trained_on(tools, relabelled(scenario, lambda y: y), name)
    found = trained_on(tools, relabelled(scenario, lambda y: y.to(torch.uint8)), name)
    assert all(torch.equal(p, found[key]) for key, p in expected.items())


@pytest.mark.parametrize("name", ["rwf", "der", "ncm", "avalanche:Naive"])
@pytest.mark.parametrize(
    "change",
    [
        lambda y: y.int(), lambda y: y.short(), lambda y: y[:, None], lambda y: y == 1,
        lambda y: y.float(), lambda y: y.double()[:, None],
    ],
)  # fmt: skip
def test_labels_of_every_kind_of_whole_number(tools, scenario, name, change):
    expected = trained_on(tools, relabelled(scenario, lambda y: y, False), name)
    found = trained_on(tools, relabelled(scenario, change, False), name)
    assert all(torch.equal(p, found[key]) for key, p in expected.items())


@pytest.mark.parametrize("name", ["rwf", "slda", "avalanche:Naive"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda y: nn.functional.one_hot(y, 6), "not int64 .* images; of one-hot rows"),
        (lambda y: nn.functional.one_hot(y, 6).float(), "not float32 .* images; of one-hot rows"),
        (lambda y: y + 0.5, "not numbers of float32 that are not whole"),
        (lambda y: y * float("nan"), "not numbers of float32 that are not whole"),
    ],
)
def test_labels_that_are_no_classes_are_named(tools, scenario, name, change, said):
    stream = relabelled(scenario, change, False)
    for ask in (
        lambda s: s.train(stream.train_stream, eval_streams=[]),
        lambda s: s.eval(stream.test_stream),
    ):
        with pytest.raises(UsageError, match=f"labels must be the numbers of classes.*{said}"):
            ask(build(tools, name))


@pytest.mark.parametrize("name", list_methods())
def test_training_draws_from_no_generator_that_others_use(name, tools, scenario):
    """What else draws between steps changes no weight, and a step changes no generator."""
    from avalanche.core import SupervisedPlugin

    class Between(SupervisedPlugin):
        def before_training_iteration(self, strategy, **kwargs):
            if self.disturbs:
                torch.rand(3)
            self.state = torch.get_rng_state()

        def after_training_iteration(self, strategy, **kwargs):
            assert torch.equal(torch.get_rng_state(), self.state)

    ends = []
    for disturbs in (False, True):
        s = build(tools, name)
        s.plugins.append(Between())
        s.plugins[-1].disturbs = disturbs
        train(s, scenario, upto=2)
        ends.append(s.model.state_dict())
    for (key, p), q in zip(ends[0].items(), ends[1].values(), strict=True):
        assert torch.equal(p, q), key


def test_an_option_that_came_later_leaves_earlier_configurations_as_they_were():
    """At its default it is in no configuration; typed, it is, and is built."""
    assert get_method("rwf").options["recompute"] is False
    assert "recompute" not in resolve_options("rwf", {"recompute": "false"})
    assert resolve_options("rwf", {"recompute": "true"})["recompute"] is True
    assert "balance" not in resolve_options("rp-ridge", {})


@pytest.mark.parametrize(("name", "option"), [("rwf", "recompute"), ("rp-ridge", "balance")])
def test_a_young_option_reaches_the_model(tools, name, option):
    found = [build(tools, name, **chosen).model for chosen in ({}, {option: True})]
    has = [getattr(model if name == "rwf" else model.head, option) for model in found]
    assert has == [False, True]
