"""Writes the rows of several files of a fingerprint into a new one, without those that are bad."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

import lmdb
from filelock import FileLock

from keras_freeze.feature_cache.directory import locks
from keras_freeze.feature_cache.directory.blocks import Block, Key, packed
from keras_freeze.feature_cache.directory.environments import FullError, Written, opened

AT_ONCE = 1 << 26  # bytes that are committed at once
FAILURES = (OSError, lmdb.Error, FullError)


def merge(folder: Path, old: Sequence[Path]) -> int | None:
    """Replaces files by a new one with their rows, unless a process uses the fingerprint.

    The new file is written where no process looks for rows. Then it takes the place of the old
    ones: each row is in a complete file at any moment, so nothing is lost if this process is
    killed. If another process has opened the fingerprint meanwhile, all files stay as they are.

    Args:
        folder: the folder of the fingerprint.
        old: the folders of files that were checked.

    Returns:
        The number of rows in the new file; None if nothing was changed.

    Raises:
        OSError, lmdb.Error, FullError: the rows can't be written. None was lost.
    """
    directory = folder.parent
    with locks.of_directory(directory):
        if locks.is_in_use(folder) or not all(path.is_dir() for path in old):
            return None
        lock = locks.held_lock(folder)  # keeps others from removing the fingerprint
    run, away = Path(lock.lock_file).stem, []
    output = _Output(directory / f".merging-{run}", run)
    try:
        for path in old:
            _copy(path, output)
        output.close()
        with locks.of_directory(directory):
            if _others_use(folder, lock):
                return None
            for path in output.paths:
                path.rename(folder / path.name)
            away = [moved_away(directory, path) for path in old]
    finally:
        output.remove()
        locks.let_go(lock)
    for path in away:
        shutil.rmtree(path, ignore_errors=True)
    return len(output.keys)


def _others_use(folder: Path, own: FileLock) -> bool:
    files = [file for file in folder.glob("*.lock") if file != Path(own.lock_file)]
    return any(map(locks.is_held, files))


def moved_away(directory: Path, path: Path) -> Path:
    """Moves a folder to where no process looks for rows, to be removed from there."""
    return path.rename(directory / f".removed-{uuid.uuid4().hex[:12]}")


def _copy(path: Path, output: _Output) -> None:
    """Copies the rows that are whole and not there yet."""
    environment = opened(path, is_live=False)
    try:
        for block in environment.new_blocks():
            if block is not None:
                output.add(block)
    finally:
        environment.close()


class _Output:
    """New files; one, unless it gets full.

    Args:
        folder: the folder to write them to, which must not exist.
        run: the first part of their names.

    Attributes:
        keys: the keys of all rows in them.
    """

    def __init__(self, folder: Path, run: str):
        folder.mkdir(mode=0o700)
        self.folder = folder
        self.run = run
        self.keys: set[Key] = set()
        self.paths: list[Path] = []
        self.current: Written | None = None
        self.waiting: list[bytearray] = []
        self.nbytes = 0  # that wait

    def add(self, block: Block) -> None:
        """Adds those rows of a block that are whole and not there yet."""
        rows = [
            row
            for row, key in enumerate(block.keys)
            if key not in self.keys and block.is_whole(row)
        ]
        if not rows:
            return
        keys = [block.keys[row] for row in rows]
        axes = {layout.name: layout.axes for layout in block.layouts}
        self.waiting.append(packed(keys, block.take(rows), axes))
        self.nbytes += len(self.waiting[-1])
        self.keys.update(keys)
        if self.nbytes >= AT_ONCE:
            self._commit()

    def _commit(self) -> None:
        if not self.waiting:
            return
        try:
            self._file().add(self.waiting)
        except FullError:
            self._close_current()
            self._file().add(self.waiting)
        self.waiting, self.nbytes = [], 0

    def _file(self) -> Written:
        """Returns the file to write to, which is made if there is none."""
        if self.current is None:
            path = self.folder / f"{self.run}-{len(self.paths)}"
            self.paths.append(path)
            self.current = Written(path)
        return self.current

    def _close_current(self) -> None:
        if self.current is not None:
            current, self.current = self.current, None
            current.close()

    def close(self) -> None:
        """Writes what waits. The files are complete then."""
        self._commit()
        self._close_current()

    def remove(self) -> None:
        """Removes the folder with what is still in it."""
        with contextlib.suppress(*FAILURES):  # the disk may be full
            self._close_current()
        shutil.rmtree(self.folder, ignore_errors=True)
