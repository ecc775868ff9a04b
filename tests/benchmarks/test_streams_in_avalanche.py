"""Every kind of stream as an Avalanche benchmark: labels, test experiences, and its strategies."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from avalanche_rwf.benchmarks.registry import StreamOptions
from avalanche_rwf.benchmarks.splits import ImageSource, make_benchmark
from avalanche_rwf.benchmarks.stream_registry import list_streams
from avalanche_rwf.errors import UsageError

CLASSES, TRAIN, TEST = 7, 12, 4
NAMES = [f"name{c}" for c in range(CLASSES)]


class Counted(Dataset):
    """Images whose pixels say where they come from; `looked_at` counts them."""

    def __init__(self, targets):
        self.targets, self.looked_at = targets, 0

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        self.looked_at += 1
        return torch.full((3, 2, 2), float(index)), self.targets[index]


def make(stream="split", seed=0, experiences=None, holdout=0.0, classes=CLASSES, **options):
    train = [c for _ in range(TRAIN) for c in range(classes)]
    test = [c for _ in range(TEST) for c in range(classes)]
    names = [f"name{c}" for c in range(classes)]
    source = ImageSource(Counted(train), train, Counted(test), test, names, 3)
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
    sizes = [len(e.dataset) for e in benchmark.train_stream]
    assert 0 in sizes and sum(sizes) == CLASSES * TRAIN
    empty = benchmark.train_stream[sizes.index(0)]
    assert empty.classes_in_this_experience == []


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


@pytest.mark.parametrize("stream", list_streams())
@pytest.mark.parametrize("name", ["Naive", "Replay", "StreamingLDA"])
def test_avalanches_strategies_train_and_evaluate(stream, name):
    from avalanche.training import supervised
    from avalanche.training.plugins import EvaluationPlugin

    benchmark, _ = make(stream, seed=2, experiences=4)
    flat, head = torch.nn.Flatten(), torch.nn.Linear(12, CLASSES)
    model = torch.nn.Sequential(flat, head)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = {
            "criterion": torch.nn.CrossEntropyLoss(),
            "train_mb_size": 8,
            "evaluator": EvaluationPlugin(),
        }
        if name == "StreamingLDA":
            arguments.update(
                slda_model=model, input_size=12, num_classes=CLASSES, output_layer_name="0"
            )
        else:
            arguments.update(model=model, optimizer=torch.optim.SGD(model.parameters(), 1e-4))
        strategy = getattr(supervised, name)(**arguments)
        for experience in benchmark.train_stream:
            strategy.train(experience, shuffle=False)
        strategy.eval(benchmark.test_stream)
    batches = [-(-len(e.dataset) // 8) for e in benchmark.train_stream]
    assert strategy.clock.train_iterations == sum(batches)


def test_a_thousand_classes_are_dealt_without_looking_at_an_image():
    for stream in list_streams():
        benchmark, source = make(stream, classes=1000)
        assert source.train.looked_at == 0
        assert benchmark.num_classes == 1000


def test_the_order_of_a_blurry_stream_is_that_of_the_dealing():
    from avalanche_rwf.benchmarks.streams.si_blurry import si_blurry

    benchmark, source = make("si-blurry", seed=3)
    dealt = si_blurry(np.asarray(source.train_targets), 3, 3)
    for experience, positions in zip(benchmark.train_stream, dealt, strict=True):
        assert [int(x[0, 0, 0]) for x, _, _ in experience.dataset] == positions.tolist()
