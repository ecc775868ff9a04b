"""The checks of arguments: what passes, what does not, and the sentence."""

from __future__ import annotations

import numpy as np
import pytest

from avalanche_rwf.errors import UsageError
from avalanche_rwf.utils.validation import (
    check_choice,
    check_flag,
    check_flags,
    check_mapping,
    check_number,
    check_text,
    check_whole,
)
from tests.wrong_values import NO_COUNT, NO_FLAG, NO_NAME, NO_RATE


def test_what_is_right_passes():
    for value in (1, 7, 10**30, np.int64(3)):
        check_whole("n", value)
    check_whole("n", 0, least=0)
    check_whole("n", -1, least=-1)
    check_whole("n", None, optional=True)
    for value in (0, 0.5, 3, np.float32(0.25), np.int64(2)):
        check_number("x", value, least=0)
    check_number("x", -1e300)
    check_number("x", 1, above=0, most=1)
    check_number("x", None, optional=True)
    check_choice("c", "b", ("a", "b"))
    check_flags(yes=True, no=False)
    check_text("t", "")
    check_mapping("m", None)
    check_mapping("m", {"a": 1})


class _Silent:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize("value", [10**400, -(10**5000), _Silent()], ids=["far", "long", "silent"])
def test_what_no_float_holds_and_what_cannot_be_shown(value):
    for check in (check_number, check_flag, check_text):
        with pytest.raises(UsageError, match=r"^x must be .*, not .*\.$"):
            check("x", value)


@pytest.mark.parametrize("value", NO_COUNT, ids=repr)
def test_no_count(value):
    with pytest.raises(UsageError, match=r"^n must be a whole number of at least 1, not .*\.$"):
        check_whole("n", value)


@pytest.mark.parametrize("value", NO_RATE, ids=repr)
def test_no_rate(value):
    with pytest.raises(UsageError, match=r"^x must be a finite number of at least 0, not .*\.$"):
        check_number("x", value, least=0)


@pytest.mark.parametrize("value", NO_NAME, ids=repr)
def test_no_name(value):
    with pytest.raises(UsageError, match=r"^c must be one of a, b, c, not .*\.$"):
        check_choice("c", value, ("a", "b", "c"))
    with pytest.raises(UsageError, match=r"^c must be 'a' or 'b', not .*\.$"):
        check_choice("c", value, ("a", "b"))
    if not isinstance(value, str):
        with pytest.raises(UsageError, match=r"^t must be a text, not .*\.$"):
            check_text("t", value)


@pytest.mark.parametrize("value", NO_FLAG, ids=repr)
def test_no_flag(value):
    with pytest.raises(UsageError, match=r"^f must be True or False, not .*\.$"):
        check_flag("f", value)


@pytest.mark.parametrize("value", [1, "x", [], [("a", 1)], {1: 2}], ids=repr)
def test_no_mapping(value):
    with pytest.raises(UsageError, match=r"^m must be a dictionary of options or None, not .*\.$"):
        check_mapping("m", value)


@pytest.mark.parametrize(
    ("check", "sentence"),
    [
        (lambda: check_whole("n", 9, 2, 5), "n must be a whole number from 2 to 5, not 9."),
        (
            lambda: check_number("x", 0, above=0, most=1, optional=True),
            "x must be a finite number above 0 and at most 1 or None, not 0.",
        ),
        (lambda: check_number("x", "1"), "x must be a finite number, not '1'."),
        (lambda: check_whole("n", None), "n must be a whole number of at least 1, not None."),
    ],
)
def test_the_sentence_names_the_bounds(check, sentence):
    with pytest.raises(UsageError) as error:
        check()
    assert str(error.value) == sentence


def test_a_value_of_any_size_gives_a_sentence_of_one_line():
    with pytest.raises(UsageError) as error:
        check_whole("n", "long\n" * 1000)
    assert len(str(error.value)) < 200
    assert "\n" not in str(error.value)
