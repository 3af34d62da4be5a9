"""The cache of one `fit` with `views`: training is recorded and replayed, validation is exact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras_freeze.feature_cache.cache import FeatureCache
from keras_freeze.feature_cache.cache_stats import CacheStats
from keras_freeze.feature_cache.cutting.graph_to_cut import CachedModel
from keras_freeze.feature_cache.cutting.tensors_to_cache import Flags
from keras_freeze.feature_cache.recording.recorder import Recorder
from keras_freeze.feature_cache.serving.run_steps import Plain
from keras_freeze.feature_cache.storage.memory_limit_and_dtype import free_memory


class ViewsCache:
    """The cache of one `fit` whose first epochs are recorded.

    Args:
        cached_model: the model.
        stats: statistics that the cache updates.
        max_bytes: memory limit of all rows; None = half of the free memory.
        dtype: dtype in which float features are kept; None = their own.
        views: how many epochs to record.
        shuffle: whether the rows of a replayed epoch are permuted.
        validates: whether the fit has validation data.
        stored: opens the directory for validation, given the rows in memory; None = there is none.
        stored_views: keeps views in a directory; None = there is none.

    Attributes:
        validation: the cache of the validation data, which is exact.
        recorder: the recordings of training epochs.
    """

    def __init__(
        self,
        cached_model: CachedModel,
        stats: CacheStats,
        max_bytes: int | None,
        dtype: Any,
        *,
        views: int,
        shuffle: bool,
        validates: bool,
        stored: Any = None,
        stored_views: Any = None,
    ):
        self.stats = stats
        self.max_bytes = free_memory() // 2 if max_bytes is None else max_bytes
        self.validation = FeatureCache(
            cached_model,
            CacheStats(),
            self.max_bytes,
            dtype,
            validates=validates,
            trains=False,
            stored=stored,
        )
        self.validates = validates
        self.recorder = Recorder(
            cached_model,
            CacheStats(),
            views=views,
            shuffle=shuffle,
            dtype=dtype,
            backend=self.validation.backend,
            room=self._room,
            stored=stored_views,
        )
        if not self.validation.stats.enabled:  # it has said why the model can't be cached
            self.recorder.turn_off(self.validation.stats.reason)
        self.feeds = self.validation.feeds
        self.stage = 0
        self._count()

    def set_alone(self, alone: dict[str, bool]) -> None:
        """Says for "train" and "test" whether no other callback acts on batches."""
        self.validation.set_alone(alone)
        self.recorder.steps.groups.alone = alone["train"]

    def is_busy(self, kind: str) -> bool:
        """Returns True if `step` must run the "train" or "test" steps."""
        return kind == "train" or (self.validates and self.validation.is_busy(kind))

    def follow(self, stage: int, now: Flags, later: Sequence[Flags]) -> None:
        """Moves the cut to its place in a stage; the arguments are those of `FeatureCache`."""
        self.stage = stage
        self.recorder.follow(stage, now, later)
        if self.validates:
            self.validation.follow(stage, now, later)

    def begin_epoch(self, iterator: Any, epochs: int, left: int | None) -> None:
        """Prepares a training epoch; the arguments are those of `FeatureCache.begin_epoch`."""
        self.validation.begin_epoch(iterator, epochs)
        self.recorder.begin_epoch(iterator, left, epochs)

    def _room(self) -> float:
        """Returns how many bytes all views may take."""
        return self.max_bytes - self.validation.store.nbytes

    def begin_test(self, iterator: Any) -> None:
        """Prepares a validation, whose rows get the memory that the views leave."""
        self.validation.store.max_bytes = max(1, self.max_bytes - self.recorder.recordings.nbytes)
        self.validation.begin_test(iterator)

    def end_epoch(self, *, is_complete: bool = True) -> None:
        """Ends an epoch and its validation; False if a callback ended the epoch early."""
        self.recorder.end_epoch(is_complete=is_complete)
        self.validation.end_epoch()
        self._count()

    def step(self, kind: str, args: tuple[Any, ...], plain: Plain) -> Any:
        """Runs a step of `fit` or of its validation; the arguments are those of `FeatureCache`."""
        if kind == "test":
            return self.validation.step(kind, args, plain)
        return self.recorder.step(args, plain)

    def _count(self) -> None:
        """Adds up the statistics of both parts."""
        train, test = self.recorder.stats, self.validation.stats
        for name in ("hits", "misses", "rows", "bytes", "grouped", "read", "continued"):
            setattr(self.stats, name, getattr(train, name) + getattr(test, name))
        for name in ("views", "replayed", "pulled", "cuts", "reason"):
            setattr(self.stats, name, getattr(train, name))
        self.stats.base_passes = train.misses / max(1, self.recorder.recordings.rows_of_epoch)
        served = self.validates and test.enabled
        self.stats.enabled = self.recorder.is_on or served
        self.stats.validation_only = served and not self.recorder.is_on

    def close(self) -> None:
        """Frees the memory and restores the iterators; the statistics stay."""
        self._count()
        self.recorder.close()
        self.validation.close()
