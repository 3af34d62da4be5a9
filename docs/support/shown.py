"""Figures, results and tables for the pages."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent.parent / "data"


def svg(figure: Any) -> str:
    """Returns a matplotlib figure as an inline image, with a background for dark mode."""
    text = io.StringIO()
    figure.savefig(text, format="svg", facecolor="white", bbox_inches="tight")
    drawing = text.getvalue()
    return f'<div class="plot">{drawing[drawing.index("<svg") :]}</div>'


def load(name: str) -> Any:
    """Loads a file of measured results."""
    return json.loads((DATA / name).read_text())


def table(head: list[str], rows: list[list[str]]) -> str:
    """Returns rows as a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
