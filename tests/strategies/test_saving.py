"""Strategies that are saved, loaded and go on: the same predictions, the same training."""

from __future__ import annotations

import os

import pytest
import torch

from avalanche_rwf import (
    CheckpointPlugin,
    PredictionRecorder,
    RoutedViT,
    RwFStrategy,
    UsageError,
    create_strategy,
)
from avalanche_rwf.experiments import checkpoint
from avalanche_rwf.utils.atomic_io import read_state, save_state

SMALL = {"depth": 2, "embed_dim": 32, "num_heads": 2}


def small(tools, **options) -> RwFStrategy:
    torch.manual_seed(0)
    return RwFStrategy(**{
        "model_name": "vit_tiny_patch16_224", "pretrained": False, "image_size": 32,
        "backbone_kwargs": SMALL, "num_classes": 6, "num_prompts": 2, "routed_blocks": (0, 1),
        "train_mb_size": 5, "evaluator": tools.silent(), **options,
    })  # fmt: skip


def train(strategy, experience) -> None:
    strategy.train(experience, eval_streams=[], shuffle=False)


def assert_same(a, b) -> None:
    for (name, x), y in zip(a.model.state_dict().items(), b.model.state_dict().values(),
                            strict=True):
        assert torch.equal(x, y), name


@pytest.mark.parametrize("options", [{}, {"num_classes": None}, {"buffer": 7, "lr": 1e-3}])
def test_a_loaded_strategy_goes_on_as_the_saved_one(options, tools, scenario, tmp_path):
    strategy = small(tools, **options)
    first, second, _ = scenario.train_stream
    train(strategy, first)
    strategy.save(tmp_path / "rwf.pt", backbone=True)
    torch.rand(5)
    again = RwFStrategy.load(tmp_path / "rwf.pt", evaluator=tools.silent())
    assert again._arguments == {**strategy._arguments, "routed_blocks": [0, 1], "weights": None}
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(again.predict(images), strategy.predict(images))
    for one in (strategy, again):
        torch.manual_seed(3)
        train(one, second)
    assert_same(strategy, again)


def test_without_its_backbone_a_file_takes_the_same_weights(tools, vit, scenario, tmp_path):
    def build(backbone):
        torch.manual_seed(1)
        return RwFStrategy(
            model=RoutedViT(backbone, 6, routed_blocks="all"), evaluator=tools.silent()
        )

    strategy = build(vit)
    train(strategy, scenario.train_stream[0])
    path = tmp_path / "rwf.pt"
    strategy.save(path)
    assert "backbone" not in read_state(path)
    with pytest.raises(UsageError, match="model must be given"):
        RwFStrategy.load(path)
    model = build(tools.vit()).model
    assert_same(RwFStrategy.load(path, model=model, evaluator=tools.silent()), strategy)
    other = RoutedViT(tools.vit(seed=5), 6, routed_blocks="all")
    with pytest.raises(UsageError, match="does not fit: its backbone's weights are"):
        RwFStrategy.load(path, model=other, evaluator=tools.silent())


@pytest.mark.parametrize("method", ["slda", "er", "linear-probe"])
def test_every_strategy_here_can_be_saved_and_restored(method, tools, scenario, tmp_path):
    def build(name: str, seed: int):
        vit = tools.vit(init_values=None)
        torch.manual_seed(seed)
        loop = {"train_mb_size": 8, "evaluator": tools.silent()}
        return create_strategy(name, backbone=vit, num_classes=6, loop=loop)

    strategy, again = build(method, 0), build(method, 9)
    train(strategy, scenario.train_stream[0])
    strategy.save(tmp_path / "it.pt")
    again.restore(tmp_path / "it.pt")
    assert_same(strategy, again)
    with pytest.raises(UsageError, match=r"does not fit|is of a "):
        build("fine-tune" if method == "slda" else "slda", 0).restore(tmp_path / "it.pt")


def test_a_schedulers_rates_are_loaded_and_a_group_without_a_rate_is_refused(
    tools, scenario, tmp_path
):
    strategy = small(tools)
    # It adds a setting to each group, and may leave a rate as a whole number.
    torch.optim.lr_scheduler.LambdaLR(strategy.optimizer, lambda step: 0.5)
    strategy.optimizer.param_groups[0]["lr"] = 1
    train(strategy, scenario.train_stream[0])
    strategy.save(tmp_path / "it.pt", backbone=True)
    again = RwFStrategy.load(tmp_path / "it.pt", evaluator=tools.silent())
    assert_same(strategy, again)
    assert again.optimizer.param_groups[0]["lr"] == 1
    state = strategy.trained_state()
    for damage in ("lr", "betas", "name"):
        groups = [dict(group) for group in state["optimizer"]["param_groups"]]
        del groups[-1][damage]
        with pytest.raises(ValueError, match="does not fit this optimizer: other parameter groups"):
            small(tools).load_trained_state(
                {**state, "optimizer": {**state["optimizer"], "param_groups": groups}}
            )
    groups[-1]["name"] = groups[0]["name"]
    with pytest.raises(ValueError, match="other parameter groups"):
        small(tools).load_trained_state(
            {**state, "optimizer": {**state["optimizer"], "param_groups": groups}}
        )


