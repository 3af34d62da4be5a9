"""The cache of one `fit`: follows the stages, runs steps on cached features, or gives up."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import keras

from keras_freeze.feature_cache.cache_stats import CacheStats
from keras_freeze.feature_cache.checks.consistency_checks import ConsistencyChecks
from keras_freeze.feature_cache.cutting.choose_cached_part import (
    ChosenCut,
    choose,
    choose_for_both,
)
from keras_freeze.feature_cache.cutting.graph_to_cut import CachedModel
from keras_freeze.feature_cache.cutting.prefix_and_tail import GraphPrefix, LayerPrefix
from keras_freeze.feature_cache.cutting.tensors_to_cache import Flags
from keras_freeze.feature_cache.not_cacheable import NotCacheableError, StaleRowsError, tell
from keras_freeze.feature_cache.serving.device_tables import DeviceTables
from keras_freeze.feature_cache.serving.get_or_compute_features import BatchFeatures
from keras_freeze.feature_cache.serving.run_steps import Plain, StepRunner
from keras_freeze.feature_cache.serving.stage_server import StageServer
from keras_freeze.feature_cache.serving.train_and_test_feeds import Feeds
from keras_freeze.feature_cache.storage.memory_limit_and_dtype import free_memory
from keras_freeze.feature_cache.storage.memory_store import MemoryStore
from keras_freeze.keras_internals.group_batches import Group

if TYPE_CHECKING:  # it needs LMDB
    from keras_freeze.feature_cache.serving.stored_rows import StoredRows


class FeatureCache:
    """The cache of one `fit`. A row is one sample of the data; its features are computed once.

    Args:
        cached_model: the model.
        stats: statistics that the cache updates.
        max_bytes: memory limit of all rows; None = half of the free memory.
        dtype: dtype in which float features are kept; None = their own.
        validates: whether the fit has validation data.
        trains: False = only validation is served, whatever training could be.
        stored: returns the rows in a directory, given those in memory; None = no directory.

    Attributes:
        served: serves the running stage; None if nothing is served.
        feeds: arrays whose batches hold row numbers, by kind of step ("train" or "test").
    """

    def __init__(
        self,
        cached_model: CachedModel,
        stats: CacheStats,
        max_bytes: int | None,
        dtype: Any,
        *,
        validates: bool,
        trains: bool = True,
        stored: Callable[[MemoryStore], StoredRows] | None = None,
    ):
        self.cached_model = cached_model
        self.validates = validates
        self.trains = True
        self.stats = stats
        self.backend = importlib.import_module(
            f"keras_freeze.feature_cache.backends.on_{keras.backend.backend()}"
        )
        self.store = MemoryStore(free_memory() // 2 if max_bytes is None else max_bytes)
        self.checks = ConsistencyChecks(self.backend)
        tables = DeviceTables(self.store, self.backend)
        self.features = BatchFeatures(self.store, tables, self.checks, stats)
        self.stored = stored(self.store) if stored is not None else None
        self.features.bringer.stored = self.stored
        self.dtype = dtype
        self.feeds = Feeds(self.backend, on_device=tables.on_device)
        serving = self.features, tables, self.feeds, self.backend, cached_model.model
        self.steps = StepRunner(*serving, self._find_served, self._stop)
        self.served: StageServer | None = None
        self.stage = 0
        self.part: GraphPrefix | LayerPrefix | None = None  # the last part that was served
        self.barred: NotCacheableError | None = None  # training can't be served in any stage
        self.is_due = False  # choose a cut again when the next validation begins
        stats.enabled = True
        try:
            self.backend.check(cached_model.model)
            cached_model.check()
        except NotCacheableError as error:
            self.step_aside(error)
        self.trains = trains

    def set_alone(self, alone: dict[str, bool]) -> None:
        """Says for "train" and "test" whether no other callback acts on batches."""
        self.steps.alone = alone

    def serves(self, kind: str) -> bool:
        """Returns True if "train" or "test" steps are served in the running stage."""
        return self.served is not None and (self.served.training or kind == "test")

    def is_busy(self, kind: str) -> bool:
        """Returns True if `step` must run the "train" or "test" steps."""
        return self.serves(kind) or kind in self.feeds or self.steps.has_stopped

    def _find_served(self, kind: str) -> StageServer | None:
        return self.served if self.serves(kind) else None

    def follow(self, stage: int, now: Flags, later: Sequence[Flags]) -> None:
        """Moves the cut (where features are cached) to its place in a stage.

        Args:
            stage: number of the stage.
            now: its flags, `{id(leaf): trainable}`.
            later: the flags of each later stage, in order.
        """
        self.stage = stage
        self.flags = now, later
        self.steps.begin_stage()
        self._begin_stage()

    def _begin_stage(self) -> None:
        self.served, self.is_due = None, False
        if not self.stats.enabled:
            return
        try:
            if self.store.rows:
                self.checks.check_weights()  # before fingerprints of the new weights are taken
            self._serve(self._choose())
        except NotCacheableError as error:
            self.step_aside(error)

    def _choose(self) -> ChosenCut:
        """Chooses what to serve to training and validation, or to validation only."""
        if not self.trains:
            return choose(self.cached_model, *self.flags, training=False)
        kinds = self.validates, not self.stats.cuts
        choice, bar = choose_for_both(self.cached_model, *self.flags, self.barred, *kinds)
        if bar is not None:
            self._tell_of_validation(bar)
        return choice

    def _serve(self, choice: ChosenCut) -> None:
        kept = self._keep_only(choice.columns)
        if (part := choice.part) is not None:
            if kept and self.part is not None:
                part.follow(self.part)
            arguments = self.cached_model, part, self.flags[0], self.backend, self.dtype
            self.served = StageServer(*arguments, training=choice.training)
            if (stored := self.stored) is not None:
                stored.begin_stage(part, self.dtype, is_known=self.served.alike)
            self.steps.serve(part.flops)
            self.part = part
            self.stats.cuts[self.stage] = choice.names
            self.checks.look_at(part.layers, self.cached_model.around, training=choice.training)
            if choice.training:
                self.stats.validation_only, self.stats.reason = False, ""

    def _tell_of_validation(self, error: NotCacheableError) -> None:
        self.stats.validation_only, self.stats.reason = True, error.reason
        if self.checks.once("validation only"):
            tell(f"serves validation only: {error.reason}. To cache training too, {error.remedy}.")

    def _keep_only(self, columns: Sequence[str] | None) -> bool:
        """Frees columns that no later stage needs; False if some are missing: all are removed."""
        if columns is None:
            columns = list(self.store.columns)
        if self.stored is not None:
            self.stored.end_stage(self.features.axes)
        held = {column for column in self.store.columns if column.split(".")[0] in columns}
        if columns and set(columns) <= held:
            self.steps.forget()
            self.store.keep_only(held)
            self.stats.bytes = self.store.nbytes
            return True
        self._forget()
        return False

    def _forget(self) -> None:
        self.steps.forget()
        self.store.clear()
        self.stats.rows = self.stats.bytes = 0
        self.checks.poor = 0
        self.feeds.forget()

    def begin_epoch(self, iterator: Any, epochs: int = 1, left: int | None = None) -> None:
        """Checks what may have changed since the last epoch, and prepares the next.

        Args:
            iterator: yields the training batches.
            epochs: number of epochs until the end of the stage.
            left: unused: number of epochs until the end of the fit, if known.
        """
        self.epochs = epochs
        if self.serves("train"):
            self._look_again()
        if self.serves("train"):
            self._expect(iterator)
            self.feed("train", iterator)
            self.steps.begin_epoch("train", epochs)
        else:
            self.feeds.stop("train", *([] if self.serves("test") else ["test"]))
        self.checks.begin_epoch()
        if self.checks.last_rows and self.checks.kind not in self.feeds:
            self.store.expected = self.checks.last_rows  # the last batch may be smaller

    def begin_test(self, iterator: Any) -> None:
        """Prepares a validation, with the checks of an epoch if training isn't served.

        Args:
            iterator: yields the validation batches.
        """
        if self.is_due:
            self._begin_stage()
        alone = not self.serves("train")
        if alone and self.serves("test"):
            self._look_again()
        if alone and self.serves("test"):
            self._expect(iterator)
        elif alone:
            self.feeds.stop("test")
        self.feed("test", iterator)
        self.steps.begin_epoch("test", self.epochs)

    def _look_again(self) -> None:
        """Steps aside if weights or arrays were changed."""
        assert self.served is not None
        try:
            self.checks.check_weights()
            for feed in self.feeds:
                self.checks.check_rows(feed, self.served.places(feed.structure))
        except NotCacheableError as error:
            self.step_aside(error)

    def _expect(self, iterator: Any) -> None:
        self.steps.adder.batches = getattr(iterator, "num_batches", None)
        self.checks.patience = 1 if getattr(iterator, "steps_per_epoch", None) is None else 3

    def end_epoch(self, *, is_complete: bool = True) -> None:
        """Steps aside if almost no row of this epoch was known; `is_complete` is unused."""
        try:
            if self.served is not None:
                self.checks.check_hits()
        except NotCacheableError as error:
            self.step_aside(error)

    def feed(self, kind: str, iterator: Any) -> None:
        """Makes an iterator over arrays yield row numbers, if possible."""
        feed = self.feeds.put(kind, iterator) if self.served is not None else None
        if feed is not None and self.served is not None:
            self.checks.check_rows(feed, self.served.places(feed.structure))  # takes a sample
        if feed is not None and kind == self.checks.kind and not self.store.rows:
            self.store.expected = len(feed)
        if feed is not None and self.served is not None:
            self.features.bringer.bring_all(feed, self.served, kind)

    def step(self, kind: str, args: tuple[Any, ...], plain: Plain) -> Any:
        """Runs a step of `fit` or of its validation.

        Args:
            kind: "train" or "test".
            args: the arguments with which Keras called the model's train or test function.
            plain: returns the function that runs the whole model.
        """
        if not self.is_busy(kind) and not isinstance(args[-1], Group):
            return self.backend.plain(plain(), *args)
        return self.steps.run(kind, args, plain)

    def _stop(self, error: NotCacheableError, kind: str) -> None:
        """Stops serving within a step; validation may still be served after this epoch."""
        if isinstance(error, StaleRowsError) and self.stored is not None:
            self.stored.distrust()
            self._forget()
            return
        if kind == "test" or not error.in_training or not self.validates:
            self.step_aside(error)
            return
        self.barred = error.with_traceback(None)
        self.served = None
        self._forget()
        self.is_due = True  # not now: on JAX, variables are empty within an epoch

    def step_aside(self, error: NotCacheableError) -> None:
        """Stops caching: the whole model runs in each step from now on."""
        self.served = None
        self.stats.enabled = self.stats.validation_only = False
        self.stats.reason = error.reason
        self._forget()
        what = "stepped aside, and the run continues without it"
        what += "" if self.trains else " for validation"
        tell(f"{what}: {error.reason}. To use the cache, {error.remedy}.")

    def close(self) -> None:
        """Frees the memory and restores the iterators; the statistics stay."""
        self.served = None
        if self.stored is not None:
            self.stored.close(self.features.axes)
        self.steps.forget()
        self.store.clear()
        self.feeds.close()
        self.features.seen.clear()
