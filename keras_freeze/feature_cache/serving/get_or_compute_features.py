"""Returns the features of a batch: cached ones, and newly computed ones, which it caches."""

from __future__ import annotations

import os
import time
from typing import Any

import keras
import numpy as np

from keras_freeze.display.fit_messages import readable
from keras_freeze.feature_cache.cache_stats import CacheStats
from keras_freeze.feature_cache.checks.consistency_checks import ConsistencyChecks, agree
from keras_freeze.feature_cache.not_cacheable import NotCacheableError, StaleRowsError, tell
from keras_freeze.feature_cache.serving.batch_rows import Positions, Rows
from keras_freeze.feature_cache.serving.bring_rows import LooseRows, RowBringer
from keras_freeze.feature_cache.serving.device_tables import DeviceTables
from keras_freeze.feature_cache.serving.run_prefix import PrefixRunner
from keras_freeze.feature_cache.serving.stage_server import StageServer
from keras_freeze.feature_cache.storage.memory_order import axes_in_memory, laid_out
from keras_freeze.feature_cache.storage.memory_store import MemoryStore
from keras_freeze.feature_cache.storage.row_hashes import Key

Array = np.ndarray[Any, Any]
Columns = dict[str, Array]
AT_ONCE = min(4, os.cpu_count() or 1)  # batches that go through the prefix at once


