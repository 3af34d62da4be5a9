"""Makes the iterators of a `fit` over arrays yield row numbers, and holds these arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from keras_freeze.keras_internals.row_numbers_instead_of_rows import ArrayFeed, array_feed


class Feeds:
    """One feed (arrays with the numbers of their rows) for each kind of step: "train" or "test".

    Args:
        to_tensor: converts an array to what the model's steps take.
    """

    def __init__(self, to_tensor: Callable[[Any], Any]):
        self.to_tensor = to_tensor
        self.by_kind: dict[str, ArrayFeed] = {}

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
        feed = array_feed(iterator, self.to_tensor)
        if feed is not None:
            feed.put(rests=kind == "test")
            self.by_kind[kind] = feed
        return feed

    def stop(self, *kinds: str) -> None:
        """Lets Keras make the batches again. An iterator that runs over epochs keeps its feed."""
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
