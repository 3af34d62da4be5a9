"""Packages import in one direction, only two use Keras' private names, none imports a backend."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import keras_freeze
from tests.builders import BACKEND, backend_of

pytestmark = pytest.mark.one_backend(but=["test_no_other_backend_is_imported"])

HOME = Path(keras_freeze.__file__).parent
FILES = sorted(HOME.rglob("*.py"))
BACKENDS = ("tensorflow", "jax", "torch")

# The packages, and the ones each may import. "" is the top level with the public names.
MAY_IMPORT = {
    "errors": set(),
    "graph": {"errors"},
    "schedule": {"graph", "errors", "preview"},  # Schedule.preview imports it when called
    "keras_internals": {"graph", "errors"},
    "display": {"schedule", "errors"},
    "feature_cache": {"keras_internals", "graph", "display", "errors"},
    "backup": {"errors"},
    "fit_engine": {
        "schedule",
        "feature_cache",
        "backup",
        "keras_internals",
        "graph",
        "display",
        "errors",
    },
}
FACE = {*MAY_IMPORT, "fit_engine"}
MAY_IMPORT |= {
    "preview": FACE,
    "callbacks": FACE,
    "models": {*FACE, "callbacks"},
    "": {*FACE, "callbacks", "models"},
    "demo": {"", "errors"},
    "cache_command": {"feature_cache", "display", "errors"},
    "cli": {"", "errors", "demo", "cache_command"},
}
# The subpackages, and the ones each may import. A module next to them counts as one.
MAY_IMPORT_WITHIN = {
    "feature_cache": {
        "not_cacheable": set(),
        "cache_stats": set(),
        "storage": {"not_cacheable"},
        "fingerprints": set(),
        "directory": {"storage"},
        "cutting": {"not_cacheable"},
        "backends": {"not_cacheable", "storage"},
        "checks": {"not_cacheable", "storage", "backends"},
        "serving": {
            "not_cacheable",
            "cache_stats",
            "storage",
            "cutting",
            "backends",
            "checks",
            "fingerprints",
            "directory",
        },
        "cache": {"not_cacheable", "cache_stats", "storage", "cutting", "checks", "serving"},
        "recording": {
            "not_cacheable",
            "cache_stats",
            "storage",
            "cutting",
            "backends",
            "checks",
            "serving",
            "fingerprints",
            "directory",
        },
        "extract_features": {
            "not_cacheable",
            "cache",
            "cache_stats",
            "cutting",
            "serving",
        },
        "views_cache": {"cache", "cache_stats", "storage", "cutting", "serving", "recording"},
    },
}
KNOW_KERAS_INSIDE = {"graph", "keras_internals"}


def room_of(module: str) -> str:
    """`keras_freeze.graph.layer_tree` belongs to "graph"."""
    return [*module.split("."), ""][1]


def module_of(path: Path) -> str:
    parts = path.relative_to(HOME.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports_of(path: Path) -> Iterator[tuple[str, str]]:
    """Yields (module, name) for every import in a file, including those in functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: write imports in full, they are easier to find"
            yield from ((node.module or "", alias.name) for alias in node.names)


def rooms_used_by(path: Path) -> set[str]:
    used = set()
    for module, name in imports_of(path):
        if module.split(".")[0] == "keras_freeze":
            is_room = module == "keras_freeze" and name in MAY_IMPORT
            used.add(name if is_room else room_of(module))
    return used - {room_of(module_of(path))}


def private_names_in(path: Path) -> set[str]:
    """Returns names with one leading underscore that are read on anything but `self`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            of_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            found |= {node.attr} if not of_self else set()
        elif isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if name in ("getattr", "hasattr", "setattr", "delattr", "__setattr__", "attribute"):
                strings = [a.value for a in node.args if isinstance(a, ast.Constant)]
                found |= {value for value in strings if isinstance(value, str)}
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


def test_the_walk_sees_the_package():
    assert {room_of(module_of(path)) for path in FILES} <= set(MAY_IMPORT)
    report = HOME / "fit_engine" / "collect_stage_report.py"
    assert rooms_used_by(report) >= {"display", "keras_internals"}
    assert private_names_in(HOME / "keras_internals" / "trainable_flags.py") >= {"_trainable"}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_run_one_way(path: Path):
    assert rooms_used_by(path) <= MAY_IMPORT[room_of(module_of(path))]


def modules_used_by(path: Path) -> set[str]:
    """Returns the modules of keras_freeze that a file imports at import time."""
    known, used = {module_of(each) for each in FILES}, set()
    top = ast.parse(path.read_text(encoding="utf-8")).body
    for node in top:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            used |= {name if name in known else node.module for name in names} & known
    return used


@pytest.mark.parametrize("room", MAY_IMPORT_WITHIN)
def test_folders_of_a_room_use_one_another_one_way(room: str):
    for path in (HOME / room).rglob("*.py"):
        _, _, folder, *_ = [*module_of(path).split("."), "", ""]
        same = {name for name in modules_used_by(path) if room_of(name) == room}
        others = {[*name.split("."), ""][2] for name in same} - {folder}
        assert not folder or others <= MAY_IMPORT_WITHIN[room][folder], path.name


def test_no_modules_import_one_another():
    uses = {module_of(path): modules_used_by(path) - {module_of(path)} for path in FILES}
    while leaves := [name for name, used in uses.items() if not used & set(uses)]:
        for name in leaves:
            del uses[name]
    assert not uses


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_file_is_long(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_backend_is_imported(path: Path):
    """Except in the modules written for one backend."""
    own = {backend_of(module_of(path))}
    assert not {module.split(".")[0] for module, _ in imports_of(path)} & set(BACKENDS) - own


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_private_names_of_keras_stay_where_they_belong(path: Path):
    assert not [module for module, _ in imports_of(path) if module.startswith("keras.src")]
    if room_of(module_of(path)) not in KNOW_KERAS_INSIDE:
        of_torch = {"_schema"} if path.parent.name == "torch_tape" else set()
        assert private_names_in(path) == of_torch & private_names_in(path)


ASK = """
import json, sys
import keras
before = set(sys.modules)
import keras_freeze
import keras_freeze.cli
from tests.builders import BACKEND, backend_of
new = {name.split(".")[0] for name in set(sys.modules) - before}
answer = {"backend": keras.backend.backend(), "new": sorted(new), "all": sorted(sys.modules)}
print(json.dumps(answer))
"""


def test_no_other_backend_is_imported():
    """Runs in a separate process. Keras itself may import jax if it is installed."""
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["backend"] == BACKEND
    assert not set(found["new"]) & set(BACKENDS) - {BACKEND}
    assert BACKEND == "tensorflow" or "tensorflow" not in found["all"]
    assert not set(found["new"]) & {"lmdb", "filelock"}, "a base install has neither"
