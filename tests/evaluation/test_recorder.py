"""The recorder and the anytime evaluation on Avalanche's own Naive, in every kind of stream."""

from __future__ import annotations

import copy
import io
import pickle
import random
import re
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin

from avalanche_rwf.errors import UsageError
from avalanche_rwf.evaluation.metrics import (
    a_auc,
    a_avg,
    accuracy_exposed,
    accuracy_matrix,
    class_accuracy_matrix,
    forgetting_class,
    forgetting_experience,
    summarise,
)
from avalanche_rwf.evaluation.recorder import AnytimeEvaluation, PredictionRecorder
from avalanche_rwf.evaluation.stream_position import StreamPosition, experience_index

from .conftest import _blobs

pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified")


def direct_accuracy(strategy, experience):
    """Accuracy on a test experience, without the plugin under test."""
    strategy.model.eval()
    batch = [experience.dataset[i] for i in range(len(experience.dataset))]
    x, y = torch.stack([b[0] for b in batch]), torch.tensor([int(b[1]) for b in batch])
    with torch.no_grad():
        return (strategy.model(x).argmax(1) == y).double().mean().item()


def train_and_expect(strategy, stream, test_stream, recorder=None):
    """Train experience by experience; return the accuracy matrix found without the plugin."""
    expected = np.full((3, 3), np.nan)
    for t, experience in enumerate(stream):
        strategy.train(experience, shuffle=False)
        if recorder is not None:
            recorder.begin(t)
        strategy.eval(test_stream)
        for j in range(t + 1):
            expected[t, j] = direct_accuracy(strategy, test_stream[j])
    return expected


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("kind", ["nc", "xy"])
def test_the_matrix_is_that_of_predictions_by_hand(kind, announced, request, make_naive):
    benchmark = request.getfixturevalue(kind)
    recorder = PredictionRecorder()
    strategy = make_naive([recorder])
    expected = train_and_expect(
        strategy, benchmark.train_stream, benchmark.test_stream, recorder if announced else None
    )
    assert [p.experience for p in recorder.points] == [0, 1, 2]
    assert [p.samples_seen for p in recorder.points] == [40, 80, 120]
    assert [p.exposed for p in recorder.points] == [(0, 1), (0, 1, 2, 3), tuple(range(6))]
    assert np.bincount(recorder.points[0].test_experience).tolist() == [12, 12, 12]
    np.testing.assert_allclose(accuracy_matrix(recorder.points, 3), expected)


