"""Reads the rows of the next batch while a step runs, if memory doesn't hold all rows."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from keras_freeze.feature_cache.serving.brought_rows import Brought
from keras_freeze.feature_cache.storage.row_hashes import Key


class ReadAhead:
    """A thread that reads the rows of one batch, the next.

    Args:
        read: reads rows.
    """

    def __init__(self, read: Callable[[list[Key]], Brought | None]):
        self.read = read
        self.thread: ThreadPoolExecutor | None = None
        self.coming: Future[tuple[list[Key], Brought | None]] | None = None

    def begin(self, make_keys: Callable[[], list[Key]]) -> None:
        """Begins to read rows.

        Args:
            make_keys: returns their keys; it is called in the thread.
        """

        def run() -> tuple[list[Key], Brought | None]:
            keys = list(dict.fromkeys(make_keys()))
            return keys, self.read(keys) if keys else None

        self.thread = self.thread or ThreadPoolExecutor(1, "keras_freeze reader")
        self.coming = self.thread.submit(run)

    def take(self, keys: list[Key]) -> Brought | None:
        """Returns rows, which were read ahead or are read now."""
        coming, self.coming = self.coming, None
        if coming is not None:
            ahead, brought = coming.result()
            places = {key: place for place, key in enumerate(ahead)}
            is_complete = brought is not None and len(brought.positions) == len(ahead)
            if brought is not None and is_complete and all(key in places for key in keys):
                order = np.array([places[key] for key in keys], np.int64)
                columns = {name: array[order] for name, array in brought.columns.items()}
                return Brought(np.arange(len(keys)), columns, brought.axes)
        return self.read(keys)

    def close(self) -> None:
        """Ends the thread."""
        self.coming = None
        if self.thread is not None:
            self.thread.shutdown()
        self.thread = None
