"""The rows of one batch: their keys, and their inputs for the prefix."""

from __future__ import annotations

from typing import Any, Protocol

import keras
import numpy as np

from keras_freeze.feature_cache.backends.protocol import Backend
from keras_freeze.feature_cache.storage.memory_store import MemoryStore, Slots
from keras_freeze.feature_cache.storage.row_hashes import Key, row_keys
from keras_freeze.keras_internals.row_number_feed import ArrayFeed

Array = np.ndarray[Any, Any]
Positions = Array  # places of rows within a batch


class Rows(Protocol):
    """A batch; after it there may be rows that no one asked for yet.

    Attributes:
        size: how many rows the batch has.
        slots: of all rows.
    """

    size: int
    slots: Slots

    def __len__(self) -> int: ...
    def first_asked(self) -> int: ...
    def keys(self, positions: Positions) -> list[Key]: ...
    def inputs(self, positions: Positions | None) -> Any: ...
    def leaf(self, place: int) -> Any: ...
    def specs(self) -> tuple[Any, list[tuple[tuple[int, ...], str]]]: ...
    def found(self, positions: Positions, slots: Slots, *, computed: bool = False) -> None: ...


class HashedRows:
    """Rows that came as tensors: each is hashed.

    Args:
        x: the inputs of a batch.
        places: of the leaves that decide the features.
        store: where the features are looked up.
        backend: how tensors are read.
        salt: rows of another salt are others.
    """

    def __init__(
        self, x: Any, places: list[int], store: MemoryStore, backend: Backend, salt: bytes = b""
    ):
        self.x = x
        self.flat = keras.tree.flatten(x)
        self.backend = backend
        self.arrays = [backend.to_numpy(self.flat[place]) for place in places]
        self.all_keys = [salt + key for key in row_keys(self.arrays)]
        self.slots = store.find(self.all_keys)
        self.size = len(self.all_keys)

    def __len__(self) -> int:
        return self.size

    def first_asked(self) -> int:
        """How many known rows of the batch are asked for the first time: these are none."""
        return 0

    def keys(self, positions: Positions) -> list[Key]:
        return [self.all_keys[position] for position in positions]

    def inputs(self, positions: Positions | None) -> Any:
        """`x` of these rows; of all if None."""
        if positions is None:
            return self.x
        arrays = (self.backend.to_numpy(leaf)[positions] for leaf in self.flat)
        flat = [self.backend.to_tensor(array) for array in arrays]
        return keras.tree.pack_sequence_as(self.x, flat)

    def leaf(self, place: int) -> Any:
        return self.backend.unshared(self.flat[place])

    def specs(self) -> tuple[Any, list[tuple[tuple[int, ...], str]]]:
        """The structure of `x`; shape of a row and dtype of each leaf."""
        dtypes = [keras.backend.standardize_dtype(leaf.dtype) for leaf in self.flat]
        shapes = [tuple(int(length) for length in leaf.shape[1:]) for leaf in self.flat]
        return self.x, list(zip(shapes, dtypes, strict=True))

    def found(self, positions: Positions, slots: Slots, *, computed: bool = False) -> None:
        self.slots[positions] = slots


class NumberedRows:
    """Rows of arrays, by number: a row is hashed once, and gathered only where it is needed.

    Args:
        numbers: of the rows.
        feed: the arrays.
        places: of the leaves that decide the features.
        store: where the features are looked up.
        backend: how tensors are made.
        salt: rows of another salt are others.
        at_once: if a row isn't known, others that aren't either are put after them, up to so many.
    """

    def __init__(
        self,
        numbers: Array,
        feed: ArrayFeed,
        places: list[int],
        store: MemoryStore,
        backend: Backend,
        salt: bytes = b"",
        at_once: int = 0,
    ):
        self.size = len(numbers)
        unknown = int(np.count_nonzero(feed.slots[numbers] < 0))
        if 0 < unknown < at_once:
            others = np.setdiff1d(feed.unknown(self.size), numbers)[: at_once - unknown]
            numbers = np.concatenate([numbers, others])
        self.numbers = numbers
        self.feed = feed
        self.places = places
        self.backend = backend
        self.salt = salt
        self.slots = feed.slots[numbers]
        self.known: dict[int, Key] = {}
        missing = np.flatnonzero(self.slots < 0)
        if len(missing):
            keys = self.hashes(numbers[missing])
            self.known = dict(zip(missing.tolist(), keys, strict=True))
            self.found(missing, store.find(keys))

    def hashes(self, numbers: Array) -> list[Key]:
        """The keys of rows, from what is in the arrays now.

        In the dtype in which Keras hands them out: a batch that isn't taken by number has the same.
        """
        arrays = [self.feed.rows(place, numbers) for place in self.places]
        return [self.salt + key for key in row_keys(arrays)]

    def __len__(self) -> int:
        return len(self.numbers)

    def first_asked(self) -> int:
        """How many known rows of the batch were computed ahead, and are asked for now."""
        batch = self.numbers[: self.size]
        count = int(self.feed.is_new[batch].sum())
        self.feed.is_new[batch] = False
        return count

    def keys(self, positions: Positions) -> list[Key]:
        return [self.known[position] for position in positions]

    def inputs(self, positions: Positions | None) -> Any:
        """`x` of these rows; of all if None."""
        return self.feed.x(self.numbers if positions is None else self.numbers[positions])

    def leaf(self, place: int) -> Any:
        return self.backend.to_tensor(self.feed.rows(place, self.numbers[: self.size]))

    def specs(self) -> tuple[Any, list[tuple[tuple[int, ...], str]]]:
        """The structure of `x`; shape of a row and dtype of each leaf."""
        return self.feed.structure, self.feed.specs

    def found(self, positions: Positions, slots: Slots, *, computed: bool = False) -> None:
        self.slots[positions] = slots
        self.feed.slots[self.numbers[positions]] = slots
        self.feed.is_new[self.numbers[positions[positions >= self.size]]] = computed
