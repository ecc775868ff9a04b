"""Which samples of an experience a data loader gives, told by where they are stored.

A mini-batch of a strategy mixes samples of the stream with replayed ones in ways that its size does
not tell. The loader knows: its sampler draws numbers of samples, and each number leads through
subsets and concatenations to a stored sample. Those of the experience's data set are the stream's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset

from avalanche_rwf.errors import UsageError

IntArray = NDArray[np.int64]


def stored(data: Any, numbers: IntArray | None = None) -> list[tuple[Any, IntArray, IntArray]]:
    """Find where samples are stored: the data set under all subsets and concatenations.

    :param data: a data set of Avalanche's or PyTorch's.
    :param numbers: of the samples, [n]; None for all.
    :returns: for each store: it, positions in `numbers`, and numbers of the samples in the store.
    """
    numbers = np.arange(len(data)) if numbers is None else numbers
    return list(_stored(data, np.arange(len(numbers)), numbers))


def _stored(
    data: Any, positions: IntArray, numbers: IntArray
) -> Iterator[tuple[Any, IntArray, IntArray]]:
    if not len(numbers):
        return
    data = getattr(data, "_flat_data", data)  # an AvalancheDataset's
    if isinstance(data, Subset):
        chosen = np.asarray(data.indices, dtype=np.int64)[numbers]
        yield from _stored(data.dataset, positions, chosen)
        return
    if isinstance(data, ConcatDataset):
        members, sizes = data.datasets, data.cumulative_sizes
    elif hasattr(data, "_datasets") and hasattr(data, "_cumulative_sizes"):  # a FlatData
        if data._indices is not None:
            numbers = np.asarray(data._indices, dtype=np.int64)[numbers]
        members, sizes = data._datasets, data._cumulative_sizes
    else:
        yield data, positions, numbers
        return
    which = np.searchsorted(sizes, numbers, side="right")
    for member in np.unique(which).tolist():
        here = which == member
        start = sizes[member - 1] if member else 0
        yield from _stored(members[member], positions[here], numbers[here] - start)


def _ranks(keys: IntArray) -> IntArray:
    """How many equal keys come before each, [n]."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    ranks = np.empty(len(keys), dtype=np.int64)
    ranks[order] = np.arange(len(keys)) - np.searchsorted(ordered, ordered)
    return ranks