class BatchFeatures:
    """Computes and caches the features of the rows of one `fit`.

    A row is one sample of the data, such as an image or a text. The prefix is the frozen layers
    whose outputs are cached.

    Args:
        store: stores the features.
        tables: holds them on the device too, if it has its own memory.
        checks: decides when to compute known rows again.
        stats: counts hits and misses.

    Attributes:
        prefix: runs the prefix.
        cost: measures the seconds that the prefix and serving take.
        bringer: brings rows from a directory.
        was_known: whether the last batch was served without running the prefix.
    """

    def __init__(
        self,
        store: MemoryStore,
        tables: DeviceTables,
        checks: ConsistencyChecks,
        stats: CacheStats,
    ):
        self.store = store
        self.tables = tables
        self.checks = checks
        self.stats = stats
        self.prefix = PrefixRunner(checks)
        self.cost = self.prefix.cost
        self.bringer = RowBringer(store, self.prefix, stats)
        self.seen, self.axes = self.bringer.seen, self.bringer.axes
        self.was_known = False

    def of(self, rows: Rows, served: StageServer, kind: str, state: Any) -> dict[str, Any]:
        """Returns the features of the rows of a batch as tensors; computes those that aren't known.

        Args:
            rows: the rows of the batch.
            served: serves the running stage.
            kind: "train" or "test".
            state: the arguments of the step before the data.

        Raises:
            NotCacheableError: the features can't be computed, or cached ones are wrong.
        """
        loose = self.bringer.bring(rows, np.flatnonzero(rows.slots < 0), served, state)
        missing = _missing(rows, loose)
        wanted = int(np.count_nonzero(missing < rows.size))
        self.was_known = not wanted
        if wanted < rows.size and self.checks.wants_check(kind, served.is_trusted):
            self.was_known = False
            self._check(rows, served, kind, state)
        fresh = 0  # rows never seen before; a full store lacks some that were seen
        if wanted:
            missing, copies = _first_of_each(rows, missing)
            wanted = int(np.count_nonzero(missing < rows.size))
            fresh = sum(key not in self.seen for key in rows.keys(missing[:wanted]))
            computed = self.prefix.compute(rows, missing, served, kind, state)
            self._keep(rows, missing, computed)
            loose.add(rows.keys(missing), computed)
            rows.found(copies, self.store.find(rows.keys(copies)))
            self.stats.misses += len(missing)
        known = rows.size - wanted
        self.checks.count(kind, rows.size, fresh)
        self.stats.hits += known - rows.first_asked()
        self.stats.rows, self.stats.bytes = self.store.rows, self.store.nbytes
        self.stats.base_passes = self.stats.misses / max(1, len(self.seen))
        if not loose.keys and (tensors := self._from_device(rows, served)) is not None:
            return tensors
        arrays = self._gathered(rows, loose, served.part.columns)
        ordered = {name: laid_out(array, self.axes.get(name)) for name, array in arrays.items()}
        return {name: served.backend.to_tensor(array) for name, array in ordered.items()}

    def _from_device(self, rows: Rows, served: StageServer) -> dict[str, Any] | None:
        """Returns known features without a copy from host memory, if the device has them."""
        slots = rows.slots[: rows.size]
        chunk = self.tables.chunk_of(slots) if self.tables.on_device and not self.axes else None
        tables = None if chunk is None else self.tables.columns(chunk, served.part.columns)
        if chunk is None or tables is None:
            return None
        places = slots - self.store.starts[chunk]
        return {name: served.backend.take(table, places) for name, table in tables.items()}

    def check_if_due(self, rows: Rows, served: StageServer, kind: str, state: Any) -> None:
        """Computes a few rows of a batch again, if a check is due. All its rows are known.

        Raises:
            NotCacheableError: cached features are wrong.
        """
        if self.checks.wants_check(kind, served.is_trusted):
            self._check(rows, served, kind, state)

    def count_known(self, rows: Rows, numbers: Array, kind: str) -> None:
        """Counts a group of batches whose rows are all known.

        Args:
            rows: the rows of its first batch.
            numbers: the row numbers of all batches, (batches, rows).
            kind: "train" or "test".
        """
        self.checks.count(kind, numbers.size, 0)
        self.stats.hits += numbers.size - rows.first_asked(numbers)
        self.stats.grouped += len(numbers)

    def at_once(self, served: StageServer, batch: int) -> int:
        """Returns how many rows may be computed when one row of a batch isn't known.

        On a CPU, several batches at once use cores that one batch leaves idle: JAX takes half the
        time on two cores. PyTorch runs operations on weights only once for all batches.
        """
        rows = AT_ONCE * batch if served.is_faster_together else batch
        return rows if self.store.room >= rows and served.is_trusted else 0

    def _gathered(self, rows: Rows, loose: LooseRows, wanted: list[str]) -> Columns:
        """Returns the served columns, from the store or, for rows it has no room for, loose."""
        columns = [c for c in (self.store.columns or loose.columns) if c.split(".")[0] in wanted]
        slots = rows.slots[: rows.size]
        kept = slots >= 0
        if kept.all():
            return {column: self.store.take(column, slots) for column in columns}
        place = {key: place for place, key in enumerate(loose.keys)}
        without = np.flatnonzero(~kept)
        source = np.array([place[key] for key in rows.keys(without)])
        features: Columns = {}
        for column in columns:
            array = loose.columns[column]
            out = np.empty((rows.size, *array.shape[1:]), array.dtype)
            out[without] = array[source]
            if kept.any():
                out[kept] = self.store.take(column, slots[kept])
            features[column] = out
        return features

    def _keep(self, rows: Rows, positions: Positions, computed: Columns) -> None:
        shapes = {name: chunks[0].shape[1:] for name, chunks in self.store.columns.items()}
        if shapes and shapes != {name: array.shape[1:] for name, array in computed.items()}:
            raise NotCacheableError(
                "the features of different batches have different shapes",
                "pass inputs of one shape, or pool the features after the base",
            )
        for name, array in computed.items():
            if (axes := axes_in_memory(array)) is not None:
                self.axes[name] = axes
        keys = rows.keys(positions)
        self.seen.update(keys)
        self._report_nan(computed)
        kept = self.store.add(keys, computed)
        rows.found(positions[:kept], self.store.find(keys[:kept]), computed=True)
        self.bringer.write(keys, computed, kept=kept)
        is_short = kept < len(keys) and not self.bringer.keeps_all
        if is_short and self.checks.once("budget"):
            self._warn_of_budget()

    def _warn_of_budget(self) -> None:
        size, rows = self.store.bytes_per_row, self.store.expected
        of = "training" if self.checks.kind == "train" else "validation"
        needed = f"; {rows} {of} rows need {readable(size * rows)}" if rows else ""
        tell(
            f"is full: `max_bytes`, {readable(self.store.max_bytes)}, holds {self.store.rows} rows "
            f"of {readable(size)}. Other rows are computed in each epoch{needed}. Raise "
            "`max_bytes`, or halve the bytes with dtype='float16'."
        )

    def _report_nan(self, computed: Columns) -> None:
        for array in computed.values():
            if keras.backend.is_float_dtype(array.dtype.name) and not _is_finite(array):
                bad = ~np.isfinite(array.astype("float32")).reshape(len(array), -1).all(axis=1)
                if bad.any() and self.checks.once("nan"):
                    count = f"{int(bad.sum())} of {len(bad)} rows"
                    tell(
                        f"found NaN or infinite features in {count}, and uses them. Check these "
                        "inputs and the weights of the base."
                    )

    def _check(self, rows: Rows, served: StageServer, kind: str, state: Any) -> None:
        """Computes a few known rows again and compares their features."""
        began = time.perf_counter()
        known = np.flatnonzero(rows.slots[: rows.size] >= 0)
        if not len(known):
            return
        positions = self.checks.draw(known, rows.size)
        (fresh,) = self.prefix.run(rows, [positions], served, kind, state)
        for name in self.store.columns:
            kept = self.store.take(name, rows.slots[positions])
            if agree(kept, fresh[name]):
                continue
            if self.bringer.has_brought:
                raise StaleRowsError
            raise NotCacheableError(
                "the frozen part gives different features for the same row: they are random, "
                "or depend on the other rows of the batch",
                "keep such layers out of the frozen part",
            )
        self.checks.check_seconds += time.perf_counter() - began


def _is_finite(array: Array) -> bool:
    """Returns True if there is neither NaN nor infinity. May be False if the sum overflows."""
    dtype = array.dtype if array.dtype in (np.float32, np.float64) else np.float32
    with np.errstate(all="ignore"):
        return bool(np.isfinite(array.sum(dtype=dtype)))


def _missing(rows: Rows, loose: LooseRows) -> Positions:
    """Returns the positions of rows whose features are neither in memory nor were brought."""
    missing = np.flatnonzero(rows.slots < 0)
    if not loose.keys:
        return missing
    known = set(loose.keys)
    unknown = [key not in known for key in rows.keys(missing)]
    left: Positions = missing[np.array(unknown, bool)]
    return left


def _first_of_each(rows: Rows, positions: Positions) -> tuple[Positions, Positions]:
    """Splits positions into the first of each key, and the repeats."""
    first: dict[Key, int] = {}
    for position, key in zip(positions.tolist(), rows.keys(positions), strict=True):
        first.setdefault(key, position)
    chosen = np.array(sorted(first.values()), np.int64)
    return chosen, np.setdiff1d(positions, chosen)
