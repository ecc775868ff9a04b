"""How far a list of runs is, for a person: a table that redraws in a terminal, lines in a log."""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from avalanche_rwf.experiments.background import repeated
from avalanche_rwf.experiments.config import RunConfig
from avalanche_rwf.experiments.status import State
from avalanche_rwf.utils.untrusted_io import printable

_IN_A_TERMINAL, _IN_A_LOG = 1.0, 30.0
_RUNS = 12  # that are listed one by one


class Speed:
    """Training samples per second over the last minute."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, samples: int) -> float | None:
        """Take in how many are done; gives the speed, or None before it is known."""
        now = time.monotonic()
        self._seen.append((now, samples))
        while len(self._seen) > 2 and now - self._seen[0][0] > 60:
            self._seen.popleft()
        then, before = self._seen[0]
        passed = now - then
        return (samples - before) / passed if passed > 0.5 and samples > before else None


class Speeds:
    """:class:`Speed` of a list of runs, and of each that is running."""

    def __init__(self) -> None:
        self._whole, self._runs = Speed(), dict[Any, Speed]()

    def note(self, state: State) -> float | None:
        """Take in how far all are; each run gets its "speed", and the sum is returned."""
        for run in state.running:
            key = run["method"], run["seed"], run["machine"]
            run["speed"] = self._runs.setdefault(key, Speed()).note(run["samples"])
        return self._whole.note(state.samples_done)


def _pace(speed: float, samples: float) -> str:
    """A speed, and how long these samples take with it."""
    return f"{speed:,.0f} img/s, {timedelta(seconds=round(max(samples, 0) / speed))} left"


def log_line(state: State, speed: float | None, noun: str = "runs") -> str:
    """:func:`summary_line` and how far those are that are running, for a log."""
    said = [
        f"{run['method']} seed {run['seed']} {100 * _share(run, state):.0f} %"
        + (f" ({_accuracy(run['accuracy'])})" if run["accuracy"] is not None else "")
        for run in state.running[:_RUNS]
    ]
    return summary_line(state, speed, noun) + ("; now " + ", ".join(said) if said else "")


def _share(run: Mapping[str, Any], state: State) -> float:
    return min(1.0, run["samples"] / state.samples) if state.samples else 0.0


def _accuracy(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def summary_line(state: State, speed: float | None, noun: str = "runs") -> str:
    """Everything in one line."""
    total, done, failed = (state.count(name) for name in ("total", "done", "failed"))
    said = (
        f"{total} {noun}: {done} done, {failed} failed, {len(state.running)} running, "
        f"{state.waiting} waiting"
    )
    if speed is not None:
        said += f"; {_pace(speed, state.samples * total - state.samples_done)}"
    sums = [(t.accuracy, t.scored) for t in state.tallies.values()]
    scored = sum(n for _, n in sums)
    if scored:
        said += f"; accuracy so far {_accuracy(sum(a for a, _ in sums) / scored)}"
    return said


def table(state: State, speed: float | None, noun: str = "runs", height: int = 40) -> list[str]:
    """The line, what is running, and the methods with runs that have ended."""
    lines = [summary_line(state, speed, noun)]
    for run in state.running[:_RUNS]:
        share = _share(run, state)
        bar = "#" * round(20 * share)
        said = f"  {run['method']:20} seed {run['seed']:<4} {bar:.<20} {100 * share:3.0f} %"
        said += f" {_accuracy(run['accuracy']):>8}  "
        if run.get("speed"):
            said += f"{_pace(run['speed'], state.samples - run['samples'])}  "
        said += run["machine"]
        if run["silent"]:
            said += f", silent for {timedelta(seconds=round(run['silent']))}"
        lines.append(said)
    if len(state.running) > _RUNS:
        lines.append(f"  and {len(state.running) - _RUNS} more")
    ended = {m: t for m, t in sorted(state.tallies.items()) if t.done or t.failed}
    for method, tally in ended.items():
        mean = tally.accuracy / tally.scored if tally.scored else None
        said = f"  {method:20} {tally.done}/{tally.total} done {_accuracy(mean):>8}"
        lines.append(said + (f", {tally.failed} failed" if tally.failed else ""))
    if len(lines) > height:
        lines = [*lines[: height - 1], f"  and {len(lines) - height + 1} more lines"]
    return [printable(line.rstrip()) for line in lines]


class Screen:
    """Lines at the bottom of a terminal, drawn again in place."""

    def __init__(self, file: Any) -> None:
        self._file, self._drawn = file, 0

    def draw(self, lines: Sequence[str]) -> None:
        """Replace what was drawn before."""
        width = shutil.get_terminal_size().columns
        text = "".join(f"{line[: width - 1]}\n" for line in lines)
        self._file.write(self._up() + text)
        self._file.flush()
        self._drawn = len(lines)

    def clear(self) -> None:
        """Remove what was drawn."""
        self._file.write(self._up())
        self._file.flush()
        self._drawn = 0

    def _up(self) -> str:
        return f"\x1b[{self._drawn}F\x1b[J" if self._drawn else ""


class View:
    """Shows a list of runs while it is done; a thread of its own draws.

    :param running: gives what is going on; see :func:`.status.read_running`.
    :param configs: all of the list.
    :param samples: training samples of each.
    :param quiet: show nothing.
    """

    def __init__(
        self,
        running: Callable[[], list[dict[str, Any]]],
        configs: Sequence[RunConfig],
        samples: int,
        noun: str = "runs",
        quiet: bool = False,
    ) -> None:
        self.state = State(samples)
        for config in configs:
            self.state.tally(config.method).total += 1
        self._running, self._noun, self._quiet = running, noun, quiet
        self._file = sys.stderr
        self._screen = Screen(self._file) if self._file.isatty() else None
        self._speed, self._last = Speeds(), ""
        self._lock = threading.Lock()
        self._beside = contextlib.ExitStack()

    def ended(self, config: RunConfig, summary: Mapping[str, Any]) -> None:
        """Count a run that has ended."""
        with self._lock:
            self.state.tally(config.method).end(summary)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Let others write to the terminal in the block."""
        with self._lock:
            if self._screen is not None and not self._quiet:
                self._screen.clear()
            yield

    def _refresh(self) -> None:
        with self._lock:
            self._draw()

    def _draw(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            self.state.running = self._running()
            speed = self._speed.note(self.state)
            if self._screen is not None:
                height = shutil.get_terminal_size().lines - 2
                self._screen.draw(table(self.state, speed, self._noun, height))
                return
            line = printable(log_line(self.state, speed, self._noun))
            if line != self._last:
                self._last = line
                print(line, file=self._file, flush=True)

    def __enter__(self) -> View:
        self._speed.note(self.state)
        if not self._quiet:
            pause = _IN_A_LOG if self._screen is None else _IN_A_TERMINAL
            self._beside.enter_context(repeated(self._refresh, pause, "view"))
        return self

    def __exit__(self, *error: object) -> None:
        if self._quiet:
            return
        self._beside.close()
        if self.state.count("total"):
            self._draw()
