"""``compare --log``: a run's values also go to TensorBoard, Weights & Biases or a CSV file.

The loggers read what the run records anyway. They change no number and are no part of the
configuration. This module knows the loggers; :mod:`.run_logger` feeds them.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from avalanche_rwf.errors import UsageError, nearest, reason

if TYPE_CHECKING:
    from avalanche_rwf.experiments.config import RunConfig


class Logger(Protocol):
    """What a logger has; Avalanche's have it."""

    def log_single_metric(self, name: str, value: float, x_plot: int) -> None:
        """Take in a number after so many samples."""


Opened = tuple[Logger, Callable[[], None]]


class _Csv:
    """``log.csv``: ``samples_seen,metric,value``, a line at a time. It can be read in mid-run."""

    def __init__(self, path: Path, fresh: bool) -> None:
        self.path = path
        if fresh or not path.exists():
            path.write_text("samples_seen,metric,value\n", encoding="utf-8")

    def log_single_metric(self, name: str, value: float, x_plot: int) -> None:
        """Append a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{x_plot},{name},{value!r}\n")


def _csv(folder: Path, config: RunConfig, fresh: bool) -> Opened:
    return _Csv(folder / "log.csv", fresh), lambda: None


def _tensorboard(folder: Path, config: RunConfig, fresh: bool) -> Opened:
    from avalanche.logging import TensorboardLogger

    if fresh:  # an earlier attempt's curves would lie under this one's
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    logger = TensorboardLogger(folder / "tensorboard")
    return logger, logger.writer.close


def _wandb(folder: Path, config: RunConfig, fresh: bool) -> Opened:
    import secrets

    import wandb

    from avalanche_rwf.evaluation.wandb_logger import WandBLogger
    from avalanche_rwf.experiments.store import write_text

    note = folder / "wandb_id.txt"  # a resumed run goes on as the same run there
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


LOGGERS: dict[str, Callable[[Path, RunConfig, bool], Opened]] = {
    "csv": _csv, "tensorboard": _tensorboard, "wandb": _wandb,
}  # fmt: skip
"""Name -> (run directory, configuration, whether the run begins) -> logger and how to close it."""


def check_loggers(names: Sequence[str]) -> tuple[str, ...]:
    """The names of ``--log``, each once; a name may be a list with commas.

    :raises UsageError: for an unknown name, or a logger that could not start.
    """
    found = tuple(dict.fromkeys(word.strip() for text in names for word in text.split(",")))
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
        raise UsageError(f"--log wandb: wandb does not start ({reason(error)}).") from error
    if not known:
        raise UsageError(
            "--log wandb needs an account: run `wandb login`, or set WANDB_MODE=offline and use "
            "`wandb sync` later."
        )
