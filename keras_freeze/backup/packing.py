"""Turns plain values and arrays into what JSON and array files hold, and back."""

from __future__ import annotations

from typing import Any

import ml_dtypes  # noqa: F401 (names bfloat16 for NumPy)
import numpy as np

Array = np.ndarray[Any, Any]
Packed = Any  # what JSON holds
MOST_BITS = 4096  # of a number: Python prints no numbers of more than 4300 digits


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
        if value is None or type(value) in (bool, float, str):
            return value
        if type(value) is int and value.bit_length() <= MOST_BITS:
            return value
        if isinstance(value, np.generic) and _is_of_numbers(value.dtype):
            return {"scalar": self.array(np.asarray(value), group)}
        if type(value) is np.ndarray and _is_of_numbers(value.dtype):
            return {"array": self.array(value, group)}
        if type(value) in (list, tuple):
            return {type(value).__name__: [self.plain(item, group) for item in value]}
        if type(value) is dict and all(type(key) in (bool, int, float, str) for key in value):
            return {"dict": [[key, self.plain(item, group)] for key, item in value.items()]}
        raise NotPlainError(type(value).__name__)


def _is_of_numbers(dtype: Any) -> bool:
    """True for numbers in the byte order of this computer, which their dtype's name gives back."""
    try:
        known = np.dtype(dtype.name) == dtype
    except TypeError:
        known = False
    return bool(known and dtype.isnative and dtype.kind not in "OSUMm")


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
