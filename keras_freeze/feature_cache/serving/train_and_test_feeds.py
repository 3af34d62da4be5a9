"""What the cache changes in the iterators of a `fit`: row numbers in place of rows, host memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_freeze.keras_internals import host_batches
from keras_freeze.keras_internals.row_numbers_instead_of_rows import ArrayFeed, array_feed

Batch = Any


class Feeds:
    """One feed (arrays with the numbers of their rows) for each kind of step: "train" or "test".

    Data that aren't arrays have no feed. If the device has memory of its own, their batches stay in
    host memory until a step needs them.

    Args:
        backend: the module of the backend.
        on_device: whether the device has its own memory.
    """

    def __init__(self, backend: Any, *, on_device: bool):
        self.backend = backend
        self.on_device = on_device
        self.by_kind: dict[str, ArrayFeed] = {}
        self.on_host: dict[str, Any] = {}  # iterators over batches in host memory

    def get(self, kind: str) -> ArrayFeed | None:
        return self.by_kind.get(kind)

    def __contains__(self, kind: str) -> bool:
        return kind in self.by_kind

    def __iter__(self) -> Iterator[ArrayFeed]:
        return iter(self.by_kind.values())

    def put(self, kind: str, iterator: Any) -> ArrayFeed | None:
        """Makes an iterator yield row numbers; returns None if it can't or already does."""
        known = self.by_kind.get(kind)
        if known is not None and known.epoch_iterator is iterator:
            return None
        feed = array_feed(iterator, self.backend.to_tensor)
        if feed is not None:
            feed.put(rests=kind == "test")
            self.by_kind[kind] = feed
        elif self.on_device and host_batches.put(iterator, self.backend.draw_as_data_do):
            self.on_host[kind] = iterator
        return feed

    def sent(self, batch: Batch) -> Batch:
        """Returns a batch with all its arrays on the device, as Keras would have passed it."""
        return keras.tree.map_structure(self._sent, batch)

    def _sent(self, leaf: Any) -> Any:
        is_array = self.on_device and isinstance(leaf, np.ndarray)
        return self.backend.to_tensor(leaf) if is_array else leaf

    def stop(self, *kinds: str) -> None:
        """Lets Keras make the batches again. An iterator that runs over epochs keeps its feed."""
        for kind in set(kinds).intersection(self.on_host):
            host_batches.put_back(self.on_host.pop(kind))
        for kind in set(kinds).intersection(self.by_kind):
            self.by_kind[kind].put_back()
            if self.by_kind[kind].epoch_iterator.steps_per_epoch is None:
                del self.by_kind[kind]

    def forget(self) -> None:
        """Marks all rows as unknown."""
        for feed in self.by_kind.values():
            feed.slots.fill(-1)
            feed.is_new.fill(False)

    def close(self) -> None:
        """Restores the iterators."""
        for feed in self.by_kind.values():
            feed.put_back()
        self.by_kind.clear()
        self.stop(*self.on_host)