class Payload:
    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["pickle", "torch", "cut", "state", "absent", "folder"])
def test_what_is_no_saved_strategy_is_refused_and_not_run(kind, tools, scenario, tmp_path):
    import pickle

    path = tmp_path / "rwf.pt"
    small(tools).save(path, backbone=True)
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    elif kind == "torch":
        torch.save({"format": 1, "state": Payload(tmp_path / "executed")}, path)
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "state":
        save_state(path, {"format": 1})
    else:
        path.unlink()
        if kind == "folder":
            path.mkdir()
    with pytest.raises(UsageError, match=r"^path takes a file that .*\.$"):
        RwFStrategy.load(path)
    assert not (tmp_path / "executed").exists()


def test_what_cannot_be_saved_as_plain_values_is_named(tools, tmp_path):
    strategy = small(tools, backbone_kwargs={**SMALL, "norm_layer": torch.nn.LayerNorm})
    with pytest.raises(UsageError, match="backbone_kwargs must be plain values"):
        strategy.save(tmp_path / "rwf.pt")


def test_a_tensor_among_the_options_is_no_plain_value(tools, tmp_path):
    strategy = small(tools, routing_kwargs={"log_prior": torch.zeros(5)})
    with pytest.raises(UsageError, match=r"routing_kwargs must be plain values .* not a Tensor"):
        strategy.save(tmp_path / "rwf.pt")


# ---- a loop of one's own


class Cut(BaseException):
    pass


def counted(strategy, cut: int | None) -> list[int]:
    """Gets an item for each training step; ends the process, so to speak, after `cut` of them."""
    steps: list[int] = []
    step = strategy.optimizer_step

    def count() -> None:
        if len(steps) == cut:
            raise Cut
        steps.append(1)
        step()

    strategy.optimizer_step = count
    return steps


def loop(tools, scenario, folder, every=1, cut=None, log=None, **options):
    """What a user's script does from its start to its end; cut after so many training steps."""
    said = [] if log is None else log
    recorder = PredictionRecorder()
    strategy = small(tools, plugins=[recorder], **options)
    steps = counted(strategy, cut)
    checkpoints = CheckpointPlugin(folder, every=every, log=said.append)
    for experience in checkpoints.experiences(strategy, scenario.train_stream):
        train(strategy, experience)
        strategy.eval(scenario.test_stream)
    return strategy, recorder, len(steps)


@pytest.mark.parametrize("options", [{}, {"buffer": 6, "gradient_steps": 2}])
def test_a_loop_goes_on_within_an_experience(options, tools, scenario, tmp_path):
    whole, points, total = loop(tools, scenario, tmp_path / "whole", every=0, **options)
    per_batch = options.get("gradient_steps", 1)
    cuts = [3 * per_batch, 4 * per_batch]
    for cut in cuts:
        with pytest.raises(Cut):
            loop(tools, scenario, tmp_path / "cut", cut=cut, **options)
        torch.rand(3)
    log: list[str] = []
    again, more, steps = loop(tools, scenario, tmp_path / "cut", log=log, **options)
    assert steps == total - sum(cuts)
    assert log == ["resumed in experience 1 after 10 samples"]
    assert_same(whole, again)
    assert len(points.points) == len(more.points) == 3
    for a, b in zip(points.points, more.points, strict=True):
        assert a.samples_seen == b.samples_seen
        assert (a.predictions == b.predictions).all()
    assert again.clock.train_iterations == whole.clock.train_iterations
    # Nothing is left to do.
    assert loop(tools, scenario, tmp_path / "cut", **options)[2] == 0