@pytest.mark.parametrize(
    ("kind", "size", "boundaries"), [("nc", 8, False), ("nc", 14, True), ("xy", 14, False)]
)
def test_sub_experience_stream_gives_the_same_points(kind, size, boundaries, request, make_naive):
    benchmark = request.getfixturevalue(kind)
    whole, cut = PredictionRecorder(), PredictionRecorder()
    expected = train_and_expect(
        make_naive([whole], train_mb_size=size), benchmark.train_stream, benchmark.test_stream
    )
    strategy = make_naive([cut], train_mb_size=size)
    for experience in benchmark.train_stream:
        # one train call a sub-experience, evaluated after each: the last one is the experience end
        for part in split_online_stream(
            [experience], size, shuffle=False, access_task_boundaries=boundaries
        ):
            strategy.train(part, shuffle=False)
            strategy.eval(benchmark.test_stream)
    ends = [p for p in cut.points if p.experience is not None]
    assert [(p.experience, p.samples_seen) for p in ends] == [(0, 40), (1, 80), (2, 120)]
    assert len(cut.points) == 3 * -(-40 // size)
    for a, b in zip(whole.points, ends, strict=True):
        assert np.array_equal(a.predictions, b.predictions)
        assert a.exposed == b.exposed
    np.testing.assert_allclose(accuracy_matrix(cut.points, 3), expected)


def test_sub_experiences_in_one_train_call(nc, make_naive):
    recorder = PredictionRecorder()
    strategy = make_naive([recorder], eval_every=0)
    strategy.train(
        split_online_stream(nc.train_stream, 8, shuffle=False),
        eval_streams=[nc.test_stream],
        shuffle=False,
    )
    # PeriodicEval evaluates before training and after each of the 15 sub-experiences.
    assert [p.samples_seen for p in recorder.points] == [8 * i for i in range(16)]
    assert [p.experience for p in recorder.points if p.experience is not None] == [0, 1, 2]
    assert recorder.points[0].exposed == ()


def test_sub_experiences_that_drop_the_last_samples_end_too(nc, make_naive):
    recorder = PredictionRecorder()
    strategy = make_naive([recorder], train_mb_size=12)
    for part in split_online_stream(nc.train_stream, 12, shuffle=False, drop_last=True):
        strategy.train(part)
        strategy.eval(nc.test_stream)
    ends = [(p.experience, p.samples_seen) for p in recorder.points if p.experience is not None]
    assert ends == [(0, 36), (1, 72), (2, 108)]


def test_loader_that_drops_the_last_samples_ends_too(nc, make_naive):
    recorder = PredictionRecorder()
    strategy = make_naive([recorder], train_mb_size=12)
    strategy.train(nc.train_stream[0], drop_last=True)
    strategy.eval(nc.test_stream)
    assert (recorder.points[0].experience, recorder.points[0].samples_seen) == (0, 36)


def test_hidden_origin_is_read_in_logging_mode(nc):
    part = next(iter(split_online_stream([nc.train_stream[2]], 8, shuffle=False))).train()
    with pytest.raises(ValueError, match="origin_experience is not available"):
        _ = part.origin_experience
    assert experience_index(part) == 2
    position = StreamPosition()
    position.start_part([part])
    assert (position.experience, position.experience_size) == (2, 40)


def test_sub_experience_without_origin_ends_nothing(nc):
    part = next(iter(split_online_stream([nc.train_stream[2]], 40, shuffle=False)))
    part.origin_experience = None
    position = StreamPosition()
    position.start_part([part])
    position.count(40)
    position.finish_part()
    assert not position.at_experience_end
    assert position.samples_seen == 40
    assert experience_index(SimpleNamespace()) is None


@pytest.mark.parametrize("sizes", [{}, {"batch_size": 4, "batch_size_mem": 3}])
@pytest.mark.parametrize("workers", [0, 1])
def test_replayed_samples_are_not_counted(sizes, workers, nc, make_naive):
    class Steps(SupervisedPlugin):
        """Batches, and the samples that have been counted after each."""

        def __init__(self):
            super().__init__()
            self.batches, self.counted = [], []

        def before_forward(self, strategy, **kwargs):
            self.batches.append(len(strategy.mb_y))

        def before_training_iteration(self, strategy, **kwargs):
            self.counted.append(recorder.samples_seen)

    recorder, steps = PredictionRecorder(), Steps()
    plugins = [ReplayPlugin(mem_size=20, **sizes), steps, recorder]
    strategy = make_naive(plugins, train_mb_size=7)
    for experience in nc.train_stream:
        strategy.train(experience, num_workers=workers)
        strategy.eval(nc.test_stream)
    assert max(steps.batches) == (sum(sizes.values()) or 14)
    assert [p.samples_seen for p in recorder.points] == [40, 80, 120]
    size = sizes.get("batch_size", 7)
    assert [n for n in steps.counted if n >= 40] == [*range(40, 80, size), *range(80, 120, size)]


def test_epochs_count_again(nc, make_naive):
    recorder = PredictionRecorder()
    strategy = make_naive([recorder], train_epochs=2, eval_every=1)
    strategy.train(nc.train_stream[0], eval_streams=[nc.test_stream])
    labels = [(p.samples_seen, p.experience) for p in recorder.points]
    assert labels == [(0, None), (40, None), (80, 0)]


def test_other_streams_are_passed_over(nc, make_naive):
    recorder = PredictionRecorder()
    strategy = make_naive([recorder], eval_every=0)
    strategy.train(nc.train_stream[0])  # Avalanche evaluates the training stream by default
    assert recorder.points == []
    recorder.begin(0)
    with pytest.raises(ValueError, match=r"the stream 'test' after begin\(\), got those of \['tr"):
        strategy.eval(nc.train_stream)
    everything = PredictionRecorder(stream=None)
    strategy = make_naive([everything], eval_every=0)
    strategy.train(nc.train_stream[0])
    assert len(everything.points) == 2


NUMBERS = ("a_last", "a_avg", "a_auc", "forgetting_experience", "forgetting_class")


def evaluated(nc, make_naive, evaluate, **loop):
    """A loop whose evaluations at an experience's end are made by `evaluate(strategy, t)`."""
    recorder = PredictionRecorder()
    strategy = make_naive([recorder], **loop)
    for t, experience in enumerate(nc.train_stream):
        single = [nc.test_stream[t]] if "eval_every" in loop else []
        strategy.train(experience, shuffle=False, eval_streams=single)
        evaluate(strategy, recorder, t)
    return recorder.points


def part(experience):
    some = copy.copy(experience)
    some._dataset = experience.dataset.subset(range(5))
    return some


@pytest.mark.parametrize("every", [-1, 0, 1])
@pytest.mark.parametrize("epochs", [1, 2])
def test_evaluations_of_single_experiences_change_no_number(every, epochs, nc, make_naive):
    def run(evaluate, **loop):
        return evaluated(nc, make_naive, evaluate, train_epochs=epochs, **loop)

    def plain(strategy, recorder, t):
        strategy.eval(nc.test_stream)

    def also(strategy, recorder, t):
        """The whole stream once, between evaluations of other things."""
        tests = list(nc.test_stream)
        strategy.eval(tests[t])
        strategy.eval(tests[0])
        strategy.eval(tests[::-1] if t % 2 else tests)
        strategy.eval(nc.train_stream[0])
        strategy.eval([part(test) for test in tests])
        strategy.eval(tests[: t + 1])
        strategy.eval(tests[2])
        recorder.begin(t)
        strategy.eval(tests[t])

    expected, found = run(plain), run(also, eval_every=every)
    summaries = summarise(found, 3), summarise(expected, 3)
    if (every, epochs) == (1, 2):
        # After the first of the first experience's epochs its test images are all that count: a
        # place more for a_auc.
        assert summaries[0].pop("a_auc") != summaries[1].pop("a_auc")
    assert summaries[0] == pytest.approx(summaries[1])
    assert all(summarise(expected, 3)[name] is not None for name in NUMBERS)
    np.testing.assert_allclose(accuracy_matrix(found, 3), accuracy_matrix(expected, 3))


@pytest.mark.parametrize(
    ("evaluate", "there", "note"),
    [
        # the loop that many begin with: each experience's own test images, never all
        (lambda s, tests, t: s.eval(tests[t]), [], r"not tested all samples of the classes 0, 1,"),
        (lambda s, tests, t: s.eval(part(tests[t])), [], "There is no a_last"),
        (lambda s, tests, t: s.eval(tests) if t == 2 else None, ["a_last", "a_auc"],
         r"no a_avg and no forgetting: no evaluation at the end of the training experiences 0, 1 "),
        (lambda s, tests, t: s.eval(tests) if t != 2 else s.eval(tests[:2]), [], "no a_last"),
        (lambda s, tests, t: s.eval(tests) if t != 1 else s.eval(tests[1]), ["a_last", "a_auc"],
         "training experiences 1 has"),
        (lambda s, tests, t: s.eval(tests[: t + 1]), NUMBERS, None),
    ],
)  # fmt: skip
def test_what_the_evaluations_do_not_give_is_none_and_said(evaluate, there, note, nc, make_naive):
    tests = list(nc.test_stream)
    points = evaluated(nc, make_naive, lambda s, recorder, t: evaluate(s, tests, t))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        summary = summarise(points, 3)
    assert {name for name in NUMBERS if summary[name] is not None} == set(there)
    said = " ".join(str(w.message) for w in caught)
    assert re.search(note, said) if note else not said
    matrix = accuracy_matrix(points, 3)
    if "forgetting_class" not in there:
        assert np.isnan(forgetting_experience(matrix))
        assert np.isnan(forgetting_class(class_accuracy_matrix(points, 3)))
    assert np.isnan(a_avg(points)) == ("a_avg" not in there)


def test_test_streams_of_another_length_have_no_forgetting_by_experience(nc, make_naive):
    datasets = [torch.utils.data.TensorDataset(*blobs) for blobs in (_blobs(20, 0), _blobs(6, 1))]
    for data in datasets:
        data.targets = data.tensors[1].tolist()
    one = nc_benchmark(datasets[0], datasets[1], n_experiences=6, task_labels=False, shuffle=False)
    recorder = PredictionRecorder()
    strategy = make_naive([recorder])
    for experience in nc.train_stream:
        strategy.train(experience, shuffle=False)
        strategy.eval(one.test_stream)
    with pytest.warns(UserWarning, match="test stream has 6 experiences and the training stream 3"):
        summary = summarise(recorder.points, 3)
    assert summary["forgetting_experience"] is None
    assert [name for name in NUMBERS if summary[name] is None] == ["forgetting_experience"]


def test_experiences_trained_on_in_another_order_have_no_forgetting(nc, make_naive):
    recorder = PredictionRecorder()
    strategy = make_naive([recorder])
    for t in (2, 0, 1):
        strategy.train(nc.train_stream[t], shuffle=False)
        strategy.eval(nc.test_stream)
    with pytest.warns(UserWarning, match=r"came in another order .* \(2, 0, 1\)"):
        summary = summarise(recorder.points, 3)
    assert summary["forgetting_class"] is summary["forgetting_experience"] is None
    assert summary["a_last"] is not None


def test_two_experiences_in_one_call_have_one_evaluation_and_say_so(nc, make_naive):
    recorder = PredictionRecorder()
    strategy = make_naive([recorder])
    strategy.train(nc.train_stream[:2], eval_streams=[], shuffle=False)
    strategy.eval(nc.test_stream)
    strategy.train(nc.train_stream[2], shuffle=False)
    strategy.eval(nc.test_stream)
    with pytest.warns(UserWarning, match="at the end of the training experiences 0 has tested"):
        summary = summarise(recorder.points, 3)
    assert summary["a_avg"] is None


def test_every_so_many_iterations_is_mid_stream(nc, make_naive):
    recorder = PredictionRecorder()
    strategy = make_naive([recorder], eval_every=2, peval_mode="iteration")
    for experience in nc.train_stream:
        strategy.train(experience, shuffle=False, eval_streams=[nc.test_stream])
    mid = [(p.samples_seen, p.experience) for p in recorder.points]
    assert (24, None) in mid
    assert {e for seen, e in mid if seen in (40, 80, 120)} == {0, 1, 2}
    assert summarise(recorder.points, 3)["a_avg"] is not None


def test_the_exposed_accuracy_of_a_part_is_nan_and_not_another_number(nc, make_naive):
    recorder = PredictionRecorder()
    strategy = make_naive([recorder])
    strategy.train(nc.train_stream[:2], eval_streams=[], shuffle=False)
    strategy.eval(nc.test_stream[1])
    assert np.isnan(accuracy_exposed(recorder.points[0]))


def test_begin_labels_one_evaluation_only(nc, make_naive):
    recorder = PredictionRecorder()
    strategy = make_naive([recorder])
    strategy.train(nc.train_stream[0])
    recorder.begin(None)
    strategy.eval(nc.test_stream)
    strategy.eval(nc.test_stream)
    assert [p.experience for p in recorder.points] == [None, 0]


def test_output_that_is_no_tensor_of_logits_is_refused(nc):
    recorder = PredictionRecorder()
    strategy = SimpleNamespace(experience=nc.test_stream[0], mb_output={}, mb_y=torch.zeros(2))
    with pytest.raises(ValueError, match=r"mb_output must be a tensor of logits.*got dict"):
        recorder.after_eval_iteration(strategy)


def test_state_dict_is_plain_and_continues_the_run(nc, make_naive):
    def run(recorder, strategy, experiences):
        for t in experiences:
            strategy.train(nc.train_stream[t], shuffle=False)
            strategy.eval(nc.test_stream)

    whole = PredictionRecorder()
    strategy = make_naive([whole])
    run(whole, strategy, [0, 1])
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    resumed = PredictionRecorder()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    strategy.plugins[0] = resumed
    run(resumed, strategy, [2])
    assert [p.samples_seen for p in resumed.points] == [40, 80, 120]
    assert [p.experience for p in resumed.points] == [0, 1, 2]
    assert resumed.points[2].exposed == tuple(range(6))
    assert len(whole.points) == 2
    assert summarise(resumed.points[:2], 3) == summarise(whole.points, 3)
    with pytest.raises(ValueError, match="state must hold exactly"):
        StreamPosition().load_state_dict({"samples_seen": 1})


def test_recorder_survives_pickle_and_deepcopy(nc, make_naive):
    recorder = PredictionRecorder()
    strategy = make_naive([recorder])
    strategy.train(nc.train_stream[0])
    for other in (pickle.loads(pickle.dumps(recorder)), copy.deepcopy(recorder)):
        strategy.plugins[0] = other
        strategy.eval(nc.test_stream)
        assert [p.experience for p in other.points] == [0]


# ---- anytime evaluation


def minibatch_metrics():
    return EvaluationPlugin(
        accuracy_metrics(minibatch=True, epoch=True), loss_metrics(minibatch=True, epoch=True)
    )


@pytest.mark.parametrize("kind", ["nc", "xy"])
def test_mid_stream_evaluations_are_where_they_are_due(kind, request, make_naive):
    benchmark = request.getfixturevalue(kind)
    recorder = PredictionRecorder()
    strategy = make_naive([recorder, AnytimeEvaluation(benchmark.test_stream, every=20)])
    for t, experience in enumerate(benchmark.train_stream):
        strategy.train(experience, shuffle=False)
        recorder.begin(t)
        strategy.eval(benchmark.test_stream)
    # mini-batches of 8: 20 is passed at 24, 60 at 64, 100 at 104; 40, 80 and 120 are ends
    labels = [(p.samples_seen, p.experience) for p in recorder.points]
    assert labels == [(24, None), (40, 0), (64, None), (80, 1), (104, None), (120, 2)]
    tested = [sorted(set(p.test_experience.tolist())) for p in recorder.points]
    assert tested == [[0], [0, 1, 2], [0, 1], [0, 1, 2], [0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize("online", [False, True])
def test_anytime_points_do_not_depend_on_how_the_stream_is_cut(nc, make_naive, online):
    recorder = PredictionRecorder()
    strategy = make_naive([recorder, AnytimeEvaluation(nc.test_stream, every=10)])
    stream = split_online_stream(nc.train_stream, 8, shuffle=False) if online else nc.train_stream
    strategy.train(stream, shuffle=False)
    assert [p.samples_seen for p in recorder.points] == [
        *(16, 24, 32),
        *(56, 64, 72),
        *(96, 104, 112),
    ]
    assert all(p.experience is None for p in recorder.points)


@pytest.mark.parametrize("online", [False, True])
def test_anytime_evaluation_changes_nothing(nc, make_naive, online):
    def run(plugins):
        evaluator = minibatch_metrics()
        strategy = make_naive(plugins, evaluator=evaluator, dropout=0.2)
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        stream = split_online_stream(nc.train_stream, 8, seed=3) if online else nc.train_stream
        strategy.train(stream)  # shuffled, with dropout: every draw of the generator matters
        draws = (torch.rand(1).item(), np.random.rand(), random.random())
        metrics = {k: v for k, v in evaluator.get_all_metrics().items() if "train_phase" in k}
        return strategy, draws, metrics

    class Draw(AnytimeEvaluation):
        """Also draws from every generator while it evaluates."""

        def before_eval(self, strategy, **kwargs):
            torch.rand(1), np.random.rand(), random.random()

    plain, plain_draws, plain_metrics = run([])
    watched, watched_draws, watched_metrics = run([PredictionRecorder(), Draw(nc.test_stream, 9)])
    assert len(watched.plugins[0].points) > 3
    assert watched_draws == plain_draws
    assert watched_metrics == plain_metrics
    assert plain_metrics
    for a, b in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(a, b)
    states = zip(plain.optimizer.state.values(), watched.optimizer.state.values(), strict=True)
    assert all(torch.equal(a["exp_avg"], b["exp_avg"]) for a, b in states)


def test_anytime_evaluation_restores_the_training_state(nc, make_naive):
    names = (
        *("experience", "adapted_dataset", "dataloader", "mbatch", "mb_output", "loss"),
        *("is_training", "current_eval_stream"),
    )
    seen = []

    class Watched(AnytimeEvaluation):
        def _evaluate(self, strategy):
            before = {name: getattr(strategy, name) for name in names}
            super()._evaluate(strategy)
            assert all(getattr(strategy, name) is before[name] for name in names)
            assert all(module.training for module in strategy.model.modules())
            seen.append(self.samples_seen)

    strategy = make_naive([Watched(nc.test_stream, 8)])
    strategy.train(nc.train_stream[0])
    assert seen == [8, 16, 24, 32]


def test_anytime_evaluation_takes_blurred_test_experiences(nc, make_naive):
    # Class 4 is met in the first training experience already: its test experience counts.
    anytime = AnytimeEvaluation(nc.test_stream, every=10)
    anytime._counter._exposed = {0, 4}
    assert [e.current_experience for e in anytime._seen_tests()] == [0, 2]
    untold = [SimpleNamespace(current_experience=t) for t in range(3)]
    anytime = AnytimeEvaluation(untold, every=10)
    assert anytime._seen_tests() == []
    anytime._position.experience = 1
    assert anytime._seen_tests() == untold[:2]


def test_anytime_evaluation_refuses_bad_arguments(nc, make_naive):
    with pytest.raises(ValueError, match="every must be a whole number of at least 1, not 0"):
        AnytimeEvaluation(nc.test_stream, 0)
    with pytest.raises(ValueError, match="test_stream must hold at least one experience"):
        AnytimeEvaluation([], 5)


class Scripted(torch.nn.Module):
    """Knows, after so many training steps, the classes below `known[steps]`, and says 0 for others.

    The blobs' largest coordinate is their class.
    """

    def __init__(self, known):
        super().__init__()
        self.known, self.steps = known, 0
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x):
        self.steps += self.training
        truth = x.argmax(dim=1)
        said = torch.where(truth < self.known[self.steps], truth, torch.zeros_like(truth))
        return torch.nn.functional.one_hot(said, 6) + self.weight


def test_a_auc_of_a_scripted_classifier_by_hand(nc):
    """15 steps of 8 samples; 36 test samples, 6 of each class, in 3 experiences."""
    from avalanche.training.supervised import Naive

    for experience in nc.test_stream:
        assert all(int(x.argmax()) == int(y) for x, y, _ in experience.dataset)
    known = [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 2, 6, 6, 6]
    for subset in (None, 18):
        model = Scripted(known)
        recorder = PredictionRecorder()
        strategy = Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), 0.0),
            train_mb_size=8,
            plugins=[recorder, AnytimeEvaluation(nc.test_stream, every=24, subset=subset)],
            evaluator=EvaluationPlugin(),
        )
        for experience in nc.train_stream:
            strategy.train(experience, shuffle=False)
            strategy.eval(nc.test_stream)
        assert [(p.samples_seen, p.experience) for p in recorder.points] == [
            *((24, None), (40, 0), (48, None), (72, None), (80, 1), (96, None), (120, 2)),
        ]
        # The stream sorts an experience by class. Exposed at 24 are 0 and 1, and 0 is right.
        # At 48, class 2 as well: 0 and 1 of three are right; at 72, class 3: 0, 1 and 2 of four; at
        # 96, class 4: only 0 and 1 of five; at the end all six. Each class has as many samples as
        # another, in the subset too.
        exposed = [len(p.exposed) for p in recorder.points]
        assert exposed == [2, 2, 3, 4, 4, 5, 6]
        expected = (1 / 2 + 2 / 3 + 3 / 4 + 2 / 5 + 1) / 5
        assert a_auc(recorder.points, every=24) == pytest.approx(expected)
        # All places: the ends at 40 (0 and 1 of two) and 80 (three of four) count too.
        expected = (1 / 2 + 2 / 2 + 2 / 3 + 3 / 4 + 3 / 4 + 2 / 5 + 1) / 7
        assert a_auc(recorder.points) == pytest.approx(expected)
        assert summarise(recorder.points, 3, 24)["a_last"] == 1.0