class Drawn:
    """Counts the samples of some data sets that a loader gives, each once an epoch.

    :param own: the data sets, in order; a sample's place is its number in them together.
    """

    def __init__(self, own: Sequence[Any]) -> None:
        self._own = list(own)  # keeps the stores alive, whose identities are keys
        self._stores: dict[int, int] = {}
        whole: Any = ConcatDataset(self._own) if self._own else []
        for store, _, _ in stored(whole):
            self._stores.setdefault(id(store), len(self._stores))
        keys = self._keys(whole)
        self._order = np.argsort(keys, kind="stable")
        self._sorted = keys[self._order]
        self._left = np.ones(len(keys), dtype=np.bool_)
        self._given: list[IntArray] = []
        self.watched: Any = None

    def shares(self, data: Any) -> bool:
        """Whether a data set has samples from where the own ones are stored."""
        return any(id(store) in self._stores for store, _, _ in stored(data))

    def start_epoch(self, loader: Any) -> None:
        """Watch what a loader gives from here on; every sample may count again.

        :raises UsageError: if the loader does not tell what it gives.
        """
        self._left[:] = True
        self._given.clear()
        if loader is not self.watched:
            self._watch(loader)
            self.watched = loader

    def take(self) -> tuple[IntArray, bool] | None:
        """Places of the own samples that were given since the last call.

        :returns: the places in the order given, and whether there were none but these; None if no
            batch was given.
        """
        if not self._given:
            return None
        given = np.concatenate(self._given)
        self._given.clear()
        places = given[given >= 0]
        _, first = np.unique(places, return_index=True)  # oversampled within a batch
        places = places[np.sort(first)]
        places = places[self._left[places]]
        self._left[places] = False
        return places, len(places) == len(given)

    def _keys(self, data: Any) -> IntArray:
        """A number for each sample of a data set, equal for equal ones; -1 for those elsewhere."""
        keys = np.full(len(data), -1, dtype=np.int64)
        for store, positions, numbers in stored(data):
            if id(store) in self._stores:
                keys[positions] = (self._stores[id(store)] << 40) + numbers
        return keys

    def _places(self, data: Any) -> IntArray:
        """The places of a data set's samples, [n]; -1 for those that are not own.

        A sample that comes more often than it is among the own is replayed: a buffer's data set
        stands behind the experience's.
        """
        keys = self._keys(data)
        at = np.searchsorted(self._sorted, keys) + _ranks(keys)
        there = (keys >= 0) & (at < len(self._sorted))
        there[there] = self._sorted[at[there]] == keys[there]
        places = np.full(len(keys), -1, dtype=np.int64)
        places[there] = self._order[at[there]]
        return places

    def _watch(self, loader: Any) -> None:
        # A loader of the user's own may be made of several.
        found = list(_loaders(loader))
        if not found and not (hasattr(loader, "__len__") and len(loader) == 0):
            raise UsageError(
                "The strategy's dataloader must be one of torch's or Avalanche's over data sets of "
                "known length, or hold such, so that samples of the stream can be told from "
                f"replayed ones, not a {type(loader).__name__}."
            )
        for one in found:
            on_each_loader(one, self._watch_one)

    def _watch_one(self, loader: DataLoader[Any]) -> None:
        places = self._places(loader.dataset)
        drawn: deque[Any] = deque()
        make = loader._get_iterator
        name = "sampler" if loader.batch_sampler is None else "batch_sampler"
        # The loader refuses to be given another sampler after it was made.
        vars(loader)[name] = _NotingSampler(getattr(loader, name), drawn)

        def given() -> None:
            self._given.append(places[np.atleast_1d(drawn.popleft())])

        vars(loader)["_get_iterator"] = lambda: _NotingIterator(make(), given)


def on_each_loader(loader: Any, act: Callable[[Any], None]) -> None:
    """Call a function with a loader of PyTorch's, or with each one in a loader of Avalanche's."""
    if not isinstance(loader, MultiDatasetDataLoader):
        act(loader)
        return
    make = loader._get_loader

    def make_and_call() -> Any:
        inner = make()
        on_each_loader(inner, act)
        return inner

    loader._get_loader = make_and_call


def _loaders(value: Any, depth: int = 2) -> Iterator[Any]:
    """The loaders of known kinds in a loader."""
    if isinstance(value, MultiDatasetDataLoader):
        yield value
    elif isinstance(value, DataLoader):
        ordered = value.num_workers == 0 or getattr(value, "in_order", True)
        if ordered and not isinstance(value.dataset, IterableDataset):
            yield value
    elif depth:
        inside: Iterable[Any] = getattr(value, "__dict__", {}).values()
        if isinstance(value, (list, tuple)):
            inside = value
        for one in inside:
            yield from _loaders(one, depth - 1)


class _NotingSampler:
    """A sampler that notes what it draws; workers are given batches ahead of time, in order."""

    def __init__(self, sampler: Any, drawn: deque[Any]) -> None:
        self._sampler, self._drawn = sampler, drawn

    def __iter__(self) -> Iterator[Any]:
        self._drawn.clear()
        for numbers in self._sampler:
            self._drawn.append(numbers)
            yield numbers

    def __len__(self) -> int:
        return len(self._sampler)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_sampler"], name)


class _NotingIterator:
    """A loader's iterator that says when it has given a batch."""

    def __init__(self, iterator: Any, given: Any) -> None:
        self._iterator, self._given = iterator, given

    def __iter__(self) -> _NotingIterator:
        return self

    def __next__(self) -> Any:
        batch = next(self._iterator)
        self._given()
        return batch

    def __len__(self) -> int:
        return len(self._iterator)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_iterator"], name)
