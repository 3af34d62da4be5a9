"""Stores rows of features in memory: one column for each cached tensor, rows found by key."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from keras_freeze.feature_cache.storage.row_chunks import Array, RowChunks, Slots
from keras_freeze.feature_cache.storage.row_hashes import Key


class MemoryStore(RowChunks):
    """Stores rows under keys.

    Args:
        max_bytes: memory limit; rows beyond it aren't stored.
        rows: number of rows that are expected, if known.
    """

    max_bytes: int

    def __init__(self, max_bytes: int, rows: int | None = None):
        super().__init__(rows, max_bytes)

    def clear(self) -> None:
        """Removes all rows and columns."""
        super().clear()
        self.slots: dict[Key, int] = {}

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
        self._begin(columns)
        count = min(len(keys), self.room if self.bytes_per_row else len(keys))
        first = self.rows
        self.append(columns, count)
        self.slots.update(zip(keys[:count], range(first, first + count), strict=True))
        return count
