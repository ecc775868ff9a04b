"""From images to streams: held-out part, samples and labels of each experience, the Avalanche
scenario.

Which training sample comes when is dealt by the kind of stream (`streams/`). Test experience i
holds all test samples of the classes that training experience i is the first to bring, so the test
experiences up to i are the classes exposed by its end, whatever the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from avalanche_rwf.benchmarks.stream_registry import get_stream, resolve_stream_options
from avalanche_rwf.benchmarks.streams.split import class_order, experience_sizes
from avalanche_rwf.errors import UsageError, nearest
from avalanche_rwf.utils.user_code import told

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import Dataset

    from avalanche_rwf.benchmarks.benchmark import Benchmark
    from avalanche_rwf.benchmarks.images import RawImages, Subset
    from avalanche_rwf.benchmarks.options import StreamOptions

__all__ = [
    "ImageSource",
    "StreamPlan",
    "check_source",
    "class_order",
    "experience_sizes",
    "make_benchmark",
    "plan_stream",
    "stratified_part",
]

# First word of the seed of each choice; 1 and 2 are in streams/split.py.
_FLIPS, _HOLDOUT, _TEST = 3, 4, 5


@dataclass
class ImageSource:
    """Training and test images with their labels, before any split.

    :param train: items are (normalised image float32 [3, S, S], label).
    :param train_targets: its labels, 0 to C - 1, every class present.
    :param test: as `train`.
    :param test_targets: its labels; the same classes.
    :param class_names: C names, by label.
    :param default_experiences: number of experiences when none is asked for.
    :param equal_experiences: whether all experiences must have the same number of classes.
    :param skipped: unreadable images that were left out.
    :param in_memory: whether no image is decoded or resized when it is asked for.
    :param autoaug_policy: AutoAugment's policy for these images; see :mod:`.augmentation`.
    :param notes: sentences on what is to be known of the images.
    """

    train: Dataset[tuple[Tensor, int]]
    train_targets: Sequence[int]
    test: Dataset[tuple[Tensor, int]]
    test_targets: Sequence[int]
    class_names: list[str]
    default_experiences: int
    equal_experiences: bool = False
    skipped: int = 0
    in_memory: bool = True
    autoaug_policy: str = "imagenet"
    notes: tuple[str, ...] = ()


@dataclass
class StreamPlan:
    """Which sample comes in which experience, before any image is looked at.

    Labels count classes in the order in which the stream brings them; of classes that come together
    first, in the order that `streams.split.class_order` has them.

    :param order: original class of each label.
    :param class_names: C names, by label.
    :param train: positions in the training images, per experience, in order of training.
    :param test: positions in the test images (with a hold-out: in the training images).
    :param class_counts: per experience, label -> number of training samples, ascending.
    :param first_seen: per experience, the labels that it is the first to bring.
    :param options: of the stream, defaults included.
    :param notes: sentences on what is not as asked for.
    """

    order: list[int]
    class_names: list[str]
    train: list[np.ndarray]
    test: list[np.ndarray]
    class_counts: list[dict[int, int]]
    first_seen: list[list[int]]
    options: dict[str, Any]
    notes: tuple[str, ...] = ()


def stratified_part(
    targets: Sequence[int] | np.ndarray, share: float, seed: Sequence[int] | int
) -> tuple[np.ndarray, np.ndarray]:
    """Split positions into (rest, part), where `part` has `share` of every class, rounded, and both
    have at least one.

    :param targets: [N] labels.
    :param share: in (0, 1).
    :param seed: of the choice; each class is drawn on its own, so classes do not influence each
        other.
    :returns: two sorted arrays of positions.
    :raises UsageError: a class with a single image.
    """
    labels = np.asarray(targets)
    key = [seed] if isinstance(seed, int) else list(seed)
    part: list[np.ndarray] = []
    for label in np.unique(labels):
        positions = np.flatnonzero(labels == label)
        if len(positions) < 2:
            raise UsageError(
                f"a share of {share} cannot be held out: class number {label} has a single "
                "training image."
            )
        count = min(max(1, round(share * len(positions))), len(positions) - 1)
        part.append(np.random.RandomState([*key, int(label)]).permutation(positions)[:count])
    chosen = np.sort(np.concatenate(part))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def augmented(source: ImageSource, options: StreamOptions) -> Dataset[tuple[Tensor, int]]:
    """The training images with the policy `options.augment`, drawn by position and seed."""
    from avalanche_rwf.benchmarks.augmentation import create_augmentation
    from avalanche_rwf.benchmarks.images import AugmentedImages

    change = create_augmentation(options.augment, options.seed, source.autoaug_policy)
    return AugmentedImages(cast("RawImages", source.train), change)


def plan_stream(name: str, source: ImageSource, options: StreamOptions) -> StreamPlan:
    """Deal the samples to experiences; no image is decoded for it.

    :raises UsageError: fewer than two classes, an unknown stream, or options that the classes
        cannot fill.
    """
    num_classes = len(source.class_names)
    if num_classes < 2:
        raise UsageError(f"benchmark {name!r} has {num_classes} class; a stream needs at least 2.")
    spec = get_stream(options.stream)
    chosen = resolve_stream_options(options.stream, options.stream_options, name)
    arguments = {**chosen}
    if "class_order" in chosen:
        arguments["class_order"] = _class_numbers(chosen["class_order"], source.class_names)
    experiences = _experiences(name, source, options, chosen)

    targets = np.asarray(source.train_targets)
    tests, test_targets = np.arange(len(source.test_targets)), np.asarray(source.test_targets)
    positions = np.arange(len(targets))
    if options.holdout > 0:
        # Not the stream's seed: choices are made on the same images whatever the stream.
        positions, tests = stratified_part(targets, options.holdout, [_HOLDOUT])
        test_targets = targets
    with told(f"The stream {spec.name!r}", spec.origin):
        dealt = spec.deal(targets[positions], options.seed, experiences, **arguments)
        dealt = _checked_deal(spec.name, dealt, targets[positions], experiences, spec.whole)
    train = [positions[part] for part in dealt]

    present = [np.bincount(targets[part], minlength=num_classes) for part in train]
    there = np.stack(present) > 0
    first = np.where(there.any(axis=0), there.argmax(axis=0), -1)
    given = arguments.get("class_order")
    order = [c for c in class_order(num_classes, options.seed, given) if first[c] >= 0]
    order.sort(key=lambda c: first[c])  # stable
    if len(order) < 2:
        raise UsageError(
            f"--stream {options.stream} with these options keeps {len(order)} of the {num_classes} "
            f"classes of {name!r}; a stream needs at least 2."
        )
    label_of = _labels(order, num_classes)
    # A class that the stream leaves out is not tested.
    number = np.where(first >= 0, first, len(train))[test_targets[tests]]
    counts = [
        {label: int(numbers[c]) for label, c in enumerate(order) if numbers[c]}
        for numbers in present
    ]
    return StreamPlan(
        order=order,
        class_names=[source.class_names[original] for original in order],
        train=train,
        test=[
            np.random.RandomState([_TEST, exp]).permutation(tests[number == exp])
            for exp in range(len(train))
        ],
        class_counts=counts,
        first_seen=[sorted(label_of[first == exp].tolist()) for exp in range(len(train))],
        options=chosen,
        notes=(*source.notes, *_notes(chosen, targets[positions])),
    )


def check_source(name: str, source: Any) -> None:
    """Refuse images whose labels do not fit: another class would be trained without a word.

    :raises UsageError: naming the benchmark and what is wrong.
    """
    if not isinstance(source, ImageSource):
        raise UsageError(
            f"benchmark {name!r} must return an ImageSource, not a {type(source).__name__}."
        )
    classes = len(source.class_names)
    for part in ("train", "test"):
        labels = np.asarray(getattr(source, f"{part}_targets"))
        images = len(getattr(source, part))
        if labels.shape != (images,) or labels.dtype.kind not in "iu":
            raise UsageError(
                f"benchmark {name!r}: {part}_targets is one whole number for each of the {images} "
                f"images, not {labels.dtype} of shape {list(labels.shape)}."
            )
        found = np.unique(labels).tolist()
        every = range(classes)
        if not set(found) <= set(every) or (part == "train" and len(found) != classes):
            raise UsageError(
                f"benchmark {name!r}: {part}_targets has the labels 0 to {classes - 1} of its "
                f"{classes} class_names, and it has {len(found)} labels from {min(found)} to "
                f"{max(found)}."
            )


def _checked_deal(
    stream: str, dealt: Any, targets: np.ndarray, experiences: int | None, whole: bool
) -> list[np.ndarray]:
    """What a stream deals, as whole numbers.

    :raises UsageError: if it deals no list, another number of experiences than asked for, what is
        no sample, or, of a stream that is whole, not every sample of its classes once.
    """
    samples = len(targets)
    parts = [np.asarray(part) for part in dealt]
    if experiences is not None and len(parts) != experiences:
        raise UsageError(
            f"--stream {stream} must deal {experiences} experiences, and it deals {len(parts)}."
        )
    for number, part in enumerate(parts):
        bad = part.size and (part.dtype.kind not in "iu" or part.min() < 0 or part.max() >= samples)
        if part.ndim != 1 or bad:
            raise UsageError(
                f"--stream {stream} must deal positions from 0 to {samples - 1}, and experience "
                f"{number} is {part.dtype} of shape {list(part.shape)}"
                + (f" from {part.min()} to {part.max()}." if part.size else ".")
            )
    parts = [part.astype(np.int64) for part in parts]
    times = np.bincount(np.concatenate([np.empty(0, np.int64), *parts]), minlength=samples)
    expected = np.isin(targets, targets[times > 0])  # a class may be left out with all it has
    if whole and (times != expected).any():
        raise UsageError(
            f"--stream {stream} is registered as whole, which deals every sample of its classes "
            f"once, and it leaves out {(times < expected).sum()} of {expected.sum()} and deals "
            f"{(times > 1).sum()} again."
        )
    return parts


def _experiences(
    name: str, source: ImageSource, options: StreamOptions, chosen: dict[str, Any]
) -> int | None:
    """How many experiences there are; None where the stream finds it.

    :raises UsageError: more than classes, or classes that do not divide.
    """
    spec, sizes = get_stream(options.stream), chosen.get("classes_per_experience")
    experiences, num_classes = options.experiences, len(source.class_names)
    if experiences is None and not spec.counts_itself:
        experiences = source.default_experiences if sizes is None else len(sizes)
    if not spec.new_classes or experiences is None:
        return experiences
    if experiences > num_classes:
        raise UsageError(
            f"experiences is at most the number of classes, {num_classes} in {name!r}, not "
            f"{experiences}."
        )
    if source.equal_experiences and not sizes and num_classes % experiences:
        raise UsageError(
            f"experiences must divide the {num_classes} classes of {name!r}, which {experiences} "
            "does not."
        )
    return experiences


def _class_numbers(order: str | list[str], names: list[str]) -> str | list[int]:
    """A given order of classes as numbers.

    :raises UsageError: unless it names every class once.
    """
    if isinstance(order, str):
        return order
    number = {name: index for index, name in enumerate(names)}
    if not set(order) <= set(names):
        number = {str(index): index for index in range(len(names))}
    unknown = [word for word in order if word not in number]
    if unknown:
        raise UsageError(
            f"--class-order: there is no class {unknown[0]!r}; {nearest(unknown[0], names)}."
        )
    if sorted(number[word] for word in order) != list(range(len(names))):
        raise UsageError(
            f"--class-order takes each of the {len(names)} classes once, not {len(order)} names "
            f"of {len(set(order))} classes."
        )
    return [number[word] for word in order]


def _labels(order: list[int], num_classes: int) -> np.ndarray:
    """Label of each original class, -1 for one that the stream leaves out."""
    label_of = np.full(num_classes, -1, dtype=np.int64)
    label_of[order] = np.arange(len(order))
    return label_of


def _notes(options: dict[str, Any], labels: np.ndarray) -> tuple[str, ...]:
    shots = options.get("shots")
    few = 0 if shots is None else int((np.bincount(labels) < shots).sum())
    if not few:
        return ()
    return (f"{few} classes have fewer than {shots} training images; the stream has all of them.",)


def make_benchmark(name: str, source: ImageSource, options: StreamOptions) -> Benchmark:
    """Make the stream for Avalanche's strategies.

    :raises UsageError: as :func:`plan_stream`.
    """
    from avalanche_rwf.benchmarks.benchmark import Benchmark

    plan = plan_stream(name, source, options)
    train, test = source.train, source.test
    train_targets, test_targets = np.asarray(source.train_targets), np.asarray(source.test_targets)
    if options.holdout > 0:
        test, test_targets = train, train_targets
    mirrored = None
    if options.augment not in ("none", "flip"):
        train = augmented(source, options)
    if options.augment == "flip":
        # By position among all training images, so that a hold-out does not change it.
        mirrored = np.random.RandomState([_FLIPS, options.seed]).rand(len(train_targets)) < 0.5
    return Benchmark(
        name=name,
        scenario=_scenario(
            (
                _Part(train, train_targets, plan.train, mirrored),
                _Part(test, test_targets, plan.test),
            ),
            plan.order,
            [len(labels) for labels in plan.first_seen],
            _labels(plan.order, len(source.class_names)),
        ),
        num_classes=len(plan.order),
        class_names=plan.class_names,
        classes_per_experience=[list(counts) for counts in plan.class_counts],
        seed=options.seed,
        train_size=sum(map(len, plan.train)),
        test_size=sum(map(len, plan.test)),
        skipped=source.skipped,
        class_counts=plan.class_counts,
        first_seen=plan.first_seen,
        stream=options.stream,
        stream_options=plan.options,
        notes=plan.notes,
    )


@dataclass
class _Part:
    """One stream before Avalanche: a dataset, its labels, each experience's positions in it."""

    base: Dataset[tuple[Tensor, int]]
    targets: np.ndarray
    experiences: list[np.ndarray]
    mirrored: np.ndarray | None = None

    @property
    def everything(self) -> np.ndarray:
        """Positions of all experiences, in order."""
        return np.concatenate(self.experiences)

    def one_of_each(self) -> np.ndarray:
        """Positions of one sample of each class."""
        positions = self.everything
        return positions[np.unique(self.targets[positions], return_index=True)[1]]

    def subset(self, positions: np.ndarray, label_of: np.ndarray | None = None) -> Subset:
        from avalanche_rwf.benchmarks.images import Subset

        labels = self.targets[positions]
        return Subset(
            self.base,
            positions.tolist(),
            (labels if label_of is None else label_of[labels]).tolist(),
            None if self.mirrored is None else self.mirrored[positions].tolist(),
        )


