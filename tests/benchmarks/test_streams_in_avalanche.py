"""Every kind of stream as an Avalanche benchmark: labels, test experiences, and its strategies."""

from __future__ import annotations

import copy
import warnings

import avalanche.benchmarks  # noqa: F401  # once, with its warnings, before they are errors
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from avalanche_rwf.benchmarks.options import StreamOptions
from avalanche_rwf.benchmarks.splits import ImageSource, make_benchmark
from avalanche_rwf.benchmarks.stream_registry import list_streams
from avalanche_rwf.errors import UsageError

CLASSES, TRAIN, TEST = 7, 12, 4
NAMES = [f"name{c}" for c in range(CLASSES)]


class Counted(Dataset):
    """Images whose pixels say where they come from; `looked_at` counts them."""

    def __init__(self, targets, side=2):
        self.targets, self.side, self.looked_at = targets, side, 0

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        self.looked_at += 1
        return torch.full((3, self.side, self.side), float(index)), self.targets[index]


def make(
    stream="split", seed=0, experiences=None, holdout=0.0, classes=CLASSES, images=TRAIN, side=2,
    **options,
):  # fmt: skip
    train = [c for _ in range(images) for c in range(classes)]
    test = [c for _ in range(TEST) for c in range(classes)]
    names = [f"name{c}" for c in range(classes)]
    source = ImageSource(Counted(train, side), train, Counted(test, side), test, names, 3)
    half = (0.5, 0.5, 0.5)
    chosen = StreamOptions(
        seed, experiences, 2, half, half, "bilinear",
        holdout=holdout, stream=stream, stream_options=options,
    )  # fmt: skip
    return make_benchmark("unit-test", source, chosen), source


@pytest.mark.parametrize("stream", list_streams())
@pytest.mark.parametrize("holdout", [0.0, 0.25])
def test_labels_classes_and_test_experiences(stream, holdout):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        benchmark, source = make(stream, seed=1, holdout=holdout)
    assert source.train.looked_at == source.test.looked_at == 0
    original = [NAMES.index(name) for name in benchmark.class_names]
    seen: set[int] = set()
    tested: list[int] = []
    for number, experience in enumerate(benchmark.train_stream):
        classes = experience.classes_in_this_experience
        assert isinstance(classes, list)
        rows = [(int(x[0, 0, 0]), y, t) for x, y, t in experience.dataset]
        assert all(t == 0 and source.train_targets[i] == original[y] for i, y, t in rows)
        labels = [y for _, y, _ in rows]
        assert sorted(classes) == sorted(set(labels)) == benchmark.classes_per_experience[number]
        assert list(experience.dataset.targets) == labels
        new = sorted(set(labels) - seen)
        assert benchmark.first_seen[number] == new
        # Classes are numbered as they come.
        assert new == list(range(len(seen), len(seen) + len(new)))
        seen.update(new)
        part = benchmark.test_stream[number]
        assert part.current_experience == number
        assert sorted(set(part.dataset.targets)) == new
        tested += [int(x[0, 0, 0]) for x, _, _ in part.dataset]
        data = source.train_targets if holdout else source.test_targets
        assert all(data[int(x[0, 0, 0])] == original[y] for x, y, _ in part.dataset)
    assert seen == set(range(CLASSES)) and benchmark.num_classes == CLASSES
    assert len(tested) == len(set(tested)) == benchmark.test_size
    assert benchmark.test_size == CLASSES * (3 if holdout else TEST)
    assert benchmark.train_size == sum(len(e.dataset) for e in benchmark.train_stream)
    if holdout:
        used = {int(x[0, 0, 0]) for e in benchmark.train_stream for x, _, _ in e.dataset}
        assert not used & set(tested)


def test_classes_that_the_remainder_drops_are_not_tested():
    kept, _ = make("si-blurry", experiences=4, disjoint=60)
    dropped, _ = make("si-blurry", experiences=4, disjoint=60, remainder="drop")
    # 4 of 7 classes are disjoint, the other 3 do not fill 4 sessions.
    assert (kept.num_classes, dropped.num_classes) == (7, 4)
    assert dropped.test_size == 4 * TEST
    assert dropped.scenario.n_classes == 4
    with pytest.raises(UsageError, match="keeps 0 of the 7 classes"):
        make("si-blurry", experiences=8, remainder="drop")


def test_experiences_may_be_empty():
    benchmark, _ = make("si-blurry", experiences=12, seed=1)
    sizes = [len(e.dataset) for e in benchmark.scenario.train_stream]
    assert 0 in sizes and sum(sizes) == CLASSES * TRAIN
    empty = benchmark.scenario.train_stream[sizes.index(0)]
    assert empty.classes_in_this_experience == []
    # Avalanche's loaders fail on them, so the stream to train on is without, under its numbers.
    numbers = [e.current_experience for e in benchmark.train_stream]
    assert numbers == [number for number, size in enumerate(sizes) if size]
    assert [len(e.dataset) for e in benchmark.train_stream] == [size for size in sizes if size]
    whole, _ = make("split")
    assert whole.train_stream is whole.scenario.train_stream


