"""The command that makes a run, from its configuration."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from avalanche_rwf.benchmarks.stream_registry import OPTIONS, resolve_stream_options
from avalanche_rwf.experiments.config import RunConfig, run_settings
from avalanche_rwf.models.names import PACKAGED

# Settings with a rule of their own below.
_OWN = ("benchmark", "seed", "backbone")


def command_words(
    config: RunConfig,
    seeds: Sequence[int] | None = None,
    defaults: Mapping[str, Any] | None = None,
    imports: Sequence[str] = (),
) -> list[str]:
    """The arguments of ``avalanche-rwf`` that make this run: parsed, they give the same hash.

    With ``budget="tuned"`` the command tunes again rather than being told the outcome; it comes to
    the same choice if the first of `seeds` is that of the comparison. With "study:NAME" it reads
    the study, which must be in its ``OUT/tuning``.

    :param config: of the run.
    :param seeds: of the row; by default the run's own.
    :param defaults: the method's own options: those that equal them are left out.
    :param imports: modules or files that register what the run uses.
    """
    words = ["compare", "--benchmark", config.benchmark, "--methods", config.method]
    words += [word for name in imports for word in ("--import", name)]
    words += ["--seeds", ",".join(map(str, [config.seed] if seeds is None else seeds))]
    if config.backbone != PACKAGED:
        words += ["--backbone", config.backbone]
    for key, value in config.backbone_args.items():
        words += ["--backbone-arg", f"{key}={_literal(value)}"]
    for name, setting in run_settings().items():
        value = getattr(config, name)
        said = setting.computed or (value != setting.default and value is not None)
        if setting.flag and said and name not in _OWN:
            words += [setting.flag] if setting.kind == "flag" else [setting.flag, _text(value)]
    for key, value in config.data_config.items():
        text = ",".join(map(repr, value)) if isinstance(value, (list, tuple)) else str(value)
        words += ["--" + key.replace("_", "-"), text]
    words += _stream_words(config)
    found_again = config.tuning.get("chosen", {}) if config.budget != "default" else {}
    if config.budget == "grid":
        found_again = config.tuning.get("grid", {})
        for key, tried in found_again.items():
            words += ["--grid", f"{config.method}.{key}={','.join(map(str, tried))}"]
    for key, value in config.options.items():
        same = defaults is not None and key in defaults and _same(defaults[key], value)
        if not same and key not in found_again:
            words += ["--set", f"{config.method}.{key}={_text(value)}"]
    return words


def command_line(config: RunConfig, **how: Any) -> str:
    """:func:`command_words` as a line for a POSIX shell."""
    return shlex.join(["avalanche-rwf", *command_words(config, **how)])


def _stream_words(config: RunConfig) -> list[str]:
    """The options of the stream that differ from what its kind and the benchmark stand for."""
    usual = resolve_stream_options(config.stream, {}, config.benchmark)
    words = []
    for name, value in config.stream_options.items():
        if name not in usual or not _same(usual[name], value):
            text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            words += [OPTIONS[name].flag, text]
    return words


def _text(value: Any) -> str:
    """A value as ``--set`` reads it, which knows each option's type."""
    return _literal(value) if isinstance(value, (list, tuple)) else str(value)


def _literal(value: Any) -> str:
    """A value as ``--backbone-arg`` reads it: as in Python, but a plain word needs no quotes."""
    if isinstance(value, (list, tuple)):
        return repr(tuple(value))
    plain = isinstance(value, str) and re.fullmatch(r"[a-z_][a-z0-9_]*", value)
    return value if plain and value not in ("true", "false") else repr(value)


def _same(a: Any, b: Any) -> bool:
    """Equal and of one type: 1, 1.0 and True have different hashes in a configuration."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return list(a) == list(b)
    return type(a) is type(b) and bool(a == b)
