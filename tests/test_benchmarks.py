"""The benchmarks use internal names that may move. Checks that each can be started.

Those of recorded views run here at their small size.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import keras
import pytest

pytestmark = pytest.mark.one_backend

HOME = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.stem for path in HOME.glob("*.py")))
def test_can_be_imported(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(HOME))
    importlib.import_module(name)


def run_small(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> Any:
    """Runs a benchmark at its small size; returns what it wrote."""
    monkeypatch.syspath_prepend(str(HOME))
    output = folder / "result.json"
    importlib.import_module(name).main(["--small", "--output", str(output), *options])
    return json.loads(output.read_text())


def test_augmented_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    options = ("--repeats", "1", "--views", "1", "3")
    found = run_small("augmented", tmp_path, monkeypatch, *options)
    assert set(found["ratios"]) == {"1", "3"}
    for ratios in found["ratios"].values():
        assert min(ratios.values()) > 0
    assert found["seconds"]["limit 3"] > found["seconds"]["limit 1"]


def test_files_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reader = "torch"
    if keras.backend.backend() != "torch":
        pytest.importorskip("tensorflow")
        reader = "keras"
    found = run_small("files", tmp_path, monkeypatch, "--repeats", "1", "--readers", reader)
    assert set(found[reader]["ratios"]) == {"stock", "exact", "views"}
    assert min(found[reader]["ratios"].values()) > 0


def test_files_are_equal_for_equal_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(HOME))
    files = importlib.import_module("files")
    for name in "ab":
        (tmp_path / name).mkdir()
        files.write_files(files.SMALL, tmp_path / name)
    first, second = (sorted((tmp_path / name).glob("*/*.jpg")) for name in "ab")
    assert len(first) == files.SMALL.files
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_disk_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("lmdb")
    options = ("--repeats", "1", "--trials", "2", "--stock-trials", "1")
    found = run_small("disk", tmp_path, monkeypatch, *options)
    assert found["runs"]["difference"] == 0
    assert found["sweep"]["stock trials"] == 1
    for part in ("runs", "sweep"):
        assert all(min(took) > 0 for took in found[part]["seconds"].values())


def test_views_accuracy_runs_and_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plot = tmp_path / "plot.svg"
    conditions = ("none", "views 2", "live")
    options = ("--conditions", *conditions, "--plot", str(plot))
    found = run_small("views_accuracy", tmp_path, monkeypatch, *options)
    task = found["mnist 5-9"]
    assert tuple(task["accuracy"]) == conditions
    assert task["summary"]["live"]["to live"] == 0
    assert plot.stat().st_size > 0


def test_backup_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    options = ("--repeats", "1", "--epochs", "4")
    found = run_small("backup", tmp_path, monkeypatch, *options)
    assert found["small, frozen"]["ours / Keras"] > 0
    assert found["small, trained"]["ours / Keras"] > 0
