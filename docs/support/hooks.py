"""Prepares the process in which `mkdocs build` runs the pages' code."""

from __future__ import annotations

import builtins
import contextlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")  # no compiling: the pages' models are small
os.environ.setdefault("OMP_NUM_THREADS", "1")  # and their threads would only wait for each other
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")

from markdown_exec._internal.formatters import python

EXECUTE = python.exec_python


def _execute(code: str, name: str, names: dict[str, Any]) -> None:
    """Runs a block; what functions that it calls print is shown too.

    markdown-exec 1.12 hands a block a `print` of its own, and shows what goes through that.
    """
    (shown,) = names["print"].args
    names["print"] = builtins.print
    with contextlib.redirect_stdout(shown):
        EXECUTE(code, name, names)


def on_startup(command: str, dirty: bool) -> None:
    """The pages' code imports what stands beside this file."""
    sys.path.insert(0, str(Path(__file__).parent))
    python.exec_python = _execute


def on_pre_build(config: Any) -> None:
    """Each build begins in an empty folder: pages write schedules, checkpoints and models."""
    os.chdir(tempfile.mkdtemp(prefix="keras_freeze_docs_"))


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Messages are long lines: on their page they wrap; elsewhere tables of text scroll."""
    is_of_messages = page.file.src_uri == "troubleshooting.md"
    return f'<div class="messages">{html}</div>' if is_of_messages else html
