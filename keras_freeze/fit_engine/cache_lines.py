"""Writes the lines that are printed about the cache in a `fit`."""

from __future__ import annotations

from keras_freeze.display.fit_messages import (
    first_pass_line,
    pass_line,
    reading_line,
    replay_line,
    view_line,
)
from keras_freeze.feature_cache.cache import FeatureCache
from keras_freeze.feature_cache.cutting.choose_cached_part import symbols_of
from keras_freeze.feature_cache.storage.memory_limit_and_dtype import row_bytes
from keras_freeze.feature_cache.views_cache import ViewsCache
from keras_freeze.fit_engine.reading_time import ReadingTime

MOST = 0.5  # share of an epoch's time, and
LEAST = 1.0  # seconds in which training waits for data, above which a line says so


class CacheLines:
    """The lines about an exact cache: one before and one after the first pass of each stage.

    Args:
        cache: the cache.
        epochs: number of epochs of the fit, if known.
        verbose: 0 = no lines.
    """

    def __init__(self, cache: FeatureCache, epochs: int | None, *, verbose: int):
        self.cache = cache
        self.epochs = epochs
        self.verbose = verbose
        self.announced: set[int] = set()  # stages whose first line was printed
        self.told: set[int] = set()  # stages whose second line was printed

    def begin_epoch(self, epoch: int) -> str:
        """Returns what to print before the batches of an epoch."""
        cache = self.cache
        if not self.verbose or cache.served is None or cache.stage in self.announced:
            return ""
        self.announced.add(cache.stage)
        return first_pass_line(
            cache.stats.cuts[cache.stage],
            self._row_bytes(),
            cache.store.expected,
            cache.steps.adder.batches,
            validation_only=cache.stats.validation_only,
        )

    def _row_bytes(self) -> int | None:
        """Returns the bytes of a cached row; None if unknown before the first batch."""
        cache = self.cache
        symbols = symbols_of(cache.served.part) if cache.served is not None else None
        if cache.store.bytes_per_row or symbols is None:
            return cache.store.bytes_per_row or None
        return row_bytes(symbols, cache.dtype)

    def end_epoch(self, epoch: int) -> str:
        """Returns what to print after an epoch and its validation."""
        cache = self.cache
        if not self.verbose or cache.served is None or cache.stage in self.told:
            return ""
        if not cache.stats.rows:
            return ""  # validation is cached, and this epoch has none
        self.told.add(cache.stage)
        return pass_line(epoch + 1, self.epochs, cache.stats)

    def end(self, reading: ReadingTime) -> str:
        """Returns what to print at the end of the fit, of which `reading` took a part."""
        is_read = self.cache.serves("train") and "train" not in self.cache.feeds
        is_slow = reading.share > MOST and reading.reading > LEAST
        return reading_line(reading.share) if self.verbose and is_read and is_slow else ""


class ViewsLines:
    """The lines about recorded views: what a view takes, and where the replay begins.

    Args:
        cache: the cache.
        epochs: number of epochs of the fit, if known.
        verbose: 0 = no lines.
    """

    def __init__(self, cache: ViewsCache, epochs: int | None, *, verbose: int):
        self.cache = cache
        self.epochs = epochs
        self.verbose = verbose
        self.replays = False

    def end(self, reading: ReadingTime) -> str:
        """Returns nothing: no line is printed at the end of the fit."""
        return ""

    def begin_epoch(self, epoch: int) -> str:
        """Returns what to print before the batches of an epoch."""
        recordings = self.cache.recorder.recordings
        begins = recordings.replayed is not None and not self.replays
        self.replays = recordings.replayed is not None
        if not self.verbose or not begins:
            return ""
        return replay_line(epoch + 1, self.epochs, len(recordings.views), recordings.loaded)

    def end_epoch(self, epoch: int) -> str:
        """Returns what to print after an epoch and its validation."""
        recordings = self.cache.recorder.recordings
        if not self.verbose or recordings.is_announced or not recordings.views:
            return ""
        recordings.is_announced = True
        view = recordings.views[0]
        fitting = int(recordings.room() // max(1, view.nbytes))
        arguments = recordings.asked, view.rows, view.nbytes, fitting
        return view_line(epoch + 1, self.epochs, *arguments)
