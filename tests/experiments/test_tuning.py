"""The tuned budget: what is tried, on which images, what is recorded and read again."""

from __future__ import annotations

import functools
import json
import pickle
from dataclasses import replace

import pytest
import torch

from avalanche_rwf.benchmarks import splits
from avalanche_rwf.errors import UsageError
from avalanche_rwf.experiments import signals, tuning
from avalanche_rwf.experiments.build import build_benchmark, build_strategy
from avalanche_rwf.experiments.execution import Execution
from avalanche_rwf.experiments.store import read_json
from avalanche_rwf.experiments.tuning import HOLDOUT, SETTINGS, settings, tune
from avalanche_rwf.strategies.base import NonFiniteLossError
from avalanche_rwf.strategies.registry import MethodSpec, get_method, list_methods

# layup finds its penalty by itself.
NOTHING_TO_TUNE = {"ncm", "layup"}
RATES = [1.0, 0.2, 5.0, 0.04, 0.5, 2.0, 25.0, 0.1, 10.0, 0.008]


def spec(**options):
    grid = options.pop("grid", None)
    return MethodSpec("m", build=dict, summary="", options=options, grid=grid)


def changes(method: MethodSpec, fixed=()) -> list[dict]:
    own = method.options
    tried = settings(method, own, fixed)
    assert tried[0] == own
    return [{k: v for k, v in one.items() if v != own[k]} for one in tried]


# ---- what is tried


@pytest.mark.parametrize("name", list_methods())
def test_every_method_gets_the_same_number(name):
    method = get_method(name)
    tried = settings(method, method.options)
    assert tried[0] == method.options
    assert all(tried.count(one) == 1 for one in tried)
    assert len(tried) == (1 if name in NOTHING_TO_TUNE else SETTINGS)
    # None of a method's own grid is cut off.
    assert all({**method.options, **one} in tried for one in method.grid or ())


PROMPT_METHODS = ("l2p", "dualprompt", "coda-prompt", "mvp", "single-prompt", "avalanche-l2p")


@pytest.mark.parametrize("fixed", [(), ("mask", "head", "readout")])
@pytest.mark.parametrize("name", PROMPT_METHODS)
def test_a_small_prompt_rate_with_the_usual_head_rate_is_tried_for_every_prompt_method(name, fixed):
    method = get_method(name)
    tried = settings(method, method.options, fixed)
    usual = method.options["lr_head"]
    prompts = {one["lr"] for one in tried if one["lr_head"] == usual}
    assert {1e-3, 2e-4, method.options["lr"]} <= prompts
    assert len({one["lr_head"] for one in tried}) > 1
    assert len(tried) == SETTINGS


def test_rates_of_prompts_apart_from_the_heads_and_two_masks():
    method = spec(lr=5e-3, lr_maps=3e-6, lr_none=None, lr_zero=0.0, mask="decoupled", length=5)
    rates = [
        {}, {"lr_maps": 6e-7}, {"lr_maps": 1.2e-7},
        {"lr": 1e-3, "lr_maps": 6e-7}, {"lr": 0.025, "lr_maps": 1.5e-5},
    ]  # fmt: skip
    assert changes(method) == [{**one, **mask} for one in rates for mask in ({}, {"mask": "batch"})]


def test_another_mask_of_its_own_takes_the_place_of_the_last():
    tried = changes(spec(lr=1.0, mask="seen"))
    masks = [{"mask": "batch"}, {"mask": "decoupled"}]
    rates = [{}, {"lr": 0.2}, {"lr": 5.0}, {"lr": 0.04}, {"lr": 0.5}]
    assert tried == [{}, *({**one, **mask} for one in rates for mask in masks)][:-1]


def test_a_method_with_one_rate_has_ten_rates_tried():
    rates = [{}, *({"lr": r} for r in (0.2, 5.0, 0.04, 0.5, 2.0, 25.0, 0.1, 10.0, 0.008))]
    assert changes(spec(lr=1.0)) == rates
    assert changes(spec(lr=1.0, mask="seen"), fixed={"mask"}) == rates


