"""Runs groups of steps on cached features, each group in one compiled call."""

from __future__ import annotations

import time
from typing import Any

import keras
import numpy as np

from keras_freeze.feature_cache.backends.tables import Tables
from keras_freeze.feature_cache.serving.batch_rows import NumberedRows
from keras_freeze.feature_cache.serving.get_or_compute_features import BatchFeatures
from keras_freeze.feature_cache.serving.group_sizes import GroupSizes
from keras_freeze.feature_cache.serving.stage_server import StageServer
from keras_freeze.feature_cache.serving.train_and_test_feeds import Feeds
from keras_freeze.keras_internals.group_batches import (
    Group,
    can_group,
    put_groups,
    take_groups_back,
)
from keras_freeze.keras_internals.row_numbers_instead_of_rows import ArrayFeed
from keras_freeze.keras_internals.temporary_attributes import attributes

Array = np.ndarray[Any, Any]
INPUTS = 1 << 26  # bytes of the inputs that the layers after the cut may read


class CannotGroupError(Exception):
    """The steps can't run in a compiled loop."""


class GroupedSteps:
    """Runs the steps of epochs whose rows are all known in groups.

    Args:
        features: the features of rows.
        feeds: the arrays whose batches hold row numbers.
        backend: the module of the backend.

    Attributes:
        alone: for "train" and "test", whether no other callback acts on batches.
    """

    def __init__(self, features: BatchFeatures, feeds: Feeds, backend: Any):
        self.features = features
        self.store = features.store
        self.feeds = feeds
        self.backend = backend
        self.sizes = GroupSizes()
        self.alone = {"train": False, "test": False}

    def begin_epoch(self, served: StageServer, kind: str, epochs: int) -> None:
        """Lets Keras' iterator yield groups in the next epoch, if that is possible and faster.

        Args:
            served: serves the running stage.
            kind: "train" or "test".
            epochs: number of epochs until the end of the stage.
        """
        self.sizes.begin_epoch(kind)
        feed = self.feeds.get(kind)
        if feed is None:
            return
        steps = len(feed) // feed.adapter.batch_size
        wanted = self.alone[kind] and self.sizes.is_worth_it(kind, steps, epochs)
        if wanted and self._is_possible(served, feed):
            put_groups(feed, lambda: self.sizes.size(kind))
        else:
            take_groups_back(feed)

    def _is_possible(self, served: StageServer, feed: ArrayFeed) -> bool:
        structure = feed.structure
        inputs = [feed.leaves[place] for place in served.shown(structure)]
        return (
            can_group(feed)
            and served.can_loop
            and not self.features.axes
            and bool((feed.slots >= 0).all())
            and self.store.chunk_of(feed.slots) is not None
            and sum(leaf.nbytes for leaf in inputs) <= INPUTS
        )

    def can_run(self, served: StageServer, kind: str, group: Group) -> bool:
        """Returns True if a group can run in one call."""
        is_full = group.numbers.shape[1] == group.feed.adapter.batch_size
        same = group.feed is self.feeds.get(kind)
        known = same and bool((group.feed.slots[group.numbers] >= 0).all())
        return is_full and known and served.can_loop and not self.sizes.times[kind].is_off

    def run(self, served: StageServer, kind: str, args: tuple[Any, ...]) -> Any:
        """Runs the steps of a group; returns what the step function returns for the last one.

        Args:
            served: serves the running stage.
            kind: "train" or "test".
            args: the arguments with which Keras called the step function.

        Raises:
            NotCacheableError: cached features are wrong.
            CannotGroupError: the step can't run in a loop. Nothing has changed.
        """
        group: Group = args[-1]
        feed, numbers = group.feed, group.numbers
        state = self.backend.state_of(args)
        began = time.perf_counter()
        served.override.check_used()
        with attributes(served.patches):
            rows = NumberedRows(
                numbers[0], feed, served.places(feed.structure), self.store, self.backend
            )
            self.features.serve_known(rows, numbers, served, kind, state)
            served.override.show(*rows.specs())
            chunk = self.store.chunk_of(feed.slots)
            tables = self._tables(served, feed, chunk)
            slots = feed.slots[numbers] - self.store.starts[chunk]
            most = len(feed) // feed.adapter.batch_size
            result = served.loop(kind).run(state, tables, slots, numbers, most)
        served.lighter.wait()
        self.sizes.add_group(kind, len(group), time.perf_counter() - began)
        self.features.stats.grouped += len(group)
        return result

    def _tables(self, served: StageServer, feed: ArrayFeed, chunk: int) -> Tables:
        columns = {
            name: chunks[chunk]
            for name, chunks in self.store.columns.items()
            if name.split(".")[0] in served.part.columns
        }
        to_table = self.backend.to_table
        features = {name: to_table(array) for name, array in columns.items()}
        everything = np.arange(len(feed))
        leaves = {
            str(place): to_table(feed.rows(place, everything))
            for place in served.shown(feed.structure)
        }
        others = keras.tree.map_structure(
            lambda array: None if array is None else to_table(array), feed.other_tables()
        )
        return Tables(features, leaves, others)
