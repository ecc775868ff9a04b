"""Tiny streams: 6 classes of Gaussian blobs in 6 dimensions, 3 experiences of 2 classes."""

from __future__ import annotations

import pytest

N_TRAIN, N_TEST = 20, 6  # per class


def _blobs(per_class, seed):
    import torch

    g = torch.Generator().manual_seed(seed)
    y = torch.arange(6).repeat_interleave(per_class)
    x = 2 * torch.eye(6)[y] + 0.5 * torch.randn(len(y), 6, generator=g)
    order = torch.randperm(len(y), generator=g)
    return x[order], y[order]


def _dataset(per_class, seed):
    from torch.utils.data import TensorDataset

    x, y = _blobs(per_class, seed)
    dataset = TensorDataset(x, y)
    dataset.targets = y.tolist()  # what Avalanche splits by
    return dataset


@pytest.fixture
def nc():
    """An `nc_benchmark`: items (x, y, t), class lists."""
    from avalanche.benchmarks import nc_benchmark

    return nc_benchmark(
        _dataset(N_TRAIN, 0),
        _dataset(N_TEST, 1),
        n_experiences=3,
        task_labels=False,
        shuffle=False,
        class_ids_from_zero_from_first_exp=True,
    )


@pytest.fixture
def xy():
    """A `class_incremental_benchmark`: items (x, y), class sets, no task labels."""
    from avalanche.benchmarks import class_incremental_benchmark
    from avalanche.benchmarks.utils import as_classification_dataset

    train, test = (as_classification_dataset(_dataset(*a)) for a in ((N_TRAIN, 0), (N_TEST, 1)))
    return class_incremental_benchmark(
        {"train": train, "test": test},
        class_order=list(range(6)),
        num_classes_per_exp=[2, 2, 2],
    )


@pytest.fixture
def make_naive():
    """A function that builds Avalanche's Naive around a small MLP, always the same one."""

    def build(plugins=(), evaluator=None, train_mb_size=8, dropout=0.0, **kwargs):
        import torch
        from avalanche.training.plugins import EvaluationPlugin
        from avalanche.training.supervised import Naive

        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(6, 16),
            torch.nn.ReLU(),
            torch.nn.Dropout(dropout),
            torch.nn.Linear(16, 6),
        )
        return Naive(
            model=model,
            optimizer=torch.optim.Adam(model.parameters(), lr=0.02),
            train_mb_size=train_mb_size,
            eval_mb_size=10,
            plugins=list(plugins),
            evaluator=EvaluationPlugin() if evaluator is None else evaluator,
            **kwargs,
        )

    return build
