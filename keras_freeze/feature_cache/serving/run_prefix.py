"""Runs the prefix (the frozen layers before the cut) on some rows of a batch."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from keras_freeze.feature_cache.checks.consistency_checks import ConsistencyChecks
from keras_freeze.feature_cache.checks.serving_cost import ServingCost
from keras_freeze.feature_cache.not_cacheable import NotCacheableError
from keras_freeze.feature_cache.serving.batch_rows import Positions, Rows
from keras_freeze.feature_cache.serving.brought_rows import Brought, Continuation
from keras_freeze.feature_cache.serving.stage_server import StageServer
from keras_freeze.feature_cache.storage.memory_order import laid_out

Array = np.ndarray[Any, Any]
Columns = dict[str, Array]


class PrefixRunner:
    """Runs the prefix, and measures what it takes.

    Args:
        checks: save what the prefix must not change.

    Attributes:
        cost: measures the seconds that the prefix and serving take.
    """

    def __init__(self, checks: ConsistencyChecks):
        self.checks = checks
        self.cost = ServingCost()

    def compute(
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
            parts = self.run(rows, [None] if whole else batches, served, kind, state)
        except NotCacheableError:
            self.checks.put_back()  # code before the error may have drawn random numbers
            raise
        self.checks.after_prefix()
        self.checks.prefix_seconds = time.perf_counter() - began
        return {
            name: _joined([part[name] for part in parts])[: len(positions)] for name in parts[0]
        }

    def run(
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

    def continued(
        self, known: Brought, by: Continuation, size: int, served: StageServer, state: Any
    ) -> Columns:
        """Computes features from those of an earlier cut, in batches of the usual size.

        Args:
            known: the features of the earlier cut.
            by: how to continue.
            size: number of rows of a batch.
            served: serves the running stage.
            state: the arguments of the step before the data.
        """
        count = len(known.positions)
        batches = [np.resize(np.arange(count)[start:], size) for start in range(0, count, size)]
        given = [
            {
                name: served.backend.to_tensor(laid_out(array[rows], known.axes.get(name)))
                for name, array in known.columns.items()
            }
            for rows in batches
        ]
        features = served.continued(by.calls)(state, given)
        parts = [features_as_arrays(each, size, served.backend) for each in features]
        return {name: _joined([part[name] for part in parts])[:count] for name in parts[0]}


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


def _joined(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
