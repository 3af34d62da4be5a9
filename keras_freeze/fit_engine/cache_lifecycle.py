"""The cache's part in a fit: when it follows a stage, when data begin to flow, what it tells."""

from __future__ import annotations

from typing import Any

from keras_freeze.display.printed_lines import first_pass_line, pass_line
from keras_freeze.errors import LayerMatchError
from keras_freeze.feature_cache.cache import FeatureCache
from keras_freeze.feature_cache.cache_stats import CacheStats
from keras_freeze.feature_cache.cutting.graph_to_cut import CachedModel
from keras_freeze.feature_cache.storage.memory_limit_and_dtype import numpy_dtype
from keras_freeze.fit_engine.trainable_plan import Plan
from keras_freeze.graph.base import find_base
from keras_freeze.graph.layer_tree import Layer, own_variables
from keras_freeze.keras_internals import callbacks_of_fit
from keras_freeze.keras_internals.guarded_step_functions import GuardedStep, ServedTest
from keras_freeze.keras_internals.trainable_flags import flags_now


class Caching:
    """The cache of one fit.

    Args:
        callback: the `BottleneckCache`.
        model: the model that is fitted.
        plan: of the fit.
        epochs: of the fit, if known.
        early: stages may begin before the epochs of the schedule.
        in_threads: Keras calls hooks at the end of a validation batch from other threads.

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
    ):
        self.model = model
        self.plan = plan
        self.epochs = epochs
        self.in_threads = in_threads
        self.reached = None if early else epochs  # stages from here on are never reached
        self.verbose = callback.verbose
        self.iterator = callbacks_of_fit.epoch_iterator()
        self.test: ServedTest | None = None
        self.announced: set[int] = set()  # stages of which the first line was printed,
        self.told: set[int] = set()  # and the second
        served = _served_leaves(callback.base, model, plan)
        subject = CachedModel(model, plan.tree, served, plan.base_leaves)
        dtype = numpy_dtype(callback.dtype) if callback.dtype else None
        callback.stats = CacheStats()
        self.cache = FeatureCache(
            subject,
            callback.stats,
            callback.byte_limit,
            dtype,
            validates=callbacks_of_fit.validates(),
        )

    @property
    def server(self) -> FeatureCache | None:
        """What runs the train steps; None while the cache has nothing to do with them."""
        return self.cache if self.cache.is_busy("train") else None

    def follow(self, number: int) -> None:
        """The flags are those of a stage now."""
        now = flags_now(self.plan.tree)
        later = [now | flags for flags in self.plan.flags_after(number, self.reached)]
        self.cache.follow(number, now, later)

    def begin_data(self, step: GuardedStep) -> str:
        """Before the data of an epoch begin to flow; returns what to print."""
        self.cache.begin_epoch(self.iterator)
        if self.server is not step.server:
            step.refresh(made=False, server=self.server)
        if not self.verbose or self.cache.served is None or self.cache.stage in self.announced:
            return ""
        self.announced.add(self.cache.stage)
        stats = self.cache.stats
        return first_pass_line(
            stats.cuts[self.cache.stage],
            self.cache.row_bytes(),
            self.cache.store.expected,
            self.cache.adder.batches,
            validation_only=stats.validation_only,
        )

    def end_data(self, epoch: int) -> str:
        """An epoch and its validation are over; returns what to print."""
        self.cache.end_epoch()
        if not self.verbose or self.cache.served is None or self.cache.stage in self.told:
            return ""
        if not self.cache.stats.rows:
            return ""  # of the validation, in an epoch that has none
        self.told.add(self.cache.stage)
        return pass_line(epoch + 1, self.epochs, self.cache.stats)

    def begin_test(self, step: GuardedStep) -> None:
        """Validation within this fit begins."""
        step.follow_compile()
        self.test = None
        self.cache.begin_test(callbacks_of_fit.evaluation_iterator(self.model))
        if self.cache.is_busy("test"):
            self.test = ServedTest(self.model, self.cache, self._after_test_step)

    def _after_test_step(self) -> None:
        if self.in_threads:
            self.wake_test_feed()

    def wake_test_feed(self) -> None:
        """The hooks of a validation batch are over: the next batch may be taken."""
        feed = self.cache.feeds.get("test")
        if feed is not None:
            feed.wake()

    def arm_test(self) -> None:
        """The next step of the validation may be served."""
        if self.test is not None:
            self.test.arm()


def _served_leaves(base: Any, model: Any, plan: Plan) -> list[Layer]:
    """The leaves that the user wants cached: named, of the base, frozen by hand, or guessed."""
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
