"""Prepares the process in which `mkdocs build` runs the pages' code."""

from __future__ import annotations

import builtins
import contextlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")  # the pages' models are small: don't compile
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small models gain nothing from threads
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")

from markdown_exec._internal.formatters import python

EXECUTE = python.exec_python


def _execute(code: str, name: str, names: dict[str, Any]) -> None:
    """Runs a block, and also shows what the functions it calls print.

    markdown-exec 1.12 passes its own `print` to a block, and shows only what that prints.
    """
    (shown,) = names["print"].args
    names["print"] = builtins.print
    with contextlib.redirect_stdout(shown):
        EXECUTE(code, name, names)


def on_startup(command: str, dirty: bool) -> None:
    """Lets the pages' code import the modules next to this file."""
    sys.path.insert(0, str(Path(__file__).parent))
    python.exec_python = _execute


def on_pre_build(config: Any) -> None:
    """Runs each build in an empty folder: pages write schedules, checkpoints and models."""
    os.chdir(tempfile.mkdtemp(prefix="keras_freeze_docs_"))


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Marks the page of messages: its long lines wrap; on other pages they scroll."""
    is_of_messages = page.file.src_uri == "troubleshooting.md"
    return f'<div class="messages">{html}</div>' if is_of_messages else html
