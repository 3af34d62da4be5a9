"""Lets a `fit` over arrays hand out row numbers in place of rows.

Which rows make a batch, and all random draws that decide it, stay Keras' own; but a row whose
features are known is never gathered, converted or moved to a device.

Private names used here were tried on Keras 3.12.0 and 3.15.1: `ArrayDataAdapter._inputs`,
`TFEpochIterator._distributed_dataset`, `_distribute_strategy`.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

Array = np.ndarray[Any, Any]
ROW = "keras_freeze_row"  # the one key of an `x` that holds row numbers


class ArrayFeed:
    """The arrays that one epoch iterator goes through.

    Attributes:
        structure: `x` as it was given.
        leaves: its arrays.
        slots: where each row's features are, -1 = unknown; for whoever keeps them.
        sample: what some of the rows were, for whoever compares them.
    """

    def __init__(self, epoch_iterator: Any):
        self.epoch_iterator = epoch_iterator
        self.adapter = epoch_iterator.data_adapter
        self.inputs = self.adapter._inputs
        self.structure = self.inputs[0]
        self.leaves: list[Array] = keras.tree.flatten(self.structure)
        self.slots = np.full(len(self), -1, np.int64)
        self.sample: tuple[Any, ...] | None = None
        self.dataset = getattr(epoch_iterator, "_distributed_dataset", None)

    def __len__(self) -> int:
        return len(self.leaves[0])

    def put(self) -> None:
        """From the next epoch on, batches hold row numbers."""
        self.adapter._inputs = ({ROW: np.arange(len(self))}, *self.inputs[1:])
        if self.dataset is not None:
            dataset = self.adapter.get_tf_dataset()
            strategy = self.epoch_iterator._distribute_strategy
            distributed = strategy.experimental_distribute_dataset(dataset)
            self.epoch_iterator._distributed_dataset = distributed

    def put_back(self) -> None:
        """From the next epoch on, batches hold rows again."""
        self.adapter._inputs = self.inputs
        if self.dataset is not None:
            self.epoch_iterator._distributed_dataset = self.dataset

    def rows(self, place: int, numbers: Array) -> Array:
        """Returns rows of an array, in the dtype in which Keras hands them out."""
        rows = self.leaves[place][numbers]
        dtype = keras.backend.standardize_dtype(rows.dtype)
        if keras.backend.is_float_dtype(dtype) and dtype != keras.backend.floatx():
            return rows.astype(keras.backend.floatx())
        return rows


def numbers_in(x: Any) -> Any:
    """Returns the row numbers in the `x` of a batch, or None if it holds rows."""
    return x[ROW] if isinstance(x, dict) and ROW in x else None


def array_feed(epoch_iterator: Any) -> ArrayFeed | None:
    """Returns the feed of an epoch iterator over arrays; None of any other."""
    adapter = getattr(epoch_iterator, "data_adapter", None)
    inputs = getattr(adapter, "_inputs", None)
    if type(adapter).__name__ != "ArrayDataAdapter" or not isinstance(inputs, tuple):
        return None
    if len(inputs) < 2 or inputs[1] is None or numbers_in(inputs[0]) is not None:
        return None
    leaves = keras.tree.flatten(inputs[0])
    plain = all(isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biuf" for leaf in leaves)
    return ArrayFeed(epoch_iterator) if leaves and plain else None
