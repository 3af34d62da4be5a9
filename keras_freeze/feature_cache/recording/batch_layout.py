"""Converts inputs, targets and sample weights to arrays with a row for each sample, and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from keras_freeze.feature_cache.not_cacheable import NotCacheableError
from keras_freeze.feature_cache.storage.row_hashes import is_numeric

Array = np.ndarray[Any, Any]
Columns = dict[str, Array]


class BatchLayout:
    """How the batches of a recording are kept as arrays, besides the features.

    Args:
        inputs: the inputs that layers after the cut read, by their position in `x`.
        others: the targets and sample weights of the first batch.
        backend: the module of the backend.
    """

    def __init__(self, inputs: dict[int, Any], others: tuple[Any, ...], backend: Any):
        self.backend = backend
        self.inputs = {place: _kind(leaf) for place, leaf in inputs.items()}
        self.structure = keras.tree.map_structure(_kind, others)

    @classmethod
    def of_kinds(cls, inputs: dict[int, Any], structure: Any, backend: Any) -> BatchLayout:
        """Returns a layout from the kinds of its leaves, "array", "tensor" or None."""
        layout = cls({}, (), backend)
        layout.inputs, layout.structure = inputs, structure
        return layout

    def columns(self, inputs: dict[int, Any], others: tuple[Any, ...], rows: int) -> Columns:
        """Returns the arrays of a batch.

        Raises:
            NotCacheableError: they aren't dense arrays of numbers with a row for each sample, or
                differ in structure from the first batch.
        """
        if keras.tree.map_structure(_kind, others) != self.structure:
            raise NotCacheableError(
                "the batches differ in the structure of their targets or sample weights",
                "give all batches the same structure",
            )
        named = {column_of(place): leaf for place, leaf in inputs.items()}
        named |= {str(number): leaf for number, leaf in enumerate(keras.tree.flatten(others))}
        return {name: self._array(leaf, rows) for name, leaf in named.items() if leaf is not None}

    def _array(self, leaf: Any, rows: int) -> Array:
        array: Array = self.backend.to_numpy(leaf)
        if not is_numeric(array) or array.ndim == 0 or len(array) != rows:
            raise NotCacheableError(
                f"an array of a batch of {rows} rows can't be recorded: {array.dtype} of shape "
                f"{array.shape}",
                "pass dense arrays of numbers with a row for each sample",
            )
        return array

    def inputs_of(self, columns: Columns, places: Iterable[int]) -> dict[int, Any]:
        """Returns inputs of the same kind (array or tensor) as in the first batch."""
        return {
            place: self._as_given(columns[column_of(place)], self.inputs[place]) for place in places
        }

    def others_of(self, columns: Columns) -> tuple[Any, ...]:
        """Returns targets and sample weights of the same kinds as in the first batch."""
        kinds = enumerate(keras.tree.flatten(self.structure))
        flat = [kind and self._as_given(columns[str(number)], kind) for number, kind in kinds]
        return tuple(keras.tree.pack_sequence_as(self.structure, flat))

    def tables_of(self, tables: dict[str, Any]) -> tuple[Any, ...]:
        """Returns targets and sample weights in their structure, from their tables."""
        count = len(keras.tree.flatten(self.structure))
        flat = [tables.get(str(number)) for number in range(count)]
        return tuple(keras.tree.pack_sequence_as(self.structure, flat))

    def _as_given(self, array: Array, kind: str | None) -> Any:
        return self.backend.alike(array, is_array=kind == "array")


def column_of(place: int) -> str:
    """Returns the name of the column of the input at this position."""
    return f"input {place}"


def is_input(column: str) -> bool:
    """Returns True for the column of an input, False for those of targets and weights."""
    return column.startswith("input ")


def _kind(leaf: Any) -> str | None:
    if leaf is None:
        return None
    return "array" if isinstance(leaf, np.ndarray) else "tensor"