def test_a_rate_that_the_user_fixed_leaves_the_other_to_be_tried():
    method = get_method("l2p")
    tried = settings(method, method.options, {"mask", "lr_head"})
    assert {one["lr_head"] for one in tried} == {5e-3}
    assert {2e-4, 1e-3, 0.025} <= {one["lr"] for one in tried}


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({"shrinkage": 0.05}, [0.01, 0.25, 0.002, 0.1, 1.0, 0.025, 4e-4, 0.005, 0.5]),
        ({"shrinkage": 0.2}, [0.04, 1.0, 0.008, 0.4, 0.1, 0.0016, 0.02, 0.004, 8e-4]),
        ({"shrinkage": 1.0}, [0.2, 0.04, 0.5, 0.008, 0.1, 0.02, 0.004, 0.0016]),
        ({"penalty": 1.0}, [0.2, 5.0, 0.04, 2.0, 25.0, 0.5, 0.008, 0.1, 10.0]),
        ({"penalty": None}, []),
        ({"readout": "cls"}, []),
    ],
)
def test_closed_forms_vary_their_regulariser(options, values):
    (key,) = options
    assert changes(spec(**options)) == [{}, *({key: value} for value in values)]


def test_what_the_user_fixed_is_not_varied():
    method = spec(lr=1.0, lr_maps=2.0, mask="batch")
    assert all("lr" not in change for change in changes(method, fixed={"lr"}))
    assert len(changes(method, fixed={"lr"})) == SETTINGS
    assert changes(method, fixed={"lr", "lr_maps"}) == [{}, {"mask": "decoupled"}]
    assert changes(method, fixed={"lr", "lr_maps", "mask"}) == [{}]
    assert changes(spec(shrinkage=0.5), fixed={"shrinkage"}) == [{}]


def test_a_grid_of_its_own_comes_after_its_own_options():
    method = spec(lr=1.0, top=3, grid=({"top": 3}, {"top": 4}, {"top": 5, "lr": 2.0}))
    assert changes(method) == [{}, {"top": 4}, {"top": 5, "lr": 2.0}]
    assert changes(method, fixed={"top"}) == [{}, {"lr": 2.0}]


def test_a_third_of_the_experiences_and_two_at_least():
    sizes = (1, 2, 5, 6, 7, 8, 10)
    assert [tuning.first_experiences([[0, 1]] * n) for n in sizes] == [1, 2, 2, 2, 3, 3, 4]


def test_so_many_experiences_that_there_are_two_classes():
    assert tuning.first_experiences([[], [3], [], [1], [2]]) == 4


# ---- on which images


def test_no_test_image_is_touched(configure, tmp_path, monkeypatch):
    config = configure("linear-probe")
    before = tune([config], {}, tmp_path / "a", Execution(jobs=1, quiet=True))["linear-probe"]

    class Untouchable:
        def __getattribute__(self, name):
            pytest.fail(f"{name} of the test images was asked for")

    split = splits.make_benchmark

    def without_test_images(name, source, options):
        # Labels that fit no class, too.
        return split(name, replace(source, test=Untouchable(), test_targets=[99]), options)

    monkeypatch.setattr(splits, "make_benchmark", without_test_images)
    after = tune([config], {}, tmp_path / "b", Execution(jobs=1, quiet=True))["linear-probe"]
    assert after.options == before.options
    assert [s["score"] for s in after.content["settings"]] == [
        s["score"] for s in before.content["settings"]
    ]


def test_trained_and_scored_on_two_parts_of_the_first_experiences(configure, monkeypatch):
    config = replace(configure("ncm"), holdout=HOLDOUT)
    seen: dict[bool, list[torch.Tensor]] = {True: [], False: []}

    def watched(*args, **kwargs):
        strategy = build_strategy(*args, **kwargs)
        forward = strategy.forward

        def noting():
            seen[strategy.is_training] += list(strategy.mb_x)
            return forward()

        strategy.forward = noting
        return strategy

    monkeypatch.setattr(tuning, "build_strategy", watched)
    reported: list[int] = []
    score = tuning.held_out_accuracy(config, 2, progress=reported.append)
    # 6 classes of 4 images in 3 experiences: 2 x 2 x 3 to train on, 2 x 2 x 1 held out.
    assert (len(seen[True]), len(seen[False])) == (12, 4)
    assert reported == [6, 6]
    assert score * 4 == pytest.approx(round(score * 4))
    assert not any(torch.equal(a, b) for a in seen[True] for b in seen[False])
    train = [x for e in build_benchmark(configure("ncm")).train_stream for x, *_ in e.dataset]
    for image in seen[True] + seen[False]:
        assert any(torch.equal(image, other) for other in train)


