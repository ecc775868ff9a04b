"""Why a run failed, where its memory was not enough: what is tried, and what is given back."""

from __future__ import annotations

import pytest
import torch

from avalanche_rwf.experiments import failures
from avalanche_rwf.experiments.failures import free_memory, largest_that_fits, out_of_memory


@pytest.mark.parametrize(
    ("room", "fits", "tried"), [(5, 4, [8, 4]), (1, 1, [8, 4, 2, 1]), (0, 0, [8, 4, 2, 1])]
)
def test_halves_are_tried_until_one_fits(room, fits, tried):
    asked: list[int] = []

    def attempt(batch_size: int) -> None:
        asked.append(batch_size)
        if batch_size > room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    assert largest_that_fits(16, attempt) == fits
    assert asked == tried
    said = out_of_memory(16, fits)
    assert ("--batch-size" in said) == bool(fits)


def test_an_attempt_that_fails_otherwise_says_nothing_of_sizes():
    def attempt(batch_size: int) -> None:
        raise ValueError("another thing")

    assert largest_that_fits(16, attempt) is None
    assert out_of_memory(16, None).endswith("--batch-size 8 takes about half of it.")


def test_memory_of_a_gpu_is_given_back_if_one_was_used(monkeypatch):
    emptied = []
    monkeypatch.setattr(failures.torch.cuda, "empty_cache", lambda: emptied.append(1))
    for used in (False, True):
        monkeypatch.setattr(failures.torch.cuda, "is_initialized", lambda used=used: used)
        free_memory()
        assert len(emptied) == used
