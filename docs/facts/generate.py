"""Runs the scripts beside it and keeps what they print, for the page "What Keras does".

    KERAS_BACKEND=jax python docs/facts/generate.py

Once with each backend. A test compares what the scripts print now with what is kept.
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
    """What a script prints."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        runpy.run_path(str(HERE / f"{name}.py"))
    return text.getvalue()


def kept() -> Path:
    """The file of this backend."""
    return HERE.parent / "data" / f"facts_{keras.backend.backend()}.json"


if __name__ == "__main__":
    found = {name: printed(name) for name in NAMES}
    kept().parent.mkdir(exist_ok=True)
    kept().write_text(json.dumps({"keras": keras.__version__, "printed": found}, indent=2) + "\n")
    print(*found.values(), sep="\n")