def test_too_few_images_to_hold_out_are_refused(configure, monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise UsageError("a share cannot be held out.")

    monkeypatch.setattr(tuning, "build_benchmark", refuse)
    with pytest.raises(UsageError, match="held out"):
        tune([configure("ncm")], {}, tmp_path, Execution(jobs=1, quiet=True))


# ---- the choice


@pytest.fixture
def scores(monkeypatch):
    """Scores by the rate of a linear probe instead of by training; returns what was asked for."""
    asked: list[float] = []

    def use(by_rate):
        def score(config, experiences, device, progress):
            assert (experiences, config.holdout, config.budget) == (2, HOLDOUT, "default")
            asked.append(config.options["lr"])
            value = by_rate(config.options["lr"])
            if isinstance(value, BaseException):
                raise value
            return value

        monkeypatch.setattr(tuning, "held_out_accuracy", score)
        return asked

    return use


@pytest.fixture
def choose(configure, tmp_path):
    """Tune a linear probe of rate 1 with the mask fixed: rates 1, 0.2, 5, 0.04, 0.5, 2, ..."""
    config = configure("linear-probe", options={"lr": 1.0}, budget="tuned", seed=3)

    def call():
        return tune([config], {"linear-probe": {"mask"}}, tmp_path, Execution(jobs=1, quiet=True))[
            "linear-probe"
        ]

    return call


def test_the_best_is_chosen_and_recorded(scores, choose, tmp_path):
    asked = scores(lambda rate: {0.2: 0.75, 2.0: 0.5}.get(rate, 0.25))
    choice = choose()
    assert asked == RATES
    assert choice.options == {**get_method("linear-probe").options, "lr": 0.2}
    assert choice.record() == {
        "settings": 10, "chosen": {"lr": 0.2}, "score": 0.75, "experiences": 2, "holdout": 0.25,
        "seed": 3, "file": choice.file.name,
    }  # fmt: skip
    assert choice.sentence() == (
        "linear-probe: lr=0.2, 75.0 % on held-out training images (10 settings)."
    )
    (file,) = (tmp_path / "tuning").iterdir()
    assert file == choice.file
    content = read_json(file)
    assert [(one["options"], one["score"]) for one in content["settings"]] == [
        ({} if rate == 1.0 else {"lr": rate}, {0.2: 0.75, 2.0: 0.5}.get(rate, 0.25))
        for rate in RATES
    ]
    assert {"chosen", "score", "seconds", "experiences", "holdout", "seed", "versions"} <= set(
        content
    )


def test_a_tie_goes_to_the_earlier(scores, choose):
    scores(lambda rate: 0.5)
    assert choose().options["lr"] == 1.0
    assert choose().sentence().startswith("linear-probe: its own options, 50.0 %")


def test_a_second_call_reads_the_record(scores, choose):
    scores(lambda rate: rate / 10)
    first = choose()
    stamp = first.file.stat().st_mtime_ns
    asked = scores(lambda rate: pytest.fail("tried again"))
    asked.clear()
    again = choose()
    assert asked == []
    assert (again.options, again.record()) == (first.options, first.record())
    assert first.options["lr"] == 25.0
    assert first.file.stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    "settings",
    [
        *(None, 3, "x", {"a": 1}, [3], [None] * 9, [{"seconds": "x"}]),
        *([{"seconds": 1.0, "score": s}] for s in ([], "x", float("nan"))),
        [{"seconds": 1.0, "error": 3}],
    ],
)
def test_what_is_damaged_in_a_record_is_tried_again(settings, scores, choose):
    scores(lambda rate: rate / 10)
    first = choose()
    first.file.write_text(json.dumps({**first.content, "settings": settings}))
    again = choose()
    assert (again.options, again.record()) == (first.options, first.record())


def test_an_interrupted_search_goes_on_where_it_was(scores, choose, tmp_path):
    scores(lambda rate: KeyboardInterrupt() if rate == 0.04 else rate / 10)
    with pytest.raises(KeyboardInterrupt):
        choose()
    (file,) = (tmp_path / "tuning").iterdir()
    assert ["score" in one for one in read_json(file)["settings"]] == [True] * 3 + [False] * 7
    asked = scores(lambda rate: rate / 10)
    asked.clear()
    assert choose().options["lr"] == 25.0
    assert asked == RATES[3:]


DAMAGED = [
    "", "[]", "{}", '{"settings": 5}', '{"settings": [1]}', '{"settings": [{"seconds": "x"}]}',
    '{"settings": [{"score": "high", "seconds": 1}]}', '{"settings": [{"error": 5, "seconds": 1}]}',
]  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_record_is_none_and_everything_is_tried(content, scores, choose):
    asked = scores(lambda rate: rate / 10)
    file = choose().file
    asked.clear()
    file.write_text(content)
    choice = choose()
    assert len(asked) == SETTINGS
    assert (choice.options["lr"], choice.record()["settings"]) == (25.0, SETTINGS)
    assert "failed" not in choice.sentence()


