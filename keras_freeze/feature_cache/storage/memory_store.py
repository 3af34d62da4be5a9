"""Keeps rows of features in memory, in columns, by key."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from keras_freeze.feature_cache.storage.row_hashes import Key

Array = np.ndarray[Any, Any]
Slots = np.ndarray[Any, np.dtype[np.int64]]
CHUNK = 1 << 24  # bytes of the first chunk, where the number of rows isn't known


class MemoryStore:
    """Rows in chunks that are never moved: pages of them that weren't written take no memory.

    Args:
        max_bytes: rows that would take more aren't added.
        rows: how many are expected, if that is known.
    """

    def __init__(self, max_bytes: int, rows: int | None = None):
        self.max_bytes = max_bytes
        self.expected = rows
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self.slots: dict[Key, int] = {}
        self.columns: dict[str, list[Array]] = {}
        self.starts: list[int] = []  # of the chunks; then the capacity
        self.bytes_per_row = 0

    @property
    def rows(self) -> int:
        return len(self.slots)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows that are kept."""
        return self.rows * self.bytes_per_row

    @property
    def room(self) -> int:
        """How many more rows there is room for; 0 as long as no row is known."""
        if not self.bytes_per_row:
            return 0
        return max(0, (self.max_bytes - self.nbytes) // self.bytes_per_row)

    def find(self, keys: Iterable[Key]) -> Slots:
        """Returns the slot of each key, -1 where there is none."""
        slots = self.slots
        return np.array([slots.get(key, -1) for key in keys], np.int64)

    def add(self, keys: list[Key], columns: dict[str, Array]) -> int:
        """Keeps rows that aren't kept yet; returns how many found room.

        Args:
            keys: of the rows, all different.
            columns: arrays (rows, ...), always of the same names, shapes and dtypes.
        """
        if not self.columns:
            self.columns = {name: [] for name in columns}
            self.bytes_per_row = sum(_row_bytes(array) for array in columns.values())
        count = min(len(keys), self.room if self.bytes_per_row else len(keys))
        first = self.rows
        while count and (not self.starts or first + count > self.starts[-1]):
            self._grow(columns)
        for name, array in columns.items():
            for chunk, start in zip(self.columns[name], self.starts, strict=False):
                low, high = max(first, start), min(first + count, start + len(chunk))
                if low < high:
                    chunk[low - start : high - start] = array[low - first : high - first]
        self.slots.update(zip(keys[:count], range(first, first + count), strict=True))
        return count

    def _grow(self, columns: dict[str, Array]) -> None:
        start = self.starts[-1] if self.starts else 0
        rows = max(64, CHUNK // max(1, self.bytes_per_row), start)
        if not start:
            rows = self.expected or rows
        rows = min(rows, max(1, self.max_bytes // max(1, self.bytes_per_row) - start))
        for name, array in columns.items():
            self.columns[name].append(np.empty((rows, *array.shape[1:]), array.dtype))
        self.starts = [*(self.starts or [0]), start + rows]

    def take(self, column: str, slots: Slots) -> Array:
        """Returns the rows of a column, (len(slots), ...)."""
        chunks = self.columns[column]
        if len(chunks) == 1:
            return chunks[0].take(slots, axis=0)
        out = np.empty((len(slots), *chunks[0].shape[1:]), chunks[0].dtype)
        for chunk, start in zip(chunks, self.starts, strict=False):
            inside = np.flatnonzero((slots >= start) & (slots < start + len(chunk)))
            out[inside] = chunk.take(slots[inside] - start, axis=0)
        return out

    def keep_only(self, columns: Iterable[str]) -> None:
        """Gives the memory of all other columns back."""
        kept = set(columns)
        self.columns = {name: chunks for name, chunks in self.columns.items() if name in kept}
        self.bytes_per_row = sum(_row_bytes(chunks[0]) for chunks in self.columns.values())


def _row_bytes(array: Array) -> int:
    return int(math.prod(array.shape[1:]) * array.itemsize)
