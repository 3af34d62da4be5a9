"""Finds rows by key in blocks that were written, and in batches that are about to be written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_freeze.feature_cache.directory.blocks import Block, Columns, Key
from keras_freeze.feature_cache.storage.memory_order import Axes

Array = np.ndarray[Any, Any]


@dataclass(eq=False)
class Batch:
    """Rows that wait to be written.

    Attributes:
        keys: their keys.
        columns: arrays (rows, ...).
        axes: for each column, its axes in memory order, if that isn't C order.
    """

    keys: list[Key]
    columns: Columns
    axes: dict[str, Axes | None]

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        return sum(array.nbytes for array in self.columns.values())

    def is_whole(self, row: int) -> bool:
        """Returns True: the rows are in memory."""
        return True

    def take(self, rows: Sequence[int]) -> Columns:
        """Returns copies of rows."""
        return {name: array[list(rows)] for name, array in self.columns.items()}


@dataclass(frozen=True)
class FoundRows:
    """Rows that were found.

    Attributes:
        positions: positions of their keys among those that were asked for.
        columns: arrays (rows, ...), in C order.
        axes: for each column, its axes in memory order, if that isn't C order.
    """

    positions: Array
    columns: Columns
    axes: dict[str, Axes | None]


class RowIndex:
    """The places of rows: a block or a waiting batch, and the number of the row in it."""

    def __init__(self) -> None:
        self.places: dict[Key, tuple[Block | Batch, int]] = {}
        self.bad = 0  # rows whose checksum was wrong

    def __len__(self) -> int:
        return len(self.places)

    def __contains__(self, key: Key) -> bool:
        return key in self.places

    def add(self, holder: Block | Batch) -> None:
        """Adds the rows of a block or batch; a row that is known is found there from now on."""
        self.places.update((key, (holder, row)) for row, key in enumerate(holder.keys))

    def drop(self, batch: Batch) -> None:
        """Forgets the rows of a batch that couldn't be written."""
        for key in batch.keys:
            if key in self.places and self.places[key][0] is batch:
                del self.places[key]

    def take(self, keys: Sequence[Key]) -> FoundRows | None:
        """Returns the rows with these keys that are whole; None if there are none.

        A row whose checksum is wrong is forgotten.
        """
        by_holder: dict[int, tuple[Block | Batch, list[int], list[int]]] = {}
        for position, key in enumerate(keys):
            if (place := self.places.get(key)) is None:
                continue
            holder, row = place
            if not holder.is_whole(row):
                self.bad += 1
                del self.places[key]
                continue
            _, positions, rows = by_holder.setdefault(id(holder), (holder, [], []))
            positions.append(position)
            rows.append(row)
        return _joined(list(by_holder.values()))


def _joined(parts: list[tuple[Block | Batch, list[int], list[int]]]) -> FoundRows | None:
    """Returns rows of several blocks in the order of their positions.

    Rows of another shape than the first ones are left out.
    """
    if not parts:
        return None
    taken = [(positions, holder.take(rows)) for holder, positions, rows in parts]
    look = _look(taken[0][1])
    alike = [(positions, columns) for positions, columns in taken if _look(columns) == look]
    positions = np.concatenate([np.asarray(part, np.int64) for part, _ in alike])
    order = np.argsort(positions)
    columns = {
        name: np.concatenate([columns[name] for _, columns in alike])[order]
        if len(alike) > 1
        else alike[0][1][name]
        for name in look
    }
    return FoundRows(positions[order], columns, _axes(parts[0][0]))


def _look(columns: Columns) -> dict[str, Any]:
    return {name: (array.shape[1:], array.dtype) for name, array in columns.items()}


def _axes(holder: Block | Batch) -> dict[str, Axes | None]:
    if isinstance(holder, Batch):
        return holder.axes
    return {layout.name: layout.axes for layout in holder.layouts}
