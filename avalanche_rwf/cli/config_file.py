"""``--config FILE``: a file of flags, as YAML, TOML or JSON, or the ``config.json`` of a run.

The file stands for words of the command line, before those that are typed: what is typed counts.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from avalanche_rwf.cli.common import Parser
from avalanche_rwf.errors import UsageError, nearest, reason
from avalanche_rwf.utils.untrusted_io import read_file

_TAKES = "--config takes a .yaml, .toml or .json file"
_MOST = 1_000_000  # bytes; a run's configuration has a few thousand


class ConfigFile:
    """A file of flags.

    :param name: its path.
    :raises UsageError: if it cannot be read, or is no table of names and values.
    """

    def __init__(self, name: str) -> None:
        self._name, self._content = name, _read(name)

    @classmethod
    def named(cls, words: Sequence[str]) -> ConfigFile | None:
        """The one that ``--config FILE`` or ``--config=FILE`` names, the last of several."""
        names = [after for word, after in itertools.pairwise(words) if word == "--config"]
        names += [word.partition("=")[2] for word in words if word.startswith("--config=")]
        return cls(names[-1]) if names else None

    def imports(self) -> list[str]:
        """Its values of --import, which are needed before the flags are known."""
        named = self._content.get("import") or []
        return [str(name) for name in (named if isinstance(named, list) else [named])]

    def before(self, words: Sequence[str], parser: Parser) -> list[str]:
        """The words of a command line with those that the file stands for in front.

        :param parser: of the verb, which is among the words.
        :raises UsageError: a key that is no flag, or a value that it does not take.
        """
        at = words.index(parser.prog.rpartition(" ")[2]) + 1
        stated = _words(self._content, self._name, parser, words)
        try:
            parser.parse_args(stated)
        except UsageError as error:
            if "are required" not in str(error):  # they may be typed
                raise UsageError(f"--config {self._name}: {error}") from None
        return [*words[:at], *stated, *words[at:]]


def _read(name: str) -> dict[str, Any]:
    """What a file says, by the names of flags without their dashes.

    :raises UsageError: if it cannot be read, or is no table of names and values.
    """
    path = Path(name)
    suffix = path.suffix.lower()
    try:
        text = read_file(path).decode()
        if len(text) > _MOST:
            raise ValueError(f"it has more than {_MOST:,} bytes")
        content = _parse(suffix, text)
    except OSError as error:
        why = error.strerror or error
        raise UsageError(f"{_TAKES}, and {name!r} cannot be read ({why}).") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{_TAKES}, and {name!r} is none ({reason(error)}).") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"{_TAKES} of flags and values, such as 'methods: rwf', not {name!r}.")
    return content


def _parse(suffix: str, text: str) -> Any:
    if suffix == ".json":
        return json.loads(text)
    if suffix == ".toml":
        try:
            tomllib = importlib.import_module("tomllib")
        except ImportError:
            raise ValueError("TOML needs Python 3.11 or newer") from None
        return tomllib.loads(text)
    if suffix in (".yaml", ".yml"):
        import yaml

        try:
            return yaml.safe_load(text) or {}
        except yaml.YAMLError as error:
            raise ValueError(str(error)) from None
    raise ValueError(f"it ends in {suffix!r}")


def _words(
    content: Mapping[str, Any], name: str, parser: Parser, typed: Sequence[str]
) -> list[str]:
    """What a file says, as words; without the options of ``--set`` that are typed."""
    if isinstance(content.get("config"), dict) and "method" in content["config"]:
        return _of_run(content["config"], name)
    flags = {
        option.removeprefix("--"): action
        for option, action in parser._option_string_actions.items()
        if option.startswith("--") and option not in ("--help", "--config", "--print-config")
    }
    given = {word.partition("=")[0] for word in typed}  # such as rwf.lr of --set
    words: list[str] = []
    for key, value in content.items():
        flag = key.replace("_", "-")
        if flag not in flags:
            raise UsageError(f"--config {name}: there is no {key!r}; {nearest(flag, flags)}.")
        if value is None:
            continue
        action = flags[flag]
        if action.nargs == 0:
            if not isinstance(value, bool):
                raise UsageError(f"--config {name}: {key} takes true or false, not {value!r}.")
            words += [f"--{flag}"] * value
        elif isinstance(action, argparse._AppendAction):
            pairs = _pairs(value) if isinstance(value, dict) else value
            for one in pairs if isinstance(pairs, list) else [pairs]:
                text = _text(one, key, name)
                if text.partition("=")[0] not in given or "=" not in text:
                    words.append(f"--{flag}={text}")
        else:
            several = isinstance(value, list) and action.type in (None, str)
            parts = value if several else [value]
            words.append(f"--{flag}={','.join(_text(part, key, name) for part in parts)}")
    return words


def _pairs(value: Mapping[str, Any], before: str = "") -> list[str]:
    """``{"rwf": {"lr": 0.1}}`` or ``{"rwf.lr": 0.1}`` as "rwf.lr=0.1"."""
    found: list[str] = []
    for key, one in value.items():
        if isinstance(one, dict):
            found += _pairs(one, f"{before}{key}.")
        else:
            text = ",".join(map(str, one)) if isinstance(one, list) else str(one)
            found.append(f"{before}{key}={text}")
    return found


def _text(value: Any, key: str, name: str) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or value == "":
        raise UsageError(f"--config {name}: {key} takes a text or a number, not {value!r}.")
    return str(value)


def _of_run(values: Mapping[str, Any], name: str) -> list[str]:
    """The command of a run, from its ``config.json``."""
    from avalanche_rwf.experiments.command import command_words
    from avalanche_rwf.experiments.config import RunConfig

    try:
        return [str(word) for word in command_words(RunConfig.from_dict(values))[1:]]
    except (TypeError, AttributeError, ValueError, KeyError) as error:
        raise UsageError(
            f"--config {name}: it is no configuration of a run of this version ({reason(error)})."
        ) from None


def config_text(parser: Parser, args: argparse.Namespace) -> str:
    """A parsed command line as the text of a file for ``--config``."""
    import yaml

    values = {}
    for action in parser._actions:
        value = getattr(args, action.dest, None)
        flag = next((o for o in action.option_strings if o.startswith("--")), "")
        silent = value is None or value is False or value == []
        if flag and flag not in ("--help", "--config", "--print-config") and not silent:
            values[flag.removeprefix("--")] = value
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
