"""What is known of a list of runs from its folder alone, on any machine that sees it.

``OUT/status/lists/<id>.json``      the runs of one command
``OUT/status/running/<run>.json``   one that is going on: its samples, its last accuracy, and
                                    when it gave this sign of life
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avalanche_rwf.experiments.background import repeated
from avalanche_rwf.experiments.config import RunConfig, run_directory, slug
from avalanche_rwf.utils.untrusted_io import read_object

_EVERY = 1.0
_SILENT = 60.0
"""Seconds without a sign of life after which a run is shown as silent."""


def _folder(out: Path, kind: str) -> Path:
    return out / "status" / kind


class Reporter:
    """Says how far a run is while the block runs; called with the samples of each step.

    :param out: of the comparison.
    :param config: of the run.
    """

    def __init__(self, out: Path, config: RunConfig) -> None:
        name = f"{slug(config.method)}-{config.config_hash()}-seed{config.seed}"
        self._path = _folder(out, "running") / f"{name}.json"
        self._about = {
            "method": config.method,
            "seed": config.seed,
            "machine": socket.gethostname(),
            "process": os.getpid(),
            "since": time.time(),
        }
        self.samples = 0
        self.accuracy: float | None = None
        self._beside = contextlib.ExitStack()

    def __call__(self, samples: int) -> None:
        """Count the samples of a step."""
        self.samples += samples

    def evaluated(self, accuracy: float) -> None:
        """Note the accuracy of an evaluation."""
        self.accuracy = accuracy

    def _write(self) -> None:
        values = {
            **self._about, "samples": self.samples, "accuracy": self.accuracy, "at": time.time()
        }  # fmt: skip
        part = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):  # it is only to be looked at
            part.write_text(json.dumps(values))
            part.replace(self._path)

    def __enter__(self) -> Reporter:
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
        self._write()
        self._beside.enter_context(repeated(self._write, _EVERY, "reporter"))
        return self

    def __exit__(self, *error: object) -> None:
        self._beside.close()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def write_list(out: Path, configs: Sequence[RunConfig], samples: int) -> None:
    """Note which runs a command is about, for :func:`read_state`.

    :param samples: training samples of each.
    """
    runs = [
        [config.method, config.seed, run_directory(out, config).relative_to(out).as_posix()]
        for config in configs
    ]
    text = json.dumps({"samples": samples, "runs": runs})
    folder = _folder(out, "lists")
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:10]}.json"
        path.write_text(text)


@dataclass
class Tally:
    """Runs of one method: how many there are, and what became of them."""

    total: int = 0
    done: int = 0
    failed: int = 0
    accuracy: float = 0.0
    scored: int = 0

    def end(self, summary: Mapping[str, Any]) -> None:
        """Count one that has ended."""
        if summary.get("status") != "done":
            self.failed += 1
            return
        self.done += 1
        value = summary.get("a_last", summary.get("score"))
        if isinstance(value, (int, float)):
            self.accuracy += value
            self.scored += 1


@dataclass
class State:
    """How far a list of runs is.

    :param tallies: by method.
    :param running: what :func:`read_running` gives.
    :param samples: training samples of a run.
    """

    samples: int
    tallies: dict[str, Tally] = field(default_factory=dict)
    running: list[dict[str, Any]] = field(default_factory=list)

    def tally(self, method: str) -> Tally:
        """That of a method."""
        return self.tallies.setdefault(method, Tally())

    def count(self, name: str) -> int:
        """The sum of a number over the methods: "total", "done", "failed"."""
        return sum(getattr(tally, name) for tally in self.tallies.values())

    @property
    def ended(self) -> int:
        """Runs that are done or have failed."""
        return self.count("done") + self.count("failed")

    @property
    def waiting(self) -> int:
        """Runs that have not begun."""
        return max(0, self.count("total") - self.ended - len(self.running))

    @property
    def samples_done(self) -> int:
        """Training samples behind all of them."""
        return self.samples * self.ended + sum(run["samples"] for run in self.running)


def read_running(out: Path) -> list[dict[str, Any]]:
    """What is going on in a folder, by method and seed: what each :class:`Reporter` says, with the
    seconds that it has been silent if these are many."""
    found = []
    with contextlib.suppress(OSError):
        for path in sorted(_folder(out, "running").glob("[!.]*.json")):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                run = read_object(path)
                silent = time.time() - float(run["at"])
                found.append(
                    {
                        "method": str(run["method"]),
                        "seed": int(run["seed"]),
                        "machine": str(run["machine"]),
                        "samples": int(run["samples"]),
                        "accuracy": None if run["accuracy"] is None else float(run["accuracy"]),
                        "since": float(run["since"]),
                        "silent": silent if silent > _SILENT else 0.0,
                    }
                )
    return sorted(found, key=lambda run: (run["method"], run["seed"]))


def read_state(out: Path, ended: dict[str, dict[str, Any]] | None = None) -> State | None:
    """How far all commands on a folder are; None if there was none.

    :param ended: summaries that were read before, by run directory; they are not read again.
    """
    ended = {} if ended is None else ended
    state, known = State(0), set[str]()
    lists: Iterable[Path] = ()
    with contextlib.suppress(OSError):
        lists = sorted(_folder(out, "lists").glob("*.json"))
    for path in lists:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            content = read_object(path)
            state.samples = int(content["samples"])
            for method, _, folder in content["runs"]:
                if folder in known:
                    continue
                known.add(folder)
                tally = state.tally(str(method))
                tally.total += 1
                if folder not in ended:
                    with contextlib.suppress(OSError, ValueError):
                        ended[folder] = read_object(out / folder / "summary.json")
                if folder in ended:
                    tally.end(ended[folder])
                    if ended[folder].get("status") != "done":  # it may be done again
                        del ended[folder]
    if not known:
        return None
    state.running = read_running(out)
    return state
