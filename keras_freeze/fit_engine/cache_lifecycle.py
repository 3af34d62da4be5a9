"""Calls the feature cache at the events of a `fit`, and returns the lines to print about it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from keras_freeze.errors import LayerMatchError
from keras_freeze.feature_cache.cache import FeatureCache
from keras_freeze.feature_cache.cache_stats import CacheStats
from keras_freeze.feature_cache.cutting.graph_to_cut import CachedModel
from keras_freeze.feature_cache.cutting.tensors_to_cache import Flags
from keras_freeze.feature_cache.storage.memory_limit_and_dtype import numpy_dtype
from keras_freeze.feature_cache.storage.memory_store import MemoryStore
from keras_freeze.feature_cache.views_cache import ViewsCache
from keras_freeze.fit_engine.cache_lines import CacheLines, ViewsLines
from keras_freeze.fit_engine.trainable_plan import Plan
from keras_freeze.graph.find_base import find_base
from keras_freeze.graph.layer_tree import Layer, own_variables
from keras_freeze.keras_internals import callbacks_of_fit
from keras_freeze.keras_internals.replace_step_functions import GuardedStep, ServedTest
from keras_freeze.keras_internals.trainable_flags import flags_now


class CacheLifecycle:
    """The cache of one fit.

    Args:
        callback: the `BottleneckCache`.
        model: the model that is fitted.
        plan: which layers are trainable in which stage.
        epochs: number of epochs of the fit, if known.
        early: whether stages may begin before their epochs.
        in_threads: whether Keras calls `on_test_batch_end` from other threads.
        alone: for "train" and "test", whether no other callback acts on batches.

    Raises:
        LayerMatchError: the callback's `base` isn't part of the model.
    """

    def __init__(
        self,
        callback: Any,
        model: Any,
        plan: Plan,
        epochs: int | None,
        *,
        early: bool = False,
        in_threads: bool = False,
        alone: dict[str, bool],
    ):
        self.callback = callback
        self.model = model
        self.plan = plan
        self.epochs = epochs
        self.in_threads = in_threads
        self.reached = None if early else epochs  # stages from this epoch on are never reached
        self.iterator = callbacks_of_fit.epoch_iterator()
        self.test: ServedTest | None = None
        served = _served_leaves(callback.base, model, plan)
        cached_model = CachedModel(model, plan.tree, served, plan.base_leaves)
        dtype = numpy_dtype(callback.dtype) if callback.dtype else None
        callback.stats = CacheStats()
        memory = callback.byte_limit if callback.path is None else None  # it limits the disk then
        arguments = cached_model, callback.stats, memory, dtype
        network = " + ".join(base.label for base in plan.bases) or model.name
        stored = None if callback.path is None else stored_rows(callback, network)
        validates = callbacks_of_fit.validates()
        self.cache: FeatureCache | ViewsCache
        self.lines: CacheLines | ViewsLines
        if callback.views is None:
            self.cache = FeatureCache(*arguments, validates=validates, stored=stored)
            self.lines = CacheLines(self.cache, epochs, verbose=callback.verbose)
        else:
            views: dict[str, Any] = {"views": callback.views, "shuffle": callback.shuffle}
            views |= {"stored": stored, "stored_views": _stored_views(callback, network)}
            self.cache = ViewsCache(*arguments, **views, validates=validates)
            self.lines = ViewsLines(self.cache, epochs, verbose=callback.verbose)
        self.cache.set_alone(alone)

    @property
    def server(self) -> FeatureCache | ViewsCache | None:
        """The cache if it runs the train steps, else None."""
        return self.cache if self.cache.is_busy("train") else None

    def follow(self, number: int) -> None:
        """Moves the cache to a stage whose flags have been set."""
        now = flags_now(self.plan.tree)
        later = [now | flags for flags in self.plan.flags_after(number, self.reached)]
        self.cache.follow(number, now, later)

    def begin_data(self, step: GuardedStep, epoch: int, epochs: int) -> str:
        """Prepares the cache for the batches of an epoch; returns what to print.

        Args:
            step: the train function of the fit.
            epoch: number of the epoch, from 0.
            epochs: number of epochs until the end of the stage.
        """
        left = None if self.epochs is None else self.epochs - epoch
        self.cache.begin_epoch(self.iterator, epochs, left)
        if self.server is not step.server:
            step.refresh(made=False, server=self.server)
        return self.lines.begin_epoch(epoch)

    def end_data(self, epoch: int, *, is_complete: bool) -> str:
        """Checks the cache after an epoch and its validation; returns what to print.

        Args:
            epoch: number of the epoch, from 0.
            is_complete: False if a callback ended the epoch early.
        """
        self.cache.end_epoch(is_complete=is_complete)
        return self.lines.end_epoch(epoch)

    def state(self) -> Any:
        """Returns what a backup must know of recorded views; features are found or computed."""
        return self.cache.recorder.state() if isinstance(self.cache, ViewsCache) else None

    def restore(self, state: Any) -> None:
        """Continues with what `state` returned."""
        if isinstance(self.cache, ViewsCache) and state is not None:
            self.cache.recorder.continue_with(state, partial(self._load_views, state["stage"]))

    def limit_views(self, count: int | None) -> None:
        """Lets at most `count` stored views be found, as when the run began; None = all."""
        if isinstance(self.cache, ViewsCache) and count is not None:
            self.cache.recorder.recordings.findable = count

    def stored_views(self) -> int | None:
        """Returns how many views were found in the directory; None if none are kept there."""
        if not isinstance(self.cache, ViewsCache) or self.cache.recorder.stored is None:
            return None
        return self.cache.recorder.recordings.loaded

    def _load_views(self, number: int) -> None:
        """Loads views that were recorded in a stage, and keeps what the running stage needs."""
        assert isinstance(self.cache, ViewsCache)
        recorder, running = self.cache.recorder, self.cache.stage
        if number != running:
            recorder.follow(number, *self._flags_of(number))
        recorder.recordings.load(self.iterator.num_batches)
        if number != running:  # else the folder stays open, for the views that are still to come
            recorder.follow(running, *self._flags_of(running))

    def _flags_of(self, number: int) -> tuple[Flags, list[Flags]]:
        """Returns the flags of a stage, and those of the stages after it."""
        now = flags_now(self.plan.tree) | self.plan.flags[number]
        return now, [now | flags for flags in self.plan.flags_after(number, self.reached)]

    def flush(self) -> None:
        """Writes recorded views that wait to be written, as a backup counts on them."""
        if isinstance(self.cache, ViewsCache) and self.cache.recorder.stored is not None:
            self.cache.recorder.stored.finish()

    def pulled(self) -> float:
        """Returns the seconds that taking batches took within steps, since the last call."""
        if isinstance(self.cache, ViewsCache):
            return 0.0  # it isn't measured, as no line tells it
        steps = self.cache.steps
        seconds, steps.pull_seconds = steps.pull_seconds, 0.0
        return seconds

    def begin_test(self, step: GuardedStep) -> None:
        """Prepares the cache for a validation within the fit."""
        step.follow_compile()
        self.test = None
        self.cache.begin_test(callbacks_of_fit.evaluation_iterator(self.model))
        if self.cache.is_busy("test"):
            self.test = ServedTest(self.model, self.cache, self._after_test_step)

    def _after_test_step(self) -> None:
        if self.in_threads:
            self.wake_test_feed()

    def wake_test_feed(self) -> None:
        """Lets the next validation batch be read, since the hooks of the last one have run."""
        feed = self.cache.feeds.get("test")
        if feed is not None:
            feed.wake()

    def arm_test(self) -> None:
        """Lets the cache serve the next validation step."""
        if self.test is not None:
            self.test.arm()


def stored_rows(callback: Any, network: str) -> Callable[[MemoryStore], Any]:
    """Returns a function that opens the directory of a cache, given the rows in memory."""
    from keras_freeze.feature_cache.serving.stored_rows import StoredRows  # needs LMDB

    return partial(StoredRows, callback.path, callback.byte_limit, network)


def _stored_views(callback: Any, network: str) -> Any:
    """Returns what keeps views in a directory; None if they stay in memory."""
    if callback.path is None or callback.data is None:
        return None
    from keras_freeze.feature_cache.recording.stored_views import StoredViews  # needs LMDB

    return StoredViews(callback.path, callback.byte_limit, network, callback.data)


def _served_leaves(base: Any, model: Any, plan: Plan) -> list[Layer]:
    """Returns the layers to cache: of `base`, of the plan's bases, frozen ones, or a guess."""
    if base is not None:
        return find_base(model, base).leaves
    if plan.bases:
        return plan.base_leaves
    frozen = [leaf for leaf in plan.tree.leaves if own_variables(leaf) and not leaf.trainable]
    return frozen or _guessed(model)


def _guessed(model: Any) -> list[Layer]:
    try:
        return find_base(model).leaves
    except LayerMatchError:
        return []
