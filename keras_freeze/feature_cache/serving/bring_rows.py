"""Brings rows from the directory to memory, and gives new ones to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_freeze.feature_cache.cache_stats import CacheStats
from keras_freeze.feature_cache.serving.batch_rows import NumberedRows, Positions, Rows, keys_of
from keras_freeze.feature_cache.serving.brought_rows import Brought
from keras_freeze.feature_cache.serving.run_prefix import PrefixRunner
from keras_freeze.feature_cache.serving.stage_server import StageServer
from keras_freeze.feature_cache.storage.memory_order import Axes
from keras_freeze.feature_cache.storage.memory_store import MemoryStore
from keras_freeze.feature_cache.storage.row_hashes import Key
from keras_freeze.keras_internals.row_numbers_instead_of_rows import ArrayFeed

if TYPE_CHECKING:  # it needs LMDB
    from keras_freeze.feature_cache.serving.stored_rows import StoredRows

Array = np.ndarray[Any, Any]
Columns = dict[str, Array]
AT_ONCE = 1024  # rows that are read at once


@dataclass
class LooseRows:
    """Features of rows that aren't in memory's store, as it has no room for them.

    Attributes:
        keys: the keys of the rows.
        columns: arrays (rows, ...).
    """

    keys: list[Key] = field(default_factory=list)
    columns: Columns = field(default_factory=dict)

    def add(self, keys: list[Key], columns: Columns) -> None:
        """Adds rows with the same columns."""
        joined = [
            (name, [self.columns[name], array] if self.keys else [array])
            for name, array in columns.items()
        ]
        self.columns = {
            name: parts[0] if len(parts) == 1 else np.concatenate(parts) for name, parts in joined
        }
        self.keys = [*self.keys, *keys]


class RowBringer:
    """Brings rows of earlier runs from a directory to memory.

    Args:
        store: the rows in memory.
        prefix: continues from features of an earlier cut.
        stats: counts the rows.

    Attributes:
        stored: the rows in the directory; None = there is no directory.
        seen: the keys of all rows that were computed or brought.
        axes: for each column, its axes in memory order, if that isn't C order.
    """

    def __init__(self, store: MemoryStore, prefix: PrefixRunner, stats: CacheStats):
        self.stored: StoredRows | None = None
        self.store = store
        self.prefix = prefix
        self.stats = stats
        self.seen: set[Key] = set()
        self.axes: dict[str, Axes] = {}

    def bring(self, rows: Rows, missing: Positions, served: StageServer, state: Any) -> LooseRows:
        """Finds missing rows in the directory. Those that fit are added to memory.

        Args:
            rows: the rows of a batch.
            missing: positions of those that aren't in memory.
            served: serves the running stage.
            state: the arguments of the step before the data.

        Returns:
            The rows that were found and didn't fit.
        """
        loose = LooseRows()
        if self.stored is None or not len(missing):
            return loose
        left = list(dict.fromkeys(rows.keys(missing)))
        if (brought := self.stored.read(left)) is not None:
            left = self._put(left, brought, loose)
        by = self.stored.continuation
        if left and by is not None and (known := self.stored.read_sources(left)) is not None:
            columns = self.prefix.continued(known, by, rows.size, served, state)
            self.stats.continued += len(known.positions)
            done = Brought(known.positions, columns, {})
            keys = [left[position] for position in known.positions]
            left = self._put(left, done, loose, counts=False)
            kept = int(np.count_nonzero(self.store.find(keys) >= 0))
            self.stored.write(keys, columns, self.axes, kept=kept)
        slots = self.store.find(rows.keys(missing))
        rows.found(missing[slots >= 0], slots[slots >= 0])
        return loose

    def _put(
        self, keys: list[Key], brought: Brought, loose: LooseRows, *, counts: bool = True
    ) -> list[Key]:
        """Adds rows to memory as far as there is room; returns the keys that weren't brought."""
        found = [keys[position] for position in brought.positions]
        if counts:
            self.stats.read += sum(key not in self.seen for key in found)
        self.axes |= {name: order for name, order in brought.axes.items() if order is not None}
        self.seen.update(found)
        kept = self.store.add(found, brought.columns)
        if kept < len(found):
            rest = {name: array[kept:] for name, array in brought.columns.items()}
            loose.add(found[kept:], rest)
        known = set(found)
        return [key for key in keys if key not in known]

    def bring_all(self, feed: ArrayFeed, served: StageServer, kind: str) -> None:
        """Brings all rows of arrays that the directory has, as far as memory has room."""
        if self.stored is None or not self.stored.has_rows:
            return
        places = served.places(feed.structure)
        unknown = np.flatnonzero(feed.slots < 0)
        for start in range(0, len(unknown), AT_ONCE):
            numbers = unknown[start : start + AT_ONCE]
            if self.store.bytes_per_row and self.store.room < len(numbers):
                return
            rows = NumberedRows(
                numbers, feed, places, self.store, served.backend, served.salt(kind)
            )
            missing = np.flatnonzero(rows.slots < 0)
            left = list(dict.fromkeys(rows.keys(missing)))
            brought = self.stored.read(left)
            if brought is None:
                continue
            self._put(left, brought, LooseRows())
            slots = self.store.find(rows.keys(missing))
            rows.found(missing[slots >= 0], slots[slots >= 0])

    @property
    def keeps_all(self) -> bool:
        """True if rows that memory has no room for are in the directory."""
        stored = self.stored
        return stored is not None and bool(stored.folders) and not stored.directory.failure

    @property
    def has_brought(self) -> bool:
        """True if there are rows in memory that came from the directory."""
        return bool(self.stored is not None and self.stored.folders and self.stats.read)

    def begin_epoch(self, feed: ArrayFeed | None, served: StageServer, kind: str) -> None:
        """Reads rows of arrays ahead in the next epoch, if memory has no room for all of them."""
        stored = self.stored
        if stored is None or feed is None:
            return
        feed.on_next_batch = None
        if not stored.has_rows or not self.store.bytes_per_row or self.store.room:
            return
        places, salt = served.places(feed.structure), served.salt(kind)

        def begin(numbers: Array) -> None:
            missing = numbers[feed.slots[numbers] < 0]
            stored.ahead.begin(lambda: keys_of(feed, places, missing, salt))

        feed.on_next_batch = begin

    def write(self, keys: list[Key], columns: Columns, *, kept: int) -> None:
        """Gives computed rows to the directory; the first `kept` are in memory too."""
        if self.stored is not None:
            self.stored.write(keys, columns, self.axes, kept=kept)
