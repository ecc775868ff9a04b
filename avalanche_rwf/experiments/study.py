"""``tune METHOD``: a search over a method's options with Optuna, shared by any number of processes.

``OUT/tuning/<method>-<hash>/``
    ``study.json``        what is searched, on which images
    ``journal.log``       Optuna's own record of it
    ``trials/<n>.json``   each trial that has ended: options, score, accuracies on the way
    ``history.csv``       the same as a table
    ``importance.json``   the share of the scores' variance that each option explains

A trial is scored as a setting of ``--budget tuned`` is (:mod:`.tuning`): one pass over the first
third of the experiences of one seed without a quarter of their training images, by the accuracy on
that quarter. No test image is used. Trial 0 has the method's own options. A trial whose anytime
accuracy falls below the median of finished trials is pruned.

A trial is like a run: one process at a time does it, by the lock and the lease of :mod:`.lease`,
and one that was cut is done again with the same values. So ``tune`` can be killed and goes on, and
two commands share a study.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import importlib
import io
import json
import statistics
import time
import typing
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from avalanche_rwf.errors import UsageError
from avalanche_rwf.evaluation.plugins import Listener, Progress
from avalanche_rwf.experiments import executors
from avalanche_rwf.experiments.build import build_benchmark
from avalanche_rwf.experiments.compare import Plan, check_method, plan_tuned
from avalanche_rwf.experiments.config import BUSY, STUDY, RunConfig, slug
from avalanche_rwf.experiments.execution import Execution
from avalanche_rwf.experiments.lease import locked
from avalanche_rwf.experiments.signals import RunStopped, stop_requested
from avalanche_rwf.experiments.store import environment, read_json, write_json, write_text
from avalanche_rwf.experiments.tuning import (
    HOLDOUT,
    Choice,
    choose,
    first_experiences,
    held_out_accuracy,
    held_out_config,
    is_note,
)
from avalanche_rwf.models.masks import MASKS
from avalanche_rwf.strategies.base import NonFiniteLossError
from avalanche_rwf.strategies.registry import get_method, resolve_options

_EVALUATIONS = 6
"""Of a trial, by which it is judged on the way."""
_STARTUP, _WARM_UP = 5, 2
"""Nothing is pruned before so many trials have ended, and before so many evaluations."""

# More memory and more steps are better and not free: methods are compared with the same.
_NOT_SEARCHED = ("buffer", "replay_batch", "tasks")
_READOUTS = ("cls", "mean", "cls+mean")
_FACTORS = {"rate": (1 / 125, 25), "regulariser": (1 / 625, 25), "number": (1 / 10, 10)}
_SIZES = (1 / 4, 1 / 2, 1, 2, 4)


# ---- the space


def search_space(
    config: RunConfig, fixed: Collection[str], takes: Callable[[str, Any], bool]
) -> dict[str, dict[str, Any]]:
    """What is searched of each option: ``{"low": ..., "high": ...}``, on a logarithmic scale, or
    ``{"choices": [...]}``; see ``docs/tuning.md`` for the rules.

    :param fixed: options that the user gave.
    :param takes: whether the method takes a value of an option. Where it does not, a range ends at
        1 or at the method's own value, and a choice is left out.
    """
    spec = get_method(config.method)
    space: dict[str, dict[str, Any]] = {}
    for key, own in config.options.items():
        if key in fixed or key in _NOT_SEARCHED:
            continue
        in_grid = [one[key] for one in spec.grid or () if key in one]
        part = _part(key, own, in_grid, spec.types.get(key))
        if "choices" in part:
            part["choices"] = [v for v in part["choices"] if v == own or takes(key, v)]
        elif part and not key.startswith("lr"):
            for end in ("low", "high"):
                inside = min(part["low"], own) < 1 < max(part["high"], own)
                ends = [part[end], *([1.0] if inside else []), own]
                part[end] = next(v for v in ends if v == own or takes(key, v))
        if len(part.get("choices", ())) > 1 or part.get("low") != part.get("high"):
            space[key] = part
    return space


def _part(key: str, own: Any, in_grid: list[Any], kind: Any) -> dict[str, Any]:
    """What could be searched of an option; empty if nothing."""
    literal = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
    numbers = [v for v in (own, *in_grid) if isinstance(v, (int, float)) and v > 0]
    if isinstance(own, bool):
        return {"choices": [own, not own]}
    if in_grid and len(numbers) == 1 + len(in_grid):
        return {"low": min(numbers), "high": max(numbers)}
    if in_grid or literal:
        return {"choices": list(dict.fromkeys((own, *in_grid, *literal)))}
    if key == "mask" and own in MASKS:
        return {"choices": list(dict.fromkeys((own, "batch", "decoupled")))}
    if key == "readout" and own in _READOUTS:
        return {"choices": list(dict.fromkeys((own, *_READOUTS)))}
    if not numbers:
        return {}
    if isinstance(own, int):
        return {"choices": sorted({max(1, round(own * factor)) for factor in _SIZES})}
    rule = (
        "rate" if key.startswith("lr")
        else "regulariser" if key in ("shrinkage", "penalty") else "number"
    )  # fmt: skip
    return {end: float(f"{own * factor:.6g}")
            for end, factor in zip(("low", "high"), _FACTORS[rule], strict=True)}  # fmt: skip


# ---- one trial


class _PrunedError(Exception):
    """The trial is worse than half of those before it."""


@dataclass(frozen=True)
class Trials:
    """Does one trial; what executors call and send to other processes.

    :param folder: of the study.
    :param space: what is searched.
    :param seed: of the stream, and of Optuna's choices.
    :param experiences: that a trial is trained on.
    :param every: training samples between two evaluations.
    """

    folder: Path
    space: Mapping[str, Mapping[str, Any]]
    seed: int
    experiences: int
    every: int

    def place(self, out: Path, config: RunConfig) -> Path:
        """What is locked for a trial: its number stands in the place of the seed."""
        return _file(self.folder, config.seed).with_suffix("")

    def __call__(
        self, config: RunConfig, out: Path, device: str, progress: Progress | None = None
    ) -> dict[str, Any]:
        """Do a trial, as :func:`.run.run` does a run; its note is the summary."""
        with locked(self.place(out, config)) as mine:
            if not mine:
                return {"status": BUSY}
            file = _file(self.folder, config.seed)
            note = _note(file)
            if note is None:
                note = self._try(config, device, progress)
                write_json(file, note)
                _tell(_open(self.folder, 0), {config.seed: note})
        return {"status": "done", **note}

    def _try(self, config: RunConfig, device: str, progress: Progress | None) -> dict[str, Any]:
        """Score what Optuna suggests.

        Options that the method refuses, or with which it goes to infinity, have lost. Any other
        error says nothing of them: the trial is done again by the next command.
        """
        start, number = time.perf_counter(), config.seed
        study = _open(self.folder, 100_003 * self.seed + number)
        trial = _trial(study, config, self.space)
        options = {key: _suggest(trial, key, part) for key, part in self.space.items()}
        changes = {key: v for key, v in options.items() if v != config.options[key]}
        judge = _MedianPruner(_notes(self.folder), progress)
        note: dict[str, Any] = {"options": changes, "score": None, "pruned": False}
        setting = replace(config.with_seed(self.seed), options={**config.options, **options})
        try:
            note["score"] = held_out_accuracy(
                *(setting, self.experiences, device, progress), every=self.every, listener=judge
            )
        except _PrunedError:
            note["pruned"] = True
        except (NonFiniteLossError, ValueError) as error:
            if stop_requested():  # a process that loads images was ended
                raise RunStopped from None
            note["error"] = " ".join(str(error).split())
        note["accuracies"] = judge.accuracies
        return {**note, "seconds": round(time.perf_counter() - start, 3)}


class _MedianPruner:
    """Listens to a trial's evaluations and ends it when it is worse than half of the others.

    What is compared after as many evaluations is the mean of the accuracies so far.

    :param notes: of trials that have ended.
    """

    def __init__(self, notes: Mapping[int, Mapping[str, Any]], progress: Progress | None) -> None:
        self._others = [n["accuracies"] for n in notes.values() if n["score"] is not None]
        self._progress = progress
        self.accuracies: list[float] = []

    def __call__(self, samples: int) -> None:
        """Nothing is done with a step's samples."""

    def evaluated(self, accuracy: float) -> None:
        """Take in an accuracy.

        :raises _PrunedError: if the trial is to end.
        """
        self.accuracies.append(accuracy)
        if isinstance(self._progress, Listener):
            self._progress.evaluated(accuracy)
        n = len(self.accuracies)
        others = [statistics.fmean(seen[:n]) for seen in self._others if len(seen) > n]
        enough = n >= _WARM_UP and len(others) >= _STARTUP
        if enough and statistics.fmean(self.accuracies) < statistics.median(others):
            raise _PrunedError


