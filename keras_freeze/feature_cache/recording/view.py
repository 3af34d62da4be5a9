"""A view: what was recorded in one epoch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from keras_freeze.feature_cache.not_cacheable import NotCacheableError
from keras_freeze.feature_cache.recording.batch_layout import (
    BatchLayout,
    Columns,
    column_of,
    is_input,
)
from keras_freeze.feature_cache.serving.device_tables import DeviceTables
from keras_freeze.feature_cache.storage.memory_order import Axes, axes_in_memory, laid_out
from keras_freeze.feature_cache.storage.row_chunks import RowChunks, Slots, bytes_of_row


class View:
    """The rows of an epoch as its steps took them: features, inputs, targets, sample weights.

    A row is one sample of the data, such as an image, with the augmentation of that epoch.

    Args:
        max_bytes: the memory that is left.
        backend: the module of the backend.
        peers: the tables of all views, which share the memory of the device.

    Attributes:
        sizes: number of rows in each batch.
        axes: for each feature, its axes in memory order, if that isn't C order.
        layout: how inputs, targets and sample weights are kept; None before the first batch.
        inputs: (structure of `x`, row shape and dtype of each tensor in it).
        tables: the features on the device.
    """

    def __init__(self, max_bytes: float, backend: Any, peers: list[DeviceTables]):
        self.max_bytes = max_bytes
        self.backend = backend
        self.features = RowChunks()
        self.others = RowChunks()
        self.least = 0  # rows that it will have at least
        self.seen = 0  # rows that were added, also if there was no room
        self.bytes_per_row = 0
        self.is_full = False  # it needs more memory than there is
        self.sizes: list[int] = []
        self.axes: dict[str, Axes | None] = {}
        self.layout: BatchLayout | None = None
        self.inputs: tuple[Any, Any] = (None, None)
        self.tables = DeviceTables(self.features, backend, peers)

    @property
    def rows(self) -> int:
        return sum(self.sizes)

    @property
    def nbytes(self) -> int:
        return self.features.nbytes + self.others.nbytes

    def add(self, features: Columns, others: Columns, rows: int) -> None:
        """Records a batch, if there is memory for the whole view.

        Raises:
            NotCacheableError: its arrays have other shapes than those of the first batch.
        """
        self.seen += rows
        if not self.sizes:
            self.bytes_per_row = sum(map(bytes_of_row, (*features.values(), *others.values())))
            self.axes = {name: axes_in_memory(array) for name, array in features.items()}
        self.is_full |= self.expected_bytes > self.max_bytes
        if self.is_full:
            return
        for kept, columns in ((self.features, features), (self.others, others)):
            _check_alike(kept, columns, is_first=not self.sizes)
            kept.append(columns, rows)
        self.sizes.append(rows)

    def expect(self, batches: int | None, rows: int) -> None:
        """Makes place for so many batches of so many rows; the last one may be smaller."""
        if batches:
            self.features.expected = self.others.expected = batches * rows
            self.least = (batches - 1) * rows + 1

    @property
    def expected_bytes(self) -> int:
        """Bytes that the whole view takes at least."""
        return self.bytes_per_row * max(self.seen, self.least)

    def fill(self, features: Columns, others: Columns, axes: dict[str, Axes | None]) -> bool:
        """Takes all rows from arrays, if there is memory for them; returns False if there isn't.

        `sizes` says how many rows there are.
        """
        columns = (*features.values(), *others.values())
        if sum(array.nbytes for array in columns) > self.max_bytes:
            return False
        self.bytes_per_row = sum(map(bytes_of_row, columns))
        self.axes = axes
        for kept, arrays in ((self.features, features), (self.others, others)):
            kept.expected = self.rows
            kept.append(arrays, self.rows)
        self.close()
        return True

    def whole_columns(self) -> tuple[Columns, dict[str, Axes | None]]:
        """Returns all columns of a complete view, and the memory order of its features."""
        chunks = {**self.features.columns, **self.others.columns}
        return {name: parts[0][: self.rows] for name, parts in chunks.items()}, dict(self.axes)

    def close(self) -> None:
        """Ends the recording: each column's rows are then in one piece."""
        self.features.join()
        self.others.join()
        self.tables.begin_epoch()

    def keep_only(self, features: Iterable[str], inputs: Iterable[int]) -> None:
        """Frees the features and inputs that no later stage needs."""
        wanted, columns = set(features), {column_of(place) for place in inputs}
        self.tables.forget()
        self.tables.begin_epoch()
        self.features.keep_only([c for c in self.features.columns if c.split(".")[0] in wanted])
        self.others.keep_only([c for c in self.others.columns if c in columns or not is_input(c)])

    def holds(self, features: Iterable[str], inputs: Iterable[int]) -> bool:
        """Returns True if the view has these features and inputs."""
        held = {column.split(".")[0] for column in self.features.columns}
        columns = {column_of(place) for place in inputs}
        return held.issuperset(features) and columns <= set(self.others.columns)

    def features_of(self, slots: Slots, names: Iterable[str]) -> dict[str, Any]:
        """Returns the features of rows as tensors, with the masks of these features."""
        wanted = list(names)
        tables = self._tables(wanted) if self.tables.on_device else None
        if tables is not None:
            return {name: self.backend.take(table, slots) for name, table in tables.items()}
        columns = [column for column in self.features.columns if column.split(".")[0] in wanted]
        return {
            column: self.tensor(column, self.features.take(column, slots)) for column in columns
        }

    def tensor(self, column: str, array: np.ndarray[Any, Any]) -> Any:
        """Returns features as a tensor, in the memory order in which they were computed."""
        return self.backend.to_tensor(laid_out(array, self.axes[column]))

    def _tables(self, names: list[str]) -> dict[str, Any] | None:
        return self.tables.columns(0, names) if self.can_be_tables else None

    @property
    def can_be_tables(self) -> bool:
        """True if features can be taken on the device: in one piece, and in C order."""
        return len(self.features.starts) == 2 and not any(self.axes.values())

    def others_of(self, slots: Slots) -> Columns:
        """Returns the inputs, targets and sample weights of rows, by column."""
        return {column: self.others.take(column, slots) for column in self.others.columns}


def _check_alike(kept: RowChunks, columns: Columns, *, is_first: bool) -> None:
    if is_first:
        return
    shapes = {name: (chunks[0].shape[1:], chunks[0].dtype) for name, chunks in kept.columns.items()}
    if shapes != {name: (array.shape[1:], array.dtype) for name, array in columns.items()}:
        raise NotCacheableError(
            "the features, inputs or targets of different batches have different shapes",
            "pass inputs of one shape",
        )