def test_class_order_by_name_number_and_as_they_are():
    names = NAMES[::-1]
    assert make("split", class_order=names)[0].class_names == names
    assert make("k-shot", class_order=list("6543210"))[0].class_names == names
    fscil, _ = make("fscil", class_order="sorted", base=3, way=2, shots=2)
    assert fscil.class_names == NAMES
    assert [len(e.dataset) for e in fscil.train_stream] == [36, 4, 4]
    explicit, _ = make("split", classes_per_experience=[5, 2])
    assert explicit.classes_per_experience == [[0, 1, 2, 3, 4], [5, 6]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_order": ["name0", "nom1"]}, "there is no class 'name0'|no class 'nom1'"),
        ({"class_order": ["0", "1"]}, "takes each of the 7 classes once, not 2 names"),
        ({"class_order": ["0"] * 7}, "takes each of the 7 classes once"),
        ({"classes_per_experience": [5, 3]}, "must add up to the 7 classes"),
        ({"classes_per_experience": [5, 2], "experiences": 3}, "has 2 numbers, and --experiences"),
        ({"experiences": 8}, "experiences is at most the number of classes, 7"),
    ],
)
def test_options_that_do_not_fit_the_classes(options, message):
    with pytest.raises(UsageError, match=message):
        make("split", **options)


def test_a_class_with_too_few_images_is_noted():
    benchmark, _ = make("k-shot", shots=13)
    assert benchmark.notes == (
        "7 classes have fewer than 13 training images; the stream has all of them.",
    )
    assert make("k-shot", shots=12)[0].notes == ()


def build(name, plugins=(), batch=8):
    """A strategy of Avalanche's on a linear model that is always the same."""
    from avalanche.training import supervised
    from avalanche.training.plugins import EvaluationPlugin

    torch.manual_seed(0)
    flat, head = torch.nn.Flatten(), torch.nn.Linear(12, CLASSES)
    model = torch.nn.Sequential(flat, head)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = {
            "criterion": torch.nn.CrossEntropyLoss(),
            "train_mb_size": batch,
            "evaluator": EvaluationPlugin(),
            "plugins": list(plugins),
        }
        if name == "StreamingLDA":
            arguments.update(
                slda_model=model, input_size=12, num_classes=CLASSES, output_layer_name="0"
            )
        else:
            arguments.update(model=model, optimizer=torch.optim.SGD(model.parameters(), 1e-4))
        return getattr(supervised, name)(**arguments)


