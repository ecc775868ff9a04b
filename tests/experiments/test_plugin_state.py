"""A loop with Avalanche's plugins that is cut and started again ends as if it had not been."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics, loss_metrics
from avalanche.training import plugins
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.storage_policy import ClassBalancedBuffer, ReservoirSamplingBuffer
from avalanche.training.supervised import DER, ER_ACE, Cumulative, Naive
from torch.optim import lr_scheduler

from avalanche_rwf import AnytimeEvaluation, CheckpointPlugin, DataFrameLogger, PredictionRecorder
from avalanche_rwf.errors import UsageError
from avalanche_rwf.evaluation import summarise
from avalanche_rwf.utils.atomic_io import read_state

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


class Cut(BaseException):
    pass


class CutAfter(SupervisedPlugin):
    """As a power cut; without a state, so that it may come late."""

    steps: int | None = None

    def before_forward(self, strategy, **kwargs):
        if type(self).steps is not None and strategy.clock.train_iterations >= type(self).steps:
            raise Cut


@pytest.fixture(scope="module")
def benchmark():
    def data(n, seed):
        g = torch.Generator().manual_seed(seed)
        y = torch.arange(6).repeat(n)
        x = 2 * torch.eye(6)[y] + torch.randn(len(y), 6, generator=g)
        dataset = torch.utils.data.TensorDataset(x, y)
        dataset.targets = y.tolist()
        return dataset

    return nc_benchmark(data(12, 0), data(4, 1), 3, task_labels=False, seed=0)


class Model(torch.nn.Module):
    def __init__(self, keeps_features=False):
        super().__init__()
        self.body, self.head = torch.nn.Linear(6, 8), torch.nn.Linear(8, 6)
        self.keeps_features, self.features = keeps_features, None

    def forward(self, x):
        features = self.body(x).relu()
        if self.keeps_features:
            self.features = features
        return self.head(features)


def schedule(kind, granularity="iteration", metric=None, **options):
    def make(optimizer):
        return plugins.LRSchedulerPlugin(
            kind(optimizer, **options), step_granularity=granularity, metric=metric,
            reset_lr=False, reset_scheduler=False,
        )  # fmt: skip

    return make


class Momentum(SupervisedPlugin):
    """A user's own: a running mean of the weights, in its attributes."""

    def __init__(self):
        super().__init__()
        self.mean, self.seen = {}, {"steps": [0]}

    def before_update(self, strategy, **kwargs):
        self.seen["steps"][0] += 1
        for name, p in strategy.model.named_parameters():
            old = self.mean.get(name, torch.zeros_like(p))
            self.mean[name] = 0.9 * old + 0.1 * p.detach()
            p.grad += 0.1 * self.mean[name]


KINDS = {
    "none": lambda o: None,
    "replay": lambda o: plugins.ReplayPlugin(mem_size=9),
    "replay of other sizes": lambda o: plugins.ReplayPlugin(9, batch_size=4, batch_size_mem=3),
    "replay by class": lambda o: plugins.ReplayPlugin(
        9, storage_policy=ClassBalancedBuffer(9, adaptive_size=True)
    ),
    "replay by reservoir": lambda o: plugins.ReplayPlugin(
        9, storage_policy=ReservoirSamplingBuffer(9)
    ),
    "gdumb": lambda o: plugins.GDumbPlugin(9),
    "lwf": lambda o: plugins.LwFPlugin(alpha=5.0),
    "ewc": lambda o: plugins.EWCPlugin(100.0),
    "ewc online": lambda o: plugins.EWCPlugin(100.0, mode="online", decay_factor=0.5),
    "si": lambda o: plugins.SynapticIntelligencePlugin(1.0),
    "mas": lambda o: plugins.MASPlugin(1.0),
    "rwalk": lambda o: plugins.RWalkPlugin(ewc_lambda=0.1, delta_t=2),
    "features": lambda o: plugins.FeatureDistillationPlugin(0.5, mode="cosine"),
    "from scratch": lambda o: plugins.FromScratchTrainingPlugin(reset_optimizer=False),
    "step": schedule(lr_scheduler.StepLR, step_size=4, gamma=0.3),
    "cosine": schedule(lr_scheduler.CosineAnnealingLR, T_max=20),
    "one cycle": schedule(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=20),
    "lambda": schedule(lr_scheduler.LambdaLR, lr_lambda=lambda step: 0.9**step),
    "by epoch": schedule(lr_scheduler.ExponentialLR, "epoch", gamma=0.5),
    "plateau": schedule(lr_scheduler.ReduceLROnPlateau, metric="train_loss", patience=1),
    "a user's": lambda o: Momentum(),
}


def loop(kind, benchmark, folder, cut=None, strategy=Naive, shuffle=False, **options):
    torch.manual_seed(1)
    model, table, recorder = Model(kind == "features"), DataFrameLogger(), PredictionRecorder()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    extra = KINDS[kind](optimizer)
    anytime = AnytimeEvaluation(benchmark.test_stream, 9)
    built = strategy(
        model=model, optimizer=optimizer, criterion=torch.nn.CrossEntropyLoss(), train_mb_size=5,
        eval_mb_size=12, plugins=[*([] if extra is None else [extra]), recorder, anytime],
        evaluator=EvaluationPlugin(
            accuracy_metrics(minibatch=True, epoch=True, experience=True, stream=True),
            loss_metrics(epoch_running=True), forgetting_metrics(experience=True, stream=True),
            loggers=[table],
        ), **options,
    )  # fmt: skip
    CutAfter.steps = cut
    said = []
    checkpoints = CheckpointPlugin(folder, every=1, log=said.append)
    for experience in checkpoints.experiences(built, benchmark.train_stream):
        if not any(isinstance(plugin, CutAfter) for plugin in built.plugins):
            built.plugins.append(CutAfter())
        built.train(experience, eval_streams=[], shuffle=shuffle)
        built.eval(benchmark.test_stream)
    return built, table, recorder, said


