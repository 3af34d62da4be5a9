"""Stores rows of features in memory: one column for each cached tensor, rows found by key."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from keras_freeze.feature_cache.storage.row_hashes import Key

Array = np.ndarray[Any, Any]
Slots = np.ndarray[Any, np.dtype[np.int64]]
ALIGNED = 64  # bytes of which the address of a chunk is a multiple
CHUNK = 1 << 24  # bytes of the first chunk if the number of rows is unknown


class MemoryStore:
    """Stores rows in chunks. Chunks are never moved, and unused parts of them take no memory.

    Args:
        max_bytes: memory limit; rows beyond it aren't stored.
        rows: number of rows that are expected, if known.
    """

    def __init__(self, max_bytes: int, rows: int | None = None):
        self.max_bytes = max_bytes
        self.expected = rows
        self.clear()

    def clear(self) -> None:
        """Removes all rows and columns."""
        self.slots: dict[Key, int] = {}
        self.columns: dict[str, list[Array]] = {}
        self.starts: list[int] = []  # first row of each chunk; then the capacity
        self.bytes_per_row = 0

    @property
    def rows(self) -> int:
        return len(self.slots)

    @property
    def nbytes(self) -> int:
        """Bytes of the stored rows."""
        return self.rows * self.bytes_per_row

    @property
    def room(self) -> int:
        """Number of rows that can still be stored; 0 before the first row is stored."""
        if not self.bytes_per_row:
            return 0
        return max(0, (self.max_bytes - self.nbytes) // self.bytes_per_row)

    def find(self, keys: Iterable[Key]) -> Slots:
        """Returns the slot (row number in the store) of each key; -1 for an unknown key."""
        slots = self.slots
        return np.array([slots.get(key, -1) for key in keys], np.int64)

    def add(self, keys: list[Key], columns: dict[str, Array]) -> int:
        """Stores new rows; returns how many were stored before the memory limit.

        Args:
            keys: keys of the rows, all different.
            columns: arrays (rows, ...), with the same names, row shapes and dtypes in each call.
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
            self.columns[name].append(_aligned((rows, *array.shape[1:]), array.dtype))
        self.starts = [*(self.starts or [0]), start + rows]

    def take(self, column: str, slots: Slots) -> Array:
        """Returns rows of a column, as an array (len(slots), ...)."""
        chunks = self.columns[column]
        if len(chunks) == 1:
            return chunks[0].take(slots, axis=0)
        out = np.empty((len(slots), *chunks[0].shape[1:]), chunks[0].dtype)
        for chunk, start in zip(chunks, self.starts, strict=False):
            inside = np.flatnonzero((slots >= start) & (slots < start + len(chunk)))
            out[inside] = chunk.take(slots[inside] - start, axis=0)
        return out

    def chunk_of(self, slots: Slots) -> int | None:
        """Returns the number of the chunk that holds all these rows; None if there is none."""
        if not len(slots) or not self.starts:
            return None
        low, high = int(slots.min()), int(slots.max())
        chunk = int(np.searchsorted(self.starts, low, side="right")) - 1
        return chunk if low >= 0 and high < self.starts[chunk + 1] else None

    def keep_only(self, columns: Iterable[str]) -> None:
        """Frees the memory of all other columns."""
        kept = set(columns)
        self.columns = {name: chunks for name, chunks in self.columns.items() if name in kept}
        self.bytes_per_row = sum(_row_bytes(chunks[0]) for chunks in self.columns.values())


def _aligned(shape: tuple[int, ...], dtype: Any) -> Array:
    """Returns an empty array that JAX and TensorFlow can use as a tensor without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + ALIGNED, np.uint8)
    start = -raw.ctypes.data % ALIGNED
    array: Array = raw[start : start + size].view(dtype).reshape(shape)
    return array


def _row_bytes(array: Array) -> int:
    return int(math.prod(array.shape[1:]) * array.itemsize)