def test_asked_to_stop_a_setting_is_given_up_and_those_before_are_kept(
    configure, tmp_path, monkeypatch
):
    config = configure("linear-probe", budget="tuned")
    held, done = tuning.held_out_accuracy, []

    def second(*args):
        if done:
            signals.request_stop()
        done.append(args)
        return held(*args)

    monkeypatch.setattr(tuning, "held_out_accuracy", second)
    with signals.listening(lambda line: None), pytest.raises(signals.RunStopped):
        tune([config], {"linear-probe": {"mask"}}, tmp_path, Execution(jobs=1, quiet=True))
    assert len(done) == 2
    (file,) = (tmp_path / "tuning").iterdir()
    assert ["score" in one for one in read_json(file)["settings"]] == [True] + [False] * 9


def test_asked_to_stop_when_all_is_tried_nothing_more_is_begun(scores, choose):
    scores(lambda rate: rate / 10)
    choose()
    with signals.listening(lambda line: None):
        signals.request_stop()
        with pytest.raises(signals.RunStopped):
            choose()


def test_what_another_process_has_tried_meanwhile_is_kept(scores, choose):
    """It has come further when this one is ended: nobody tries that again."""

    def ended(rate):
        raise KeyboardInterrupt

    def first(rate):
        scores(lambda rate: rate / 10)
        choose()  # the other process, to its end
        scores(ended)
        return 0.1

    scores(first)
    with pytest.raises(KeyboardInterrupt):
        choose()
    asked = scores(lambda rate: pytest.fail("it is known"))
    asked.clear()
    assert choose().options["lr"] == 25.0
    assert asked == []


def test_a_setting_that_diverges_loses_and_is_not_tried_again(scores, choose):
    asked = scores(lambda rate: NonFiniteLossError("The loss is\nnan.") if rate > 1 else rate / 10)
    choice = choose()
    assert choice.options["lr"] == 1.0
    assert choice.record()["settings"] == SETTINGS
    assert choice.sentence().endswith("(10 settings); 4 of them failed (The loss is nan).")
    asked.clear()
    assert choose().record() == choice.record()
    assert asked == []


def test_a_method_of_which_all_fail_keeps_its_own_options(scores, choose):
    scores(lambda rate: ValueError("impossible"))
    choice = choose()
    assert (choice.options["lr"], choice.record()["score"]) == (1.0, None)
    assert "its own options, no score" in choice.sentence()


def test_a_failure_that_is_not_the_settings_is_tried_again(scores, choose):
    scores(lambda rate: MemoryError("no memory") if rate == 25.0 else rate / 10)
    choice = choose()
    assert (choice.options["lr"], choice.record()["settings"]) == (10.0, 9)
    assert choice.sentence().endswith("; 1 of them failed (no memory).")
    asked = scores(lambda rate: rate / 10)
    asked.clear()
    choice = choose()
    assert asked == [25.0]
    assert (choice.options["lr"], choice.record()["settings"]) == (25.0, SETTINGS)
    assert "failed" not in choice.sentence()


def test_weights_that_are_not_finite_lose(configure, monkeypatch):
    def broken(*args, **kwargs):
        strategy = build_strategy(*args, **kwargs)
        strategy.model.head.weight.data[0, 0] = float("nan")
        strategy.train = lambda *a, **k: None
        return strategy

    monkeypatch.setattr(tuning, "build_strategy", broken)
    with pytest.raises(NonFiniteLossError, match="not finite"):
        tuning.held_out_accuracy(replace(configure(), holdout=HOLDOUT), 2)


def test_the_search_can_go_to_another_process():
    work = functools.partial(tuning._try, experiences=2)
    assert pickle.loads(pickle.dumps(work)).keywords == {"experiences": 2}


def test_other_seeds_options_and_fixed_ones_have_records_of_their_own(configure, scores, tmp_path):
    scores(lambda rate: 0.5)
    for config, fixed in (
        (configure(), {}),
        (configure(seed=1), {}),
        (configure(options={"lr": 0.5}), {}),
        (configure(), {"mask"}),
    ):
        tune([config], {config.method: fixed}, tmp_path, Execution(jobs=1, quiet=True))
    assert len(list((tmp_path / "tuning").iterdir())) == 4
    for file in (tmp_path / "tuning").iterdir():
        json.loads(file.read_text())
