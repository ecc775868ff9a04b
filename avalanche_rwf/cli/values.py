"""Words of the command line as values."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any

from avalanche_rwf.errors import UsageError
from avalanche_rwf.utils.untrusted_io import MOST

# What create_backbone takes besides timm's arguments has a flag of its own.
_BACKBONE_FLAGS = {"name": "--backbone", "weights": "--weights", "image_size": "--image-size"}


def is_seed(text: str) -> bool:
    """A whole number that NumPy takes as a seed."""
    return text.isdecimal() and len(text) <= 10 and int(text) < 2**32


def read_seeds(text: str) -> list[int]:
    """ "0,1,2" or "0-4" -> integers."""
    numbers: list[int] = []
    for word in text.split(","):
        first, dash, last = word.strip().partition("-")
        if not is_seed(first) or (dash and not last.isdecimal()):
            raise UsageError(f"--seeds takes whole numbers such as 0,1,2 or 0-4, not {text!r}.")
        # Never more than are refused below, however long the range.
        end = int(last or first) if len(last) <= 12 else 2**40
        if end < int(first):
            raise UsageError(f"--seeds takes ranges that go up, such as 0-4, not {word!r}.")
        numbers += range(int(first), min(end, int(first) + 1000) + 1)
    if len(numbers) > 1000:
        raise UsageError(f"--seeds takes 1 to 1000 whole numbers, not {text!r}.")
    if max(numbers) >= 2**32:
        raise UsageError(f"--seeds takes whole numbers below 2**32, not {text!r}.")
    return list(dict.fromkeys(numbers))


def read_every(text: str | None) -> int | None:
    """``--checkpoint-every``; None, as "auto", spaces checkpoints by what they cost."""
    if text is None or text == "auto":
        return None
    if not re.fullmatch("[0-9]{1,12}", text):
        raise UsageError(
            f"--checkpoint-every takes auto or a whole number of at least 0, not {text!r}."
        )
    return int(text)


def read_value(text: str) -> Any:
    """A number, True, False, None or a tuple written as in Python; other text is itself."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return {"true": True, "false": False}.get(text.lower(), text)
    value = tuple(value) if isinstance(value, list) else value
    # Nothing that has no hash or no JSON: the configuration has both.
    plain = all(item is None or isinstance(item, (int, float, str)) for item in _flat(value))
    return value if plain else text


def _flat(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def backbone_args(pairs: Sequence[str]) -> dict[str, Any]:
    """``--backbone-arg`` key=value pairs as timm's keyword arguments."""
    values = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"--backbone-arg takes key=value, not {pair!r}.")
        if key in _BACKBONE_FLAGS:
            raise UsageError(f"--backbone-arg {key}: give it as {_BACKBONE_FLAGS[key]}.")
        values[key] = read_value(text)
        numbers = [v for v in _flat(values[key]) if isinstance(v, (int, float))]
        if any(not -MOST < v < MOST for v in numbers):
            raise UsageError(f"--backbone-arg {key} takes finite numbers, not {text!r}.")
    return values


def _option(flag: str, pair: str, takes: str) -> tuple[str, str, str]:
    """METHOD.KEY=VALUE as (method or pattern, option, value)."""
    left, equals, value = pair.partition("=")
    method, dot, key = left.rpartition(".")
    if not (equals and dot and method and key):
        raise UsageError(f"{flag} takes {takes}, not {pair!r}.")
    return method, key, value


def read_settings(pairs: Sequence[str]) -> list[tuple[str, str, str]]:
    """``--set`` METHOD.KEY=VALUE as (method or pattern, option, value)."""
    settings: list[tuple[str, str, str]] = []
    for pair in pairs:
        method, key, value = _option("--set", pair, "method.option=value")
        before = next((v for m, k, v in settings if (m, k) == (method, key)), value)
        if before != value:
            raise UsageError(
                f"--set {method}.{key} is given twice, {before!r} and {value!r}; to try several "
                f"values, take --grid {method}.{key}={before},{value}."
            )
        settings.append((method, key, value))
    return settings


def read_grids(pairs: Sequence[str]) -> list[tuple[str, str, list[str]]]:
    """``--grid`` METHOD.KEY=VALUE,... as (method or pattern, option, values)."""
    grids: list[tuple[str, str, list[str]]] = []
    for pair in pairs:
        method, key, text = _option("--grid", pair, takes := "method.option=value,value,...")
        values = list(dict.fromkeys(filter(None, map(str.strip, text.split(",")))))
        if not values:
            raise UsageError(f"--grid takes {takes}, not {pair!r}.")
        if any((method, key) == grid[:2] for grid in grids):
            raise UsageError(f"--grid {method}.{key} is given twice; give all its values at once.")
        grids.append((method, key, values))
    return grids


def read_slurm(texts: Sequence[str]) -> dict[str, str]:
    """``--slurm key=value,...`` as pairs; a comma in a value is kept where no key follows it."""
    options: dict[str, str] = {}
    for text in texts:
        key = ""
        for part in text.split(","):
            name, equals, value = part.partition("=")
            if equals and name.replace("-", "_").isidentifier():
                key = name.replace("-", "_")
                options[key] = value
            elif key:
                options[key] += f",{part}"
            else:
                raise UsageError(f"--slurm takes key=value,..., not {text!r}.")
    return options
