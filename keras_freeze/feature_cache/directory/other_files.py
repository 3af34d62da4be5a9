"""The files of a fingerprint that are only read: those of other runs, and full ones of this run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import lmdb

from keras_freeze.feature_cache.directory import locks
from keras_freeze.feature_cache.directory.checked_files import check_files, stamp
from keras_freeze.feature_cache.directory.environments import Environment, opened

FAILURES = (OSError, lmdb.Error)


class OtherFiles:
    """Files of a fingerprint that are only read.

    Args:
        folder: the folder of the fingerprint.
        tell: is called with a problem that was found and mended, in words.

    Attributes:
        read: those that are open, by name.
        refused: names of files that can't be read.
    """

    def __init__(self, folder: Path, tell: Callable[[str], None]):
        self.folder = folder
        self.tell = tell
        self.read: dict[str, Environment] = {}
        self.refused: set[str] = set()
        self.left: list[Environment] = []  # that couldn't be read any more

    def __iter__(self) -> Iterator[Environment]:
        return iter(list(self.read.values()))

    def add(self, environment: Environment) -> None:
        """Adds a file that is open."""
        self.read[environment.path.name] = environment

    def open_new(self, own: set[str]) -> None:
        """Opens the files that other runs have made since the last call.

        Args:
            own: the names of those that this process has made.

        Raises:
            OSError: Python can't be started to check them.
        """
        known = {*self.read, *self.refused, *own}
        runs = [path.parent for path in self.folder.glob("*/data.mdb")]
        # A file without bytes is about to be made.
        new = sorted(path for path in runs if path.name not in known and _has_bytes(path))
        live = [path for path in new if locks.is_held(self._lock_file(path))]
        for path, state in check_files(new, live).items() if new else ():
            if state == "ok" and self._open(path, is_live=path in live):
                continue
            self.refused.add(path.name)
            if state == "damaged" and path not in live:
                self.tell(f"found a damaged file, and computes its rows again: {path / 'data.mdb'}")
                shutil.rmtree(path, ignore_errors=True)

    def _lock_file(self, run: Path) -> Path:
        return self.folder / f"{run.name.split('-')[0]}.lock"

    def _open(self, path: Path, *, is_live: bool) -> bool:
        try:
            self.add(opened(path, is_live=is_live))
        except FAILURES:
            return False
        return True

    def leave(self, environment: Environment) -> None:
        """Uses a file no more that can't be read. It is closed at the end."""
        name = environment.path.name
        self.left.append(self.read.pop(name))
        self.refused.add(name)

    def close(self) -> None:
        """Closes all files."""
        for environment in [*self, *self.left]:
            with suppress(*FAILURES):  # the disk is full, or the directory was removed
                environment.close()
        self.read, self.left = {}, []


def _has_bytes(path: Path) -> bool:
    is_now = stamp(path)
    return is_now is not None and is_now[1] > 0