def test_several_epochs_go_on_from_experience_ends_alone(tools, scenario, tmp_path):
    whole, _, total = loop(tools, scenario, tmp_path / "whole", train_epochs=2)
    with pytest.raises(Cut):
        loop(tools, scenario, tmp_path / "cut", cut=total // 2, train_epochs=2)
    again, _, steps = loop(tools, scenario, tmp_path / "cut", train_epochs=2)
    assert steps == total * 2 // 3
    assert_same(whole, again)


@pytest.mark.parametrize("how", [{}, {"shuffle": True}])
def test_a_loop_that_shuffles_goes_on_from_experience_ends_alone(how, tools, scenario, tmp_path):
    """Avalanche shuffles unless it is told not to: the rest of an experience is not known then."""

    def shuffling(folder, cut=None):
        strategy = small(tools)
        steps = counted(strategy, cut)
        stream = scenario.train_stream
        for experience in CheckpointPlugin(folder, every=1).experiences(strategy, stream):
            strategy.train(experience, **how)
        return strategy, len(steps)

    torch.manual_seed(5)
    whole, total = shuffling(tmp_path / "whole")
    torch.manual_seed(5)
    with pytest.raises(Cut):
        shuffling(tmp_path / "cut", cut=total // 2)
    again, steps = shuffling(tmp_path / "cut")
    assert steps == total * 2 // 3
    assert_same(whole, again)


def test_another_strategys_checkpoint_is_refused_with_what_differs(tools, scenario, tmp_path):
    with pytest.raises(Cut):
        loop(tools, scenario, tmp_path, cut=3)
    with pytest.raises(UsageError, match=r"is of another train_mb_size \(5, here 4\)"):
        loop(tools, scenario, tmp_path, train_mb_size=4)


def test_another_stream_of_the_same_sizes_is_refused(tools, scenario, tmp_path):
    """As another seed of the script makes it."""
    with pytest.raises(Cut):
        loop(tools, scenario, tmp_path, cut=3)
    checkpoints = CheckpointPlugin(tmp_path)
    stream = list(scenario.train_stream)[::-1]
    assert len({len(experience.dataset) for experience in stream}) == 1
    with pytest.raises(UsageError, match="is of another order of the classes"):
        next(checkpoints.experiences(small(tools, plugins=[PredictionRecorder()]), stream))


def test_another_rate_is_refused_and_a_checkpoint_that_names_none_is_not(
    tools, scenario, tmp_path
):
    with pytest.raises(Cut):
        loop(tools, scenario, tmp_path, cut=3)
    with pytest.raises(UsageError, match="is of another learning rates"):
        loop(tools, scenario, tmp_path, lr=0.5)
    path = tmp_path / checkpoint.NAME
    state = read_state(path)
    del state["identity"]["learning rates"], state["identity"]["order of the classes"]
    save_state(path, state)
    log: list[str] = []
    loop(tools, scenario, tmp_path, log=log)
    assert log[0].startswith("resumed in experience 0 after")


def test_rates_that_are_given_to_load_are_over_the_saved_ones(tools, scenario, tmp_path):
    saved = small(tools, lr=0.25)
    train(saved, scenario.train_stream[0])
    for group in saved.optimizer.param_groups:
        group["lr"] /= 2  # what a scheduler does
    saved.save(tmp_path / "rwf.pt", backbone=True)

    def rates(**given) -> dict[str, float]:
        again = RwFStrategy.load(tmp_path / "rwf.pt", evaluator=None, **given)
        return {group["name"]: group["lr"] for group in again.optimizer.param_groups}

    before = rates()
    assert before["head"] == 0.125
    assert rates(lr=0.5) == {**before, "head": 0.5}
    assert rates(learning_rates={"queries": 0.75}) == {**before, "queries": 0.75}


def test_a_checkpoint_with_a_part_missing_is_refused(tools, scenario, tmp_path):
    with pytest.raises(Cut):
        loop(tools, scenario, tmp_path, cut=3)
    path = tmp_path / checkpoint.NAME
    state = read_state(path)
    del state["strategy"]["model"]["seen"]
    save_state(path, state)
    with pytest.raises(UsageError, match=r"checkpoints of this strategy, and .* does not fit \("):
        loop(tools, scenario, tmp_path)


@pytest.mark.parametrize("options", [{}, {"buffer": 6, "buffer_policy": "class-balanced"}])
def test_what_could_not_be_loaded_is_not_saved(options, tools, scenario, tmp_path):
    path = tmp_path / "rwf.pt"
    strategy = small(tools, **options)
    train(strategy, scenario.train_stream[0])
    with pytest.raises(UsageError, match=r"backbone must be True .* pretrained=False"):
        strategy.save(path)
    assert not path.exists()
    strategy.save(path, backbone=True)
    again = RwFStrategy.load(path, evaluator=tools.silent())
    assert_same(strategy, again)
    assert getattr(again.replay, "buffer_policy", None) == options.get("buffer_policy")