def check_same(whole, again):
    for a, b in zip(whole[0].model.parameters(), again[0].model.parameters(), strict=True):
        assert torch.equal(a, b)
    states = (x[0].optimizer.state_dict() for x in (whole, again))
    a, b = (torch.cat([s["exp_avg"].flatten() for s in x["state"].values()]) for x in states)
    assert torch.equal(a, b)
    rates = [[g["lr"] for g in x[0].optimizer.param_groups] for x in (whole, again)]
    assert rates[0] == rates[1]
    pd.testing.assert_frame_equal(whole[1].to_frame(), again[1].to_frame(), check_exact=True)
    assert summarise(whole[2].points, 3, 9) == summarise(again[2].points, 3, 9)
    results = [x[0].evaluator.get_all_metrics() for x in (whole, again)]
    assert results[0] == results[1]
    assert whole[0].clock.train_iterations == again[0].clock.train_iterations


def cut_twice(kind, benchmark, tmp_path, **options):
    whole = loop(kind, benchmark, tmp_path / "whole", **options)
    steps = whole[0].clock.train_iterations
    for cut in (2, steps // 2, steps - 1):
        with pytest.raises(Cut):
            loop(kind, benchmark, tmp_path / "cut", cut=cut, **options)
        torch.rand(3)
    again = loop(kind, benchmark, tmp_path / "cut", **options)
    assert [line for line in again[3] if line.startswith("resumed in experience")]
    check_same(whole, again)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_with_a_plugin_goes_on_to_the_same_bits(kind, benchmark, tmp_path):
    cut_twice(kind, benchmark, tmp_path)


@pytest.mark.parametrize("kind", ["none", "replay", "ewc"])
def test_shuffled_loops_and_epochs_go_on_to_the_same_bits(kind, benchmark, tmp_path):
    cut_twice(kind, benchmark, tmp_path, shuffle=True, train_epochs=2)


@pytest.mark.parametrize(
    ("strategy", "options"),
    [(Cumulative, {}), (ER_ACE, {"mem_size": 9, "batch_size_mem": 3})],
)
def test_a_strategy_of_avalanches_goes_on_with_what_it_keeps(
    strategy, options, benchmark, tmp_path
):
    cut_twice("none", benchmark, tmp_path, strategy=strategy, **options)


def test_a_checkpoint_holds_a_buffers_numbers_and_not_its_samples(benchmark, tmp_path):
    loop("replay", benchmark, tmp_path)
    state = read_state(tmp_path / "checkpoint.pt")
    packed = state["parts"]["0 ReplayPlugin"]["storage_policy"]
    buffer = packed[2]["buffer_groups"][1][0][1][2]["_buffer"]
    assert buffer[0] == "samples"
    assert buffer[1].shape == (3, 2)


class HoldsFile(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.lines = iter(["a"])


@pytest.mark.parametrize(
    ("plugin", "why"),
    [
        (lambda: plugins.AGEMPlugin(5, 5), "AGEMPlugin .it iterates over its buffer"),
        (lambda: plugins.MIRPlugin(4), "MIRPlugin .it iterates over its buffer"),
        (HoldsFile, r"HoldsFile \(lines is a list_iterator\)"),
    ],
)
def test_what_cannot_be_saved_is_refused_before_the_first_step(plugin, why, benchmark, tmp_path):
    KINDS["refused"] = lambda optimizer: plugin()
    try:
        with pytest.raises(UsageError, match=rf"cannot save the state of {why}.* that has state_d"):
            loop("refused", benchmark, tmp_path / "new", cut=0)
    finally:
        del KINDS["refused"]
    assert not list((tmp_path / "new").glob("*.pt"))


def test_a_strategy_whose_buffer_holds_more_than_the_stream_is_refused(benchmark, tmp_path):
    """DER keeps logits with its samples."""
    with pytest.raises(UsageError, match="CheckpointPlugin cannot save the state of DER"):
        loop("none", benchmark, tmp_path, strategy=DER, mem_size=9, batch_size_mem=3)


def test_a_plugin_that_comes_late_is_refused(benchmark, tmp_path):
    strategy = Naive(
        model=(model := Model()),
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        evaluator=EvaluationPlugin(),
    )
    with pytest.raises(UsageError, match="Momentum was added later"):
        for experience in CheckpointPlugin(tmp_path).experiences(strategy, benchmark.train_stream):
            strategy.plugins.append(Momentum())
            strategy.train(experience)


def test_a_class_that_is_not_avalanches_is_not_made_from_a_file(benchmark, tmp_path):
    loop("replay", benchmark, tmp_path)
    from avalanche_rwf.utils.atomic_io import save_state

    path = tmp_path / "checkpoint.pt"
    state = read_state(path)
    state["position"]["experience"] = 2
    state["parts"]["0 ReplayPlugin"]["storage_policy"][1] = "subprocess:Popen"
    save_state(path, state)
    with pytest.raises(UsageError, match="'subprocess:Popen' is no class of Avalanche's"):
        loop("replay", benchmark, tmp_path)