def _trial(study: Any, config: RunConfig, space: Mapping[str, Mapping[str, Any]]) -> Any:
    """Optuna's trial of a number, made if there is none; the first has the method's own options."""
    optuna, number = _optuna(), config.seed

    def find() -> Any:
        for trial in study.get_trials(deepcopy=False):
            if trial.user_attrs.get("trial") == number:
                return optuna.trial.Trial(study, trial._trial_id)
        return None

    if (trial := find()) is not None:
        return trial
    first = space if number == 0 else {}
    study.add_trial(
        optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params={key: config.options[key] for key in first},
            distributions={key: _distribution(part) for key, part in first.items()},
            user_attrs={"trial": number},
        )
    )
    return find()


def _tell(study: Any, notes: Mapping[int, Mapping[str, Any]]) -> None:
    """Tell Optuna of the trials that have ended since it was told last."""
    optuna = _optuna()
    states = optuna.trial.TrialState
    for trial in study.get_trials(deepcopy=False, states=(states.RUNNING,)):
        note = notes.get(trial.user_attrs.get("trial"))
        if note is None:
            continue
        open_trial = optuna.trial.Trial(study, trial._trial_id)
        # A trial that went wrong is told as pruned: Optuna learns nothing from failed ones.
        state = states.PRUNED if note["score"] is None else states.COMPLETE
        # Another command on the study may have told the same in the meantime.
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            for step, accuracy in enumerate(note["accuracies"], 1):
                open_trial.report(accuracy, step)
            study.tell(open_trial, note["score"], state, skip_if_finished=True)


