"""A directory of features, as one process uses it."""

from __future__ import annotations

import atexit
import os
import threading
from pathlib import Path

from keras_freeze.display.fit_messages import readable
from keras_freeze.feature_cache.directory import room
from keras_freeze.feature_cache.directory.about import About
from keras_freeze.feature_cache.directory.background_writer import BackgroundWriter
from keras_freeze.feature_cache.directory.blocks import Columns, Key
from keras_freeze.feature_cache.directory.feature_folder import FeatureFolder
from keras_freeze.feature_cache.directory.marks import file_system, is_remote, mark
from keras_freeze.feature_cache.storage.memory_order import Axes


class CacheDirectory:
    """A directory of features, shared by all fits of this process (see `shared_directory`).

    Args:
        path: the directory; it is made if it doesn't exist.

    Attributes:
        limit: bytes that the directory may take; None = as many as the disk has.
        failure: why nothing is written any more; "" if all is well.
    """

    def __init__(self, path: Path):
        self.path = path
        self.limit: int | None = None
        self.failure = ""
        self.problems: list[str] = []  # that were found and mended, but not told yet
        self.told: set[str] = set()
        self.folders: dict[str, FeatureFolder] = {}
        self.writer: BackgroundWriter | None = None
        self.guard = threading.RLock()
        self._prepare()

    def _prepare(self) -> None:
        """Makes the directory, or finds out why it can't be used."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            kind = file_system(self.path)
            if is_remote(kind):
                self.failure = f"it is on a network file system ({kind}); use a local disk"
                return
            mark(self.path)
        except OSError as error:
            self._fail(error)

    @property
    def is_usable(self) -> bool:
        """True if rows may be read: the directory exists on a local disk."""
        return self.path.is_dir() and "network" not in self.failure

    def open(self, fingerprint: str, about: About) -> FeatureFolder:
        """Returns the folder of a fingerprint. Each call needs a call of `let_go`.

        Raises:
            OSError: Python can't be started to check its files.
        """
        with self.guard:
            if fingerprint not in self.folders:
                path = self.path / fingerprint
                self.folders[fingerprint] = FeatureFolder(path, about, self._found)
            folder = self.folders[fingerprint]
            folder.users += 1
            return folder

    def has(self, fingerprint: str) -> bool:
        """Returns True if there may be rows of a fingerprint."""
        return (self.path / fingerprint).is_dir()

    def add(
        self,
        folder: FeatureFolder,
        keys: list[Key],
        columns: Columns,
        axes: dict[str, Axes | None],
        *,
        patiently: bool,
    ) -> bool:
        """Lets rows be written in the background; returns False if the disk is too slow for now.

        Args:
            folder: the folder of the rows.
            keys: their keys.
            columns: arrays (rows, ...), which must not change afterwards.
            axes: for each column, its axes in memory order, if that isn't C order.
            patiently: whether to wait for the disk instead.
        """
        with self.guard:
            if self.failure:
                return True
            if self.writer is None:
                self.writer = BackgroundWriter(self._check_room, self._fail)
            writer = self.writer
        if writer.is_full and not patiently:
            return False
        batch = folder.wait_for(keys, columns, axes)
        if batch is not None:
            writer.add(folder, batch)
        return True

    def _check_room(self, needed: int) -> None:
        """Makes room for bytes.

        Raises:
            OSError: there is none.
        """
        if not room.make_room(self.path, needed, self.limit):
            free = room.free_bytes(self.path)
            if needed > free:
                raise OSError(f"the disk has only {readable(max(0, free))} left to use")
            assert self.limit is not None
            raise OSError(f"`max_bytes`, {readable(self.limit)}, is used up")

    def _fail(self, error: Exception) -> None:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        self.failure = self.failure or text or type(error).__name__

    def _found(self, problem: str) -> None:
        if problem not in self.told:
            self.told.add(problem)
            self.problems.append(problem)

    def flush(self) -> None:
        """Waits until all rows are written."""
        if self.writer is not None and not self.writer.flush():
            self._fail(TimeoutError("the disk doesn't answer"))

    def let_go(self, folders: list[FeatureFolder]) -> None:
        """Writes what waits, and closes the folders that no fit uses any more."""
        self.flush()
        with self.guard:
            for folder in folders:
                folder.users -= 1
                if folder.users <= 0 and self.folders.pop(folder.path.name, None) is not None:
                    folder.close()
            if not self.folders:
                self.close()

    def close(self) -> None:
        """Closes everything."""
        with self.guard:
            if self.writer is not None and not self.writer.close():
                return
            self.writer = None
            for folder in self.folders.values():
                folder.close()
            self.folders = {}
            _shared.pop(self.path, None)


_shared: dict[Path, CacheDirectory] = {}


def shared_directory(path: Path, limit: int | None) -> CacheDirectory:
    """Returns the directory object of this process; it ends with the last folder that is let go."""
    path = Path(os.path.abspath(path))
    if path not in _shared:
        _shared[path] = CacheDirectory(path)
    _shared[path].limit = limit
    return _shared[path]


@atexit.register
def _close_all() -> None:
    for directory in list(_shared.values()):
        directory.close()
