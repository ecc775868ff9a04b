"""``--budget tuned``: the same small grid for every method, chosen on held-out training images.

What "the same budget" means: every method gets :data:`SETTINGS` settings (see :func:`settings`),
each trained once, one pass, over the first third of the experiences of the comparison's *first*
seed, without a quarter of their training images. Accuracy on that quarter, over the classes of
these experiences, decides; a tie goes to the earlier setting. No test image is used.

The choice is made once and serves all seeds. Its limit: the stream of another seed brings the
images that decided at another place, perhaps as training images. They are never test images.
Another, of streams of a few shots: the quarter is one of *all* training images of these classes,
many more labels than the stream has, so a tuned row is no few-shot result in the strict sense; its
table says so.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from avalanche_rwf.errors import UsageError
from avalanche_rwf.evaluation.metrics import a_last
from avalanche_rwf.evaluation.plugins import Listener, Listening, Progress
from avalanche_rwf.evaluation.recorder import AnytimeEvaluation, PredictionRecorder
from avalanche_rwf.experiments import executors
from avalanche_rwf.experiments.build import (
    build_benchmark,
    build_strategy,
    with_code,
)
from avalanche_rwf.experiments.checkpoint import StopWhenAsked
from avalanche_rwf.experiments.config import RunConfig, slug
from avalanche_rwf.experiments.data_loading import loader_workers, run_images
from avalanche_rwf.experiments.execution import Execution
from avalanche_rwf.experiments.run import exposed_tests, train_experience
from avalanche_rwf.experiments.signals import RunStopped, stop_requested
from avalanche_rwf.experiments.store import environment, read_json, write_json
from avalanche_rwf.strategies.base import NonFiniteLossError
from avalanche_rwf.strategies.registry import MethodSpec, get_method, resolve_options

SETTINGS = 10
HOLDOUT = 0.25
MOST_SETTINGS = 200
"""Of a grid that a user gives, for each method."""
_MASKS = ("batch", "decoupled")
_PROMPT_RATES = (1e-3, 2e-4, 5e-3)
# (Index of a prompt rate, factor of the head's rate); None: the factor is for all rates.
_PAIRS: tuple[tuple[int | None, float], ...] = (
    (0, 1), (1, 1), (2, 1), (None, 1 / 5), (None, 5), (0, 1 / 5), (0, 5), (1, 5), (2, 1 / 5),
    (2, 5), (1, 1 / 5), (None, 1 / 25)
)  # fmt: skip
_RATES = (1, 1 / 5, 5, 1 / 25, 1 / 2, 2, 25, 1 / 10, 10, 1 / 125)
# More than ten, because a shrinkage near 1 cannot be multiplied by the larger ones.
_REGULARISERS = (1, 1 / 5, 5, 1 / 25, 2, 25, 1 / 2, 1 / 125, 1 / 10, 10, 1 / 50, 1 / 250, 1 / 625)


def settings(
    spec: MethodSpec, options: Mapping[str, Any], fixed: Collection[str] = ()
) -> list[dict[str, Any]]:
    """The settings of a method that are tried, its own options first: at most :data:`SETTINGS`.

    After its own options come, by the first of these rules that applies:

    1. ``spec.grid``, if the method has one;
    2. with an option ``mask``: five settings of the rates, each with the masks "batch" and
       "decoupled", the method's own of these two first. A method whose own mask is another one has
       eleven settings then; the last is left out;
    3. with rates: ten settings of them;
    4. with a ``shrinkage`` (at most 1) or a ``penalty``: that times 1, 1/5, 5, 1/25, 2, 25, 1/2,
       1/125, 1/10, ..., the first ten different values;
    5. nothing else: a method with nothing to tune, such as ``ncm``, has its own setting alone.

    Rates are the options ``lr*`` above 0. The head's is ``lr_head``, or ``lr`` where there is none;
    the others are the prompts' (of ``fine-tune``, the backbone's). The two are tried apart: the
    head's own with three rates of the prompts, then all rates times 1/5 and 5, then the head's
    times 1/5 and 5 with each of the three; what comes twice is tried once. The three are the
    method's own and the first two others of 1e-3, 2e-4 and 5e-3; where no option ``lr`` is the
    prompts', its own times 1, 1/5 and 1/25.
    A method with one kind of rate has that times 1, 1/5, 5, 1/25, 1/2, 2, 25, 1/10, 10 and 1/125.

    :param options: the method's options in this comparison.
    :param fixed: options that the user gave; they are varied by no rule (with a given mask, the
        rates are varied by rule 3).
    """
    rates = _rates(options, fixed)
    changes: list[dict[str, Any]]
    if spec.grid is not None:
        changes = [{k: v for k, v in one.items() if k not in fixed} for one in spec.grid]
    elif "mask" in options and "mask" not in fixed:
        masks = sorted(_MASKS, key=lambda mask: mask != options["mask"])
        changes = [{**one, "mask": mask} for one in rates[: SETTINGS // 2] for mask in masks]
    elif rates != [{}]:
        changes = rates
    else:
        key = next((k for k in ("shrinkage", "penalty") if _tunable(k, options, fixed)), None)
        changes = [] if key is None else [
            {key: min(value, 1.0) if key == "shrinkage" else value}
            for value in (_times(options[key], factor) for factor in _REGULARISERS)
        ]  # fmt: skip
    tried = [dict(options)]
    for change in changes:
        setting = {**options, **change}
        if setting not in tried:
            tried.append(setting)
    return tried[:SETTINGS]


def _rates(options: Mapping[str, Any], fixed: Collection[str]) -> list[dict[str, Any]]:
    """What is tried of the rates, the method's own first."""
    of_head = "lr_head" if "lr_head" in options else "lr"
    rates = [k for k in options if k.startswith("lr") and _tunable(k, options, fixed)]
    body = [k for k in rates if k != of_head]
    if not rates:
        return [{}]
    if not body or of_head not in rates:
        return [{k: _times(options[k], factor) for k in rates} for factor in _RATES]
    factors: list[float] = [1, 1 / 5, 1 / 25]
    if "lr" in body:
        own = options["lr"]
        factors = [1, *(rate / own for rate in _PROMPT_RATES if rate != own)]
    return [
        {
            **{k: _times(options[k], head if n is None else factors[n]) for k in body},
            of_head: _times(options[of_head], head),
        }
        for n, head in _PAIRS
    ]


