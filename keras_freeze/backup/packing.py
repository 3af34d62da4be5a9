"""Turns plain values and arrays into what JSON and array files hold, and back."""

from __future__ import annotations

from typing import Any

import ml_dtypes  # noqa: F401 (names bfloat16 for NumPy)
import numpy as np

Array = np.ndarray[Any, Any]
Packed = Any  # what JSON holds


class NotPlainError(Exception):
    """A value that a backup can't hold."""


class Packer:
    """Packs values; collects their arrays.

    Attributes:
        arrays: the arrays, each with the name of the file group it belongs to.
    """

    def __init__(self) -> None:
        self.arrays: list[tuple[str, Array]] = []

    def array(self, array: Array, group: str) -> int:
        """Adds an array; returns its number."""
        self.arrays.append((group, array))
        return len(self.arrays) - 1

    def plain(self, value: Any, group: str) -> Packed:
        """Packs numbers, strings, None, arrays, and lists, tuples and dicts of these.

        Raises:
            NotPlainError: the value is, or holds, something else.
        """
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, np.generic):
            return {"scalar": self.array(np.asarray(value), group)}
        if type(value) is np.ndarray and value.dtype.kind not in "OSUMm":
            return {"array": self.array(value, group)}
        if type(value) in (list, tuple):
            return {type(value).__name__: [self.plain(item, group) for item in value]}
        if type(value) is dict and all(type(key) in (bool, int, float, str) for key in value):
            return {"dict": [[key, self.plain(item, group)] for key, item in value.items()]}
        raise NotPlainError(type(value).__name__)


def unpacked(packed: Packed, arrays: list[Array]) -> Any:
    """Returns what `Packer.plain` was given. `arrays` are those of the packer, in its order."""
    if not isinstance(packed, dict):
        return packed
    ((kind, held),) = packed.items()
    if kind == "array":
        return arrays[held].copy()
    if kind == "scalar":
        return arrays[held][()]
    if kind == "dict":
        return {key: unpacked(item, arrays) for key, item in held}
    items = [unpacked(item, arrays) for item in held]
    return tuple(items) if kind == "tuple" else items
