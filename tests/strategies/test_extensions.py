"""What a file may name as a method: nothing to import, unless the user asked for it."""

from __future__ import annotations

import pytest

from avalanche_rwf.strategies.extensions import VARIABLE, add_imports, may_import


@pytest.mark.parametrize("method", ["rwf", "avalanche:EWC", "nope", ""])
def test_names_without_other_code_are_free(method, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert may_import(method)


@pytest.mark.parametrize("method", ["mine:Method", "mine.py:Method", "./a/mine.py:Method"])
def test_other_code_is_named_by_the_user_first(method, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "")
    assert not may_import(method)
    add_imports(["another", "another.py"])
    assert not may_import(method)
    add_imports([method.rpartition(":")[0]])
    assert may_import(method)