def _tunable(key: str, options: Mapping[str, Any], fixed: Collection[str]) -> bool:
    value = options.get(key)
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
    return number and key not in fixed


def _times(value: float, factor: float) -> float:
    # Six digits, so that tables say 0.001 and not 0.0010000000000000002.
    return value if factor == 1 else float(f"{value * factor:.6g}")


def first_experiences(first_seen: Sequence[Sequence[int]]) -> int:
    """How many experiences are trained on: a third, at least two, and at least two classes.

    :param first_seen: classes that each experience is the first to bring.
    """
    n = len(first_seen)
    brought = list(itertools.accumulate(map(len, first_seen)))
    enough = next((i for i, classes in enumerate(brought, 1) if classes >= 2), n)
    return min(n, max(2, -(-n // 3), enough))


def held_out_config(config: RunConfig) -> RunConfig:
    """A run's configuration as its settings are tried: what is evaluated on was held out."""
    return replace(
        config, budget="default", holdout=HOLDOUT, eval_every_samples=0, eval_subset=0
    )


def held_out_accuracy(
    config: RunConfig,
    experiences: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
    every: int = 0,
    listener: Listener | None = None,
) -> float:
    """Accuracy after one pass over the first experiences, on what ``config.holdout`` holds out.

    :param experiences: how many of the stream's; None is all.
    :param progress: called with the number of training samples of each experience that is done.
    :param every: evaluate after so many training samples too, for the listener; 0 does not.
    :param listener: told the accuracy of every evaluation; what it raises ends this one.
    :returns: a share, over the classes of these experiences.
    :raises NonFiniteLossError: if training goes to infinity.
    """
    benchmark, normalise = run_images(config)
    recorder = PredictionRecorder()
    plugins = [normalise, recorder, StopWhenAsked()]
    workers = loader_workers(benchmark)
    if listener is not None:
        plugins.append(Listening(recorder, listener))
    if every:
        tests = exposed_tests(benchmark, experiences or len(benchmark.test_stream))
        plugins.append(AnytimeEvaluation(tests, every, eval_kwargs={"num_workers": workers}))
    strategy = build_strategy(config, benchmark.num_classes, device, plugins)
    stream = list(benchmark.scenario.train_stream)[:experiences]
    for experience in stream:
        train_experience(strategy, experience, config.boundary_free, workers)
        if progress is not None:
            progress(len(experience.dataset))
    # Our strategies stop at a loss that is not finite; others go on with broken weights.
    if not all(bool(torch.isfinite(p).all()) for p in strategy.model.parameters()):
        raise NonFiniteLossError("The weights are not finite after training.")
    recorder.begin(len(stream) - 1)
    strategy.eval(exposed_tests(benchmark, len(stream)), num_workers=workers)
    return a_last(recorder.points)


def _try(
    config: RunConfig,
    out: Path,
    device: str,
    progress: Progress | None = None,
    *,
    experiences: int,
) -> dict[str, Any]:
    """Score one setting; called like :func:`.run.run`, by whom the runs are done too.

    A setting that cannot be built or goes to infinity has lost. Any other error, such as too
    little memory, says nothing of the setting: it is raised, and the setting tried again next time.
    """
    start = time.perf_counter()
    result: dict[str, Any] = {"status": "done", "score": None}
    try:
        result["score"] = held_out_accuracy(config, experiences, device, progress)
    except (NonFiniteLossError, ValueError) as error:
        result["error"] = " ".join(str(error).split())
    return {**result, "seconds": round(time.perf_counter() - start, 3)}


@dataclass(frozen=True)
class Choice:
    """What was chosen for a method.

    :param method: its name.
    :param options: all of its options, as chosen.
    :param file: the record under ``OUT/tuning``.
    :param content: what that file holds.
    :param differs: what of a study's configuration is other than the comparison's.
    """

    method: str
    options: Mapping[str, Any]
    file: Path
    content: Mapping[str, Any]
    differs: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """For the ``config.json`` of each run."""
        keys = ("chosen", "score", "experiences", "holdout", "seed")
        tried = [one for one in self.content["settings"] if "seconds" in one]
        return {
            "settings": len(tried),
            **{key: self.content[key] for key in keys},
            "file": self.file.name,
            **({"differs": list(self.differs)} if self.differs else {}),
            **({"grid": self.content["grid"]} if "grid" in self.content else {}),
        }

    def sentence(self) -> str:
        """For the terminal: the choice, its score, and what failed."""
        all_settings = self.content["settings"]
        chosen = " ".join(f"{k}={v}" for k, v in self.content["chosen"].items())
        score = self.content["score"]
        n = len(all_settings)
        said = (
            f"{self.method}: {chosen or 'its own options'}, "
            + ("no score" if score is None else f"{100 * score:.1f} %")
            + f" on held-out training images ({n} setting{'s' if n > 1 else ''})"
        )
        pruned = sum(bool(one.get("pruned")) for one in all_settings)
        said += f"; {pruned} of them pruned" if pruned else ""
        failed = [o for o in all_settings if o.get("score") is None and not o.get("pruned")]
        if failed:
            why = failed[0].get("error", "not finished").rstrip(".")
            said += f"; {len(failed)} of them failed ({why})"
        return said + "."


class _Record:
    """The settings of a method that are tried, and ``OUT/tuning/<method>-<hash>.json`` of them.

    What an earlier call has tried is read from the file.

    :param tried: all options of each setting.
    :param about: what the file says besides.
    """

    def __init__(
        self,
        config: RunConfig,
        tried: Sequence[Mapping[str, Any]],
        out: Path,
        about: Mapping[str, Any],
    ) -> None:
        own = config.options
        changes = [{k: v for k, v in one.items() if k not in own or v != own[k]} for one in tried]
        text = json.dumps([config.config_hash(), config.seed, changes], sort_keys=True, default=str)
        name = f"{slug(config.method)}-{hashlib.sha256(text.encode()).hexdigest()[:10]}.json"
        self.file, self.tried = out / "tuning" / name, tried
        before = _tried(self.file, len(changes))
        self.content = {
            "method": config.method,
            "holdout": HOLDOUT,
            "seed": config.seed,
            "config": config.to_dict(),
            "settings": [{**old, "options": c} for c, old in zip(changes, before, strict=True)],
            **about,
        }

    def left(self) -> list[int]:
        """The numbers of the settings that have not been tried."""
        notes = self.content["settings"]
        return [index for index, note in enumerate(notes) if "seconds" not in note]

    def note(self, index: int, result: dict[str, Any]) -> None:
        """Note what a setting came to, and write the file."""
        notes = self.content["settings"]
        done = result.pop("status") == "done"
        found = result if done else {"error": result["error"]}
        notes[index] = {"options": notes[index]["options"], **found}
        # What another process has tried meanwhile stays in the record.
        for note, other in zip(notes, _tried(self.file, len(notes)), strict=True):
            if "seconds" in other and "seconds" not in note:
                note.update({key: v for key, v in other.items() if key != "options"})
        choose(self.content)
        write_json(self.file, self.content)

    def choice(self) -> Choice:
        """The best of them."""
        options = self.tried[choose(self.content)]
        return Choice(self.content["method"], options, self.file, self.content)


def tune(
    configs: Sequence[RunConfig],
    fixed: Mapping[str, Collection[str]],
    out: Path,
    execution: Execution,
    grids: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> dict[str, Choice]:
    """Choose the options of each method; what an earlier call has tried is read from its record.

    ``OUT/tuning/<method>-<hash>.json`` is written whole after each setting.

    :param configs: one run per method, all at the first seed.
    :param fixed: method -> options that are not varied.
    :param execution: how they are tried.
    :param grids: method -> options of each setting that is tried, in the place of
        :func:`settings`; see :func:`grid`.
    :returns: method -> choice.
    :raises UsageError: if no images can be held out.
    """
    own = [held_out_config(config) for config in configs]
    benchmark = build_benchmark(own[0])
    k = first_experiences(benchmark.first_seen)
    samples = sum(sum(counts.values()) for counts in benchmark.class_counts[:k])
    about = {"experiences": k, **environment(execution.device)}
    records: dict[str, _Record] = {}
    place: dict[str, tuple[_Record, int]] = {}
    todo: list[RunConfig] = []
    for config in own:
        name, options = config.method, config.options
        if grids is None:
            tried, of_grid = settings(get_method(name), options, fixed.get(name, ())), {}
        else:
            tried = [{**options, **setting} for setting in grids[name]]
            of_grid = {"grid": _axes(grids[name])}
        record = records[name] = _Record(config, tried, out, {**about, **of_grid})
        for index in record.left():
            todo.append(with_code(replace(config, options=tried[index])))
            place[todo[-1].config_hash()] = record, index
    # Of all settings, not of those left to do: see default_threads.
    number = sum(len(record.tried) for record in records.values())
    threads = executors.default_threads(execution, number)
    work = functools.partial(_try, experiences=k)
    for config, result in executors.execute(
        todo, out, execution, samples, threads, work, "settings"
    ):
        record, index = place[config.config_hash()]
        record.note(index, result)
    if stop_requested():  # when nothing was left to stop
        raise RunStopped
    return {name: record.choice() for name, record in records.items()}


def grid(method: str, values: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """The settings of ``--grid``: each value of an option with each of the others.

    :param values: option -> its values as typed.
    :raises UsageError: for an option that the method does not have, a value that it does not take,
        or more than :data:`MOST_SETTINGS` settings.
    """
    number = math.prod(map(len, values.values()))
    if number > MOST_SETTINGS:
        raise UsageError(
            f"--grid tries at most {MOST_SETTINGS} settings of a method, and {method} has {number}."
        )
    axes = [
        [(key, resolve_options(method, {key: text})[key]) for text in texts]
        for key, texts in values.items()
    ]
    return [dict(setting) for setting in itertools.product(*axes)]


def _axes(tried: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The values of each option in settings of :func:`grid`."""
    return {key: list(dict.fromkeys(one[key] for one in tried)) for key in tried[0]}


def _tried(file: Path, number: int) -> list[dict[str, Any]]:
    """What an earlier call has noted of each setting; one whose note is damaged is tried again."""
    notes = (read_json(file) or {}).get("settings")
    notes = notes[:number] if isinstance(notes, list) else []
    return [note if is_note(note) else {} for note in notes] + [{}] * (number - len(notes))


def is_note(note: Any) -> bool:
    """Whether this is a whole note of a setting that was tried."""
    if not isinstance(note, dict) or not isinstance(note.get("error", ""), str):
        return False
    score = note.get("score")
    numbers = [note.get("seconds", 0.0), 0.0 if score is None else score]
    return all(isinstance(v, (int, float)) and math.isfinite(v) for v in numbers)


def choose(content: dict[str, Any]) -> int:
    """Note and return the best setting: the first of equals; none with a score is the first."""
    tries = content["settings"]
    scores = [-1.0 if one.get("score") is None else one["score"] for one in tries]
    index = scores.index(max(scores))
    content.update(
        chosen=tries[index]["options"],
        score=tries[index].get("score"),
        seconds=round(sum(one.get("seconds", 0) for one in tries), 3),
    )
    return index
