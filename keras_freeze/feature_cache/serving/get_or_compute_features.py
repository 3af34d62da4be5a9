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
from keras_freeze.feature_cache.checks.serving_cost import ServingCost
from keras_freeze.feature_cache.not_cacheable import NotCacheableError, tell
from keras_freeze.feature_cache.serving.batch_rows import Positions, Rows
from keras_freeze.feature_cache.serving.device_tables import DeviceTables
from keras_freeze.feature_cache.serving.stage_server import StageServer
from keras_freeze.feature_cache.storage.memory_order import Axes, axes_in_memory, laid_out
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
        cost: measures the seconds that the prefix and serving take.
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
        self.seen: set[Key] = set()
        self.cost = ServingCost()
        self.was_known = False
        self.axes: dict[str, Axes] = {}  # in memory order, if that isn't C order

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
        missing = np.flatnonzero(rows.slots < 0)
        wanted = int(np.count_nonzero(missing < rows.size))
        self.was_known = not wanted
        if wanted < rows.size and self.checks.wants_check(kind, served.is_trusted):
            self.was_known = False
            self._check(rows, served, kind, state)
        computed: Columns = {}
        fresh = 0  # rows never seen before; a full store lacks some that were seen
        if wanted:
            missing, copies = _first_of_each(rows, missing)
            wanted = int(np.count_nonzero(missing < rows.size))
            fresh = sum(key not in self.seen for key in rows.keys(missing[:wanted]))
            computed = self._compute(rows, missing, served, kind, state)
            self._keep(rows, missing, computed)
            rows.found(copies, self.store.find(rows.keys(copies)))
            self.stats.misses += len(missing)
        known = rows.size - wanted
        self.checks.count(kind, rows.size, fresh)
        self.stats.hits += known - rows.first_asked()
        self.stats.rows, self.stats.bytes = self.store.rows, self.store.nbytes
        self.stats.base_passes = self.stats.misses / max(1, len(self.seen))
        if not wanted and (tensors := self._from_device(rows, served)) is not None:
            return tensors
        arrays = self._gathered(rows, missing, computed, served.part.columns)
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

    def _gathered(
        self, rows: Rows, missing: Positions, computed: Columns, wanted: list[str]
    ) -> Columns:
        """Returns the served columns, from the store or, for rows it has no room for, computed."""
        columns = [c for c in (self.store.columns or computed) if c.split(".")[0] in wanted]
        slots = rows.slots[: rows.size]
        kept = slots >= 0
        if kept.all():
            return {column: self.store.take(column, slots) for column in columns}
        place = {key: place for place, key in enumerate(rows.keys(missing))}
        without = np.flatnonzero(~kept)
        source = np.array([place[key] for key in rows.keys(without)])
        features: Columns = {}
        for column in columns:
            out = np.empty((rows.size, *computed[column].shape[1:]), computed[column].dtype)
            out[without] = computed[column][source]
            if kept.any():
                out[kept] = self.store.take(column, slots[kept])
            features[column] = out
        return features

    def _compute(
        self, rows: Rows, positions: Positions, served: StageServer, kind: str, state: Any
    ) -> Columns:
        """Runs the prefix on some of the rows, in batches of the size of this one.

        Rounding depends on the batch size, and JAX compiles once for each size.
        """
        others = np.setdiff1d(np.arange(len(rows)), positions)
        ordered = np.concatenate([positions, others])
        starts = range(0, len(positions), rows.size)
        batches = [np.resize(np.roll(ordered, -start), rows.size) for start in starts]
        began = time.perf_counter()
        self.checks.before_prefix()
        whole = len(batches) == 1 and len(positions) == rows.size == len(rows)
        try:
            parts = self._run(rows, [None] if whole else batches, served, kind, state)
        except NotCacheableError:
            self.checks.put_back()  # code before the error may have drawn random numbers
            raise
        self.checks.after_prefix()
        self.checks.prefix_seconds = time.perf_counter() - began
        return {
            name: _joined([part[name] for part in parts])[: len(positions)] for name in parts[0]
        }

    def _run(
        self, rows: Rows, batches: list[Any], served: StageServer, kind: str, state: Any
    ) -> list[Columns]:
        """Returns the features of batches. Each batch is the positions of its rows; None = all."""
        counts = [rows.size if positions is None else len(positions) for positions in batches]
        served.lighter.wait()
        began = time.perf_counter()
        features = served.prefix(kind)(state, [rows.inputs(positions) for positions in batches])
        served.backend.wait(features)
        if counts[0] == rows.size:  # a check may run fewer rows, each of which takes longer
            self.cost.add_prefix(time.perf_counter() - began, sum(counts))
        return [
            features_as_arrays(*one, served.backend) for one in zip(features, counts, strict=True)
        ]

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
        if kept < len(keys) and self.checks.once("budget"):
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
        positions = self.checks.draw(np.flatnonzero(rows.slots[: rows.size] >= 0), rows.size)
        (fresh,) = self._run(rows, [positions], served, kind, state)
        for name in self.store.columns:
            if not agree(self.store.take(name, rows.slots[positions]), fresh[name]):
                raise NotCacheableError(
                    "the frozen part gives different features for the same row: they are random, "
                    "or depend on the other rows of the batch",
                    "keep such layers out of the frozen part",
                )
        self.checks.check_seconds += time.perf_counter() - began


def features_as_arrays(features: dict[str, Any], count: int, backend: Any) -> Columns:
    """Returns the features of so many rows as arrays.

    Raises:
        NotCacheableError: they don't have a row for each row of the batch.
    """
    arrays = {name: backend.to_numpy(tensor) for name, tensor in features.items()}
    for array in arrays.values():
        if array.ndim == 0 or len(array) != count:
            raise NotCacheableError(
                f"the features of {count} rows have shape {array.shape}, not ({count}, ...)",
                "keep the batch axis first",
            )
    return arrays


def _is_finite(array: Array) -> bool:
    """Returns True if there is neither NaN nor infinity. May be False if the sum overflows."""
    dtype = array.dtype if array.dtype in (np.float32, np.float64) else np.float32
    with np.errstate(all="ignore"):
        return bool(np.isfinite(array.sum(dtype=dtype)))


def _joined(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _first_of_each(rows: Rows, positions: Positions) -> tuple[Positions, Positions]:
    """Splits positions into the first of each key, and the repeats."""
    first: dict[Key, int] = {}
    for position, key in zip(positions.tolist(), rows.keys(positions), strict=True):
        first.setdefault(key, position)
    chosen = np.array(sorted(first.values()), np.int64)
    return chosen, np.setdiff1d(positions, chosen)
