"""Avalanche's WandBLogger on the installed wandb, offline."""

from __future__ import annotations

import pickle

import pytest
import torch

from ..wandb_files import from_wandb

wandb = pytest.importorskip("wandb")


@pytest.fixture
def logger(tmp_path, monkeypatch):
    from avalanche_rwf.evaluation import WandBLogger

    monkeypatch.setenv("WANDB_MODE", "offline")
    settings = {"settings": wandb.Settings(console="off", silent=True)}
    yield WandBLogger(project_name="p", run_name="one", dir=tmp_path, params=settings)
    wandb.finish()


def test_metrics_of_a_strategy_are_logged(logger, scenario, tmp_path):
    from avalanche.evaluation.metrics import accuracy_metrics, confusion_matrix_metrics
    from avalanche.training import Naive
    from avalanche.training.plugins import EvaluationPlugin

    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 6))
    evaluator = EvaluationPlugin(
        accuracy_metrics(minibatch=True, experience=True),
        confusion_matrix_metrics(num_classes=6, stream=True),  # a figure
        loggers=[logger],
    )
    strategy = Naive(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), evaluator=evaluator,
        train_mb_size=12,
    )  # fmt: skip
    strategy.train(scenario.train_stream[0])
    values = strategy.eval(scenario.test_stream[:1])
    wandb.finish()
    found = {metric: value for _, metric, value in from_wandb(tmp_path)}
    name = "Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp000"
    assert found[name] == values[name]
    assert found["TrainingExperience"] == 0
    assert any(metric.startswith("Top1_Acc_MB/train_phase") for metric in found)


def test_a_pickled_logger_goes_on_as_the_same_run(logger, tmp_path, capsys):
    logger.log_single_metric("a", 1.0, 1)
    again = pickle.loads(pickle.dumps(logger))
    assert wandb.run.id == logger.init_kwargs["id"] == again.init_kwargs["id"]
    again.log_single_metric("a", 2.0, 2)
    wandb.finish()
    assert [row for row in from_wandb(tmp_path) if row[1] == "a"] == [(1, "a", 1.0), (2, "a", 2.0)]
