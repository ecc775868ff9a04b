"""From images to streams: class order, experience sizes, held-out part, sample order, the Avalanche
scenario.

Every random choice has its own `RandomState` (numpy promises that its numbers never change), seeded
with the purpose of the choice, so that one choice does not move another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from avalanche_rwf.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import Dataset

    from avalanche_rwf.benchmarks.images import RawImages, Subset
    from avalanche_rwf.benchmarks.registry import StreamOptions

__all__ = [
    "Benchmark",
    "ImageSource",
    "class_order",
    "experience_sizes",
    "split_by_class",
    "stratified_part",
]

# First word of the seed of each choice.
_CLASSES, _SAMPLES, _FLIPS, _HOLDOUT, _TEST = 1, 2, 3, 4, 5


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


@dataclass
class Benchmark:
    """A class-incremental stream, ready for any Avalanche strategy.

    Labels count classes in the order in which the stream brings them: those of the first k classes
    are 0 to k - 1.

    :param name: as given to `create_benchmark`.
    :param scenario: what Avalanche's `nc_benchmark` returns: class lists, items (x, y, task label
        0). Train on it with `shuffle=False`: samples of an experience are mixed already, in an
        order that the seed fixes.
    :param num_classes: C.
    :param class_names: C names, by label in the stream.
    :param classes_per_experience: labels that each experience brings.
    :param seed: of the order of classes and samples.
    :param train_size: number of training samples in all experiences.
    :param test_size: number of test samples (of held-out ones when there is a hold-out).
    :param skipped: unreadable images that were left out.
    :param in_memory: whether no image is decoded or resized when it is asked for.
    """

    name: str
    scenario: Any
    num_classes: int
    class_names: list[str]
    classes_per_experience: list[list[int]]
    seed: int
    train_size: int
    test_size: int
    skipped: int = 0
    in_memory: bool = True

    @property
    def train_stream(self) -> Any:
        """The training experiences, in order."""
        return self.scenario.train_stream

    @property
    def test_stream(self) -> Any:
        """The test experiences; number i holds the classes of training experience i."""
        return self.scenario.test_stream


def class_order(num_classes: int, seed: int) -> list[int]:
    """Permutation of the classes 0 to C - 1 for a seed: entry i is the class that gets label i."""
    return [int(c) for c in np.random.RandomState([_CLASSES, seed]).permutation(num_classes)]


def experience_sizes(num_classes: int, experiences: int) -> list[int]:
    """Spread the classes as evenly as possible; the first experiences take one more where it does
    not divide."""
    share, rest = divmod(num_classes, experiences)
    return [share + (number < rest) for number in range(experiences)]


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


def split_by_class(name: str, source: ImageSource, options: StreamOptions) -> Benchmark:
    """Make the stream that brings new classes in every experience.

    :raises UsageError: fewer than two classes, or a number of experiences that the classes cannot
        fill.
    """
    num_classes = len(source.class_names)
    if num_classes < 2:
        raise UsageError(f"benchmark {name!r} has {num_classes} class; a stream needs at least 2.")
    experiences = options.experiences or source.default_experiences
    if experiences > num_classes:
        raise UsageError(
            f"experiences is at most the number of classes, {num_classes} in {name!r}, not "
            f"{experiences}."
        )
    if source.equal_experiences and num_classes % experiences:
        raise UsageError(
            f"experiences must divide the {num_classes} classes of {name!r}, which {experiences} "
            "does not."
        )
    order = class_order(num_classes, options.seed)
    sizes = experience_sizes(num_classes, experiences)
    ends = np.cumsum(sizes)

    train, test = source.train, source.test
    train_targets, test_targets = np.asarray(source.train_targets), np.asarray(source.test_targets)
    train_indices, test_indices = np.arange(len(train_targets)), np.arange(len(test_targets))
    if options.holdout > 0:
        # Not the stream's seed: choices are made on the same images whatever the stream.
        train_indices, test_indices = stratified_part(train_targets, options.holdout, [_HOLDOUT])
        test, test_targets = train, train_targets
    mirrored = None
    if options.augment not in ("none", "flip"):
        train = augmented(source, options)
    if options.augment == "flip":
        # By position among all training images, so that a hold-out does not change it.
        mirrored = np.random.RandomState([_FLIPS, options.seed]).rand(len(train_targets)) < 0.5

    label_of = np.empty(num_classes, dtype=np.int64)
    label_of[order] = np.arange(num_classes)
    train_parts = _parts(label_of[train_targets], train_indices, ends, (_SAMPLES, options.seed))
    test_parts = _parts(label_of[test_targets], test_indices, ends, (_TEST,))
    return Benchmark(
        name=name,
        scenario=_scenario(
            (
                _Part(train, train_targets, train_parts, mirrored),
                _Part(test, test_targets, test_parts),
            ),
            order,
            sizes,
        ),
        num_classes=num_classes,
        class_names=[source.class_names[original] for original in order],
        classes_per_experience=[
            list(range(end - size, end)) for end, size in zip(ends.tolist(), sizes, strict=True)
        ],
        seed=options.seed,
        train_size=len(train_indices),
        test_size=len(test_indices),
        skipped=source.skipped,
    )


@dataclass
class _Part:
    """One stream before Avalanche: a dataset, its labels, each experience's positions in it."""

    base: Dataset[tuple[Tensor, int]]
    targets: np.ndarray
    experiences: list[np.ndarray]
    mirrored: np.ndarray | None = None

    def subset(self, positions: np.ndarray, label_of: np.ndarray | None = None) -> Subset:
        from avalanche_rwf.benchmarks.images import Subset

        labels = self.targets[positions]
        return Subset(
            self.base,
            positions.tolist(),
            (labels if label_of is None else label_of[labels]).tolist(),
            None if self.mirrored is None else self.mirrored[positions].tolist(),
        )


def _parts(
    labels: np.ndarray, indices: np.ndarray, ends: np.ndarray, seed: Sequence[int]
) -> list[np.ndarray]:
    """Positions of each experience's samples, out of `indices`, mixed.

    Test samples are mixed too: in Avalanche's order by class, a method that reads statistics off a
    test batch would learn the class from its neighbours.
    """
    number = np.searchsorted(ends, labels[indices], side="right")
    return [
        np.random.RandomState([*seed, exp]).permutation(indices[number == exp])
        for exp in range(len(ends))
    ]


def _scenario(parts: tuple[_Part, _Part], order: list[int], sizes: list[int]) -> Any:
    """Build Avalanche's scenario: classes and streams by `nc_benchmark`, samples in our order.

    `nc_benchmark` sorts the samples of an experience by class and puts three layers of
    transformations around each; its datasets are replaced by plain ones in the order of the parts.
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
        *(part.subset(np.concatenate(part.experiences)) for part in parts),
        n_experiences=len(sizes),
        task_labels=False,
        fixed_class_order=order,
        per_exp_classes=dict(enumerate(sizes)),
        class_ids_from_zero_from_first_exp=True,
    )
    label_of = np.argsort(order)
    for name, part in zip(("train", "test"), parts, strict=True):
        sequence = LazyDatasetSequence(
            [dataset(part.subset(positions, label_of)) for positions in part.experiences],
            len(sizes),
        )
        sequence.load_all_experiences()
        scenario.stream_definitions[name].exps_data = sequence
        ends = np.cumsum([len(positions) for positions in part.experiences]).tolist()
        assignment = [
            list(range(end - len(positions), end))
            for end, positions in zip(ends, part.experiences, strict=True)
        ]
        setattr(scenario, f"{name}_exps_patterns_assignment", assignment)
    return scenario
