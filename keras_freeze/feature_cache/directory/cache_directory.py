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

SILENT = "the disk doesn't answer"


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
        self.is_remote = False
        self.is_of_parent = False  # which this process is a copy of
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
            self.is_remote = is_remote(kind)
            if self.is_remote:
                self.failure = f"it is on a network file system ({kind}); use a local disk"
                return
            mark(self.path)
        except OSError as error:
            self._fail(error)

    @property
    def is_usable(self) -> bool:
        """True if rows may be read: the directory exists on a local disk."""
        return os.path.isdir(self.path) and not self.is_remote

    def open(self, fingerprint: str, about: About, user: object) -> FeatureFolder:
        """Returns the folder of a fingerprint.

        Args:
            fingerprint: the fingerprint.
            about: what its features are.
            user: who uses the folder, until it calls `let_go` or doesn't exist any more.

        Raises:
            OSError: Python can't be started to check its files.
        """
        with self.guard:
            if not self.is_of_parent:
                _shared.setdefault(self.path, self)  # it may have been closed meanwhile
            if fingerprint not in self.folders:
                path = self.path / fingerprint
                self.folders[fingerprint] = FeatureFolder(path, about, self._found)
            folder = self.folders[fingerprint]
            folder.users.add(user)
            return folder

    def has(self, fingerprint: str) -> bool:
        """Returns True if there may be rows of a fingerprint."""
        return os.path.isdir(self.path / fingerprint)

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
            try:
                arguments = self.path, self._check_room, self._fail
                self.writer = self.writer or BackgroundWriter(*arguments)
            except RuntimeError as error:
                self._fail(error)
                return True
            writer = self.writer
        if writer.is_full and not patiently:
            return False
        batch = folder.wait_for(keys, columns, axes)
        if batch is not None and not writer.add(folder, batch):
            folder.forget([batch])
            self._fail(TimeoutError(SILENT))
        return True

    def _check_room(self, needed: int) -> None:
        """Makes room for bytes.

        Raises:
            OSError: there is none.
        """
        if self.failure:
            raise OSError(self.failure)  # of earlier rows
        limit = self.limit
        if not room.make_room(self.path, needed, limit):
            free = room.free_bytes(self.path)
            if needed > free or limit is None:
                raise OSError(f"the disk has only {readable(max(0, free))} left to use")
            raise OSError(f"`max_bytes`, {readable(limit)}, is used up")

    def _fail(self, error: Exception) -> None:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        self.failure = self.failure or text or type(error).__name__

    def _found(self, problem: str) -> None:
        if problem not in self.told:
            self.told.add(problem)
            self.problems.append(problem)

    def flush(self) -> bool:
        """Waits until all rows are written; returns False if the disk doesn't answer."""
        writer = self.writer
        if writer is not None and not writer.flush():
            self._fail(TimeoutError(SILENT))
            return False
        return True

    def let_go(self, folders: list[FeatureFolder], user: object) -> None:
        """Writes what waits, and closes the folders that no fit uses any more.

        After Ctrl-C, or if the disk doesn't answer, they are closed by a later call, or at exit:
        the writer may still use them.
        """
        is_done = False
        try:
            is_done = self.flush()
        finally:
            with self.guard:
                for folder in folders:
                    folder.users.discard(user)
                if is_done:
                    self._close_unused()

    def _close_unused(self) -> None:
        for name, folder in list(self.folders.items()):
            if not folder.users:
                del self.folders[name]
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
            if _shared.get(self.path) is self:
                del _shared[self.path]

    def leave_to_parent(self) -> None:
        """Uses the files no more, in a copy (fork) of the process that has them open."""
        self.guard = threading.RLock()
        self.is_of_parent = True
        self.failure = "this process is a copy of the one that writes it"
        self.writer = None
        for folder in self.folders.values():
            folder.leave_to_parent()
        self.folders = {}


_shared: dict[Path, CacheDirectory] = {}
_of_parent: list[object] = []  # kept, so that nothing of them is closed here


def shared_directory(path: Path, limit: int | None) -> CacheDirectory:
    """Returns the directory object of this process; it ends with the last folder that is let go."""
    path = Path(os.path.abspath(path))
    directory = _shared.get(path) or _shared.setdefault(path, CacheDirectory(path))
    directory.limit = limit
    return directory


@atexit.register
def _close_all() -> None:
    for directory in list(_shared.values()):
        directory.close()


def _leave_to_parent() -> None:
    for directory in _shared.values():
        _of_parent.extend([directory, *directory.folders.values()])
        directory.leave_to_parent()
    _shared.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
