"""A comparison: the list of runs that a command line asks for, checked before any work is done."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from avalanche_rwf.benchmarks import Benchmark
from avalanche_rwf.errors import UsageError, nearest, reason
from avalanche_rwf.experiments.build import (
    build_benchmark,
    build_strategy,
    load_backbone,
    with_code,
)
from avalanche_rwf.experiments.config import RunConfig, run_directory
from avalanche_rwf.experiments.precision import fastest_precision
from avalanche_rwf.experiments.selection import select_names
from avalanche_rwf.experiments.store import finished, read_json, write_json
from avalanche_rwf.experiments.tuning import Choice, grid
from avalanche_rwf.models.backbone import BackboneInfo, backbone_info, preparation_note
from avalanche_rwf.models.blocks import DefaultBlocks, FitWarning
from avalanche_rwf.models.classifier import READOUTS
from avalanche_rwf.models.heads import list_heads
from avalanche_rwf.models.masks import MASKS
from avalanche_rwf.strategies.description import Description, describe
from avalanche_rwf.strategies.registry import get_method, list_methods, resolve_options


@dataclass(frozen=True)
class Plan:
    """Runs to do and how many training samples each has.

    :param configs: all runs of the comparison, finished ones included.
    :param todo: those without a finished run directory, in the order in which they are done.
    :param samples: training samples per run.
    :param notes: sentences to print before the work begins.
    :param left_out: methods that nobody named and that do not fit, with the reason.
    :param shared: method -> width of the features that others find.
    """

    configs: tuple[RunConfig, ...]
    todo: tuple[RunConfig, ...]
    samples: int
    notes: tuple[str, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    shared: Mapping[str, int] = field(default_factory=dict)

    @property
    def methods(self) -> list[str]:
        """Those that run, in their order."""
        return list(dict.fromkeys(config.method for config in self.configs))


def select_methods(text: str | None) -> list[str]:
    """:func:`.selection.select_names` of the registered methods.

    :raises UsageError: for a name or pattern that matches none.
    """
    names = list_methods()

    def elsewhere(word: str) -> list[str]:
        found = list_methods(word)
        pattern = any(sign in word for sign in "*?")
        # It says what is wrong with a name of another module.
        return found if found or pattern else [get_method(word).name]

    return select_names(text, names, [n for n in names if get_method(n).default], elsewhere)


def resolve_device(name: str) -> str:
    """ "auto" is the first GPU if there is one.

    :raises UsageError: for a device that this machine does not have.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, colon, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (colon and not (index.isdecimal() and len(index) < 5)):
        raise UsageError(f"--device takes auto, cpu, cuda or cuda:N, not {name!r}.")
    if kind == "cuda" and (
        not torch.cuda.is_available() or int(index or 0) >= torch.cuda.device_count()
    ):
        raise UsageError(
            f"--device {name} was asked for, but PyTorch sees {torch.cuda.device_count()} CUDA "
            "devices here."
        )
    return name


def given_options(
    method: str, common: Mapping[str, Any], settings: Sequence[tuple[str, str, str]]
) -> dict[str, Any]:
    """What a command line says of one method, as it was typed; see :func:`method_options`."""
    known = get_method(method).options
    given = {k: v for k, v in common.items() if v is not None and _is_choice(k, known)}
    for pattern, key, value in settings:
        if fnmatch.fnmatchcase(method, pattern) and (pattern == method or key in known):
            given[key] = value
    return given


def _is_choice(flag: str, options: Mapping[str, Any]) -> bool:
    """Whether a common flag is for a method; ER-ACE's mask is its definition and no choice."""
    return flag in options and not (flag == "mask" and options["mask"] not in MASKS)


