"""A package that others import is imported when they use it."""

from __future__ import annotations

import importlib
import sys

import pytest

from avalanche_rwf.utils.lazy import import_later


def test_a_package_is_imported_when_one_of_its_names_is_used(tmp_path, monkeypatch):
    (tmp_path / "slow_package").mkdir()
    (tmp_path / "slow_package" / "__init__.py").write_text("answer = 42\n")
    (tmp_path / "slow_package" / "part.py").write_text("from . import answer\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(sys.modules)
    try:
        import_later("slow_package")
        stands_for_it = importlib.import_module("slow_package")
        assert "answer" not in vars(stands_for_it)
        assert importlib.import_module("slow_package.part").answer == 42
        assert stands_for_it.answer == sys.modules["slow_package"].answer == 42
        with pytest.raises(AttributeError):
            _ = stands_for_it.question
        import_later("no_such_package")
        assert "no_such_package" not in sys.modules
    finally:
        for name in set(sys.modules) - set(before):
            del sys.modules[name]
