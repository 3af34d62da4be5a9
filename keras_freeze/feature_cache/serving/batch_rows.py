"""The rows of one batch: their cache keys, and their inputs for the frozen layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import keras
import numpy as np

from keras_freeze.feature_cache.backends.protocol import Backend
from keras_freeze.feature_cache.storage.memory_store import MemoryStore
from keras_freeze.feature_cache.storage.row_chunks import Slots
from keras_freeze.feature_cache.storage.row_hashes import Key, row_keys
from keras_freeze.keras_internals.row_numbers_instead_of_rows import ArrayFeed

Array = np.ndarray[Any, Any]
Positions = Array  # positions of rows within a batch


class Rows(Protocol):
    """The rows of a batch, then other rows to compute ahead.

    A row is one sample of the data. Its slot is its row number in the store, -1 if it isn't there.

    Attributes:
        size: number of rows in the batch.
        slots: slots of all rows.
    """

    size: int
    slots: Slots

    def __len__(self) -> int: ...
    def first_asked(self, numbers: Array | None = None) -> int: ...
    def keys(self, positions: Positions) -> list[Key]: ...
    def inputs(self, positions: Positions | None) -> Any: ...
    def leaf(self, place: int) -> Any: ...
    def specs(self) -> tuple[Any, list[tuple[tuple[int, ...], str]]]: ...
    def found(self, positions: Positions, slots: Slots, *, computed: bool = False) -> None: ...


class HashedRows:
    """Rows of a batch of tensors: each row is hashed.

    Args:
        x: the inputs of the batch.
        places: the tensors of `x` on which the features depend.
        store: the store with the features.
        backend: module of the backend; reads tensors.
        salt: added to the keys: equal rows with different salts count as different.
        send: sends the inputs to the device, if they aren't there.
    """

    def __init__(
        self,
        x: Any,
        places: list[int],
        store: MemoryStore,
        backend: Backend,
        salt: bytes = b"",
        send: Callable[[Any], Any] = lambda x: x,
    ):
        self.x = x
        self.flat = keras.tree.flatten(x)
        self.backend = backend
        self.send = send
        self.arrays = [backend.to_numpy(self.flat[place]) for place in places]
        self.all_keys = [salt + key for key in row_keys(self.arrays)]
        self.slots = store.find(self.all_keys)
        self.size = len(self.all_keys)

    def __len__(self) -> int:
        return self.size

    def first_asked(self, numbers: Array | None = None) -> int:
        """Returns how many known rows were computed ahead: always 0 here."""
        return 0

    def keys(self, positions: Positions) -> list[Key]:
        return [self.all_keys[position] for position in positions]

    def inputs(self, positions: Positions | None) -> Any:
        """Returns `x` of these rows; None = all rows."""
        if positions is None:
            return self.send(self.x)
        arrays = (self.backend.to_numpy(leaf)[positions] for leaf in self.flat)
        flat = [self.backend.to_tensor(array) for array in arrays]
        return keras.tree.pack_sequence_as(self.x, flat)

    def leaf(self, place: int) -> Any:
        return self.backend.unshared(self.flat[place])

    def specs(self) -> tuple[Any, list[tuple[tuple[int, ...], str]]]:
        """Returns the structure of `x`, and the row shape and dtype of each tensor in it."""
        return self.x, specs_of(self.flat)

    def found(self, positions: Positions, slots: Slots, *, computed: bool = False) -> None:
        self.slots[positions] = slots


def specs_of(tensors: list[Any]) -> list[tuple[tuple[int, ...], str]]:
    """Returns the row shape and the dtype of each tensor."""
    dtypes = [keras.backend.standardize_dtype(leaf.dtype) for leaf in tensors]
    shapes = [tuple(int(length) for length in leaf.shape[1:]) for leaf in tensors]
    return list(zip(shapes, dtypes, strict=True))


def keys_of(feed: ArrayFeed, places: list[int], numbers: Array, salt: bytes) -> list[Key]:
    """Returns the keys of rows of arrays.

    Rows have the dtype in which Keras yields them, so that keys are the same as of tensors.
    """
    return [salt + key for key in row_keys([feed.rows(place, numbers) for place in places])]


class NumberedRows:
    """Rows given by their numbers in arrays: a row is hashed once, and read only if needed.

    Args:
        numbers: the row numbers.
        feed: the arrays.
        places: the arrays on which the features depend.
        store: the store with the features.
        backend: module of the backend; makes tensors.
        salt: added to the keys: equal rows with different salts count as different.
        at_once: if a row is unknown, add other unknown rows to compute ahead, up to this number.
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
        """Returns the keys of rows, from the arrays' present content."""
        return keys_of(self.feed, self.places, numbers, self.salt)

    def __len__(self) -> int:
        return len(self.numbers)

    def first_asked(self, numbers: Array | None = None) -> int:
        """Returns how many known rows were computed ahead and are used for the first time.

        Args:
            numbers: row numbers; None = those of the batch.
        """
        batch = self.numbers[: self.size] if numbers is None else numbers
        count = int(self.feed.is_new[batch].sum())
        self.feed.is_new[batch] = False
        return count

    def keys(self, positions: Positions) -> list[Key]:
        return [self.known[position] for position in positions]

    def inputs(self, positions: Positions | None) -> Any:
        """Returns `x` of these rows; None = all rows."""
        return self.feed.x(self.numbers if positions is None else self.numbers[positions])

    def leaf(self, place: int) -> Any:
        return self.backend.to_tensor(self.feed.rows(place, self.numbers[: self.size]))

    def specs(self) -> tuple[Any, list[tuple[tuple[int, ...], str]]]:
        """Returns the structure of `x`, and the row shape and dtype of each tensor in it."""
        return self.feed.structure, self.feed.specs

    def found(self, positions: Positions, slots: Slots, *, computed: bool = False) -> None:
        self.slots[positions] = slots
        self.feed.slots[self.numbers[positions]] = slots
        self.feed.is_new[self.numbers[positions[positions >= self.size]]] = computed
