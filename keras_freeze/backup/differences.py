"""Says in words how the run that is restored differs from the one that wrote the backup."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from keras_freeze.errors import shown

MOST = 3  # differences that a message lists


def differences(before: Any, now: Any, where: str = "") -> Iterator[str]:
    """Yields the differences of two descriptions, dicts and lists of plain values.

    Args:
        before: the description in the backup, as JSON gives it.
        now: that of the run.
        where: what is described, such as "Stage 2, learning_rate".
    """
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before | now:
            yield from differences(before.get(key), now.get(key), _joined(where, key))
    elif isinstance(before, list) and isinstance(now, list) and where:
        if len(before) != len(now):
            yield f"{where}: {len(before)} before, {len(now)} now"
        for number, (old, new) in enumerate(zip(before, now, strict=False), start=1):
            yield from differences(old, new, f"{where} {number}")
    elif before != now:
        yield f"{where}: {_value(before)} before, {_value(now)} now"


def listed(found: list[str]) -> str:
    """Returns the first differences, for a message."""
    rest = len(found) - MOST
    return "; ".join(found[:MOST]) + (f"; and {rest} more" if rest > 0 else "")


def _joined(where: str, key: str) -> str:
    return f"{where}, {key}" if where else str(key)


def _value(value: Any) -> str:
    return "none" if value is None else shown(value)
