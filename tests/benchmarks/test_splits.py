"""Streams: class order, sizes, hold-out, sample order, and the contract with Avalanche."""

from __future__ import annotations

import io
import pickle
import warnings

import numpy as np
import pytest
import torch
from avalanche.benchmarks import split_online_stream
from avalanche.benchmarks.scenarios.deprecated.new_classes import NCScenario
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import TextLogger
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from torch.utils.data import DataLoader

from avalanche_rwf.benchmarks.images import Subset
from avalanche_rwf.benchmarks.options import StreamOptions
from avalanche_rwf.benchmarks.splits import (
    ImageSource,
    class_order,
    experience_sizes,
    make_benchmark,
    stratified_part,
)
from avalanche_rwf.errors import UsageError

CLASSES, TRAIN, TEST = 7, 12, 4


class Counted(torch.utils.data.Dataset):
    """Images whose pixels say where they come from: [split, position, column]."""

    def __init__(self, split, targets):
        self.split, self.targets = split, targets

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        image = torch.arange(2.0).expand(3, 2, 2).clone()
        image[0], image[1] = self.split, index
        return image, self.targets[index]


def source(**kwargs):
    train = [c for _ in range(TRAIN) for c in range(CLASSES)]
    test = [c for _ in range(TEST) for c in range(CLASSES)]
    names = [f"name{c}" for c in range(CLASSES)]
    default = {"default_experiences": 3}
    return ImageSource(
        Counted(0, train), train, Counted(1, test), test, names, **{**default, **kwargs}
    )


def split(seed=0, experiences=None, data=None, **kwargs):
    numbers = (0.5, 0.5, 0.5)
    options = StreamOptions(seed, experiences, 2, numbers, numbers, "bilinear", **kwargs)
    return make_benchmark("unit-test", data or source(), options)


def samples(stream):
    """[(split, position, label, task)] of each experience, in order."""
    return [
        [(int(x[0, 0, 0]), int(x[1, 0, 0]), y, t) for x, y, t in experience.dataset]
        for experience in stream
    ]


def test_experience_sizes_are_as_even_as_possible():
    assert experience_sizes(41, 8) == [6, 5, 5, 5, 5, 5, 5, 5]
    assert experience_sizes(10, 5) == [2] * 5
    assert experience_sizes(7, 3) == [3, 2, 2]
    assert experience_sizes(4, 4) == [1] * 4


def test_class_order_is_a_fixed_permutation_per_seed():
    assert sorted(class_order(10, 3)) == list(range(10))
    assert class_order(10, 3) == class_order(10, 3) != class_order(10, 4)
    # Golden: results of earlier runs stay comparable.
    assert class_order(10, 0) == [2, 9, 8, 3, 6, 7, 1, 4, 0, 5]
    assert class_order(10, 1) == [0, 6, 2, 7, 9, 8, 3, 1, 4, 5]


def test_a_held_out_part_has_its_share_of_each_class():
    targets = [0] * 10 + [1] * 3 + [2] * 2
    rest, part = stratified_part(targets, 0.2, 7)
    assert sorted([*rest, *part]) == list(range(15))
    assert np.bincount(np.asarray(targets)[part]).tolist() == [2, 1, 1]
    again = stratified_part(targets, 0.2, 7)
    assert part.tolist() == again[1].tolist() != stratified_part(targets, 0.2, 8)[1].tolist()
    _, most = stratified_part(targets, 0.99, 7)
    assert np.bincount(np.asarray(targets)[most]).tolist() == [9, 2, 1]
    with pytest.raises(UsageError, match="class number 1 has a single training image"):
        stratified_part([0, 0, 1], 0.5, 7)


def test_the_scenario_is_what_avalanches_strategies_expect():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        benchmark = split()
    assert isinstance(benchmark.scenario, NCScenario)
    assert (benchmark.num_classes, benchmark.train_size, benchmark.test_size) == (7, 84, 28)
    assert benchmark.classes_per_experience == [[0, 1, 2], [3, 4], [5, 6]]
    order = class_order(CLASSES, 0)
    assert benchmark.class_names == [f"name{c}" for c in order]
    assert benchmark.scenario.classes_order_original_ids == order
    assert benchmark.scenario.n_classes_per_exp == [3, 2, 2]
    for stream, size in ((benchmark.train_stream, TRAIN), (benchmark.test_stream, TEST)):
        for number, experience in enumerate(stream):
            classes = benchmark.classes_per_experience[number]
            assert isinstance(experience.classes_in_this_experience, list)
            assert sorted(experience.classes_in_this_experience) == classes
            assert experience.current_experience == number
            assert len(experience.dataset) == size * len(classes)
            assert list(experience.dataset.targets) == [y for _, y, _ in experience.dataset]
            assert experience.task_labels == [0]
    x, y, t = benchmark.train_stream[0].dataset[0]
    assert x.shape == (3, 2, 2) and isinstance(y, int) and t == 0
    assert benchmark.train_stream[1].previous_classes is not None
    assert benchmark.scenario.train_stream is benchmark.train_stream