def test_a_subset_is_for_points_in_mid_stream_and_always_the_same(nc, make_naive):
    recorder = PredictionRecorder()
    strategy = make_naive([recorder, AnytimeEvaluation(nc.test_stream, every=8, subset=12)])
    for experience in nc.train_stream:
        strategy.train(experience, shuffle=False)
        strategy.eval(nc.test_stream)
    sizes = {p.samples_seen: len(p.targets) for p in recorder.points}
    ends = {40, 80, 120}
    assert {sizes[seen] for seen in ends} == {36}
    # Of the test experiences with a class met so far: 4 samples each, two of either class.
    assert [sizes[seen] for seen in range(8, 121, 8) if seen not in ends] == [*[4] * 4, *[8] * 4,
                                                                            *[12] * 4]  # fmt: skip
    last = [p for p in recorder.points if 80 < p.samples_seen < 120]
    assert all(np.array_equal(p.targets, last[0].targets) for p in last)
    with pytest.raises(ValueError, match="at least one of each of the 6 classes, not 5"):
        AnytimeEvaluation(nc.test_stream, every=8, subset=5)


def test_nonsense_is_refused_by_name(nc):
    for value in (None, 3, "x", [3]):
        with pytest.raises(UsageError, match="test_stream must hold test experiences"):
            AnytimeEvaluation(value, 5)
    for value in (3, "", True, []):
        with pytest.raises(UsageError, match="stream must be a stream's name or None"):
            PredictionRecorder(stream=value)