def train(strategy, benchmark, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for experience in benchmark.train_stream:
            strategy.train(experience, **kwargs)


# Of the second one, the blurry streams have experiences without samples.
@pytest.mark.parametrize(("seed", "experiences"), [(2, 4), (1, 7)])
@pytest.mark.parametrize("stream", list_streams())
@pytest.mark.parametrize("name", ["Naive", "Replay", "StreamingLDA"])
def test_avalanches_strategies_train_and_evaluate(stream, name, seed, experiences):
    benchmark, _ = make(stream, seed=seed, experiences=experiences)
    strategy = build(name)
    train(strategy, benchmark)
    values = strategy.eval(benchmark.test_stream)
    batches = [-(-len(e.dataset) // 8) for e in benchmark.train_stream]
    assert strategy.clock.train_iterations == sum(batches)
    assert strategy.clock.train_exp_counter == sum(map(bool, benchmark.class_counts))
    assert isinstance(values, dict)


@pytest.mark.parametrize("stream", list_streams())
def test_avalanches_l2p_trains_and_evaluates(stream, tools):
    """Avalanche's own class, which reads each experience's classes and the task labels."""
    from avalanche.training.supervised.l2p import LearningToPrompt

    from avalanche_rwf.evaluation.recorder import PredictionRecorder
    from avalanche_rwf.strategies.registry import create_strategy

    benchmark, _ = make(stream, seed=1, experiences=4, side=16)
    recorder = PredictionRecorder()
    strategy = create_strategy(
        "avalanche-l2p-as-shipped",
        backbone=tools.vit(img_size=16, depth=1, embed_dim=16, num_heads=2),
        num_classes=CLASSES,
        pool_size=4,
        prompt_length=1,
        top_k=2,
        loop={"train_mb_size": 8, "evaluator": tools.silent(), "plugins": [recorder]},
    )
    assert isinstance(strategy, LearningToPrompt)
    prompts = strategy.model.prompt.prompt.clone()
    train(strategy, benchmark)
    strategy.eval(benchmark.test_stream)
    assert len(recorder.points[-1].targets) == benchmark.test_size
    assert all(torch.isfinite(p).all() for p in strategy.model.parameters())
    assert not torch.equal(strategy.model.prompt.prompt, prompts)


@pytest.mark.parametrize("stream", list_streams())
def test_anytime_evaluation_changes_no_weight_on_any_stream(stream):
    from avalanche_rwf.evaluation.recorder import AnytimeEvaluation, PredictionRecorder

    def weights(plugins):
        benchmark, _ = make(stream, seed=1, experiences=4)
        strategy = build("Naive", plugins(benchmark.test_stream), batch=2)
        torch.manual_seed(3)
        train(strategy, benchmark)  # shuffled: a draw too many would change the order
        return list(strategy.model.parameters()), strategy.plugins

    plain, _ = weights(lambda tests: [])
    for subset in (None, CLASSES):
        watched, plugins = weights(
            lambda tests, subset=subset: [
                PredictionRecorder(),
                AnytimeEvaluation(tests, 3, subset=subset),
            ]
        )
        assert len(plugins[0].points) > 2
        assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))


@pytest.mark.parametrize("stream", list_streams())
def test_a_thousand_classes_and_50000_images_are_dealt_without_looking_at_one(stream):
    benchmark, source = make(stream, classes=1000, images=50)
    assert len(source.train_targets) == 50_000
    assert source.train.looked_at == source.test.looked_at == 0
    assert benchmark.num_classes == 1000
    first = benchmark.train_stream[0].dataset
    assert first[0][1] in benchmark.classes_per_experience[0]
    assert source.train.looked_at == 1


def test_the_order_of_a_blurry_stream_is_that_of_the_dealing():
    from avalanche_rwf.benchmarks.streams.si_blurry import si_blurry

    benchmark, source = make("si-blurry", seed=3)
    dealt = si_blurry(np.asarray(source.train_targets), 3, 3)
    for experience, positions in zip(benchmark.train_stream, dealt, strict=True):
        assert [int(x[0, 0, 0]) for x, _, _ in experience.dataset] == positions.tolist()


@pytest.mark.parametrize("stream", list_streams())
def test_avalanches_helpers_take_a_benchmark(stream):
    from avalanche import benchmarks as theirs
    from avalanche.benchmarks.scenarios.generic_scenario import CLScenario

    benchmark, _ = make(stream, seed=1, experiences=12 if "blurry" in stream else 4)
    assert isinstance(benchmark, CLScenario)
    assert benchmark.n_classes == CLASSES and set(benchmark.streams) == {"train", "test"}
    assert benchmark.n_experiences == len(benchmark.train_stream)
    train, names = benchmark.train_stream, [NAMES.index(name) for name in benchmark.class_names]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that streams become lists
        parted = theirs.benchmark_with_validation_stream(benchmark, validation_size=0.25)
        dated = theirs.with_classes_timeline(benchmark)
        # Avalanche's own fails on a test experience without samples, as blurry streams have.
        whole = all(len(e.dataset) for e in benchmark.test_stream)
        tasks = theirs.task_incremental_benchmark(
            benchmark if whole else CLScenario([train]), reset_task_labels=True
        )
    parts = [sum(len(e.dataset) for e in s) for s in (parted.train_stream, parted.valid_stream)]
    assert sum(parts) == benchmark.train_size and 0.1 < parts[1] / sum(parts) < 0.4
    assert len(parted.test_stream) == len(benchmark.test_stream)
    for whole, one, two in zip(train, parted.train_stream, parted.valid_stream, strict=True):
        rows = [float(x[0, 0, 0]) for part in (one, two) for x, *_ in part.dataset]
        assert sorted(rows) == sorted(float(x[0, 0, 0]) for x, *_ in whole.dataset)
    seen: set[int] = set()
    for whole, one, task in zip(train, dated.train_stream, tasks.train_stream, strict=True):
        assert one.previous_classes == seen
        seen |= set(whole.classes_in_this_experience)
        assert one.classes_seen_so_far == seen
        assert {t for *_, t in task.dataset} == {task.task_label}
    online = theirs.split_online_stream(train, experience_size=5, seed=0)
    assert sum(len(e.dataset) for e in online) == benchmark.train_size
    # What `nc_benchmark` has is there too, of what the stream holds.
    assert benchmark.classes_order_original_ids == names
    assert [set(benchmark.classes_in_experience["train"][e.current_experience]) for e in train] == [
        set(e.classes_in_this_experience) for e in train
    ]
    assert len(benchmark.original_train_dataset) == benchmark.train_size
    assert len(benchmark.original_test_dataset) == benchmark.test_size
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = benchmark.nonsense
    assert copy.copy(benchmark).n_classes == CLASSES


def test_a_benchmark_alone_has_the_packaged_backbones_images():
    from avalanche_rwf.benchmarks.registry import create_benchmark

    benchmark = create_benchmark("split-digits")
    assert (benchmark.n_experiences, benchmark.n_classes) == (5, 10)
    assert benchmark.train_stream[0].dataset[0][0].shape == (3, 32, 32)
