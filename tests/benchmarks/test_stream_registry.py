"""Kinds of streams: listing, options, and what holds for every registered kind."""

from __future__ import annotations

import numpy as np
import pytest

from avalanche_rwf.benchmarks import stream_registry as module
from avalanche_rwf.benchmarks.stream_registry import (
    OPTIONS,
    get_stream,
    list_streams,
    resolve_stream_options,
    streams_with,
)
from avalanche_rwf.errors import UsageError

# Settings of each kind that the properties are tried with, besides the defaults.
SETTINGS = {
    "si-blurry": [{"disjoint": 0}, {"disjoint": 100}, {"blurry": 0}, {"blurry": 100}],
    "i-blurry": [{"disjoint": 0}, {"disjoint": 100}, {"blurry": 0}, {"blurry": 100}],
    "repetition": [{"repeat": 0.0}, {"repeat": 1.0}],
    "k-shot": [{"shots": 1}, {"shots": 1000}],
    "fscil": [{"shots": 1}, {"shots": 1000}],
}


def label_vectors():
    """Random label vectors with every class present: few and many classes, equal and not, sorted
    and mixed."""
    rng = np.random.RandomState(0)
    yield np.zeros(5, dtype=np.int64)
    yield np.arange(2)
    for classes in (2, 3, 8):
        equal = np.repeat(np.arange(classes), 6)
        unequal = np.repeat(np.arange(classes), rng.randint(1, 12, classes))
        yield from (equal, rng.permutation(equal), unequal, rng.permutation(unequal))


@pytest.mark.parametrize("name", list_streams())
def test_no_sample_is_lost_or_comes_twice(name):
    spec = get_stream(name)
    for number, labels in enumerate(label_vectors()):
        classes = int(labels.max()) + 1
        for options in [{}, *SETTINGS.get(name, [])]:
            for experiences in (1, 3, 8):
                if experiences > classes and (spec.counts_itself or spec.new_classes):
                    experiences = None if spec.counts_itself else classes
                dealt = spec.deal(labels, number, experiences, **options)
                where = f"{number} {experiences} {options}"
                assert experiences is None or len(dealt) == experiences, where
                every = np.concatenate(dealt)
                assert len(set(every.tolist())) == len(every), where
                if spec.whole:
                    assert sorted(every) == list(range(len(labels))), where
                elif "shots" in spec.options:
                    # Every class is there, with as many samples as the shots say or as it has.
                    counts = np.bincount(labels[every], minlength=classes)
                    shots = {**spec.options, **options}["shots"]
                    few = np.minimum(np.bincount(labels), shots)
                    base = set(labels[dealt[0]].tolist()) if name == "fscil" else set()
                    expected = [
                        n if c in base else few[c] for c, n in enumerate(np.bincount(labels))
                    ]
                    assert counts.tolist() == expected, where


@pytest.mark.parametrize("name", list_streams())
def test_no_sample_is_lost_or_comes_twice_on_random_labels(name):
    """As above, with everything drawn: labels, seed, number of experiences and options."""
    spec = get_stream(name)
    rng = np.random.RandomState(7)
    for _ in range(60):
        classes = rng.randint(1, 14)
        most = rng.choice([1, 4, 40])
        labels = rng.permutation(np.repeat(np.arange(classes), rng.randint(1, most + 1, classes)))
        experiences, seed = rng.randint(1, 18), rng.randint(2**31)
        if spec.new_classes or spec.counts_itself:
            experiences = min(experiences, classes)
        drawn = {
            "disjoint": int(rng.randint(101)), "blurry": int(rng.randint(101)),
            "shots": int(rng.randint(1, 9)), "repeat": float(rng.rand()),
            "class_order": rng.permutation(classes).tolist(),
        }  # fmt: skip
        options = {key: value for key, value in drawn.items() if key in spec.options}
        dealt = spec.deal(labels, seed, experiences, **options)
        assert len(dealt) == experiences
        every = np.sort(np.concatenate(dealt))
        if spec.whole:
            assert every.tolist() == list(range(len(labels)))
            continue
        assert len(set(every.tolist())) == len(every)
        if "shots" not in options:
            continue
        counts = np.bincount(labels)
        few = np.minimum(counts, options["shots"])
        base = set(labels[dealt[0]].tolist()) if name == "fscil" else set()
        expected = [n if c in base else few[c] for c, n in enumerate(counts)]
        assert np.bincount(labels[every], minlength=classes).tolist() == expected


@pytest.mark.parametrize("name", list_streams())
def test_the_seed_decides_and_no_generator_of_the_process(name):
    import torch

    labels = np.repeat(np.arange(12), 10)
    deal = get_stream(name).deal

    def positions(seed):
        np.random.rand(), torch.rand(1)
        return [part.tolist() for part in deal(labels, seed, 4)]

    states = np.random.get_state()[1].copy(), torch.get_rng_state()
    first = [part.tolist() for part in deal(labels, 3, 4)]
    assert (states[0] == np.random.get_state()[1]).all()
    assert torch.equal(states[1], torch.get_rng_state())
    assert positions(3) == first != positions(4)


