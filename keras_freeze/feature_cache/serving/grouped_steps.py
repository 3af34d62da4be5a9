"""Runs groups of steps on cached features, each group in one compiled call."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_freeze.feature_cache.backends.step_loops.batch_tables import CannotLoopError, Tables
from keras_freeze.feature_cache.serving.batch_rows import NumberedRows
from keras_freeze.feature_cache.serving.device_tables import DeviceTables
from keras_freeze.feature_cache.serving.get_or_compute_features import BatchFeatures
from keras_freeze.feature_cache.serving.group_sizes import GroupSizes, GroupTimer
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


class GroupedSteps:
    """Runs the steps of epochs whose rows are all known in groups.

    Args:
        features: the features of rows.
        tables: features on the device.
        feeds: the arrays whose batches hold row numbers.
        backend: the module of the backend.

    Attributes:
        sizes: decides how many steps a group has.
    """

    def __init__(self, features: BatchFeatures, tables: DeviceTables, feeds: Feeds, backend: Any):
        self.features = features
        self.store = features.store
        self.feeds = feeds
        self.backend = backend
        self.tables = tables
        self.of_epoch: dict[str, tuple[Tables, int]] = {}
        self.sizes = GroupSizes()
        self.timer = GroupTimer(self.sizes)

    def begin_epoch(self, served: StageServer, kind: str, epochs: int) -> None:
        """Lets Keras' iterator yield groups in the next epoch, if that is possible and faster.

        Args:
            served: serves the running stage.
            kind: "train" or "test".
            epochs: number of epochs until the end of the stage; 0 = no groups.
        """
        self.timer.begin_epoch()
        self.of_epoch.pop(kind, None)
        feed = self.feeds.get(kind)
        if feed is None:
            return
        steps = len(feed) // feed.adapter.batch_size
        self.sizes.begin_epoch(kind, steps)
        if self.sizes.is_worth_it(kind, steps, epochs) and self._is_possible(served, feed):
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
            and self.tables.chunk_of(feed.slots) is not None
            and not self.tables.is_full
            and sum(leaf.nbytes for leaf in inputs) <= INPUTS
        )

    def forget(self) -> None:
        """Frees the tables of the running epoch."""
        self.of_epoch.clear()

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
            CannotLoopError: the steps can't run in a loop. Nothing has changed.
        """
        group: Group = args[-1]
        feed, numbers = group.feed, group.numbers
        state = self.backend.state_of(args)
        self.timer.begin_group(kind, len(group), served.lighter.wait)
        served.override.check_used()
        with attributes(served.patches):
            rows = NumberedRows(
                numbers[0], feed, served.places(feed.structure), self.store, self.backend
            )
            tables, start = self._tables(served, kind, feed)
            slots = feed.slots[numbers] - start
            self.features.check_if_due(rows, served, kind, state)
            served.override.show(*rows.specs())
            most = len(feed) // feed.adapter.batch_size
            result = served.loop(kind).run(state, tables, slots, numbers, most)
        self.features.count_known(rows, numbers, kind)
        return result

    def _tables(self, served: StageServer, kind: str, feed: ArrayFeed) -> tuple[Tables, int]:
        """Returns the tables of the running epoch, and the slot of their first row."""
        if kind not in self.of_epoch:
            self.of_epoch[kind] = self._made(served, feed)
        return self.of_epoch[kind]

    def _made(self, served: StageServer, feed: ArrayFeed) -> tuple[Tables, int]:
        chunk = self.tables.chunk_of(feed.slots)
        features = None if chunk is None else self.tables.columns(chunk, served.part.columns)
        if chunk is None or features is None:
            raise CannotLoopError("the device lacks memory for the features")
        to_table = self.backend.to_table
        everything = np.arange(len(feed))
        leaves = {
            str(place): to_table(feed.rows(place, everything))
            for place in served.shown(feed.structure)
        }
        tables = Tables(features, leaves, feed.others_of(slice(None)))
        return tables, self.store.starts[chunk]
