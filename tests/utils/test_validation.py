"""The checks of arguments: what passes, what does not, and the sentence."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from avalanche_rwf.errors import UsageError
from avalanche_rwf.utils.validation import (
    AnyPath,
    By,
    Choice,
    Either,
    Flag,
    Instance,
    Number,
    Options,
    Subset,
    Text,
    Whole,
    takes,
)
from tests.wrong_values import wrong_values


def test_what_is_right_passes():
    for constraint, values in (
        (Whole(), [1, 7, 10**30, np.int64(3)]),
        (Whole(0), [0]),
        (Whole(-1, optional=True), [-1, None]),
        (Number(), [-1e300, 2, np.float32(0.25), np.int64(2)]),
        (Number(least=0, optional=True), [0, 0.5, None]),
        (Number(above=0, most=1), [1, 1e-300]),
        (Choice(lambda: ("a", "b")), ["b"]),
        (Subset(("a", "b")), [(), ["b"], {"a", "b"}]),
        (Either(Number(), Choice(("a", "b"))), [0.5, "a"]),
        (Flag(), [True, False]),
        (Text(), ["", "a"]),
        (Options(), [{}, {"a": 1}]),
        (Instance(dict), [{}]),
    ):
        for value in values:
            constraint.check("x", value)


class _Silent:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize("value", [10**400, -(10**5000), _Silent()], ids=["far", "long", "silent"])
def test_what_no_float_holds_and_what_cannot_be_shown(value):
    for constraint in (Number(), Flag(), Text()):
        with pytest.raises(UsageError, match=r"^x must be .*, not .*\.$"):
            constraint.check("x", value)


@pytest.mark.parametrize(
    ("constraint", "value", "sentence"),
    [
        (Whole(2, 5), 9, "x must be a whole number from 2 to 5, not 9."),
        (Whole(), None, "x must be a whole number of at least 1, not None."),
        (Whole(optional=True), "", "x must be a whole number of at least 1 or None, not ''."),
        (Number(), "1", "x must be a finite number, not '1'."),
        (Number(above=0, below=1), 1, "x must be a finite number above 0 and below 1, not 1."),
        (
            Number(above=0, most=1, optional=True), 0,
            "x must be a finite number above 0 and at most 1 or None, not 0.",
        ),
        (Choice(("a", "b")), "c", "x must be 'a' or 'b', not 'c'."),
        (Choice(lambda: ("a", "b", "c")), 1, "x must be one of a, b, c, not 1."),
        (Subset(("a", "b")), "a", "x must be a subset of a, b, not 'a'."),
        (Subset(("a", "b"), empty=False), [], "x must be a non-empty subset of a, b, not []."),
        (
            Either(Number(least=0), Choice(("a", "b"))), "c",
            "x must be a finite number of at least 0 or 'a' or 'b', not 'c'.",
        ),
        (Flag(), 1, "x must be True or False, not 1."),
        (Text(), 1, "x must be a text, not 1."),
        (AnyPath(), 1, "x must be a path, not 1."),
        (Options(optional=True), {1: 2}, "x must be a dictionary of options or None, not {1: 2}."),
        (Instance(dict, optional=True), [3], "x must be a dict or None, not a list."),
        (Instance(dict, "a table"), "a", "x must be a table, not 'a'."),
    ],
)  # fmt: skip
def test_the_sentence_says_what_is_taken_and_what_it_got(constraint, value, sentence):
    with pytest.raises(UsageError) as error:
        constraint.check("x", value)
    assert str(error.value) == sentence


def test_a_value_of_any_size_gives_a_sentence_of_one_line():
    with pytest.raises(UsageError) as error:
        Whole().check("n", "long\n" * 1000)
    assert len(str(error.value)) < 200
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "constraint",
    [
        Whole(2, 5), Number(above=0, most=1), Number(least=-1, below=1), Choice(("a", "b")),
        Either(Number(least=0), Choice(("a", "b"))), Subset(("a", "b"), empty=False), Flag(),
        Text(), AnyPath(), Options(), Instance(dict),
    ],
    ids=repr,
)  # fmt: skip
def test_wrong_values_are_wrong(constraint):
    assert len(wrong_values(constraint)) > 5
    for value in wrong_values(constraint):
        with pytest.raises(UsageError):
            constraint.check("x", value)


def _even(name, value):
    if value % 2:
        raise UsageError(f"{name} must be even, not {value}.")


@takes(size=By(_even), rate=Number(), more=Flag())
def made(size, /, rate=0.5, *rest, **options):
    """What it was given."""
    return size, rate, rest, options


def test_arguments_are_checked_however_they_are_given_and_in_the_order_of_declaration():
    assert made(2, 1.5, 3, 4, more=True) == (2, 1.5, (3, 4), {"more": True})
    for call, name in (
        (lambda: made(3, "x"), "size"),
        (lambda: made(2, "x", more=1), "rate"),
        (lambda: made(2, rate="x"), "rate"),
        (lambda: made(2, more=1), "more"),
        (lambda: made(rate="x"), "rate"),  # before what is missing
    ):
        with pytest.raises(UsageError, match=f"^{name} must be "):
            call()
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'size'"):
        made(rate=1)
    assert pickle.loads(pickle.dumps(made)) is made and made.__doc__ == "What it was given."
