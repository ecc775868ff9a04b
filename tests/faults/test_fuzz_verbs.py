"""Nonsense to the verbs besides `compare`: a sentence and status 2, nothing written elsewhere."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ..runs import make_folder
from .nonsense import World, examples, refused, tiny, words


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"))


PATHS = ("nowhere", "../file.txt", "../file.txt/below", "a\0b", "x" * 300, "/dev/null", "")
NO_NUMBER = ("-1", "1.5", "x", "4294967296", "9" * 30, "nan")
# A verb with what makes it right, and flags with what each does not take.
VERBS: dict[str, tuple[tuple[str, ...], dict[str, tuple[str, ...]]]] = {
    "list": (("streams",), {"": ("nope", "METHODS", "🙂")}),
    "list methods": ((), {"": ("nope", "x*", "a:b", "\0", "["), "--import": ("no.py", "no.such")}),
    "list benchmarks": ((), {"": ("nope", "[", "x*")}),
    "inspect": (("--benchmark", "folder:IMAGES"), {
        "--benchmark": ("nope", "folder:", *(f"folder:{path}" for path in PATHS)),
        "--experiences": ("0", "7", *NO_NUMBER),
        "--seed": NO_NUMBER,
        "--stream": ("nope", "Split"),
        "--holdout": ("1", "nan", "-0.1", "inf"),
        "--shots": ("1", "x"),
        "--class-order": ("0,1", "a,a,b,c,d,e"),
        "--data-root": ("../file.txt", "../file.txt/below", "a\0b"),
        "--plot": ("../file.txt", "nowhere/x.png", "../file.txt/x.png", "x.exe", "a\0.png", "/"),
    }),
    "leaderboard": (("RESULTS",), {
        "": PATHS,
        "--format": ("nope", "CSV"),
        "--reference": ("nope", "", "abcdef", "\0"),
        "--add": (*PATHS, "/"),
        "--plots": ("../file.txt", "../file.txt/below", "a\0b", "/proc/nowhere"),
        "--out": ("../file.txt", "somewhere"),
    }),
    "leaderboard --format cl-baselines": (("RESULTS",), {
        "--out": ("../file.txt", "../file.txt/below", "a\0b", "/proc/nowhere"),
    }),
    "submit": (("RESULTS", "--method", "ncm", "--out", "OUT/entry.json"), {
        "": PATHS,
        "--method": ("nope", "", "NCM", "\0"),
        "--config": ("zzz", "\0", "é"),
        "--out": ("/", "../file.txt/below", "nowhere/x.json", "a\0b", "x" * 300, ""),
    }),
    "report": (("RESULTS", "--out", "OUT/page"), {
        "": PATHS,
        "--add": (*PATHS, "/"),
        "--out": ("../file.txt", "../file.txt/below", "a\0b", "/proc/nowhere", ""),
    }),
    "explain": (("IMAGE", "--run", "RUN", "--out", "OUT/figures"), {
        "": (*PATHS, "/"),
        "--run": (*PATHS, "/", "RESULTS"),
        "--out": ("../file.txt", "../file.txt/below", "a\0b", "/proc/nowhere", ""),
        "--format": ("pdf", "PNG"),
        "--import": ("no.py", "no.such"),
    }),
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(world) -> dict[str, str]:
    """Results of two methods, and what stands for their paths above."""
    folder = make_folder(world.root / "images", 2)
    done = world.say(tiny(folder, world.out / "results", "ncm,rwf"), train=True)
    assert done.status == 0, done
    results = world.out / "results"
    return {
        "RESULTS": str(results),
        "RUN": str(next(results.glob("runs/*/rwf/*/seed0"))),
        "IMAGES": str(folder),
        "IMAGE": str(folder / "test" / "a" / "0.png"),
        "OUT": str(world.out),
    }


def line_of(verb: str, more: list[str], finished: dict[str, str]) -> list[str]:
    """The verb with what makes it right, where `more` has nothing in its place."""
    right = list(VERBS[verb][0])
    pattern = re.compile(r"\b(RESULTS|RUN|IMAGES|IMAGE|OUT)\b")
    words = [pattern.sub(lambda found: finished[found[0]], word) for word in (*right, *more)]
    return [*verb.split(), *words]


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_each_verb_takes_what_is_right(verb, world, finished):
    """What the refusals below are not of."""
    assert world.say(line_of(verb, [], finished)).status == 0


CASES = [(v, f, w) for v, (_, flags) in VERBS.items() for f, ws in flags.items() for w in ws]


@pytest.mark.parametrize(("verb", "flag"), sorted({(v, f) for v, f, _ in CASES}))
def test_what_the_other_verbs_do_not_take(verb, flag, world, finished):
    for word in VERBS[verb][1][flag]:
        refused(world.say(line_of(verb, [f"{flag}={word}" if flag else word], finished)))


@st.composite
def wrong_verb(draw: st.DrawFn) -> tuple[str, list[str]]:
    verb = draw(st.sampled_from(sorted(VERBS)))
    own = [(f, w) for v, f, w in CASES if v == verb]
    flag, word = draw(st.sampled_from(own))
    before = draw(st.lists(st.sampled_from(own), max_size=2))
    if draw(st.integers(0, 3)) == 0:
        return verb, draw(st.sampled_from((["--nope"], ["--nope=1"], ["-x"], [""])))
    lines = [[f"{f}={w}"] if f else [w] for f, w in (*before, (flag, word))]
    return verb, list(itertools.chain(*lines))


@examples(100)
@given(wrong_verb())
def test_several_wrong_things_to_other_verbs(world, finished, wrong):
    verb, more = wrong
    refused(world.say(line_of(verb, more, finished)))


@examples(100)
@given(
    st.sampled_from(("", "list", "inspect", "leaderboard", "submit", "report", "explain")),
    st.lists(words().filter(lambda word: not re.search(r"\*|^-h", word)), max_size=3),
)
def test_any_words(world, verb, more):
    """No verb takes them alone, and none writes anything."""
    if verb == "inspect" or not (verb or more):  # alone it has everything; nothing is the help
        more = [*more, "nonsense"]
    refused(world.say([verb, *more] if verb else more))
