"""The searches of ``tune`` below a folder of results, as plain values for the page.

A study's files may be anybody's: one that is damaged is left out, or a trial of it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from avalanche_rwf.experiments.store import read_json
from avalanche_rwf.leaderboard.style import look
from avalanche_rwf.utils.validation import is_finite

Trial = dict[str, Any]


def studies(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The studies of several folders, each with its trials in order and its options' importance.

    :param folders: the ``--out`` of commands; studies are in ``tuning/<method>-<hash>/``.
    :returns: of each study: "method", "about" (what was searched on), "look", "trials" (number,
        state "done", "pruned" or "failed", accuracy of a done one in 0 to 1, number of evaluations,
        options that were changed),
        "best" (a trial's place, or None), "importance" (option, share in 0 to 1), "folder".
    """
    files = [file for folder in folders for file in sorted(folder.glob("tuning/*/study.json"))]
    found = [_study(file.parent) for file in files if not file.parent.is_symlink()]
    return [study for study in found if study is not None]


def _study(folder: Path) -> dict[str, Any] | None:
    about = read_json(folder / "study.json") or {}
    config = about.get("config")
    if not isinstance(about.get("method"), str) or not isinstance(config, Mapping):
        return None
    files = sorted((folder / "trials").glob("[0-9]*.json"))
    trials = [trial for file in files if (trial := _trial(file)) is not None]
    done = [i for i, trial in enumerate(trials) if trial["state"] == "done"]
    importance = (read_json(folder / "importance.json") or {}).items()
    shares = [[key, share] for key, share in importance if _is_share(share)]
    setting = (config.get(name) for name in ("benchmark", "stream", "backbone"))
    return {
        "method": about["method"],
        "about": ", ".join(str(value) for value in setting if value is not None),
        "seed": about.get("seed"),
        "look": look(about["method"])._asdict(),
        "trials": trials,
        # As a tie is decided: the earlier one.
        "best": max(done, key=lambda i: (trials[i]["accuracy"], -i), default=None),
        "importance": sorted(shares, key=lambda one: -one[1]),
        "folder": folder.as_posix(),
    }


def _trial(file: Path) -> Trial | None:
    note = read_json(file) or {}
    options, score, seen = (note.get(name) for name in ("options", "score", "accuracies"))
    if not file.stem.isdecimal() or not isinstance(options, Mapping) or "score" not in note:
        return None
    done = _is_share(score)
    return {
        "number": int(file.stem),
        "state": "done" if done else "failed" if "error" in note else "pruned",
        "accuracy": score if done else None,
        "evaluations": len(seen) if isinstance(seen, list) else 0,
        "options": {str(key): value for key, value in options.items()},
    }


def _is_share(value: Any) -> bool:
    return is_finite(value) and 0 <= value <= 1
