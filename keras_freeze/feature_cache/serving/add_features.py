"""Adds to a batch the features of its rows: what a served step gets in place of the batch."""

from __future__ import annotations

from typing import Any

import keras

from keras_freeze.feature_cache.serving.batch_features import BatchFeatures
from keras_freeze.feature_cache.serving.batch_rows import HashedRows, NumberedRows, Rows
from keras_freeze.feature_cache.serving.stage_server import Served
from keras_freeze.feature_cache.serving.train_and_test_feeds import Feeds
from keras_freeze.keras_internals.row_number_feed import Numbers

Batch = Any


class FeatureAdder:
    """Makes batches with features.

    Args:
        features: gives the features of rows.
        feeds: the arrays of which rows come by number.
        backend: the module of the backend.

    Attributes:
        batches: in an epoch of the steps that the checks judge; None = not known.
    """

    def __init__(self, features: BatchFeatures, feeds: Feeds, backend: Any):
        self.features = features
        self.store = features.store
        self.feeds = feeds
        self.backend = backend
        self.batches: int | None = None

    def add(self, served: Served, kind: str, state: Any, batch: Batch) -> Batch:
        """Returns (features by column, inputs that the tail reads, targets, sample weights).

        Args:
            served: what is served in the stage that runs.
            kind: "train" or "test".
            state: what goes before the data, where Keras calls a step.
            batch: as Keras hands it out, or with row numbers in place of its rows.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        rows = self._rows(served, kind, x)
        if kind == self.features.checks.kind and self.batches and self.store.expected is None:
            self.store.expected = self.batches * rows.size
        columns = self.features.of(rows, served, kind, state)
        tensors = {name: self.backend.to_tensor(array) for name, array in columns.items()}
        structure, specs = rows.specs()
        served.override.show(structure, specs)
        leaves = {str(place): rows.leaf(place) for place in served.shown(structure)}
        return tensors, leaves, y, sample_weight

    def _rows(self, served: Served, kind: str, x: Any) -> Rows:
        salt = served.salt(kind)
        if isinstance(x, Numbers) and x.feed is self.feeds.get(kind):
            places = served.places(x.feed.structure)
            at_once = self.features.at_once(served, len(x.numbers))
            return NumberedRows(x.numbers, x.feed, places, self.store, self.backend, salt, at_once)
        if isinstance(x, Numbers):  # of a `fit` that raised: the user kept its iterator
            x = x.feed.x(x.numbers)
        return HashedRows(x, served.places(x), self.store, self.backend, salt)
