"""Samples of the stream, counted against the images that a loop has really trained on."""

from __future__ import annotations

import pytest
import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.benchmarks.utils import _make_taskaware_classification_dataset
from avalanche.benchmarks.utils.data_loader import ReplayDataLoader
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training import JointTraining, Naive
from avalanche.training.plugins import EvaluationPlugin, GDumbPlugin, ReplayPlugin
from avalanche.training.supervised import Cumulative
from torch.utils.data import DataLoader, TensorDataset

from avalanche_rwf import AnytimeEvaluation, DataFrameLogger, PredictionRecorder
from avalanche_rwf.errors import UsageError

pytestmark = pytest.mark.filterwarnings("ignore:No loggers", "ignore::DeprecationWarning")


def stored(x, y):
    """A data set that keeps its samples itself."""
    data = TensorDataset(x, y)
    return _make_taskaware_classification_dataset(data, targets=y.tolist(), task_labels=0)


class Truth(SupervisedPlugin):
    """Different images of the experience at hand (of any that is named) trained on, at each step.

    The blobs are all different, so an image is known by its bytes.
    """

    def __init__(self, *experiences):
        super().__init__()
        self.names = [e.current_experience for e in experiences]
        self.own = {bytes(x.numpy()) for e in experiences for x, *_ in e.dataset}
        self.seen, self.steps = set(), []

    def after_forward(self, strategy, **kwargs):
        # The batch as the loader gave it.
        new = {bytes(x.numpy()) for x in strategy.mb_x} & self.own
        if strategy.experience.current_experience in self.names:
            self.seen |= new
        self.steps.append(len(self.seen))


def loop(kind, truths, plugins=(), train_mb_size=8, **kwargs):
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 6)
    table = DataFrameLogger()
    return kind(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=train_mb_size,
        eval_mb_size=10,
        plugins=[*plugins, *truths],
        evaluator=EvaluationPlugin(accuracy_metrics(minibatch=True), loggers=[table]),
        **kwargs,
    ), table


def counted(table):
    rows = table.to_frame()
    return rows[rows["metric"] == "Top1_Acc_MB"]["samples_seen"].tolist()


def expected(truths):
    return [sum(steps) for steps in zip(*(truth.steps for truth in truths), strict=True)]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("kind", [Naive, Cumulative])
def test_only_new_samples_count_where_old_ones_are_mixed_in(kind, shuffle, nc):
    truths = [Truth(experience) for experience in nc.train_stream]
    recorder = PredictionRecorder()
    strategy, table = loop(kind, truths, [ReplayPlugin(mem_size=10, batch_size=5), recorder])
    for experience in nc.train_stream:
        strategy.train(experience, shuffle=shuffle)
        strategy.eval(nc.test_stream)
    assert counted(table) == expected(truths)
    assert [(p.samples_seen, p.experience) for p in recorder.points] == [(40, 0), (80, 1), (120, 2)]


def test_gdumb_counts_what_its_buffer_keeps_of_the_experience(nc):
    truths = [Truth(experience) for experience in nc.train_stream]
    recorder = PredictionRecorder()
    strategy, table = loop(Naive, truths, [recorder, GDumbPlugin(mem_size=24)])
    for experience in nc.train_stream:
        strategy.train(experience)
        strategy.eval(nc.test_stream)
    assert counted(table) == expected(truths)
    assert [p.samples_seen for p in recorder.points] == [24, 36, 44]
    assert [p.experience for p in recorder.points] == [0, 1, 2]


def test_joint_training_counts_all_and_ends_with_the_last_experience(nc):
    truths = [Truth(*nc.train_stream)]
    recorder = PredictionRecorder()
    anytime = AnytimeEvaluation(nc.test_stream, every=48)
    strategy, table = loop(JointTraining, truths, [recorder, anytime])
    strategy.train(nc.train_stream)
    strategy.eval(nc.test_stream)
    assert counted(table) == expected(truths) == list(range(8, 121, 8))
    labels = [(p.samples_seen, p.experience) for p in recorder.points]
    assert labels == [(48, None), (96, None), (120, 2)]


def test_images_of_the_same_experience_that_are_replayed_do_not_count(nc):
    first = nc.train_stream[0]
    recorder = PredictionRecorder()
    plugins = [ReplayPlugin(mem_size=40, batch_size=4, batch_size_mem=4), recorder]
    strategy, table = loop(Naive, [], plugins)
    strategy.train(first)
    strategy.train(first)
    assert counted(table) == [*range(8, 41, 8), *range(44, 81, 4)]


def test_epochs_count_again_and_dropped_samples_do_not(nc):
    strategy, table = loop(Naive, [], train_mb_size=12, train_epochs=2)
    strategy.train(nc.train_stream[0], drop_last=True)
    assert counted(table) == list(range(12, 73, 12))


@pytest.mark.parametrize("replay", [False, True])
def test_sub_experiences_count_as_whole_ones_do(replay, nc):
    truths = [Truth(experience) for experience in nc.train_stream]
    for truth in truths:
        truth.names = list(range(100))  # they have numbers of their own
    plugins = [ReplayPlugin(mem_size=10)] if replay else []
    strategy, table = loop(Naive, truths, plugins, train_mb_size=7)
    strategy.train(split_online_stream(nc.train_stream, 7, shuffle=False), shuffle=False)
    assert counted(table)[-1] == 120
    assert counted(table) == expected(truths)


