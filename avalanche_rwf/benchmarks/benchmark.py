"""A stream as one of Avalanche's benchmarks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from avalanche.benchmarks.scenarios.generic_scenario import CLScenario


@dataclass(eq=False)
class Benchmark(CLScenario[Any]):
    """A class-incremental stream, ready for any Avalanche strategy, and for what Avalanche makes of
    benchmarks, such as `benchmark_with_validation_stream`.

    Labels count classes in the order in which the stream brings them: those of the first k classes
    are 0 to k - 1. Other attributes, such as `classes_in_experience` and
    `classes_order_original_ids`, are looked up in `scenario`. They count experiences without
    samples too, and have each class in the experience that brings it first.

    :param name: as given to `create_benchmark`.
    :param scenario: what Avalanche's `nc_benchmark` returns: class lists, items (x, y, task label
        0). Train on it with `shuffle=False`: samples of an experience are mixed already, in an
        order that the seed fixes.
    :param num_classes: C.
    :param class_names: C names, by label in the stream.
    :param classes_per_experience: labels of the training samples of each experience.
    :param seed: of the order of classes and samples.
    :param train_size: number of training samples in all experiences.
    :param test_size: number of test samples (of held-out ones when there is a hold-out).
    :param skipped: unreadable images that were left out.
    :param class_counts: per experience, label -> number of training samples.
    :param first_seen: per experience, the labels that it is the first to bring: those of the test
        experience of its number. With split classes the same as `classes_per_experience`.
    :param stream: kind of stream.
    :param stream_options: of it, defaults included.
    :param notes: sentences on what is not as asked for.
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
    class_counts: list[dict[int, int]] = field(default_factory=list)
    first_seen: list[list[int]] = field(default_factory=list)
    stream: str = "split"
    stream_options: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    in_memory: bool = True

    def __getattr__(self, name: str) -> Any:
        # copy.copy asks for methods before the copy has a scenario.
        if name.startswith("_") or name == "scenario":
            raise AttributeError(name)
        return getattr(self.scenario, name)

    @property
    def train_stream(self) -> Any:
        """The training experiences with samples, in order; their `current_experience` is their
        number.

        Some kinds of streams have experiences without samples, on which Avalanche's strategies
        fail; `scenario.train_stream` has these too.
        """
        stream = self.scenario.train_stream
        full = [number for number, counts in enumerate(self.class_counts) if counts]
        return stream if len(full) == len(self.class_counts) else stream[full]

    @property
    def test_stream(self) -> Any:
        """The test experiences; number i holds the classes first seen in training experience i."""
        return self.scenario.test_stream

    @property
    def streams(self) -> dict[str, Any]:
        """Both streams by name."""
        return {"train": self.train_stream, "test": self.test_stream}

    @property
    def n_experiences(self) -> int:
        """Number of training experiences with samples."""
        return len(self.train_stream)

    @property
    def n_classes(self) -> int:
        """C, by Avalanche's name."""
        return self.num_classes
