"""Explains missing values in a preview: the dashes in its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

BEFORE_COMPILE = "unknown before `compile`"


def reasons(row: Mapping[str, Any], aside: str, triggers: bool, compiled: bool) -> dict[str, str]:
    """Returns the reason for each value of a row that is None.

    Args:
        row: a row of the preview.
        aside: why nothing can be cached; "" if something can.
        triggers: whether a trigger begins or ends the stage.
        compiled: whether the model has an optimizer.
    """
    nothing = f"nothing to cache: {aside}" if aside else ""
    at_first = "unknown before the first batch"
    unread = "unknown: the model is subclassed, and its graph can't be read"
    why = {
        "epochs": "a trigger decides" if triggers else "pass `epochs`",
        "layers": "no layer changes",
        "learning_rate": "unknown" if compiled else BEFORE_COMPILE,
        "optimizer_bytes": "unknown for several optimizers" if compiled else BEFORE_COMPILE,
        "cut": nothing,
        "row_bytes": nothing or at_first,
        "cache_bytes": nothing or ("pass `data`" if row["row_bytes"] else at_first),
        "work": unread,
        "work_cached": nothing or unread,
    }
    return {key: text for key, text in why.items() if row[key] is None}


def footnotes(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> list[str]:
    """Returns a line for each reason: columns, stages if their reasons differ, and the reason.

    Args:
        rows: the rows of the preview, each with its reasons under `"why"`.
        columns: the names of the table's columns, by key.

    Examples:
        >>> rows = [{"stage": 0, "why": {"cut": "all trains", "work_cached": "all trains"}}]
        >>> footnotes(rows, {"cut": "cache after", "epochs": "epochs", "work_cached": "cached"})
        ['cache after, cached: - = all trains']
    """
    found: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    mixed = set()  # columns in which a dash has more than one meaning
    for key, column in columns.items():
        stages: dict[str, list[int]] = {}
        for row in rows:
            if key in row["why"]:
                stages.setdefault(row["why"][key], []).append(row["stage"])
        mixed |= {column} if len(stages) > 1 else set()
        for reason, numbers in stages.items():
            found.setdefault((reason, tuple(numbers)), []).append(column)
    return [
        f"{', '.join(names)}{_of(numbers) if mixed & set(names) else ''}: - = {reason}"
        for (reason, numbers), names in found.items()
    ]


def _of(numbers: Sequence[int]) -> str:
    listed = ", ".join(map(str, numbers))
    return f" of stage {listed}" if len(numbers) == 1 else f" of stages {listed}"
