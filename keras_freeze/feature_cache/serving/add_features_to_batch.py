"""Adds to a batch the cached features of its rows, for a step that doesn't run the base."""

from __future__ import annotations

import time
from typing import Any

import keras

from keras_freeze.feature_cache.serving.batch_rows import HashedRows, NumberedRows, Rows
from keras_freeze.feature_cache.serving.get_or_compute_features import BatchFeatures
from keras_freeze.feature_cache.serving.stage_server import StageServer
from keras_freeze.feature_cache.serving.train_and_test_feeds import Feeds
from keras_freeze.keras_internals.row_numbers_instead_of_rows import Numbers
from keras_freeze.keras_internals.temporary_attributes import attributes

Batch = Any


class FeatureAdder:
    """Adds features to batches.

    Args:
        features: returns the features of rows.
        feeds: the arrays whose batches hold row numbers instead of rows.
        backend: the module of the backend.

    Attributes:
        rows: number of rows of the last batch.
        batches: number of batches in an epoch, of the steps whose hits count; None = unknown.
    """

    def __init__(self, features: BatchFeatures, feeds: Feeds, backend: Any):
        self.features = features
        self.store = features.store
        self.feeds = feeds
        self.backend = backend
        self.batches: int | None = None
        self.rows = 0

    @property
    def is_measured(self) -> bool:
        """True if the last batch was known, and enough batches were measured."""
        return self.features.was_known and not self.features.cost.is_due

    def is_clear(self) -> bool:
        """Returns True if serving batches is clearly faster than running the prefix on them."""
        return self.features.cost.is_clear(self.rows)

    def step(self, served: StageServer, kind: str, state: Any, batches: list[Batch]) -> Any:
        """Runs a train or test step on the features of batches; the arguments are those of `add`.

        Raises:
            NotCacheableError: the features can't be computed, or cached ones are wrong.
        """
        served.override.check_used()
        with attributes(served.patches):
            brought = [self.add(served, kind, state, batch) for batch in batches]
            return served.lighter.step(served.function(kind), state, brought)

    def add(self, served: StageServer, kind: str, state: Any, batch: Batch) -> Batch:
        """Returns (features by column, inputs that the tail reads, targets, sample weights).

        Args:
            served: serves the running stage.
            kind: "train" or "test".
            state: the arguments that Keras passes to a step before the data.
            batch: a batch as Keras yields it, or with row numbers instead of rows.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        cost = self.features.cost
        if is_due := cost.is_due:
            served.lighter.wait()
        began = time.perf_counter()
        rows = self._rows(served, kind, x)
        if kind == self.features.checks.kind and self.batches and self.store.expected is None:
            self.store.expected = self.batches * rows.size
        tensors = self.features.of(rows, served, kind, state)
        structure, specs = rows.specs()
        served.override.show(structure, specs)
        leaves = {str(place): rows.leaf(place) for place in served.shown(structure)}
        leaves, y, sample_weight = self.feeds.sent((leaves, y, sample_weight))
        self.rows = rows.size
        if is_due and self.features.was_known:
            self.backend.wait(tensors)
            cost.add_served(time.perf_counter() - began, rows.size)
        return tensors, leaves, y, sample_weight

    def _rows(self, served: StageServer, kind: str, x: Any) -> Rows:
        salt = served.salt(kind)
        if isinstance(x, Numbers) and x.feed is self.feeds.get(kind):
            places = served.places(x.feed.structure)
            at_once = self.features.at_once(served, len(x.numbers))
            return NumberedRows(x.numbers, x.feed, places, self.store, self.backend, salt, at_once)
        if isinstance(x, Numbers):  # from an interrupted `fit`, if the user kept its iterator
            x = x.feed.x(x.numbers)
        return HashedRows(x, served.places(x), self.store, self.backend, salt, self.feeds.sent)
