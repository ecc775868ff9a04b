"""``--out URL``: run directories arrive whole or not at all, and other machines go on with them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from avalanche_rwf import cli
from avalanche_rwf.errors import UsageError
from avalanche_rwf.experiments import executors, signals
from avalanche_rwf.experiments.config import run_directory
from avalanche_rwf.experiments.execution import Execution
from avalanche_rwf.experiments.executors import execute
from avalanche_rwf.experiments.remote import Remote, local_folder
from avalanche_rwf.experiments.run import run

from ..runs import execute_with

METHODS = ("ncm", "slda")


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Makes this process one of a machine of its own."""

    def be(name: str) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))

    be("first")
    return be


@pytest.fixture(params=["file", "memory"])
def url(request, tmp_path):
    fsspec = pytest.importorskip("fsspec")

    yield f"file://{tmp_path}/bucket/sweep" if request.param == "file" else "memory://sweep"
    fsspec.filesystem("memory").store.clear()


def do(configs, url, jobs=1, work=None):
    execution = Execution(jobs=jobs, url=url, checkpoint_every=1, quiet=True)
    return list(execute(configs, local_folder(url), execution, work=work))


def there(url, config) -> dict[str, bytes]:
    """The files of a run behind the URL."""
    place = Remote(url)
    path = f"{place.root}/{run_directory(Path(), config).as_posix()}"
    files = place.fs.find(path)
    return {file.rpartition("/")[2]: place.fs.cat_file(file) for file in files}


def test_finished_runs_are_there_and_on_the_next_machine(url, machine, configure, tmp_path):
    configs = [configure(method) for method in METHODS]
    assert [summary["status"] for _, summary in do(configs, url)] == ["done"] * 2
    for config in configs:
        run(config, tmp_path / "plain")
        plain = run_directory(tmp_path / "plain", config)
        files = there(url, config)
        assert set(files) == {file.name for file in plain.iterdir()}
        assert files["metrics.csv"] == (plain / "metrics.csv").read_bytes()
    machine("second")
    out = Remote(url).get()
    assert out.is_relative_to(tmp_path / "second")
    done = [json.loads(p.read_text())["status"] for p in out.glob("runs/*/*/*/*/summary.json")]
    assert done == ["done"] * 2


def test_the_precision_that_was_found_holds_on_the_next_machine(url, machine):
    local_folder(url).mkdir(parents=True)
    (local_folder(url) / "precision.json").write_text('{"a": 1}')
    Remote(url).push_tables()
    machine("second")
    local_folder(url).mkdir(parents=True)
    assert (Remote(url).get() / "precision.json").read_text() == '{"a": 1}'


def test_a_run_that_was_stopped_goes_on_on_another_machine(
    url, machine, configure, tmp_path, monkeypatch
):
    execute_with(monkeypatch, checkpoint_every=1)
    config = configure("linear-probe")
    run(config, tmp_path / "plain")
    steps = []

    def stop(samples: int) -> None:
        steps.append(samples)
        if len(steps) == 3:
            signals.request_stop()

    place = Remote(url)
    with (
        signals.listening(lambda line: None),
        pytest.raises(signals.RunStopped),
        place.mirrored(run_directory(Path(), config).as_posix()),
    ):
        run(config, place.local, progress=stop)
    assert "checkpoint.pt" in there(url, config)
    assert "summary.json" not in there(url, config)
    machine("second")
    ((_, summary),) = do([config], url)
    assert summary["status"] == "done"
    files = there(url, config)
    assert b"resumed" in files["log.txt"]
    plain = run_directory(tmp_path / "plain", config)
    assert files["metrics.csv"] == (plain / "metrics.csv").read_bytes()
    assert not {"checkpoint.pt", "checkpoint.previous.pt"} & set(files)


def test_a_summary_that_was_cut_is_none(url, machine, configure):
    config = configure("ncm")
    do([config], url)
    place, path = Remote(url), run_directory(Path(), config).as_posix()
    whole = there(url, config)["summary.json"]
    place.fs.pipe_file(f"{place.root}/{path}/summary.json", whole[:20])
    machine("second")
    place = Remote(url)
    place.get()
    assert not (place.local / path / "summary.json").exists()
    do([config], url)
    assert json.loads(there(url, config)["summary.json"])["status"] == "done"


def test_what_could_not_be_copied_is_a_failure_and_copied_by_the_next_command(
    url, machine, configure, monkeypatch
):
    config = configure("ncm")

    def away(self, file, path):
        raise ConnectionError("the place is away")

    with monkeypatch.context() as patch:
        patch.setattr(Remote, "_put", away)
        ((_, summary),) = do([config], url)
    assert (summary["status"], summary["error"]) == ("failed", "the place is away")
    assert there(url, config) == {}
    Remote(url).get()
    assert "summary.json" in there(url, config)


@pytest.mark.usefixtures("server")
def test_workers_copy_what_they_have_done(machine, configure, tmp_path):
    url = f"file://{tmp_path}/bucket"
    configs = [configure(method) for method in METHODS]
    do(configs, url, jobs=2)
    assert all("summary.json" in there(url, config) for config in configs)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--out", "nosuch://bucket"], "'nosuch://bucket' cannot be used as a place of results"),
        (["--out", "file:///dev/null/x"], "cannot be used as a place of results"),
        (["--out", "memory://x", "--jobs", "2"], "it goes with --jobs 1"),
        (["--out", "s3://key:secret@bucket/x"], "cannot be used as a place of results"),
    ],
)
def test_a_place_that_cannot_be_used_is_said_before_any_run(
    words, says, machine, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as where it is not installed
    monkeypatch.setattr(executors, "execute", lambda *args, **how: pytest.fail("it ran"))
    assert cli.main(["compare", "--methods", "ncm", *words]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said and "secret" not in said


def test_no_credentials_are_said_in_one_sentence(machine, monkeypatch, url):
    class NoCredentialsError(Exception):
        pass

    place = Remote(url)
    monkeypatch.setattr(
        type(place.fs), "pipe_file",
        lambda *args, **how: (_ for _ in ()).throw(NoCredentialsError("Unable to locate\nthem")),
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"place of results \(Unable to locate them\)\.$"):
        place.check()


def test_the_command_and_the_leaderboard_take_a_url(machine, configure, tmp_path, capsys):
    """The whole way: compare there, then the table from another machine."""
    url = f"file://{tmp_path}/bucket"
    config = configure("ncm")
    words = ["compare", "--methods", "ncm", "--benchmark", config.benchmark, "--experiences", "3",
             "--batch-size", "3", "--backbone", config.backbone, "--image-size", "16", "--jobs",
             "1", "--seeds", "0", "--quiet", "--out", url]  # fmt: skip
    for key, value in config.backbone_args.items():
        words += ["--backbone-arg", f"{key}={value}"]
    assert cli.main(words) == 0
    table = capsys.readouterr().out
    assert "ncm" in table
    assert (tmp_path / "bucket" / "leaderboard.csv").exists()
    machine("second")
    assert cli.main(["leaderboard", url]) == 0
    assert capsys.readouterr().out == table
    assert cli.main(words) == 0
    assert "1 done already" in capsys.readouterr().err