def test_labels_are_the_remapped_classes_and_every_sample_comes_once():
    data = source()
    benchmark = split(data=data)
    order = class_order(CLASSES, 0)
    for number, targets in ((0, data.train_targets), (1, data.test_targets)):
        stream = benchmark.test_stream if number else benchmark.train_stream
        rows = [row for part in samples(stream) for row in part]
        assert {split for split, *_ in rows} == {number}
        assert sorted(index for _, index, *_ in rows) == list(range(len(targets)))
        assert all(order[label] == targets[index] for _, index, label, _ in rows)


def test_the_order_is_mixed_fixed_and_by_seed():
    first = samples(split(seed=1).train_stream)
    assert first == samples(split(seed=1).train_stream)
    assert first != samples(split(seed=2).train_stream)
    labels = [label for _, _, label, _ in first[0]]
    assert labels != sorted(labels) and sorted(set(labels)) == [0, 1, 2]
    tests = [label for _, _, label, _ in samples(split(seed=1).test_stream)[0]]
    assert tests != sorted(tests)


def test_sub_experiences_and_loaders_keep_the_order():
    benchmark = split()
    whole = [row for part in samples(benchmark.train_stream) for row in part]
    online = split_online_stream(benchmark.train_stream, experience_size=5, shuffle=False)
    assert [row for part in samples(online) for row in part] == whole
    loader = DataLoader(benchmark.train_stream[0].dataset, batch_size=5, num_workers=1)
    positions = torch.cat([x[:, 1, 0, 0] for x, _, _ in loader]).int().tolist()
    assert positions == [index for _, index, *_ in whole[: len(positions)]]


def test_avalanches_own_strategy_trains_on_it():
    benchmark = split()
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, CLASSES))
    quiet = TextLogger(io.StringIO())
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=8,
        evaluator=EvaluationPlugin(accuracy_metrics(stream=True), loggers=[quiet]),
    )
    for experience in benchmark.train_stream:
        strategy.train(experience, shuffle=False)
    values = strategy.eval(benchmark.test_stream[:2])
    assert any(name.startswith("Top1_Acc_Stream/eval_phase/test_stream") for name in values)


def test_holdout_replaces_the_test_images_by_training_images():
    plain, held = split(seed=3), split(seed=3, holdout=0.25)
    assert (held.train_size, held.test_size) == (63, 21)
    train = [row for part in samples(held.train_stream) for row in part]
    test = [row for part in samples(held.test_stream) for row in part]
    assert {split for split, *_ in train + test} == {0}
    assert not {i for _, i, *_ in train} & {i for _, i, *_ in test}
    assert sorted(i for _, i, *_ in train + test) == list(range(84))
    assert [len(part) for part in samples(held.test_stream)] == [9, 6, 6]
    assert held.classes_per_experience == plain.classes_per_experience
    other = [i for part in samples(split(seed=4, holdout=0.25).test_stream) for _, i, *_ in part]
    assert sorted(other) == sorted(i for _, i, *_ in test)


def test_flips_are_fixed_by_seed_and_sample_and_never_in_the_test():
    def flips(benchmark, stream="train"):
        out = {}
        for experience in getattr(benchmark, f"{stream}_stream"):
            for x, _, _ in experience.dataset:
                out[int(x[1, 0, 0])] = bool(x[2, 0, 0] > x[2, 0, 1])
        return out

    once = flips(split(seed=1, augment="flip"))
    assert 0.25 < sum(once.values()) / len(once) < 0.75
    assert once == flips(split(seed=1, augment="flip")) != flips(split(seed=2, augment="flip"))
    held = split(seed=1, augment="flip", holdout=0.25)
    assert flips(held).items() <= once.items()
    for stream in (split(augment="flip"), held):
        assert not any(flips(stream, "test").values())
    assert not any(flips(split(seed=1)).values())


@pytest.mark.parametrize(
    ("kwargs", "experiences", "message"),
    [
        ({}, 8, "experiences is at most the number of classes, 7"),
        ({"equal_experiences": True}, 3, "must divide the 7 classes"),
        ({"class_names": ["only"]}, 1, "has 1 class; a stream needs at least 2"),
    ],
)
def test_impossible_streams_are_refused(kwargs, experiences, message):
    data = source()
    for key, value in kwargs.items():
        setattr(data, key, value)
    with pytest.raises(UsageError, match=message):
        split(experiences=experiences, data=data)


def test_one_experience_and_one_class_each():
    assert split(experiences=1).classes_per_experience == [list(range(7))]
    assert split(experiences=7).classes_per_experience == [[c] for c in range(7)]


def test_subsets_travel_to_workers():
    part = Subset(Counted(0, [0, 1, 2]), [2, 0], [5, 6], [True, False])
    copy = pickle.loads(pickle.dumps(part))
    assert [label for _, label in copy] == [5, 6]
    assert torch.equal(copy[0][0], part[0][0])