def method_options(
    methods: Sequence[str],
    common: Mapping[str, Any],
    settings: Sequence[tuple[str, str, str]],
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """All options of each method, and notes on common ones that a method does not have.

    :param common: ``head``, ``mask``, ``readout``: None leaves a method's own.
    :param settings: (method or pattern, option, value) of each ``--set``.
    :raises UsageError: for a setting that no chosen method has.
    """
    notes = []
    readouts = (*READOUTS, "prompt")  # the last is L2P's own
    for flag, takes in (("head", tuple(list_heads())), ("mask", MASKS), ("readout", readouts)):
        value = common.get(flag)
        if value is not None and value not in takes:
            raise UsageError(f"--{flag} takes one of {', '.join(takes)}, not {value!r}.")
    for method in methods:
        notes += [
            f"{method} has no choice of {flag}: --{flag} leaves it as it is."
            for flag, value in common.items()
            if value is not None and not _is_choice(flag, get_method(method).options)
        ]
    options = {
        method: resolve_options(method, given_options(method, common, settings))
        for method in methods
    }
    for pattern, key, _ in settings:
        matching = _matching("--set", pattern, key, methods)
        if not any(key in get_method(m).options for m in matching):
            known = sorted(get_method(matching[0]).options)
            raise UsageError(f"--set {pattern}.{key}: no such option; {nearest(key, known)}.")
    return options, notes


def _matching(flag: str, pattern: str, key: str, methods: Sequence[str]) -> list[str]:
    """The methods that ``METHOD.KEY=...`` is for."""
    found = fnmatch.filter(methods, pattern)
    if not found:
        raise UsageError(
            f"{flag} {pattern}.{key} names no method of this comparison; "
            f"{nearest(pattern, methods)}."
        )
    return found


def method_grids(
    methods: Sequence[str],
    grids: Sequence[tuple[str, str, list[str]]],
    given: Mapping[str, Collection[str]],
) -> dict[str, list[dict[str, Any]]]:
    """The settings that are tried of each method that a ``--grid`` names.

    :param grids: (method or pattern, option, values) of each ``--grid``.
    :param given: method -> options that the command line sets.
    :raises UsageError: for a grid of no chosen method or option, or of an option that is set.
    """
    values: dict[str, dict[str, list[str]]] = {}
    for pattern, key, texts in grids:
        for method in _matching("--grid", pattern, key, methods):
            if key in given[method]:
                raise UsageError(f"--grid {pattern}.{key}: the option is set; leave one out.")
            values.setdefault(method, {})[key] = texts
    return {method: grid(method, axes) for method, axes in values.items()}


def _check_room(described: Description, experiences: int) -> None:
    """A model that follows the experiences must have room for them; it would stop half way.

    :raises ValueError: naming what it has and what the stream has.
    """
    room = described.max_experiences
    if room is not None and room < experiences:
        raise ValueError(
            f"by task it has room for {room} experiences (pool_size or tasks), and the stream "
            f"has {experiences}."
        )


def _check_subset(config: RunConfig, num_classes: int) -> None:
    if config.eval_subset and not config.eval_every_samples:
        raise UsageError(
            "--eval-subset is for evaluations in mid-stream, and --eval-every-samples 0 makes none."
        )
    if 0 < config.eval_subset < num_classes:
        raise UsageError(
            f"--eval-subset takes at least one test sample of each of the {num_classes} classes, "
            f"not {config.eval_subset}."
        )


def _load_backbone(config: RunConfig) -> tuple[BackboneInfo, list[str]]:
    """The backbone's facts, and what is to be said of it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        info = backbone_info(load_backbone(config))
    # Such as a bare name, which stands for other weights in another timm.
    said = [f"{w.message}." for w in caught if issubclass(w.category, UserWarning)]
    note = preparation_note(config.backbone, config.data_config) if config.weights else None
    return info, [*said, *([note] if note else [])]


def plan(
    base: RunConfig,
    methods: Sequence[str],
    seeds: Sequence[int],
    options: Mapping[str, Mapping[str, Any]],
    out: Path,
    notes: Sequence[str] = (),
    choose_evaluation: bool = False,
    named: Collection[str] | None = None,
    grids: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    probe_threads: int | None = None,
) -> Plan:
    """Check everything that can be checked, then list the runs.

    Backbone and benchmark are loaded and every method is built once: what is wrong shows here, in
    one sentence, and not after an hour. A method that nobody named and that does not fit, be it
    with its own options, is left out and named.

    :param choose_evaluation: set ``eval_every_samples`` to a quarter of the stream.
    :param named: the methods that were named by themselves; None is all.
    :param grids: method -> settings that will be tried, which are built once too.
    :param probe_threads: of a run; a number sets ``precision`` to what is faster on this CPU.
    :raises UsageError: for the first thing that is wrong.
    """
    base.validate()
    info, of_backbone = _load_backbone(base)
    said = [*notes, *of_backbone]
    base = replace(base, weights_sha256=info.sha256)
    if probe_threads is not None:
        precision, why = fastest_precision(base, out, probe_threads)
        base = replace(base, precision=precision)
        said.append(f"--precision fastest is {precision} here: {why}.")
    benchmark = build_benchmark(base.with_seed(seeds[0]))
    if choose_evaluation:
        base = replace(base, eval_every_samples=max(1, -(-benchmark.train_size // 4)))
    _check_subset(base, benchmark.num_classes)
    configs: list[RunConfig] = []
    left_out: dict[str, str] = {}
    shared: dict[str, int] = {}
    for method in methods:
        config = with_code(replace(base, method=method, options=dict(options[method])))
        try:
            described, of_method = check_method(config, benchmark)
        except UsageError as error:
            if named is None or method in named or not _never_fits(config, benchmark):
                raise
            left_out[method] = str(error).removeprefix(f"{method}: ")
            continue
        said += of_method
        shared[method] = described.shared_width
        for setting in (grids or {}).get(method, ()):
            check_method(replace(config, options={**config.options, **setting}), benchmark)
        # A default that a small backbone has not room for is recorded as what it is there.
        fitted = {
            key: value.on(info.depth) if isinstance(value, DefaultBlocks) else value
            for key, value in config.options.items()
        }
        config = replace(config, options=fitted)
        configs += [config.with_seed(seed) for seed in seeds]
    if not configs:
        reasons = " ".join(f"{method}: {why}" for method, why in left_out.items())
        raise UsageError(f"No method of this comparison fits. {reasons}")
    # Seed by seed, so that an interrupted comparison has every method at the first seeds.
    configs.sort(key=lambda c: seeds.index(c.seed))
    said += benchmark.notes
    if benchmark.skipped:
        said.append(f"{benchmark.skipped} corrupt images were left out (--skip-corrupt).")
    return Plan(
        tuple(configs),
        _unfinished(configs, out, shared),
        benchmark.train_size,
        tuple(dict.fromkeys(said)),
        left_out,
        shared,
    )


def check_method(config: RunConfig, benchmark: Benchmark) -> tuple[Description, list[str]]:
    """Build a method once; returns what it is, and what the backbone changes in it.

    :raises UsageError: naming the method, if it cannot be built or has no room for the stream.
    """
    method = config.method
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            strategy = build_strategy(config, benchmark.num_classes)
        described = describe(strategy)
        _check_room(described, len(benchmark.classes_per_experience))
    except ValueError as error:
        raise UsageError(f"{method}: {' '.join(str(error).split())}") from None
    except (Exception, SystemExit) as error:
        # Not said by a check of ours: PyTorch's or timm's word for an impossible size, or
        # whatever goes wrong in a user's method.
        why = "it calls sys.exit: " * isinstance(error, SystemExit) + reason(error)
        raise UsageError(f"{method} cannot be built with these options ({why}).") from error
    if config.boundary_free and (described.uses_boundaries or get_method(method).uses_boundaries):
        raise UsageError(
            f"{method} reads task boundaries in training, which --boundary-free hides; leave "
            "one of the two out."
        )
    fit = [str(w.message) for w in caught if issubclass(w.category, FitWarning)]
    # What is said of the backbone is said of all methods alike and once.
    said = [f"{text}." if "no class token" in text else f"{method}: {text}." for text in fit]
    return described, said


def _never_fits(config: RunConfig, benchmark: Benchmark) -> bool:
    """Whether a method does not fit with its own options either: no value typed is to blame."""
    own = resolve_options(config.method, {})
    if all(config.options.get(key) is value for key, value in own.items()):
        return True
    try:
        check_method(replace(config, options=own), benchmark)
    except UsageError:
        return True
    return False


def write_left_out(out: Path, benchmark: str, backbone: str, left_out: Mapping[str, str]) -> None:
    """``OUT/left_out.json``: which methods the comparisons in OUT were made without, and why.

    The entry of the same benchmark and backbone is replaced.
    """
    path, name = out / "left_out.json", f"{benchmark} on {backbone}"
    found = read_json(path) or {}
    if found.get(name, {}) != left_out:
        rest = {key: value for key, value in found.items() if key != name}
        write_json(path, {**rest, name: dict(left_out)} if left_out else rest)


def plan_tuned(planned: Plan, choices: Mapping[str, Choice], out: Path) -> Plan:
    """The same runs with each method's chosen options; the other methods stay as they are."""
    configs = tuple(
        with_code(replace(c, options=choices[c.method].options, tuning=choices[c.method].record()))
        if c.method in choices
        else c
        for c in planned.configs
    )
    todo = _unfinished(configs, out, planned.shared)
    return replace(planned, configs=configs, todo=todo)


def _unfinished(
    configs: Sequence[RunConfig], out: Path, shared: Mapping[str, int]
) -> tuple[RunConfig, ...]:
    """The runs that are left, in the order in which the least is computed twice.

    Of each seed the method that computes most of what others read comes first, and those that can
    read it come last: it is there by then, also for runs at the same time.
    """
    todo = [c for c in configs if finished(run_directory(out, c)) is None]
    first = max(shared, key=lambda method: shared[method], default="")
    seeds = list(dict.fromkeys(c.seed for c in todo))

    def rank(config: RunConfig) -> tuple[int, bool, bool]:
        reads = bool(shared.get(config.method))
        return seeds.index(config.seed), config.method != first, reads

    return tuple(sorted(todo, key=rank))
