"""Runs the scripts in this folder and saves their output, for the page "What Keras does".

    KERAS_BACKEND=jax python docs/facts/generate.py

Run it once with each backend. A test compares the scripts' output with the saved output.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras

HERE = Path(__file__).parent
NAMES = sorted(path.stem for path in HERE.glob("*.py") if path.stem != "generate")


def printed(name: str) -> str:
    """Returns the output of a script."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        runpy.run_path(str(HERE / f"{name}.py"))
    return text.getvalue()


def kept() -> Path:
    """Returns the path of this backend's saved output."""
    return HERE.parent / "data" / f"facts_{keras.backend.backend()}.json"


if __name__ == "__main__":
    found = {name: printed(name) for name in NAMES}
    kept().parent.mkdir(exist_ok=True)
    kept().write_text(json.dumps({"keras": keras.__version__, "printed": found}, indent=2) + "\n")
    print(*found.values(), sep="\n")
