"""Keeps rows of arrays in memory, in chunks: one column for each array."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Slots = np.ndarray[Any, np.dtype[np.int64]]
ALIGNED = 64  # bytes of which the address of a chunk is a multiple
CHUNK = 1 << 24  # bytes of the first chunk if the number of rows is unknown


class RowChunks:
    """Rows in chunks. Chunks are never moved, and unused parts of them take no memory.

    Args:
        rows: number of rows that are expected, if known.
        max_bytes: no chunk is made for rows beyond it.

    Attributes:
        columns: the chunks of each column.
        starts: the first row of each chunk; then the capacity.
        rows: number of rows.
    """

    def __init__(self, rows: int | None = None, max_bytes: float = math.inf):
        self.max_bytes = max_bytes
        self.expected = rows
        self.clear()

    def clear(self) -> None:
        """Removes all rows and columns."""
        self.columns: dict[str, list[Array]] = {}
        self.starts: list[int] = []
        self.row_bytes: dict[str, int] = {}
        self.rows = 0

    @property
    def bytes_per_row(self) -> int:
        """Bytes of a row; 0 before the first row."""
        return sum(self.row_bytes[name] for name in self.columns)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        return self.rows * self.bytes_per_row

    def append(self, columns: dict[str, Array], count: int) -> None:
        """Adds rows: the first `count` rows of each array.

        Args:
            columns: arrays (rows, ...), with the same names, row shapes and dtypes in each call.
            count: number of rows.
        """
        self._begin(columns)
        first = self.rows
        while count and (not self.starts or first + count > self.starts[-1]):
            self._grow(columns)
        for name, array in columns.items():
            for chunk, start in zip(self.columns[name], self.starts, strict=False):
                low, high = max(first, start), min(first + count, start + len(chunk))
                if low < high:
                    chunk[low - start : high - start] = array[low - first : high - first]
        self.rows += count

    def _begin(self, columns: dict[str, Array]) -> None:
        if not self.columns:
            self.columns = {name: [] for name in columns}
            self.row_bytes = {name: bytes_of_row(array) for name, array in columns.items()}

    def _grow(self, columns: dict[str, Array]) -> None:
        start = self.starts[-1] if self.starts else 0
        rows = max(64, CHUNK // max(1, self.bytes_per_row), start)
        if not start:
            rows = self.expected or rows
        if self.max_bytes < math.inf:
            most = int(self.max_bytes) // max(1, self.bytes_per_row)
            rows = min(rows, max(1, most - start))
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

    def join(self) -> None:
        """Moves the rows of each column into one chunk, column by column."""
        if len(self.starts) > 2:
            for name, chunks in self.columns.items():
                whole = _aligned((self.rows, *chunks[0].shape[1:]), chunks[0].dtype)
                for chunk, start in zip(chunks, self.starts, strict=False):
                    whole[start : start + len(chunk)] = chunk[: max(0, self.rows - start)]
                self.columns[name] = [whole]
            self.starts = [0, self.rows]


def _aligned(shape: tuple[int, ...], dtype: Any) -> Array:
    """Returns an empty array that JAX and TensorFlow can use as a tensor without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + ALIGNED, np.uint8)
    start = -raw.ctypes.data % ALIGNED
    array: Array = raw[start : start + size].view(dtype).reshape(shape)
    return array


def bytes_of_row(array: Array) -> int:
    """Returns the bytes of one row of an array."""
    return int(math.prod(array.shape[1:]) * array.itemsize)