def _scenario(
    parts: tuple[_Part, _Part], order: list[int], sizes: list[int], label_of: np.ndarray
) -> Any:
    """Build Avalanche's scenario: classes and streams by `nc_benchmark`, samples in our order.

    `nc_benchmark` sorts the samples of an experience by class and puts three layers of
    transformations around each; its datasets are replaced by plain ones in the order of the parts.
    So it is given one sample of each class only: sorting all takes it seconds. It has every class
    in one experience, the first that brings it; an experience's own classes Avalanche reads off its
    samples.

    :param sizes: how many classes each experience is the first to bring.
    :param label_of: label of each original class.
    """
    from avalanche.benchmarks import nc_benchmark
    from avalanche.benchmarks.scenarios.deprecated.lazy_dataset_sequence import LazyDatasetSequence
    from avalanche.benchmarks.utils import (
        DataAttribute,
        TaskAwareSupervisedClassificationDataset,
    )

    def dataset(subset: Subset) -> Any:
        labels = DataAttribute(subset.targets, "targets")
        tasks = DataAttribute([0] * len(subset), "targets_task_labels", use_in_getitem=True)
        return TaskAwareSupervisedClassificationDataset([subset], data_attributes=[labels, tasks])

    scenario = nc_benchmark(
        *(part.subset(part.one_of_each()) for part in parts),
        n_experiences=len(sizes),
        task_labels=False,
        fixed_class_order=order,
        per_exp_classes=dict(enumerate(sizes)),
        class_ids_from_zero_from_first_exp=True,
    )
    for name, part in zip(("train", "test"), parts, strict=True):
        sequence = LazyDatasetSequence(
            [dataset(part.subset(positions, label_of)) for positions in part.experiences],
            len(sizes),
        )
        sequence.load_all_experiences()
        definition = scenario.stream_definitions[name]
        definition.exps_data = sequence
        definition.origin_dataset = dataset(part.subset(part.everything))
        ends = np.cumsum([len(positions) for positions in part.experiences]).tolist()
        assignment = [
            list(range(end - len(positions), end))
            for end, positions in zip(ends, part.experiences, strict=True)
        ]
        setattr(scenario, f"{name}_exps_patterns_assignment", assignment)
        setattr(scenario, f"original_{name}_dataset", definition.origin_dataset)
    return scenario
