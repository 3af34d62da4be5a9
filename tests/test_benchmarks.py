"""The benchmarks use internal names that may move. Checks that each can be started."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

pytestmark = pytest.mark.one_backend

HOME = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.stem for path in HOME.glob("*.py")))
def test_can_be_imported(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(HOME))
    importlib.import_module(name)
