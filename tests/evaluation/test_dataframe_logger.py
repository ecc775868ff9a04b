"""The tidy logger on every kind of stream, and the names it has to understand."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.evaluation.metric_results import AlternativeValues
from avalanche.evaluation.metrics import (
    accuracy_metrics,
    class_accuracy_metrics,
    confusion_matrix_metrics,
    loss_metrics,
)
from avalanche.training.plugins import EvaluationPlugin

from avalanche_rwf.evaluation.dataframe_logger import DataFrameLogger, parse_metric_name
from avalanche_rwf.evaluation.metrics import accuracy_matrix
from avalanche_rwf.evaluation.recorder import AnytimeEvaluation, PredictionRecorder

COLUMNS = [
    *("iteration", "phase", "stream", "task", "experience", "trained_experience"),
    *("samples_seen", "metric", "value"),
]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "Top1_Acc_Stream/eval_phase/test_stream/Task000",
            ("Top1_Acc_Stream", "eval", "test", 0, None),
        ),
        ("Top1_Acc_Exp/eval_phase/test_stream/Exp012", ("Top1_Acc_Exp", "eval", "test", None, 12)),
        (
            "Top1_Acc_Epoch/train_phase/train_online_stream",
            ("Top1_Acc_Epoch", "train", "train_online", None, None),
        ),
        (
            "StreamForgetting/eval_phase/test_stream",
            ("StreamForgetting", "eval", "test", None, None),
        ),
        (
            "Top1_ClassAcc_Exp/eval_phase/test_stream/Task000/Exp000/3",
            ("Top1_ClassAcc_Exp/3", "eval", "test", 0, 0),
        ),
        (
            "Repartition/train_phase/train_stream/Task_002",
            ("Repartition", "train", "train", 2, None),
        ),
        ("Top1_AMCA_Stream/test_stream/Task000", ("Top1_AMCA_Stream", None, "test", 0, None)),
        ("DiskUsage", ("DiskUsage", None, None, None, None)),
    ],
)
def test_names_with_optional_parts(name, parts):
    assert tuple(parse_metric_name(name)) == parts


def run(make_naive, benchmark, *, online=False, every=None):
    logger, recorder = DataFrameLogger(), PredictionRecorder()
    evaluator = EvaluationPlugin(
        accuracy_metrics(minibatch=True, epoch=True, experience=True, stream=True),
        loss_metrics(epoch=True, stream=True),
        # Avalanche's class accuracy asks for task labels, which (x, y) benchmarks lack
        class_accuracy_metrics(experience=hasattr(benchmark.test_stream[0], "task_labels")),
        confusion_matrix_metrics(num_classes=6, stream=True, save_image=False),
        loggers=[logger],
    )
    plugins = [recorder]
    if every:
        plugins.append(AnytimeEvaluation(benchmark.test_stream, every))
    strategy = make_naive(plugins, evaluator=evaluator)
    for experience in benchmark.train_stream:
        stream = split_online_stream([experience], 10, shuffle=False) if online else experience
        strategy.train(stream, shuffle=False)
        strategy.eval(benchmark.test_stream)
    return strategy, logger, recorder


@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("kind", ["nc", "xy"])
def test_every_metric_is_a_row_and_the_matrix_is_the_recorders(kind, online, request, make_naive):
    _, logger, recorder = run(make_naive, request.getfixturevalue(kind), online=online)
    frame = logger.to_frame()
    assert list(frame.columns) == COLUMNS
    assert len(frame) == len(logger) > 0
    assert set(frame["phase"]) == {"train", "eval"}
    assert set(frame["stream"]) == {"test", "train_online" if online else "train"}
    # sub-experiences carry no task label; nor does the (x, y) benchmark
    tasks = {"nc": {0}, "xy": set()}[kind]
    assert set(frame.loc[frame["phase"] == "eval", "task"].dropna()) == tasks
    assert set(frame["trained_experience"]) == {0, 1, 2}
    ends = frame[frame["metric"] == "Top1_Acc_Stream"]
    assert ends["samples_seen"].tolist() == [40, 80, 120]
    assert ends["trained_experience"].tolist() == [0, 1, 2]
    # batches of 8, or sub-experiences of 10 in batches of 8 and 2
    assert ends["iteration"].tolist() == ([8, 16, 24] if online else [5, 10, 15])
    steps = frame[frame["metric"] == "Top1_Acc_MB"]
    assert len(steps) == (24 if online else 15)
    assert steps["samples_seen"].tolist()[:5] == (
        [8, 10, 18, 20, 28] if online else [8, 16, 24, 32, 40]
    )
    if kind == "nc":
        assert {"Top1_ClassAcc_Exp/0", "Top1_ClassAcc_Exp/1"} <= set(frame["metric"])
    assert not frame["metric"].str.contains("Confusion").any()
    # the matrix below the diagonal is that of the recorder, above it the untrained classes score
    matrix = logger.accuracy_matrix()
    assert matrix.index.tolist() == matrix.columns.tolist() == [0, 1, 2]
    below = np.tril_indices(3)
    np.testing.assert_allclose(
        matrix.to_numpy()[below], accuracy_matrix(recorder.points, 3)[below], atol=1e-6
    )


def test_anytime_rows_have_their_place_and_the_matrix_takes_the_end(nc, make_naive):
    _, logger, recorder = run(make_naive, nc, every=16)
    frame = logger.to_frame()
    places = frame[frame["metric"] == "Top1_Acc_Stream"]["samples_seen"].tolist()
    assert places == [16, 32, 40, 48, 64, 80, 96, 112, 120]
    assert places == [p.samples_seen for p in recorder.points]
    below = np.tril_indices(3)
    np.testing.assert_allclose(
        logger.accuracy_matrix().to_numpy()[below],
        accuracy_matrix(recorder.points, 3)[below],
        atol=1e-6,
    )


def test_the_matrix_takes_no_value_of_a_part_of_a_test_experience(nc, make_naive):
    strategy, logger, _ = run(make_naive, nc)
    before = logger.accuracy_matrix()
    part = copy.copy(nc.test_stream[0])
    part._dataset = part.dataset.subset([0])
    strategy.eval([part])
    again = DataFrameLogger()
    again.load_state_dict(logger.state_dict())
    for table in (logger, again):
        pd.testing.assert_frame_equal(table.accuracy_matrix(), before)
    assert len(logger) > int(before.size)


def test_csv_round_trip(nc, make_naive, tmp_path):
    _, logger, _ = run(make_naive, nc)
    path = logger.to_csv(tmp_path / "new" / "metrics.csv")
    read = pd.read_csv(path)
    assert list(read.columns) == COLUMNS
    np.testing.assert_allclose(read["value"], logger.to_frame()["value"])


def test_survives_pickle(nc, make_naive):
    _, logger, _ = run(make_naive, nc)
    again = pickle.loads(pickle.dumps(logger))
    pd.testing.assert_frame_equal(again.to_frame(), logger.to_frame())


def test_values_that_are_and_are_not_scalars():
    logger = DataFrameLogger()
    values = {
        "python": 0.5,
        "integer": 3,
        "numpy": np.float32(0.25),
        "tensor": torch.tensor(2.0),
        "alternative": AlternativeValues(torch.zeros(2, 2), 7.0),
        "matrix": torch.zeros(2, 2),
        "no alternative": AlternativeValues(torch.zeros(2, 2)),
        "bytes": b"weights",
        "text": "0.5",
    }
    for name, value in values.items():
        logger.log_single_metric(f"{name}/eval_phase/test_stream", value, 4)
    frame = logger.to_frame()
    assert dict(zip(frame["metric"], frame["value"], strict=True)) == {
        "python": 0.5,
        "integer": 3.0,
        "numpy": 0.25,
        "tensor": 2.0,
        "alternative": 7.0,
    }
    assert frame["iteration"].tolist() == [4] * 5
    assert frame["trained_experience"].isna().all()


def test_empty_logger_and_missing_metrics():
    logger = DataFrameLogger()
    frame = logger.to_frame()
    assert list(frame.columns) == COLUMNS
    assert frame.empty
    assert str(frame["experience"].dtype) == "Int64"
    with pytest.raises(ValueError, match="metric must be one logged per experience"):
        logger.accuracy_matrix()


def test_matrix_of_one_stream_among_several():
    logger = DataFrameLogger()
    logger._counter.position.experience = 0
    for stream, value in [("a", 0.1), ("b", 0.2)]:
        logger.log_single_metric(f"Top1_Acc_Exp/eval_phase/{stream}_stream/Exp000", value, 1)
    assert logger.accuracy_matrix(stream="b").loc[0, 0] == 0.2
    with pytest.raises(ValueError, match=r"several were evaluated: \['a', 'b'\]"):
        logger.accuracy_matrix()
    with pytest.raises(ValueError, match="stream must be one of"):
        logger.accuracy_matrix(stream="c")
    logger.log_single_metric("Top1_Acc_Exp/eval_phase/test_stream/Exp000", 0.3, 1)
    assert logger.accuracy_matrix().loc[0, 0] == 0.3