def _suggest(trial: Any, key: str, part: Mapping[str, Any]) -> Any:
    if "choices" in part:
        return trial.suggest_categorical(key, part["choices"])
    # Six digits are enough, and as many as tables show.
    return float(f"{trial.suggest_float(key, part['low'], part['high'], log=True):.6g}")


def _distribution(part: Mapping[str, Any]) -> Any:
    kinds = _optuna().distributions
    if "choices" in part:
        return kinds.CategoricalDistribution(part["choices"])
    return kinds.FloatDistribution(part["low"], part["high"], log=True)


# ---- the study


def _optuna() -> Any:
    optuna: Any = importlib.import_module("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


class _Lock:
    """The lock of Optuna's journal, by the rule of :mod:`.lease`: a dead process holds nothing."""

    def __init__(self, journal: Path) -> None:
        self._journal, self._held = journal, contextlib.ExitStack()

    def acquire(self) -> bool:
        """Wait for it."""
        while not self._held.enter_context(locked(self._journal)):
            self._held.close()
            time.sleep(0.005)
        return True

    def release(self) -> None:
        """Give it back."""
        self._held.close()


def _open(folder: Path, seed: int) -> Any:
    """The study in a folder; made if it is not there."""
    optuna = _optuna()
    journal = optuna.storages.journal
    path = folder / "journal.log"
    backend = journal.JournalFileBackend(str(path), lock_obj=_Lock(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    return optuna.create_study(
        storage=optuna.storages.JournalStorage(backend),
        study_name=folder.name,
        sampler=sampler,
        direction="maximize",
        load_if_exists=True,
    )


def _remove_cut_line(journal: Path) -> None:
    """Remove a line that was cut, by a full disk most often: Optuna reads no line after it."""
    lock = _Lock(journal)
    lock.acquire()
    with contextlib.closing(lock._held), contextlib.suppress(FileNotFoundError):
        content = journal.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            journal.write_bytes(whole)


def _file(folder: Path, number: int) -> Path:
    return folder / "trials" / f"{number:04}.json"


def _note(file: Path) -> dict[str, Any] | None:
    """What a trial came to; None where that is absent or damaged."""
    note = read_json(file)
    good = is_note(note) and {"options", "score", "seconds", "accuracies"} <= set(note or {})
    return note if good else None


def _notes(folder: Path) -> dict[int, dict[str, Any]]:
    """What the trials that have ended came to, by their numbers."""
    found = {int(f.stem): _note(f) for f in sorted((folder / "trials").glob("[0-9]*.json"))}
    return {number: note for number, note in found.items() if note is not None}


def read_study(folder: Path) -> dict[str, Any]:
    """What is known of a study: ``study.json``, with its "trials", the best, and "importance".

    :raises UsageError: if the folder holds no study.
    """
    about = read_json(folder / "study.json")
    if about is None or not {"method", "config", "space"} <= set(about):
        raise UsageError(f"There is no study in {str(folder)!r} (tune makes one).")
    notes = _notes(folder)
    content = {**about, "settings": list(notes.values()), "trials": list(notes)}
    if notes:
        choose(content)
    return {**content, "importance": read_json(folder / "importance.json") or {}}


def study_choice(folder: Path) -> Choice:
    """The best of a study's trials, for :func:`.compare.plan_tuned`.

    :raises UsageError: if there is no study, or no trial of it has a score.
    """
    content = read_study(folder)
    if content.get("score") is None:
        raise UsageError(f"No trial of the study in {str(folder)!r} has a score yet.")
    options = {**content["config"]["options"], **content["chosen"]}
    return Choice(content["method"], options, folder, content)


def search(
    config: RunConfig,
    fixed: Collection[str],
    out: Path,
    trials: int,
    execution: Execution,
) -> tuple[Path, Iterator[executors.Result]]:
    """Bring a study to so many trials.

    :param config: of the method, with its own options.
    :param fixed: options that are not searched.
    :param trials: of the whole study, those of earlier commands and of others counted.
    :returns: the study's folder, and each trial as it ends: its number is the seed.
    :raises UsageError: if there is nothing to search, or no images can be held out.
    """
    own = held_out_config(config)
    benchmark = build_benchmark(own)
    k = first_experiences(benchmark.first_seen)
    samples = sum(sum(counts.values()) for counts in benchmark.class_counts[:k])

    def takes(key: str, value: Any) -> bool:
        try:
            check_method(replace(own, options={**own.options, key: value}), benchmark)
        except UsageError:
            return False
        return True

    space = search_space(own, fixed, takes)
    if not space:
        raise UsageError(f"{own.method} has no option to search that is not given.")
    text = json.dumps([own.config_hash(), own.seed, space], sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    folder = out / "tuning" / f"{slug(own.method)}-{digest}"
    if not (folder / "study.json").exists():
        about = {"method": own.method, "experiences": k, "holdout": HOLDOUT, "seed": own.seed,
                 "space": space, "config": own.to_dict(),
                 **environment(execution.device)}  # fmt: skip
        write_json(folder / "study.json", about)
    _remove_cut_line(folder / "journal.log")
    _tell(_open(folder, 0), _notes(folder))
    work = Trials(folder.absolute(), space, own.seed, k, max(1, -(-samples // _EVALUATIONS)))
    ended = _notes(folder)
    todo = [own.with_seed(number) for number in range(trials) if number not in ended]
    threads = executors.default_threads(execution, trials)
    done = executors.execute(todo, out, execution, samples, threads, work, "trials")
    return folder, _with_tables(done, folder)


def _with_tables(done: Iterator[executors.Result], folder: Path) -> Iterator[executors.Result]:
    try:
        yield from done
    finally:
        _write_tables(folder)


def _write_tables(folder: Path) -> None:
    """``importance.json`` and ``history.csv``."""
    optuna, study = _optuna(), _open(folder, 0)
    _tell(study, _notes(folder))
    content = read_study(folder)
    with contextlib.suppress(ValueError, RuntimeError):  # of too few trials
        found = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
        )
        write_json(folder / "importance.json", {k: round(v, 4) for k, v in found.items()})
    text = io.StringIO()
    names = list(content["space"])
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", "score", "best", "seconds", *names])
    best, own = None, content["config"]["options"]
    for number, note in zip(content["trials"], content["settings"], strict=True):
        if note["score"] is not None:
            best = note["score"] if best is None else max(best, note["score"])
        state = "failed" if "error" in note else "pruned" if note["pruned"] else "done"
        values = [note["options"].get(name, own[name]) for name in names]
        writer.writerow([number, state, note["score"], best, note["seconds"], *values])
    write_text(folder / "history.csv", text.getvalue())


# ---- a comparison with what was found

# What decides which images are training images: a study of others may have seen test images.
_SPLIT = ("benchmark", "test_share", "split_seed")
_SETUP = (
    *("stream", "stream_options", "boundary_free", "experiences", "backbone", "backbone_args"),
    *("weights_sha256", "image_size", "batch_size", "gradient_steps", "precision", "augment"),
    *("data_config", "code", "data_code", "head_code"),
)


def plan_studies(
    planned: Plan, budget: str, given: Mapping[str, Mapping[str, Any]], out: Path
) -> tuple[Plan, list[str]]:
    """The same runs with the options that studies found, and what is to be said of them.

    :param budget: "study:PATH", a study's folder or one of several studies; a name alone is one in
        ``OUT/tuning``.
    :param given: options that the user gave, by method.
    :raises UsageError: for a method without a study, or a study that does not go with the runs.
    """
    path = Path(budget.removeprefix(STUDY))
    path = path if path.exists() else out / "tuning" / path
    folders = [f for f in (path, *sorted(path.glob("*"))) if (f / "study.json").is_file()]
    found = {folder: study_choice(folder) for folder in folders}
    choices, notes = {}, []
    for config in {c.method: c for c in planned.configs}.values():
        own = [f for f, choice in found.items() if choice.method == config.method]
        if len(own) != 1:
            what = "no study" if not own else f"{len(own)} studies ({', '.join(map(str, own))})"
            raise UsageError(
                f"--budget study takes a folder with one study of each method, and {str(path)!r} "
                f"has {what} of {config.method}."
            )
        choice = found[own[0]]
        theirs, ours = (
            _plain(c.to_dict()) for c in (RunConfig.from_dict(choice.content["config"]), config)
        )
        for key, value in given.get(config.method, {}).items():
            if theirs["options"].get(key) != ours["options"][key] or key in choice.content["space"]:
                raise UsageError(
                    f"{config.method}.{key}={value} was given, and the study {own[0].name} has "
                    f"{choice.options.get(key)}: leave it out, or search again with it given."
                )
        same = theirs["benchmark"] == ours["benchmark"]
        if same and any(theirs[key] != ours[key] for key in _SPLIT):
            raise UsageError(
                f"The study {own[0].name} is of another --test-share or --split-seed: images that "
                "it trained on may be test images here."
            )
        other = [key for key in ("benchmark", *_SETUP) if theirs[key] != ours[key]]
        if other:
            notes.append(f"{config.method}: its study was of another {', '.join(other)}.")
        options = resolve_options(config.method, choice.options)
        choices[config.method] = replace(choice, options=options, differs=tuple(other))
        notes.append(choice.sentence())
    named = {name: f"{STUDY}{choice.file.name}" for name, choice in choices.items()}
    configs = tuple(replace(c, budget=named[c.method]) for c in planned.configs)
    return plan_tuned(replace(planned, configs=configs), choices, out), notes


def _plain(value: Any) -> Any:
    """What was a tuple is a list in JSON."""
    return json.loads(json.dumps(value, default=str))
