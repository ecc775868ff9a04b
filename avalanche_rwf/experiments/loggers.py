"""``compare --log``: a run's values also go to TensorBoard, Weights & Biases or a CSV file.

The loggers read what the run records anyway. They change no number and are no part of the
configuration; a logger that fails is left out, which ``log.txt`` says, and the run goes on.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.logging import BaseLogger, TensorboardLogger

from avalanche_rwf.errors import UsageError, nearest
from avalanche_rwf.evaluation.metrics import accuracy_exposed, accuracy_matrix
from avalanche_rwf.evaluation.recorder import PredictionRecorder
from avalanche_rwf.evaluation.stream_position import stream_counter
from avalanche_rwf.experiments.config import RunConfig
from avalanche_rwf.experiments.store import write_text

__all__ = ["LOG", "LOGGERS", "LOSS_EVERY", "RunLogger", "check_loggers"]

LOG = "AVALANCHE_RWF_LOG"
"""The environment variable that brings the names to worker processes."""

LOSS_EVERY = 10
"""Training steps between two values of the loss."""


class _Csv(BaseLogger):
    """``log.csv``: ``samples_seen,metric,value``, a line at a time. It can be read in mid-run."""

    def __init__(self, path: Path, fresh: bool) -> None:
        super().__init__()
        self.path = path
        if fresh or not path.exists():
            path.write_text("samples_seen,metric,value\n", encoding="utf-8")

    def log_single_metric(self, name: str, value: Any, x_plot: int) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{x_plot},{name},{value!r}\n")


def _csv(folder: Path, config: RunConfig, fresh: bool) -> tuple[BaseLogger, Callable[[], None]]:
    return _Csv(folder / "log.csv", fresh), lambda: None


def _tensorboard(
    folder: Path, config: RunConfig, fresh: bool
) -> tuple[BaseLogger, Callable[[], None]]:
    if fresh:  # an earlier attempt's curves would lie under this one's
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    logger = TensorboardLogger(folder / "tensorboard")
    return logger, logger.writer.close


def _wandb(folder: Path, config: RunConfig, fresh: bool) -> tuple[BaseLogger, Callable[[], None]]:
    import secrets

    import wandb

    from avalanche_rwf.evaluation.wandb_logger import WandBLogger

    note = folder / "wandb_id.txt"  # a run that goes on is the same run there
    if fresh or not note.exists():
        write_text(note, secrets.token_hex(4) + "\n", make_folder=False)
    logger = WandBLogger(
        project_name=os.environ.get("WANDB_PROJECT", "avalanche-rwf"),
        run_name=f"{config.method} seed {config.seed}",
        save_code=False,
        config=config.to_dict(),
        dir=os.environ.get("WANDB_DIR", folder),
        params={
            "id": note.read_text(encoding="utf-8").strip(),
            "resume": "allow",
            "group": config.benchmark,
            "reinit": "finish_previous",
            # stdout and stderr are the command's.
            "settings": wandb.Settings(console="off", silent=True),
        },
    )
    return logger, wandb.finish


LOGGERS: Mapping[
    str, Callable[[Path, RunConfig, bool], tuple[BaseLogger, Callable[[], None]]]
] = {"csv": _csv, "tensorboard": _tensorboard, "wandb": _wandb}
"""Name -> (run directory, configuration, whether the run begins) -> logger and how to close it."""


def check_loggers(names: Sequence[str]) -> list[str]:
    """The names of ``--log``, each once; a name may be a list with commas.

    :raises UsageError: for an unknown name, or a logger that could not start.
    """
    found = list(dict.fromkeys(word.strip() for text in names for word in text.split(",")))
    for name in found:
        if name not in LOGGERS:
            raise UsageError(f"--log has no logger {name!r}; {nearest(name, list(LOGGERS))}.")
        if name != "csv" and importlib.util.find_spec(name) is None:
            raise UsageError(f"--log {name} needs the package {name}: pip install {name}.")
    if "wandb" in found and os.environ.get("WANDB_MODE") not in ("offline", "dryrun", "disabled"):
        _check_account()
    return found


def _check_account() -> None:
    import wandb

    try:
        known = wandb.login(prompt=False, verify=False)  # asks nobody
    except TypeError:  # a wandb without these arguments
        known = bool(wandb.api.api_key)
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise UsageError(f"--log wandb: wandb does not start ({why}).") from error
    if not known:
        raise UsageError(
            "--log wandb needs an account: run `wandb login`, or set WANDB_MODE=offline and use "
            "`wandb sync` later."
        )


class RunLogger(SupervisedPlugin):
    """Gives a run's values to Avalanche loggers; x is the number of samples seen.

    The training loss each ``LOSS_EVERY`` steps, the accuracy on the classes so far at each
    evaluation, at experience ends the accuracy on each test experience, and at last the summary.
    Used as a context manager: its end closes the loggers.

    :param folder: the run directory.
    :param log: takes a line for the run's ``log.txt``.
    :param names: of ``LOGGERS``; None takes those of ``--log``.
    """

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        log: Callable[[str], None],
        names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.folder, self.config, self.log = folder, config, log
        self.names = os.environ.get(LOG, "").split(",") if names is None else names
        self._open: dict[str, tuple[BaseLogger, Callable[[], None]]] | None = None

    def __enter__(self) -> RunLogger:
        return self

    def __exit__(self, *error: object) -> None:
        for name, (_, close) in list((self._open or {}).items()):
            with self._surviving(name):
                close()
        self._open = None

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Open the loggers, where the run begins or goes on."""
        if self._open is None:
            self._open = {}
            fresh = stream_counter(strategy).position.samples_seen == 0
            for name in filter(None, self.names):
                with self._surviving(name):
                    self._open[name] = LOGGERS[name](self.folder, self.config, fresh)

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Open the loggers, where a run goes on with an evaluation."""
        self.before_training(strategy)

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Log the loss of each ``LOSS_EVERY``-th step, of strategies that have one."""
        step = strategy.clock.train_iterations
        if self._open and step % LOSS_EVERY == 0 and getattr(strategy, "trains", True):
            counter = stream_counter(strategy)
            counter.after_training_iteration(strategy)
            loss = torch.as_tensor(strategy.loss).detach().mean()
            self.write({"loss": float(loss)}, counter.position.samples_seen)

    def after_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Log the accuracies of the evaluation, as the recorder before this plugin has it."""
        points = next(p.points for p in strategy.plugins if isinstance(p, PredictionRecorder))
        if not self._open or not points:
            return
        point = points[-1]
        values = {"accuracy_exposed": accuracy_exposed(point)}
        if point.experience is not None:
            count = max(point.experience, int(point.test_experience.max())) + 1
            row = accuracy_matrix([point], count)[point.experience].tolist()
            values |= {f"accuracy/experience_{e}": v for e, v in enumerate(row) if v == v}
        self.write(values, point.samples_seen)

    def write(self, values: Mapping[str, Any], samples_seen: int) -> None:
        """Give numbers to all loggers; what is no number is passed over."""
        for name, (logger, _) in list((self._open or {}).items()):
            with self._surviving(name):
                for metric, value in values.items():
                    if isinstance(value, (int, float)):
                        logger.log_single_metric(metric, float(value), samples_seen)

    @contextmanager
    def _surviving(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            (self._open or {}).pop(name, None)
            why = " ".join(str(error).split())[:200]
            self.log(f"--log {name} stopped ({type(error).__name__}: {why}); the run goes on")
