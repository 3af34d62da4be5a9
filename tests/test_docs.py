"""The pages show what really happens. (`mkdocs build --strict` runs their other code.)"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_freeze
from tests.builders import BACKEND

pytestmark = pytest.mark.one_backend

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def module(path: Path) -> Any:
    """Imports a module of the docs, which aren't a package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


FACTS = module(DOCS / "facts" / "generate.py")  # runs the scripts of "What Keras does"


@pytest.mark.parametrize("name", FACTS.NAMES)
def test_a_fact_is_what_the_page_shows(name: str):
    kept = json.loads(FACTS.kept().read_text())
    if kept["keras"] != keras.__version__:
        pytest.skip(f"the page shows Keras {kept['keras']}")
    assert FACTS.printed(name) == kept["printed"][name]


def test_every_fact_is_on_the_page():
    page = (DOCS / "facts.md").read_text()
    assert {name for name in FACTS.NAMES if f'fact("{name}")' in page} == set(FACTS.NAMES)


def test_every_public_name_is_in_the_reference():
    pages = "".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    listed = re.findall(r"^::: keras_freeze\.(\w+)$", pages, re.M)
    assert sorted(listed) == sorted(keras_freeze.__all__)


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
@pytest.mark.skipif(BACKEND != "torch", reason="VGG19 takes long to compile; one backend is enough")
def test_the_first_example_runs(page: str, monkeypatch: pytest.MonkeyPatch):
    """Random weights, and two epochs for each stage."""
    original = keras.applications.VGG19
    random = lambda **options: original(**(options | {"weights": None}))  # noqa: E731
    monkeypatch.setattr(keras.applications, "VGG19", random)
    block = re.search(r"```python\n(import keras\n.*?)```", (ROOT / page).read_text(), re.S)
    assert block is not None
    code = block[1].replace("epochs=20", "epochs=4").replace("Stage(10,", "Stage(2,")
    assert code.count("epochs=4") == code.count("Stage(2,") == 1
    images = np.random.default_rng(0).random((4, 224, 224, 3), "float32")
    labels = np.array([0, 1, 0, 1])
    names = {"images": images, "labels": labels, "val_images": images, "val_labels": labels}
    exec(code, names)
    assert names["history"].history["stage"] == [0, 0, 1, 1]


def test_one_version():
    text = (ROOT / "CITATION.cff").read_text()
    assert f"version: {keras_freeze.__version__}\n" in text
    assert f"## {keras_freeze.__version__} " in (ROOT / "CHANGELOG.md").read_text()


def test_the_notebook_is_the_script():
    """`python docs/support/notebook.py` writes it."""
    notebook = module(DOCS / "support" / "notebook.py")
    kept = json.loads(notebook.NOTEBOOK.read_text())["cells"]
    assert ["".join(c["source"]) for c in kept] == ["".join(c["source"]) for c in notebook.cells()]
    outputs = [cell["outputs"] for cell in kept if cell["cell_type"] == "code"]
    assert any(outputs)
    assert not [out for cell in outputs for out in cell if out["output_type"] == "error"]
