"""The table of backbones in the documentation is what timm has."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import timm

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("backbones", ROOT / "profiling" / "backbones.py")
assert SPEC is not None and SPEC.loader is not None
backbones = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(backbones)


def test_the_table_of_families_is_that_of_the_installed_timm():
    text = (ROOT / "docs" / "backbones.md").read_text(encoding="utf-8")
    if f"(timm {timm.__version__};" not in text:
        pytest.skip(f"the table is of another timm than {timm.__version__}")
    assert "\n".join(backbones.table()) in text
