"""Nonsense for the files test_fuzz_*.py, and the world that it must leave as it was.

The examples are the same every time (profile ``ci``). ``FUZZ=50`` makes fifty times as many, others
each time; a failure prints the example, and ``--hypothesis-seed`` repeats a seed.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

# Avalanche and matplotlib write into the user's folder when they are first imported: not his here.
import avalanche.benchmarks  # noqa: F401
import matplotlib.font_manager  # noqa: F401
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from avalanche_rwf import cli
from avalanche_rwf.experiments import executors

TIMES = int(os.environ.get("FUZZ", "0"))
# How long an example takes says how busy the machine is.
_ALWAYS = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("ci", derandomize=True, database=None, **_ALWAYS)
settings.register_profile("long", print_blob=True, **_ALWAYS)


def examples(number: int) -> settings:
    """So many examples in CI."""
    return settings(
        settings.get_profile("long" if TIMES else "ci"), max_examples=number * max(TIMES, 1)
    )


NONSENSE = (
    *(" ", "-", "-1", "0x10", "1e999", "nan", "inf", "-inf", "None", "null", "[]", "{}", ","),
    *("💥", "‮", "\n", "\t", "\0", "a\0b", "\udcff", "%s%n", "$(id)", "`id`", ";", "'", '"', "\\"),
    *("../../..", "/", "...", "a" * 5000, "9" * 5000, "1.5.2", "١٢x", "__import__('os')"),
    *("<script>", "a=b=c", "\x1b[2J", "((((((" * 500, "-9" * 50, "1_0", "=", "--"),
)


def words() -> st.SearchStrategy[str]:
    """Text of any script, controls, NUL and what is no UTF-8, and the classics above."""
    # What Python makes of bytes of the command line that are no UTF-8 is all of category Cs.
    return st.sampled_from(NONSENSE) | st.text(min_size=1, max_size=30)


def _none(configs: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
    """In the place of `execute`: what nonsense would run takes long."""
    return iter(())


class Answer(NamedTuple):
    """What a command line did."""

    status: int
    out: str
    err: str


class World:
    """A folder with everything that a command could reach by accident.

    `here` is the working folder, `home` the user's, `out` the only folder that is written to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.here, self.home, self.temporary = (root / n for n in ("here", "home", "temporary"))
        for folder in (self.here, self.home, self.temporary):
            folder.mkdir(parents=True)
        self.out = root / "beside" / "out"
        self.out.parent.mkdir()
        (root / "file.txt").write_text("a file where a folder is wanted")

    def tree(self) -> dict[str, tuple[int, int]]:
        """Everything but the output folder: each file's size, and when it was changed."""
        found = {}
        for folder, below, names in os.walk(self.root):
            if Path(folder) == self.out.parent and self.out.name in below:
                below.remove(self.out.name)
            found[folder] = (0, 0)
            for name in names:
                there = (Path(folder) / name).lstat()
                found[f"{folder}/{name}"] = (there.st_size, there.st_mtime_ns)
        return found

    def runs(self) -> list[Path]:
        """What was run."""
        return sorted(self.out.rglob("summary.json"))

    def say(self, line: Sequence[str], train: bool = False) -> Answer:
        """Run a command line here; it may end as it likes, but in words and within its folder.

        :param train: whether `compare` does what it has planned.
        """
        before = self.tree()
        out, err = io.StringIO(), io.StringIO()
        with (
            self._as_a_user(),
            contextlib.nullcontext() if train else mock.patch.object(executors, "execute", _none),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                status = cli.main(list(line))
            except SystemExit as stopped:  # --help
                status = int(stopped.code or 0)
        answer = Answer(status, out.getvalue(), err.getvalue())
        assert answer.status in (0, 1, 2), answer
        assert "Traceback" not in answer.err, answer
        if answer.status == 2:
            *_, last = answer.err.splitlines() or [""]
            assert last.startswith("avalanche-rwf: "), answer
            assert last.endswith("."), answer
        if answer.status == 1:
            assert answer.err.strip(), answer
        after = self.tree()
        assert after == before, ("written outside the output folder", set(after) ^ set(before))
        return answer

    @contextlib.contextmanager
    def _as_a_user(self) -> Iterator[None]:
        stood = Path.cwd()
        os.chdir(self.here)
        hidden = ("AVALANCHE_RWF_", "XDG_", "HF_")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
        try:
            with (
                # Where --import, --workers and others leave what they were told.
                mock.patch.dict(os.environ, {**kept, "HOME": str(self.home)}, clear=True),
                mock.patch.object(tempfile, "tempdir", str(self.temporary)),
                mock.patch.object(sys, "path", list(sys.path)),
            ):
                yield
        finally:
            os.chdir(stood)


def tiny(images: Path, out: Path, methods: str) -> list[str]:
    """A command that takes a fraction of a second, if nothing is wrong with what is added."""
    return [
        *("compare", "--benchmark", f"folder:{images}", "--methods", methods, "--jobs", "1"),
        *("--backbone", "vit_tiny_patch16_224", "--image-size", "16", "--seeds", "0", "--quiet"),
        *("--backbone-arg", "pretrained=False", "--backbone-arg", "depth=5"),
        *("--backbone-arg", "embed_dim=8", "--backbone-arg", "num_heads=2"),
        *("--backbone-arg", "patch_size=8", "--out", str(out)),
    ]


def refused(answer: Answer) -> None:
    """The command said no, in one sentence, and nothing else on stdout."""
    assert answer.status == 2, answer
    assert answer.out == "", answer


# ---- files


STRANGE = (
    *NONSENSE, None, True, False, 0, -1, 2**31, 2**63, 2**70, 10**400, 0.5, -0.0, 1e300,
    float("nan"), float("inf"), [], {}, [[]], [None], {"a": {"b": []}}, "\ud800", "x" * 100_000,
)  # fmt: skip


def places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a JSON value."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [p for key, v in inner for p in ((*above, key), *places(v, (*above, key)))]


@st.composite
def mutated(draw: st.DrawFn, value: Any, most: int = 2) -> Any:
    """The JSON value with one or two of its parts taken out, renamed or replaced."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, most))):
        there = places(value)
        if not there:
            break
        *above, key = draw(st.sampled_from(there))
        place = value
        for step in above:
            place = place[step]
        kind = draw(st.sampled_from(("replace", "replace", "delete", "rename")))
        if kind == "delete":
            del place[key]
        elif kind == "rename" and isinstance(place, dict):
            place[draw(words())] = place.pop(key)
        else:
            place[key] = copy.deepcopy(draw(st.sampled_from(STRANGE)))  # it may be changed next
    return value


def _twice(text: bytes) -> bytes:
    """An object with its first key twice."""
    return text.replace(b"{", b'{"config": 1, "status": 2, "format": 3, ', 1)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda text: b"",
    "byte order mark": lambda text: b"\xef\xbb\xbf" + text,
    "utf-16": lambda text: text.decode(errors="replace").encode("utf-16"),
    "not utf-8": lambda text: text[: len(text) // 2] + b"\xff\xfe\x80" + text[len(text) // 2 :],
    "deep list": lambda text: b"[" * 100_000,
    "deep object": lambda text: b'{"config": ' * 100_000,
    "deep and whole": lambda text: b'{"config": ' + b"[" * 9000 + b"]" * 9000 + b"}",
    "key twice": _twice,
    "a number of many digits": lambda text: b'{"config": ' + b"9" * 5000 + b"}",
    "digits in place of each number": lambda text: text.replace(b": 0", b": " + b"7" * 400),
    "nan": lambda text: text.replace(b": 0", b": NaN"),
    "infinity": lambda text: text.replace(b": 1", b": -Infinity"),
    "only nul": lambda text: bytes(len(text)),
    "a list": lambda text: b"[" + text + b"]",
    "null": lambda text: b"null",
    "two": lambda text: text + text,
}


@st.composite
def damaged(draw: st.DrawFn, text: bytes) -> bytes:
    """The bytes of a file, cut, overwritten or replaced by a classic."""
    kind = draw(st.sampled_from(("classic", "cut", "overwritten")))
    if kind == "classic":
        return DAMAGE[draw(st.sampled_from(sorted(DAMAGE)))](text)
    if kind == "cut" or not text:
        return text[: draw(st.integers(0, max(len(text) - 1, 0)))]
    whole = bytearray(text)
    for place, byte in draw(
        st.lists(
            st.tuples(st.integers(0, len(text) - 1), st.integers(0, 255)), min_size=1, max_size=20
        )
    ):
        whole[place] = byte
    return bytes(whole)
