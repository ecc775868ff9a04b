"""Plugins that watch a run: time, progress, values that are not finite, accuracies."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from avalanche.core import SupervisedPlugin
from torch import nn

from avalanche_rwf.errors import NonFiniteLossError
from avalanche_rwf.evaluation.metrics import accuracy_exposed
from avalanche_rwf.evaluation.recorder import PredictionRecorder
from avalanche_rwf.evaluation.stream_position import stream_counter
from avalanche_rwf.models.feature_cache import MEMORY, counts_only

Progress = Callable[[int], None]
"""Called with the number of training samples that a step has seen."""


@runtime_checkable
class Listener(Protocol):
    """A :data:`Progress` that wants to know accuracies too."""

    def __call__(self, samples: int) -> None:
        """Take in the training samples of a step."""

    def evaluated(self, accuracy: float) -> None:
        """Take in the accuracy of an evaluation, in mid-stream or at an experience's end."""


class Meter(SupervisedPlugin):
    """Training samples, the seconds of training and of evaluation, and how many images went
    through a backbone for it.
    """

    def __init__(self, progress: Progress | None) -> None:
        super().__init__()
        self.progress = progress
        self._reported = 0
        self._earlier = {"train_seconds": 0.0, "eval_seconds": 0.0, "forward_images": 0}
        # What has been counted by this process, and what counts in the training that goes on.
        self._trained = self._evaluated = self._since = 0.0
        self._images = 0
        self._training: Callable[[], float] = float
        self._looked_up: Callable[[], int] = int

    @property
    def train_seconds(self) -> float:
        """Seconds of training so far, without evaluations and checkpoints."""
        return self._earlier["train_seconds"] + self._trained + self._training()

    @property
    def eval_seconds(self) -> float:
        """Seconds of evaluation so far."""
        return self._earlier["eval_seconds"] + self._evaluated

    @property
    def forward_images(self) -> int:
        """Images that went through a backbone in training so far, looked up ones too."""
        return int(self._earlier["forward_images"]) + self._images + self._looked_up()

    @contextlib.contextmanager
    def training(self, writing: Callable[[], float] = float) -> Iterator[None]:
        """Count the time inside as training, without evaluations and checkpoints.

        :param writing: gives the seconds spent so far on writing checkpoints.
        """

        def other() -> float:
            return self._evaluated + writing()

        start, before, charged = time.perf_counter(), other(), MEMORY.charged_seconds

        def took() -> float:
            # What was looked up counts as long as computing it took: times stay comparable.
            looked_up = MEMORY.charged_seconds - charged
            return time.perf_counter() - start - (other() - before) + looked_up

        self._training = took
        try:
            yield
        finally:
            self._trained += took()
            self._training = float

    def state_dict(self) -> dict[str, Any]:
        """What has been counted, for a checkpoint."""
        counted = {name: getattr(self, name) for name in self._earlier}
        return {"reported": self._reported, **counted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`, in the middle of a training too."""
        self._earlier = {name: state[name] for name in self._earlier}
        self._reported = int(state["reported"])

    def summary(self, samples: int) -> dict[str, float | None]:
        """The run's seconds, and what they and the forward passes are per training sample.

        :param samples: of the stream that were trained on.
        """
        seconds, other = self.train_seconds, self.eval_seconds
        return {
            "train_seconds": seconds,
            "eval_seconds": other,
            "eval_share": other / max(seconds + other, 1e-9),
            "train_samples_per_second": samples / seconds if seconds > 0 else None,
            "forward_passes_per_image": self.forward_images / samples if samples else None,
        }

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Report the step's samples."""
        if self.progress is not None:
            counter = stream_counter(strategy)
            counter.after_training_iteration(strategy)
            seen = counter.position.samples_seen
            self.progress(seen - self._reported)
            self._reported = seen

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def after_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Stop the clock."""
        self._evaluated += time.perf_counter() - self._since

    @contextlib.contextmanager
    def counting(self, strategy: Any, networks: Iterable[nn.Module]) -> Iterator[None]:
        """Count the images that enter a ViT in training: replayed ones and second passes too.

        :param networks: in which the strategy's ViTs are.
        """

        @counts_only
        def count(embedding: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if strategy.is_training:
                self._images += len(args[0])

        embeddings = {
            module
            for network in networks
            for name, module in network.named_modules()
            if name.rpartition(".")[2] == "patch_embed"
        }
        hooks = [embedding.register_forward_hook(count) for embedding in embeddings]
        charged = MEMORY.charged_images
        self._looked_up = lambda: MEMORY.charged_images - charged
        try:
            yield
        finally:
            self._images += self._looked_up()
            self._looked_up = int
            for hook in hooks:
                hook.remove()


class Listening(SupervisedPlugin):
    """Reports the accuracy of each evaluation.

    :param recorder: which records it; it comes before this plugin.
    """

    def __init__(self, recorder: PredictionRecorder, listener: Listener) -> None:
        super().__init__()
        self.recorder, self.listener = recorder, listener

    def after_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Report it."""
        if self.recorder.points:
            self.listener.evaluated(accuracy_exposed(self.recorder.points[-1]))


class FiniteLoss(SupervisedPlugin):
    """Stops a run whose loss is not finite; this package's own strategies check that themselves."""

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Look at the step's loss.

        :raises NonFiniteLossError: naming the step.
        """
        loss = strategy.loss
        if isinstance(loss, torch.Tensor) and not bool(torch.isfinite(loss.detach()).all()):
            raise NonFiniteLossError(
                f"The loss is not finite at training step {strategy.clock.train_iterations} "
                f"({float(loss.detach().mean()):g}): lower the learning rates."
            )


class FiniteOutputs(SupervisedPlugin):
    """Stops a run that predicts NaN: no later loss shows that the last step broke the weights.

    An output of -inf is allowed: it is that of a class not seen yet.
    """

    def __init__(self) -> None:
        super().__init__()
        self._found: torch.Tensor | None = None

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Forget the last evaluation's."""
        self._found = None

    def after_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Look at a mini-batch's outputs, without waiting for the accelerator."""
        if isinstance(strategy.mb_output, torch.Tensor):
            found = torch.isnan(strategy.mb_output.detach()).any()
            self._found = found if self._found is None else self._found | found

    def after_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Raise if an output was NaN.

        :raises NonFiniteLossError: naming the step.
        """
        if self._found is not None and bool(self._found):
            raise NonFiniteLossError(
                f"The outputs are not finite in the evaluation after "
                f"{strategy.clock.train_iterations} training steps: lower the learning rates."
            )


def reset_peak_memory(device: str) -> None:
    """Let the next :func:`peak_memory` count from here on."""
    if device.startswith("cuda"):
        torch.cuda.init()
        torch.cuda.reset_peak_memory_stats(device)
        return
    # Linux: the process's high-water mark starts again at its present size.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: str) -> int:
    """Most bytes in use at a time: of a GPU by PyTorch, on the CPU of the whole process."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
