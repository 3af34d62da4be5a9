"""Imports run one way, Keras' private names stay in two rooms, and no backend is imported."""

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

HOME = Path(keras_freeze.__file__).parent
FILES = sorted(HOME.rglob("*.py"))
BACKENDS = ("tensorflow", "jax", "torch")

# The rooms of the house, and which others each may use; "" is the front door, the public names.
MAY_IMPORT = {
    "errors": set(),
    "graph": {"errors"},
    "schedule": {"graph", "errors", "preview"},  # that one by Schedule.preview, when it is called
    "preview": {"callbacks", "features", "schedule", "training", "graph", "report", "errors"},
    "training": {"graph", "errors"},
    "report": {"schedule", "errors"},
    "features": {"training", "graph", "report", "errors"},
    "callbacks": {"schedule", "features", "training", "graph", "report", "errors"},
    "models": {"callbacks", "schedule", "features", "training", "graph", "errors"},
    "": {"callbacks", "models", "schedule", "features", "training", "report", "graph", "errors"},
    "demo": {"", "errors"},
    "cli": {"", "errors", "demo"},
}
KNOW_KERAS_INSIDE = {"graph", "training"}


def room_of(module: str) -> str:
    """`keras_freeze.graph.tree` is in the room "graph"."""
    return [*module.split("."), ""][1]


def module_of(path: Path) -> str:
    parts = path.relative_to(HOME.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports_of(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of every import in a file, in functions too."""
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
    """Names with one leading underscore that are read on anything but `self`."""
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
    assert rooms_used_by(HOME / "callbacks" / "conductor.py") >= {"report", "training"}
    assert private_names_in(HOME / "training" / "trainable.py") >= {"_trainable"}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_run_one_way(path: Path):
    assert rooms_used_by(path) <= MAY_IMPORT[room_of(module_of(path))]


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_backend_is_imported(path: Path):
    """But for the modules that are there for one."""
    own = {backend_of(module_of(path))}
    assert not {module.split(".")[0] for module, _ in imports_of(path)} & set(BACKENDS) - own


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_private_names_of_keras_stay_where_they_belong(path: Path):
    assert not [module for module, _ in imports_of(path) if module.startswith("keras.src")]
    if room_of(module_of(path)) not in KNOW_KERAS_INSIDE:
        of_torch = {"_schema"} if path.parent.name == "tape" else set()
        assert private_names_in(path) == of_torch & private_names_in(path)


ASK = """
import json, sys
import keras
before = set(sys.modules)
import keras_freeze
from tests.builders import BACKEND, backend_of
new = {name.split(".")[0] for name in set(sys.modules) - before}
answer = {"backend": keras.backend.backend(), "new": sorted(new), "all": sorted(sys.modules)}
print(json.dumps(answer))
"""


def test_no_other_backend_is_imported():
    """In a process of its own; Keras itself may import jax, where it is installed."""
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["backend"] == BACKEND
    assert not set(found["new"]) & set(BACKENDS) - {BACKEND}
    assert BACKEND == "tensorflow" or "tensorflow" not in found["all"]
