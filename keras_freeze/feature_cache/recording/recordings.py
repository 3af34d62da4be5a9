"""The recorded epochs of a `fit`: which one runs now, and how many the memory holds."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_freeze.display.fit_messages import readable
from keras_freeze.feature_cache.cache_stats import CacheStats
from keras_freeze.feature_cache.not_cacheable import tell
from keras_freeze.feature_cache.recording.view import View
from keras_freeze.feature_cache.serving.device_tables import DeviceTables
from keras_freeze.feature_cache.storage.row_chunks import Array

if TYPE_CHECKING:  # it needs LMDB
    from keras_freeze.feature_cache.recording.stored_views import StoredViews


class Recordings:
    """The views (recorded epochs) of a `fit`.

    Args:
        stats: statistics that are updated.
        views: how many epochs to record.
        shuffle: whether the rows of a replayed epoch are permuted.
        backend: the module of the backend.
        room: returns how many bytes all views may take.
        stored: keeps views in a directory; None = there is none.

    Attributes:
        views: the complete recordings.
        wanted: how many epochs are recorded, as far as the memory holds them.
        current: the recording of the running epoch; None if it isn't recorded.
        replayed: the recording on which the running epoch trains; None if on the user's data.
        rows_of_epoch: number of rows in the first recorded epoch.
    """

    def __init__(
        self,
        stats: CacheStats,
        views: int,
        shuffle: bool,
        backend: Any,
        room: Callable[[], float],
        stored: StoredViews | None = None,
    ):
        self.stored = stored
        self.stats = stats
        self.asked = views
        self.shuffle = shuffle
        self.backend = backend
        self.random: Any = None
        self.is_told = False
        self.findable = views  # how many stored views may be taken
        self.room = room
        self.rows_of_epoch = 0
        self.drop()

    def drop(self) -> None:
        """Frees everything. The next epoch may begin a new recording."""
        self.views: list[View] = []
        self.current: View | None = None
        self.replayed: View | None = None
        self.wanted = self.asked
        self.tables: list[DeviceTables] = []  # of all views
        self.epoch = 0  # epochs since the recording began
        self.loaded = 0  # views that came from the directory
        self.is_announced = False  # a line about the first view was printed
        self._count()

    def _count(self) -> None:
        self.stats.views = len(self.views)
        self.stats.rows = sum(view.rows for view in self.views)
        self.stats.bytes = sum(view.nbytes for view in self.views)

    @property
    def nbytes(self) -> int:
        """Bytes of all views, with what the running epoch will have recorded in the end."""
        current = self.current.expected_bytes if self.current is not None else 0
        return current + sum(view.nbytes for view in self.views)

    def keep_only(self, columns: Sequence[str] | None, positions: Any) -> bool:
        """Frees what no later stage needs; False if something is missing: all is dropped.

        Args:
            columns: the cached values that are needed; None = all that there are.
            positions: returns the positions of the inputs that are needed, from those of `x`.
        """
        views = [view for view in (*self.views, self.current) if view is not None and view.sizes]
        for view in views:
            inputs = positions(view.inputs[0])
            names = list(view.features.columns) if columns is None else columns
            wanted = [name.split(".")[0] for name in names]
            is_there = view.holds(wanted, inputs) and (names or columns is not None)
            if not is_there:
                self.drop()
                return False
            view.keep_only(wanted, inputs)
        self._count()
        return bool(views)

    def load(self, num_batches: int | None) -> None:
        """Takes stored views, as far as memory holds them."""
        if self.stored is None or self.views or not self.stored.find(num_batches):
            return
        while len(self.views) < min(self.wanted, self.findable):
            view = View(self.room() - self.stats.bytes, self.backend, self.tables)
            if not self.stored.load(len(self.views), view):
                return
            self.views.append(view)
            self.loaded, self.is_announced = len(self.views), True
            self.stats.read += view.rows
            self.rows_of_epoch = self.rows_of_epoch or view.rows
            self._count()

    def begin_epoch(self, left: int | None, num_batches: int | None) -> None:
        """Chooses whether the next epoch is recorded, replayed, or neither.

        Args:
            left: number of epochs until the end of the fit, if known.
            num_batches: number of batches in an epoch, if known.
        """
        self.current = self.replayed = None
        self.load(num_batches)
        is_kept = self.stored is not None and self.stored.folder is not None
        if self.views and len(self.views) >= self.wanted:
            self.replayed = self.views[self.epoch % self.wanted]
            self.stats.replayed += 1
        elif self.wanted and (self.views or is_kept or left is None or left > self.wanted):
            self.current = View(self.room() - self.stats.bytes, self.backend, self.tables)
        self.epoch += 1

    def state(self) -> dict[str, Any]:
        """Returns what a backup needs to continue with the next epoch."""
        drawn = None if self.random is None else self.random.bit_generator.state
        return {"epoch": self.epoch, "random": drawn, "views": len(self.views)}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues with what `state` returned; the views come from the directory.

        A view that was written after the backup is recorded again: its epoch is trained again.
        """
        self.epoch = state["epoch"]
        if state["random"] is not None:
            self.random = np.random.default_rng()
            self.random.bit_generator.state = state["random"]

    def order(self, view: View) -> list[Array]:
        """Returns the row numbers of the batches of a replayed epoch."""
        numbers = np.arange(view.rows)
        if self.shuffle:
            if self.random is None:
                # As in `keras.random.SeedGenerator`: `keras.utils.set_random_seed` decides it.
                self.random = np.random.default_rng(random.randint(1, 10**9))
            numbers = self.random.permutation(view.rows)
        return np.split(numbers, np.cumsum(view.sizes)[:-1])

    def end_epoch(self, *, is_complete: bool) -> None:
        """Ends the recording of an epoch, if there is one.

        Args:
            is_complete: False if a callback ended the epoch early; it is recorded anew then.
        """
        view, self.current, self.replayed = self.current, None, None
        if view is None or not view.sizes:
            return
        if not is_complete:
            self.epoch -= 1
            return
        view.close()
        self.views.append(view)
        self.rows_of_epoch = self.rows_of_epoch or view.rows
        self._count()
        if self.stored is not None:
            self.stored.save(len(self.views) - 1, view)
        if len(self.views) == 1:
            self._limit(int(self.room() // max(1, view.nbytes)), view.nbytes)

    def check_room(self) -> None:
        """Stops the recording of this epoch if the memory doesn't hold it."""
        view = self.current
        if view is not None and view.is_full:
            self.current = None
            self._limit(len(self.views), view.expected_bytes)

    def _limit(self, fitting: int, size: int) -> None:
        """Records only as many views as fit into the memory."""
        if fitting >= self.wanted:
            return
        self.wanted = max(fitting, len(self.views))
        if self.is_told:
            return
        self.is_told = True
        left, one, all_views = (readable(n) for n in (self.room(), size, self.asked * size))
        if self.wanted:
            tell(
                f"keeps {self.wanted} of {self.asked} views: `max_bytes` leaves {left} for views, "
                f"one takes {one}, {self.asked} take {all_views}. Raise `max_bytes`, or halve the "
                "features' bytes with dtype='float16'."
            )
        else:
            tell(
                f"keeps no view, so each epoch runs in full: `max_bytes` leaves {left} for views, "
                f"and one takes {one}. Raise `max_bytes`, or halve the features' bytes with "
                "dtype='float16'."
            )

    def close(self) -> None:
        """Frees everything; the statistics stay."""
        if self.stored is not None:
            self.stored.close()
        counts = self.stats.views, self.stats.rows, self.stats.bytes
        self.drop()
        self.stats.views, self.stats.rows, self.stats.bytes = counts
