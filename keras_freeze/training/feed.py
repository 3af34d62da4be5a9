"""Lets a `fit` over arrays hand out row numbers in place of rows.

Which rows make a batch, and all random draws that decide it, stay Keras' own; but a row whose
features are known is never gathered, converted or moved to a device.

Private names used here were tried on Keras 3.12.0 and 3.15.1: `ArrayDataAdapter._inputs`,
`_shuffle`, `EpochIterator._get_iterator`, `TFEpochIterator._distributed_dataset`,
`_distribute_strategy`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import keras
import numpy as np

Array = np.ndarray[Any, Any]
ROW = "keras_freeze_row"  # the one key of an `x` that holds row numbers


class ArrayFeed:
    """The arrays that one epoch iterator goes through.

    Args:
        epoch_iterator: of a `fit` or its validation.
        to_tensor: makes of an array what the model's steps take.

    Attributes:
        structure: `x` as it was given.
        leaves: its arrays.
        slots: where each row's features are, -1 = unknown; for whoever keeps them.
        is_new: True for rows whose features nobody asked for yet; for the same.
        sample: what some of the rows were, for whoever compares them.
    """

    def __init__(self, epoch_iterator: Any, to_tensor: Callable[[Array], Any]):
        self.to_tensor = to_tensor
        self.epoch_iterator = epoch_iterator
        self.adapter = epoch_iterator.data_adapter
        self.inputs = self.adapter._inputs
        self.structure = self.inputs[0]
        self.leaves: list[Array] = keras.tree.flatten(self.structure)
        self.slots = np.full(len(self), -1, np.int64)
        self.is_new = np.zeros(len(self), bool)
        self.sample: tuple[Any, ...] | None = None
        self.others = self.inputs[1:]
        self.dataset = getattr(epoch_iterator, "_distributed_dataset", None)

    def __len__(self) -> int:
        return len(self.leaves[0])

    def put(self) -> None:
        """From the next epoch on, batches hold row numbers."""
        if self.has_plain_order:
            if self.dataset is not None:  # TensorFlow goes on with what the arrays held at first
                self.others = keras.tree.map_structure(_copied, self.inputs[1:])
            self.epoch_iterator._get_iterator = self._in_order
            return
        self.adapter._inputs = ({ROW: np.arange(len(self))}, *self.inputs[1:])
        if self.dataset is not None:
            dataset = self.adapter.get_tf_dataset()
            strategy = self.epoch_iterator._distribute_strategy
            distributed = strategy.experimental_distribute_dataset(dataset)
            self.epoch_iterator._distributed_dataset = distributed

    @cached_property
    def has_plain_order(self) -> bool:
        """True if the rows come in their order: then no random draw has to be Keras' own."""
        others = [leaf for leaf in keras.tree.flatten(self.inputs[1:]) if leaf is not None]
        return not self.adapter._shuffle and all(map(_is_of_numbers, others))

    def _in_order(self) -> Iterator[Any]:
        """The batches as Keras makes them, but for row numbers, and with much less ado."""
        if keras.backend.backend() == "torch":
            iter(self.adapter.get_torch_dataloader())  # draws a number, in whatever order rows come
        return _Iterator(self._batches(), getattr(self.dataset, "element_spec", None))

    def _batches(self) -> Iterator[Any]:
        for start in range(0, len(self), self.adapter.batch_size):
            numbers = np.arange(start, min(start + self.adapter.batch_size, len(self)))
            take = partial(self._taken, numbers)
            yield ({ROW: numbers}, *keras.tree.map_structure(take, self.others))

    def _taken(self, numbers: Array, leaf: Array | None) -> Any:
        return None if leaf is None else self.to_tensor(_as_fed(leaf[numbers]))

    def put_back(self) -> None:
        """From the next epoch on, batches hold rows again."""
        vars(self.epoch_iterator).pop("_get_iterator", None)
        self.adapter._inputs = self.inputs
        if self.dataset is not None:
            self.epoch_iterator._distributed_dataset = self.dataset

    def rows(self, place: int, numbers: Array) -> Array:
        """Returns rows of an array, in the dtype in which Keras hands them out."""
        return _as_fed(self.leaves[place][numbers])

    def unknown(self, batch: int) -> Array:
        """Returns rows without a slot that come in batches of a size, as far as that is known."""
        end = len(self) - len(self) % batch if self.has_plain_order else len(self)
        return np.flatnonzero(self.slots[:end] < 0)

    @cached_property
    def looks(self) -> list[tuple[tuple[int, ...], str]]:
        """The shape of a row and the dtype of each leaf."""
        first = [_as_fed(leaf[:1]) for leaf in self.leaves]
        return [(row.shape[1:], keras.backend.standardize_dtype(row.dtype)) for row in first]


def _as_fed(rows: Array) -> Array:
    """Rows in the dtype in which Keras hands them out."""
    dtype = keras.backend.standardize_dtype(rows.dtype)
    if keras.backend.is_float_dtype(dtype) and dtype != keras.backend.floatx():
        return rows.astype(keras.backend.floatx())
    return rows


def _is_of_numbers(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biuf"


def _copied(leaf: Array | None) -> Array | None:
    return None if leaf is None else leaf.copy()


class _Iterator(Iterator[Any]):
    """An iterator that knows its shapes and dtypes, as those of TensorFlow do."""

    def __init__(self, batches: Iterator[Any], element_spec: Any):
        self.batches = batches
        self.element_spec = element_spec

    def __next__(self) -> Any:
        return next(self.batches)


def numbers_in(x: Any) -> Any:
    """Returns the row numbers in the `x` of a batch, or None if it holds rows."""
    return x[ROW] if isinstance(x, dict) and ROW in x else None


def array_feed(epoch_iterator: Any, to_tensor: Callable[[Array], Any]) -> ArrayFeed | None:
    """Returns the feed of an epoch iterator over arrays; None of any other."""
    adapter = getattr(epoch_iterator, "data_adapter", None)
    inputs = getattr(adapter, "_inputs", None)
    if type(adapter).__name__ != "ArrayDataAdapter" or not isinstance(inputs, tuple):
        return None
    if len(inputs) < 2 or inputs[1] is None or numbers_in(inputs[0]) is not None:
        return None
    leaves = keras.tree.flatten(inputs[0])
    plain = all(map(_is_of_numbers, leaves))
    return ArrayFeed(epoch_iterator, to_tensor) if leaves and plain else None
