"""The anytime metrics reach Avalanche's loggers, with the values of the recorder's points."""

from __future__ import annotations

import io

import pytest
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import TextLogger
from avalanche.training.plugins import EvaluationPlugin

from avalanche_rwf.evaluation import (
    AnytimeEvaluation,
    DataFrameLogger,
    PredictionRecorder,
    a_auc,
    accuracy_exposed,
    anytime_metrics,
)

pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified")


@pytest.mark.parametrize("kind", ["nc", "xy"])
def test_every_evaluation_is_logged(kind, request, make_naive):
    benchmark = request.getfixturevalue(kind)
    recorder, logger, text = PredictionRecorder(), DataFrameLogger(), io.StringIO()
    metrics = anytime_metrics(recorder, every=20)
    evaluator = EvaluationPlugin(
        accuracy_metrics(stream=True), *metrics, loggers=[logger, TextLogger(text)]
    )
    strategy = make_naive([recorder, AnytimeEvaluation(benchmark.test_stream, 20)], evaluator)
    assert [metric.result() for metric in metrics] == [None, None]
    for experience in benchmark.train_stream:
        strategy.train(experience, shuffle=False)
        returned = strategy.eval(benchmark.test_stream)
    points = recorder.points
    frame = logger.to_frame()
    exposed = frame[frame["metric"] == "Top1_Acc_Exposed"]
    assert exposed["samples_seen"].tolist() == [p.samples_seen for p in points]
    assert exposed["samples_seen"].tolist() == [24, 40, 64, 80, 104, 120]
    assert exposed["value"].tolist() == [accuracy_exposed(p) for p in points]
    auc = frame[frame["metric"] == "A_auc"]["value"].tolist()
    assert auc == [a_auc(points[: n + 1], 20) for n in range(len(points))]
    assert returned["A_auc/eval_phase/test_stream"] == auc[-1] == metrics[1].result()
    assert "Top1_Acc_Exposed/eval_phase/test_stream = " in text.getvalue()
    metrics[1].reset()
    assert metrics[1].result() is None


def test_other_streams_are_not_logged_twice(nc, make_naive):
    recorder, logger = PredictionRecorder(), DataFrameLogger()
    evaluator = EvaluationPlugin(*anytime_metrics(recorder), loggers=[logger])
    strategy = make_naive([recorder], evaluator)
    strategy.train(nc.train_stream[0])
    strategy.eval(nc.test_stream)
    strategy.eval(nc.train_stream)
    frame = logger.to_frame()
    assert frame["metric"].tolist() == ["Top1_Acc_Exposed", "A_auc"]
    assert set(frame["stream"]) == {"test"}


def test_a_recorder_that_records_nothing_is_refused(nc, make_naive):
    evaluator = EvaluationPlugin(*anytime_metrics(PredictionRecorder()))
    strategy = make_naive([PredictionRecorder()], evaluator)
    with pytest.raises(ValueError, match="recorder of Top1_Acc_Exposed must be among"):
        strategy.train(nc.train_stream[0])


