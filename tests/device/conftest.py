"""Tests on a simulated GPU (:mod:`.simcuda`), each file in a process of its own.

The simulator patches PyTorch for good. So the tests of a file that were asked for run in a second
pytest, and its reports are told here as if they had been made here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from . import simcuda

ANSWERS = "AVALANCHE_RWF_TEST_ANSWERS"
INSIDE = ANSWERS in os.environ
HERE = Path(__file__).parent
Reports = dict[str, list[Any]]
_told: dict[Path, Reports] = {}
_made: Reports = {}

if INSIDE:
    simcuda.install(rng="shared")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """In the process of all tests: tell what became of the test in the file's own process."""
    if INSIDE or item.path.parent != HERE:
        return None
    config, file = item.config, item.path
    if lacks := simcuda.lacking():
        why = f"this PyTorch has no {lacks}, which the simulated GPU needs"
        reports = [_report(item, "skipped", (str(file), 0, why))]
    else:
        if file not in _told:
            _told[file] = _run([i.nodeid for i in item.session.items if i.path == file], config)
        reports = [
            config.hook.pytest_report_from_serializable(config=config, data=data)
            for data in _told[file].get(item.nodeid, [])
        ]
        said = "\n".join(_told[file].get("", ["nothing was told of it"]))
        reports = reports or [_report(item, "failed", said)]
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _report(item: pytest.Item, outcome: Any, said: Any) -> pytest.TestReport:
    return pytest.TestReport(item.nodeid, item.location, {}, outcome, said, "call")


def _run(names: list[str], config: pytest.Config) -> Reports:
    with tempfile.TemporaryDirectory() as folder:
        answers = Path(folder) / "answers.json"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *names],
            env={**os.environ, ANSWERS: str(answers)},
            cwd=config.rootpath,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if not answers.exists():
            return {"": [done.stdout, done.stderr]}
        return json.loads(answers.read_text())


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """In the file's own process: keep the reports for the process that asked."""
    if INSIDE:
        _made.setdefault(report.nodeid, []).append(report)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write them down."""
    if INSIDE:
        config = session.config
        plain = {
            name: [config.hook.pytest_report_to_serializable(config=config, report=r) for r in made]
            for name, made in _made.items()
        }
        Path(os.environ[ANSWERS]).write_text(json.dumps(plain, default=str))


@pytest.fixture(autouse=True)
def working_device():
    """The device works, has memory and counts waits, whatever the test before did."""
    yield
    simcuda.state.dead = simcuda.state.oom_above = None
    simcuda.syncs.clear()