class TwoLoaders:
    """A loader of a user's own: a batch of each."""

    def __init__(self, data, memory, workers):
        self.loaders = [
            DataLoader(d, batch_size=n, num_workers=workers, collate_fn=data.collate_fn)
            for d, n in ((data, 5), (memory, 3))
        ]

    def __len__(self):
        return len(self.loaders[0])

    def __iter__(self):
        for new, old in zip(*self.loaders, strict=False):
            yield [torch.cat(pair) for pair in zip(new, old, strict=True)]


class GivesLoader(SupervisedPlugin):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def before_training_exp(self, strategy, **kwargs):
        strategy.dataloader = self.make(strategy.adapted_dataset)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_made_of_others_is_counted_by_what_these_give(workers, nc):
    memory = nc.train_stream[0].dataset
    truths = [Truth(nc.train_stream[1])]
    give = GivesLoader(lambda data: TwoLoaders(data, memory, workers))
    strategy, table = loop(Naive, truths, [give])
    strategy.train(nc.train_stream[1])
    assert counted(table) == expected(truths) == list(range(5, 41, 5))


def test_a_loader_with_a_sampler_of_its_own_counts_what_it_draws(nc):
    some = [3, 1, 4, 1, 5, 9, 2, 6]
    give = GivesLoader(lambda data: DataLoader(data, 4, sampler=some, collate_fn=data.collate_fn))
    truths = [Truth(nc.train_stream[0])]
    strategy, table = loop(Naive, truths, [give])
    strategy.train(nc.train_stream[0])
    assert counted(table) == expected(truths) == [3, 7]


def test_memory_that_stands_elsewhere_does_not_count(nc):
    """As with plugins that keep the images themselves, in tensors."""
    x = torch.stack([item[0] for item in nc.train_stream[0].dataset])
    y = torch.zeros(len(x), dtype=torch.long)
    copies = stored(x, y)
    give = GivesLoader(lambda data: ReplayDataLoader(data, copies, batch_size=5, batch_size_mem=5))
    strategy, table = loop(Naive, [], [give])
    strategy.train(nc.train_stream[0])
    assert counted(table) == list(range(5, 41, 5))


class Adapts(SupervisedPlugin):
    """Puts something else in the place of the experience's samples."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def after_train_dataset_adaptation(self, strategy, **kwargs):
        y = torch.zeros(self.size, dtype=torch.long)
        strategy.adapted_dataset = stored(torch.zeros(self.size, 6), y)


def test_stored_features_count_in_place_of_the_images(nc):
    strategy, table = loop(Naive, [], [Adapts(40)])
    strategy.train(nc.train_stream[0])
    assert counted(table) == list(range(8, 41, 8))


def test_what_cannot_be_counted_is_refused_before_the_first_step(nc):
    steps = Truth()
    give = GivesLoader(lambda data: iter([next(iter(DataLoader(data, 4)))]))
    strategy, _ = loop(Naive, [steps], [give])
    with pytest.raises(UsageError, match=r"^The strategy's dataloader must be .* list_it"):
        strategy.train(nc.train_stream[0])
    strategy, _ = loop(Naive, [steps], [Adapts(41)])
    with pytest.raises(UsageError, match=r"^adapted_dataset must hold .* none of its 41 .* 40 of"):
        strategy.train(nc.train_stream[0])
    assert steps.steps == []


def test_one_who_joins_late_goes_on_from_where_the_strategy_is(nc):
    strategy, _ = loop(Naive, [])
    strategy.train(nc.train_stream[0])
    recorder = PredictionRecorder()
    strategy.plugins.append(recorder)
    strategy.eval(nc.test_stream)
    assert (recorder.points[0].samples_seen, recorder.points[0].experience) == (40, 0)
    assert recorder.points[0].exposed == (0, 1)


@pytest.mark.parametrize("place", ["metric", "logger"])
def test_a_plugin_among_metrics_or_loggers_is_refused(place, nc):
    for plugin in (PredictionRecorder(), AnytimeEvaluation(nc.test_stream, 8)):
        given = {"loggers": [plugin]} if place == "logger" else {}
        metrics = [] if place == "logger" else [plugin]
        for use in ("train", "eval"):
            strategy, _ = loop(Naive, [])
            strategy.plugins.remove(strategy.evaluator)
            strategy.evaluator = EvaluationPlugin(*metrics, **given)
            strategy.plugins.insert(0, strategy.evaluator)
            with pytest.raises(UsageError, match="must be among the strategy's plugins="):
                getattr(strategy, use)(nc.train_stream[0])


@pytest.mark.parametrize("place", ["plugin", "metric"])
def test_a_logger_among_plugins_or_metrics_is_refused(place, nc):
    table = DataFrameLogger()
    for use in ("train", "eval"):
        strategy, _ = loop(Naive, [], [table] if place == "plugin" else [])
        if place == "metric":
            strategy.evaluator.metrics.append(table)
        with pytest.raises(UsageError, match="DataFrameLogger must be among the loggers"):
            getattr(strategy, use)(nc.train_stream[0])
