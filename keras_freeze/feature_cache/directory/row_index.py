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
        return {
            name: np.ascontiguousarray(array[list(rows)]) for name, array in self.columns.items()
        }


Place = tuple[Block | Batch, int]


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
    """The places of rows: a block or a waiting batch, and the number of the row in it.

    A row that several runs have written has several places. If it is damaged in one of them, it is
    found in another.
    """

    def __init__(self) -> None:
        self.places: dict[Key, Place] = {}
        self.spare: dict[Key, list[Place]] = {}  # other places of the same rows
        self.bad = 0  # rows that are whole nowhere

    def __len__(self) -> int:
        return len(self.places)

    def __contains__(self, key: Key) -> bool:
        return key in self.places

    def add(self, holder: Block | Batch) -> None:
        """Adds the rows of a block or batch; a row that is known is found there from now on."""
        for row, key in enumerate(holder.keys):
            known = self.places.get(key)
            if known is not None and isinstance(known[0], Block):
                self.spare.setdefault(key, []).append(known)
            self.places[key] = holder, row

    def holds(self, batch: Batch) -> bool:
        """Returns True if a row is found in this batch."""
        return any(key in self.places and self.places[key][0] is batch for key in batch.keys)

    def drop(self, batch: Batch) -> None:
        """Forgets the rows of a batch that couldn't be written."""
        for key in batch.keys:
            if key in self.places and self.places[key][0] is batch:
                del self.places[key]

    def forget(self, source: object) -> None:
        """Forgets the rows of all blocks of a file."""
        for key, places in self.spare.items():
            self.spare[key] = [place for place in places if not _is_in(place, source)]
        for key in [key for key, place in self.places.items() if _is_in(place, source)]:
            self._use_spare(key)

    def _use_spare(self, key: Key) -> None:
        """Finds a row in another place from now on, or nowhere."""
        if places := self.spare.get(key):
            self.places[key] = places.pop()
        else:
            del self.places[key]

    def _whole(self, key: Key) -> Place | None:
        """Returns the place of a row that is whole there."""
        while (place := self.places.get(key)) is not None and not place[0].is_whole(place[1]):
            self._use_spare(key)
            self.bad += key not in self.places
        return place

    def take(self, keys: Sequence[Key]) -> FoundRows | None:
        """Returns the rows with these keys that are whole; None if there are none.

        A row that is whole nowhere is forgotten.
        """
        by_holder: dict[int, tuple[Block | Batch, list[int], list[int]]] = {}
        for position, key in enumerate(keys):
            if (place := self._whole(key)) is None:
                continue
            holder, row = place
            _, positions, rows = by_holder.setdefault(id(holder), (holder, [], []))
            positions.append(position)
            rows.append(row)
        return _joined(list(by_holder.values()))


def _is_in(place: Place, source: object) -> bool:
    holder, _ = place
    return isinstance(holder, Block) and holder.source is source


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
