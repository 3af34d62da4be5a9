"""Runs the steps of a `fit`: on cached features, one by one or in groups, or of the whole model."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from keras_freeze.feature_cache.backends.step_loops.batch_tables import CannotLoopError
from keras_freeze.feature_cache.checks.compare_step_times import StepTrial
from keras_freeze.feature_cache.not_cacheable import NotCacheableError
from keras_freeze.feature_cache.serving.add_features_to_batch import FeatureAdder
from keras_freeze.feature_cache.serving.device_tables import DeviceTables
from keras_freeze.feature_cache.serving.get_or_compute_features import BatchFeatures
from keras_freeze.feature_cache.serving.grouped_steps import GroupedSteps
from keras_freeze.feature_cache.serving.stage_server import StageServer
from keras_freeze.feature_cache.serving.train_and_test_feeds import Feeds
from keras_freeze.keras_internals.group_batches import Group
from keras_freeze.keras_internals.row_numbers_instead_of_rows import restored

Batch = Any
Plain = Callable[[], Callable[..., Any]]


class StepRunner:
    """Runs the steps of one `fit`, each in one of three ways.

    - On cached features, one step a call.
    - On cached features, a group of steps a call, if all rows of the epoch are known, no callback
      acts on batches, and groups are faster.
    - The whole model, without the cache: if the features can't be served, and in the turns of a
      trial that compares both.

    Args:
        features: the features of rows.
        tables: features on the device.
        feeds: the arrays whose batches hold row numbers.
        backend: the module of the backend.
        model: the model that is fitted.
        find_served: returns what serves "train" or "test" steps now, or None.
        stop: is called with an error, and "train" or "test", when a step can't be served.

    Attributes:
        alone: for "train" and "test", whether no other callback acts on batches.
        has_stopped: whether the whole model runs until the epoch ends.
        pull_seconds: time in which training steps took batches.
    """

    def __init__(
        self,
        features: BatchFeatures,
        tables: DeviceTables,
        feeds: Feeds,
        backend: Any,
        model: Any,
        find_served: Callable[[str], StageServer | None],
        stop: Callable[[NotCacheableError, str], None],
    ):
        self.features = features
        self.tables = tables
        self.feeds = feeds
        self.backend = backend
        self.model = model
        self.find_served = find_served
        self.stop = stop
        self.adder = FeatureAdder(features, feeds, backend)
        self.grouped = GroupedSteps(features, tables, feeds, backend)
        self.trial = StepTrial()
        self.alone = {"train": False, "test": False}
        self.pull_seconds = 0.0

    def begin_stage(self) -> None:
        """Begins a stage; nothing is served yet."""
        self.has_stopped = False
        self.whole = self.backend.UsedStateStep(self.model, hidden=[])

    def serve(self, flops: float | None) -> None:
        """Begins to measure the steps of a stage that is served.

        Args:
            flops: floating point operations of the stage's prefix for one row, if known.
        """
        self.features.cost.begin_stage(flops)
        self.trial.begin_stage()
        self.grouped.sizes.begin_stage()

    def begin_epoch(self, kind: str, epochs: int) -> None:
        """Prepares the next epoch or validation, whose iterator is known.

        Args:
            kind: "train" or "test".
            epochs: number of epochs until the end of the stage.
        """
        self.tables.begin_epoch()
        if kind == "train":
            self.trial.begin_epoch()
        can_tell = self.features.cost.is_known or not self.features.stats.misses
        if self.adder.is_measured and can_tell and self.adder.is_clear():
            self.trial.is_over = True
        served = self.find_served(kind)
        if served is not None:
            self.features.bringer.begin_epoch(self.feeds.get(kind), served, kind)
            wanted = self.trial.is_over and self.alone[kind]
            self.grouped.begin_epoch(served, kind, epochs if wanted else 0)

    def forget(self) -> None:
        """Frees what was copied from the store."""
        self.tables.forget()
        self.grouped.forget()

    def run(self, kind: str, args: tuple[Any, ...], plain: Plain) -> Any:
        """Runs a step, or a group of steps.

        Args:
            kind: "train" or "test".
            args: the arguments with which Keras called the model's train or test function.
            plain: returns the function that runs the whole model.
        """
        if isinstance(args[-1], Group):
            return self._run_group(kind, args, plain)
        began = time.perf_counter()
        result = self._run_step(kind, args, plain)
        seconds = time.perf_counter() - began
        self.grouped.sizes.add_single(kind, seconds, known=self.features.was_known)
        return result

    def _run_group(self, kind: str, args: tuple[Any, ...], plain: Plain) -> Any:
        """Runs a group in one call, or else one step after the other."""
        served = self.find_served(kind)
        if served is not None and self.grouped.can_run(served, kind, args[-1]):
            try:
                return self.grouped.run(served, kind, args)
            except NotCacheableError as error:
                self.stop(error, kind)
            except CannotLoopError:
                self.grouped.sizes.stop(kind)
        before = args[:-1]
        for batch in args[-1].one_by_one():
            result = self._run_step(kind, (*before, batch), plain)
            before = self.backend.next_args(result)
        return result

    def _run_step(self, kind: str, args: tuple[Any, ...], plain: Plain) -> Any:
        began = time.perf_counter()
        state, batches = self.backend.pull(args, self.model.steps_per_execution)
        self.pull_seconds += time.perf_counter() - began if kind == "train" else 0.0
        if not batches:
            raise StopIteration
        while (served := self.find_served(kind)) is not None:
            try:
                if kind == "train" and self._wants_whole(served):
                    return self._run_whole(plain, state, batches)
                return self.adder.step(served, kind, state, batches)
            except NotCacheableError as error:
                self.stop(error, kind)
        self.has_stopped = True
        return self._run_whole(plain, state, batches)

    def _wants_whole(self, served: StageServer) -> bool:
        running = [served.lighter, self.whole]
        return self.adder.is_measured and self.trial.wants_whole(self.adder.is_clear, running)

    def _run_whole(self, plain: Plain, state: Any, batches: list[Batch]) -> Any:
        sent = [self.feeds.sent(restored(batch)) for batch in batches]
        return self.whole.step(plain(), state, sent)