@pytest.mark.parametrize("name", list_streams())
def test_each_experience_is_mixed(name):
    labels = np.repeat(np.arange(6), 30)
    for part in get_stream(name).deal(labels, 0, 2):
        assert part.tolist() != sorted(part) or len(part) < 3
        found = labels[part].tolist()
        assert found != sorted(found) or len(set(found)) < 2


def test_streams_are_listed_and_unknown_ones_refused():
    assert list_streams()[0] == "split"
    assert {"si-blurry", "i-blurry", "k-shot", "fscil", "repetition"} <= set(list_streams())
    assert all(get_stream(name).summary for name in list_streams())
    with pytest.raises(UsageError, match=r"'siblurry' is unknown; .*'si-blurry'"):
        get_stream("siblurry")


def test_options_are_filled_in_and_read_from_text():
    assert resolve_stream_options("split", {}) == {}
    assert resolve_stream_options("si-blurry", {"disjoint": "40", "blurry": None}) == {
        "disjoint": 40, "blurry": 10, "remainder": "keep",
    }  # fmt: skip
    counts = {"classes_per_experience": "3, 2,2", "class_order": "b, a"}
    assert resolve_stream_options("split", counts) == {
        "classes_per_experience": [3, 2, 2], "class_order": ["b", "a"],
    }  # fmt: skip
    for name in list_streams():
        once = resolve_stream_options(name, {})
        assert resolve_stream_options(name, once) == once


def test_a_benchmarks_name_stands_for_the_usual_sizes():
    assert resolve_stream_options("fscil", {}, "split-cub200")["preset"] == "cub200"
    assert "preset" not in resolve_stream_options("fscil", {}, "folder:cub200")
    chosen = resolve_stream_options("fscil", {"shots": 1}, "split-cifar100")
    assert chosen == {"preset": "cifar100", "shots": 1}


@pytest.mark.parametrize(
    ("stream", "given", "message"),
    [
        ("split", {"shots": 1}, "--shots belongs to --stream fscil and k-shot, not to 'split'"),
        ("k-shot", {"disjoint": 5}, "--disjoint belongs to --stream i-blurry and si-blurry"),
        ("si-blurry", {"class_order": "sorted"}, "--class-order belongs to --stream split and"),
        ("si-blurry", {"shot": 1}, "'shot' is unknown; .*'shots'"),
        ("si-blurry", {"disjoint": "101"}, "--disjoint takes a whole number from 0 to 100"),
        ("si-blurry", {"disjoint": "5.5"}, "--disjoint takes .*'5.5'"),
        ("si-blurry", {"disjoint": True}, "--disjoint takes .*True"),
        ("si-blurry", {"blurry": "-1"}, "--blurry takes .*'-1'"),
        ("si-blurry", {"remainder": "lose"}, "--remainder takes keep or drop, not 'lose'"),
        ("k-shot", {"shots": "0"}, "--shots takes a whole number of at least 1, not '0'"),
        ("fscil", {"preset": "mnist"}, "--preset takes one of cifar100, cub200, miniimagenet"),
        ("fscil", {"way": "x"}, "--way takes .*'x'"),
        ("repetition", {"repeat": "1.1"}, "--repeat takes a probability from 0 to 1"),
        ("repetition", {"repeat": "nan"}, "--repeat takes .*'nan'"),
        ("split", {"classes_per_experience": "3,0"}, "--classes-per-experience takes .*'3,0'"),
        ("split", {"classes_per_experience": [1.5]}, "--classes-per-experience takes"),
        ("split", {"class_order": "a,,b"}, "--class-order takes .*'a,,b'"),
    ],
)
def test_options_that_are_refused(stream, given, message):
    with pytest.raises(UsageError, match=message):
        resolve_stream_options(stream, given)


def test_every_option_has_an_owner():
    assert all(streams_with(name) for name in OPTIONS)


def test_a_new_kind_is_one_function(monkeypatch):
    monkeypatch.setattr(module.STREAMS, "entries", dict(module.STREAMS.entries))

    @module.register_stream("unit-test", summary="one experience")
    def deal(labels, seed, experiences, shots=2):
        return [np.arange(len(labels))]

    assert "unit-test" in list_streams()
    assert resolve_stream_options("unit-test", {"shots": "3"}) == {"shots": 3}
    for wrong in (lambda a, b, c, shots: [], lambda a, b, c, colour=1: []):
        with pytest.raises(ValueError, match="needs a default and add_option"):
            module.register_stream("other", summary="")(wrong)
    deal.__module__ = "elsewhere"
    with pytest.raises(ValueError, match="registered already"):
        module.register_stream("split", summary="")(deal)
    with pytest.raises(ValueError, match="twice"):
        module.add_option("shots", "a fruit", str, "")
