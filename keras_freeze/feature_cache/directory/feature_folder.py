"""The rows of one fingerprint in a directory: found by key, added, read by other processes too."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import lmdb
from filelock import FileLock

from keras_freeze.feature_cache.directory import about, locks
from keras_freeze.feature_cache.directory.about import About
from keras_freeze.feature_cache.directory.blocks import Columns, Key, packed
from keras_freeze.feature_cache.directory.checked_files import check_files
from keras_freeze.feature_cache.directory.environments import (
    Environment,
    FullError,
    Written,
    opened,
)
from keras_freeze.feature_cache.directory.row_index import Batch, FoundRows, RowIndex
from keras_freeze.feature_cache.storage.memory_order import Axes

AGAIN = 2.0  # seconds after which to look for rows that other processes have written
AT_ONCE = 1 << 26  # bytes of a block
FAILURES = (OSError, lmdb.Error)


class FeatureFolder:
    """The folder of a fingerprint.

    Methods may be called from several threads.

    Args:
        path: the folder. It is made when the first rows are written.
        about: what its features are.
        tell: is called with a problem that was found and mended, in words.
    """

    def __init__(self, path: Path, about: About, tell: Callable[[str], None]):
        self.path = path
        self.about = about
        self.tell = tell
        self.guard = threading.RLock()
        self.index = RowIndex()
        self.lock: FileLock | None = None
        self.read: dict[str, Environment] = {}  # by the name of the run that made it
        self.refused: set[str] = set()  # runs whose files can't be read
        self.own: Written | None = None
        self.own_names: set[str] = set()  # of environments that this process has made
        self.looked = 0.0  # when other runs' files were last looked for
        self.users = 0
        self.is_used = False
        self.look()

    # Reading

    def look(self) -> None:
        """Reads what other runs have written since the last look."""
        with self.guard:
            self.looked = time.monotonic()
            if not self.path.is_dir():
                return
            self._enter()
            self._open_others()
            for environment in list(self.read.values()):
                for block in environment.new_blocks():
                    if block is not None:
                        self.index.add(block)

    def _enter(self) -> None:
        """Tells other processes that the folder is in use, if it can be written to."""
        if self.lock is None:
            try:
                with locks.of_directory(self.path.parent):
                    self.lock = locks.held_lock(self.path)
            except OSError:
                return  # a directory that can only be read

    def _open_others(self) -> None:
        runs = [path.parent for path in self.path.glob("*/data.mdb")]
        known = {*self.read, *self.refused, *self.own_names}
        new = sorted(path for path in runs if path.name not in known)
        live = [path for path in new if locks.is_held(self._lock_file(path))]
        for path, state in check_files(new, live).items() if new else ():
            if state == "ok" and self._open(path, is_live=path in live):
                continue
            self.refused.add(path.name)
            if state == "damaged" and path not in live:
                self._remove_damaged(path)

    def _lock_file(self, run: Path) -> Path:
        return self.path / f"{run.name.split('-')[0]}.lock"

    def _open(self, path: Path, *, is_live: bool) -> bool:
        try:
            self.read[path.name] = opened(path, is_live=is_live)
        except FAILURES:
            return False
        return True

    def _remove_damaged(self, path: Path) -> None:
        self.tell(f"found a damaged file, and computes its rows again: {path / 'data.mdb'}")
        shutil.rmtree(path, ignore_errors=True)

    def __len__(self) -> int:
        return len(self.index)

    def take(self, keys: Sequence[Key]) -> FoundRows | None:
        """Returns the rows with these keys that are known; None if none is."""
        with self.guard:
            if not self.users or not self._is_whole():
                return None
            missing = any(key not in self.index for key in keys)
            if missing and time.monotonic() - self.looked > AGAIN:
                self.look()
            found = self.index.take(keys)
            self.is_used |= found is not None
        if self.index.bad:
            self.index.bad = 0
            self.tell(f"found damaged rows, and computes them again, in {self.path}")
        return found

    def _is_whole(self) -> bool:
        """Returns False, and forgets all rows, if a file was cut off while it was open."""
        if all(environment.is_whole() for environment in self._open_environments()):
            return True
        self.index = RowIndex()
        self.tell(f"found a file that was cut off, and computes its rows again, in {self.path}")
        return False

    def _open_environments(self) -> list[Environment]:
        return [*self.read.values(), *([self.own] if self.own is not None else [])]

    # Writing

    def wait_for(
        self, keys: list[Key], columns: Columns, axes: dict[str, Axes | None]
    ) -> Batch | None:
        """Returns the rows that aren't known yet, which are found from now on; None if all are.

        Write them with `write`.
        """
        with self.guard:
            new = [row for row, key in enumerate(keys) if key not in self.index]
            if not new:
                return None
            taken = {
                name: array if len(new) == len(keys) else array[new]
                for name, array in columns.items()
            }
            batch = Batch([keys[row] for row in new], taken, axes)
            self.index.add(batch)
            return batch

    def write(self, batches: list[Batch]) -> None:
        """Writes rows.

        Raises:
            OSError, lmdb.Error: they can't be written, and are forgotten.
        """
        try:
            self._make()
            for blocks in _portions([block for batch in batches for block in _blocks(batch)]):
                self._commit(blocks)
        finally:
            with self.guard:
                self._read_own()
                self.forget(batches)

    def forget(self, batches: list[Batch]) -> None:
        """Forgets rows that wait to be written."""
        with self.guard:
            for batch in batches:
                self.index.drop(batch)

    def _make(self) -> None:
        """Makes the folder and an environment to write to."""
        if self.own is not None:
            return
        with locks.of_directory(self.path.parent):
            self.path.mkdir(mode=0o700, exist_ok=True)
            if self.lock is None:
                self.lock = locks.held_lock(self.path)
        about.write(self.path, self.about)
        self._roll_over()

    def _roll_over(self) -> None:
        """Begins a new environment. The one before stays open to read."""
        assert self.lock is not None
        with self.guard:
            if self.own is not None:
                self._read_own()
                self.read[self.own.path.name] = self.own
            name = f"{Path(self.lock.lock_file).stem}-{len(self.own_names)}"
            self.own_names.add(name)
            self.own = Written(self.path / name)

    def _commit(self, blocks: list[bytearray]) -> None:
        assert self.own is not None
        try:
            self.own.add(blocks)
        except FullError:
            self._roll_over()
            try:
                self.own.add(blocks)
            except FullError as error:
                raise OSError("a batch doesn't fit into a file") from error

    def _read_own(self) -> None:
        for block in self.own.new_blocks() if self.own is not None else ():
            if block is not None:
                self.index.add(block)

    def remove_own(self) -> None:
        """Removes what this process has written."""
        with self.guard:
            self.index = RowIndex()
            for environment in self._open_environments():
                environment.close()
            self.read, self.own = {}, None
            for name in self.own_names:
                shutil.rmtree(self.path / name, ignore_errors=True)
            self.own_names = set()

    def close(self) -> None:
        """Closes all files."""
        with self.guard:
            self.index = RowIndex()
            for environment in self._open_environments():
                try:
                    environment.close()
                except FAILURES:
                    continue  # the disk is full, or the directory was removed
            self.read, self.own = {}, None
            try:
                if self.is_used or self.own_names:
                    about.mark_used(self.path)
                if self.lock is not None:
                    locks.remove_left_locks(self.path)
                    locks.let_go(self.lock)
            except OSError:
                pass
            self.lock = None


def _blocks(batch: Batch) -> list[bytearray]:
    """Packs a batch into blocks of a moderate size."""
    rows = max(1, AT_ONCE * len(batch.keys) // max(1, batch.nbytes))
    starts = range(0, len(batch.keys), rows)
    return [
        packed(
            batch.keys[start : start + rows],
            {name: array[start : start + rows] for name, array in batch.columns.items()},
            batch.axes,
        )
        for start in starts
    ]


def _portions(blocks: list[bytearray]) -> list[list[bytearray]]:
    """Splits blocks into lists that are committed at once."""
    portions: list[list[bytearray]] = [[]]
    size = 0
    for block in blocks:
        if portions[-1] and size + len(block) > AT_ONCE:
            portions.append([])
            size = 0
        portions[-1].append(block)
        size += len(block)
    return portions
