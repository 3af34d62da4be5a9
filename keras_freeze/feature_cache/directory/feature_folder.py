"""The rows of one fingerprint in a directory: found by key, added, read by other processes too."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakSet

from filelock import FileLock

from keras_freeze.feature_cache.directory import about, locks
from keras_freeze.feature_cache.directory.about import About
from keras_freeze.feature_cache.directory.blocks import Columns, Key
from keras_freeze.feature_cache.directory.environments import (
    Environment,
    FullError,
    Written,
)
from keras_freeze.feature_cache.directory.other_files import FAILURES, OtherFiles
from keras_freeze.feature_cache.directory.portions import blocks_of, commits_of
from keras_freeze.feature_cache.directory.row_index import Batch, FoundRows, RowIndex
from keras_freeze.feature_cache.storage.memory_order import Axes

AGAIN = 2.0  # seconds after which to look for rows that other processes have written


class FeatureFolder:
    """The folder of a fingerprint.

    Methods may be called from several threads.

    Args:
        path: the folder. It is made when the first rows are written.
        about: what its features are.
        tell: is called with a problem that was found and mended, in words.

    Raises:
        OSError: Python can't be started to check its files.
    """

    def __init__(self, path: Path, about: About, tell: Callable[[str], None]):
        self.path = path
        self.about = about
        self.tell = tell
        self.guard = threading.RLock()
        self.index = RowIndex()
        self.lock: FileLock | None = None
        self.may_enter = True
        self.others = OtherFiles(path, tell)
        self.own: Written | None = None
        self.own_names: set[str] = set()  # of environments that this process has made
        self.made = 0  # environments that this process has ever made here
        self.is_writing = False
        self.must_remove = False  # what this process has written
        self.looked = 0.0  # when other runs' files were last looked for
        self.users: WeakSet[Any] = WeakSet()  # a fit that was broken off isn't closed
        self.is_used = False
        try:
            self.look()
        except BaseException:
            self.close()
            raise

    # Reading

    def look(self) -> None:
        """Reads what other runs have written since the last look.

        Raises:
            OSError: Python can't be started to check its files.
        """
        with self.guard:
            self.looked = time.monotonic()
            if not os.path.isdir(self.path):
                return
            self._enter()
            self.others.open_new(self.own_names)
            for environment in self.others:
                try:
                    self._add_blocks(environment)
                except FAILURES:
                    self._leave(environment)

    def _add_blocks(self, environment: Environment) -> None:
        for block in environment.new_blocks():
            if block is not None:
                self.index.add(block)

    def _enter(self) -> None:
        """Tells other processes that the folder is in use, if it can be written to."""
        if self.lock is None and self.may_enter:
            try:
                with locks.of_directory(self.path.parent):
                    self.lock = locks.held_lock(self.path)
            except OSError:
                self.may_enter = False  # a directory that can only be read

    def __len__(self) -> int:
        return len(self.index)

    def take(self, keys: Sequence[Key]) -> FoundRows | None:
        """Returns the rows with these keys that are known; None if none is."""
        with self.guard:
            if not self.users:
                return None
            self._leave_cut_off()
            missing = any(key not in self.index for key in keys)
            if missing and time.monotonic() - self.looked > AGAIN:
                try:
                    self.look()
                except OSError as error:
                    self.tell(f"can't read what other processes write: {error}")
            found = self.index.take(keys)
            self.is_used |= found is not None
            bad, self.index.bad = self.index.bad, 0
        if bad:
            self.tell(f"found damaged rows, and computes them again, in {self.path}")
        return found

    def _leave_cut_off(self) -> None:
        """Forgets the rows of files that were cut off while they were open."""
        for environment in [*self.others, *([self.own] if self.own is not None else [])]:
            if environment.is_whole():
                continue
            self._leave(environment)
            self.tell(f"found a file that was cut off, and computes its rows again, in {self.path}")

    def _leave(self, environment: Environment) -> None:
        self.index.forget(environment)
        if environment is not self.own:
            self.others.leave(environment)

    # Writing

    def wait_for(
        self, keys: list[Key], columns: Columns, axes: dict[str, Axes | None]
    ) -> Batch | None:
        """Returns the rows that aren't known yet, which are found from now on; None if all are.

        Write them with `write`.
        """
        with self.guard:
            rows = {key: row for row, key in enumerate(keys) if key not in self.index}
            if not rows:
                return None
            new = list(rows.values())
            taken = {
                name: array if len(new) == len(keys) else array[new]
                for name, array in columns.items()
            }
            batch = Batch(list(rows), taken, axes)
            self.index.add(batch)
            return batch

    def write(self, batches: list[Batch]) -> None:
        """Writes rows.

        Raises:
            OSError, lmdb.Error: they can't be written, and are forgotten.
        """
        with self.guard:
            # Those that were forgotten meanwhile aren't wanted any more.
            batches = [batch for batch in batches if self.index.holds(batch)]
            self.is_writing = bool(batches)
        if not batches:
            return
        try:
            self._make()
            for blocks in commits_of([block for batch in batches for block in blocks_of(batch)]):
                self._commit(blocks)
        finally:
            with self.guard:
                self.is_writing = False
                try:
                    self._read_own()
                finally:
                    self.forget(batches)
                    if self.must_remove:
                        self._remove_own()

    def forget(self, batches: list[Batch]) -> None:
        """Forgets rows that wait to be written."""
        with self.guard:
            for batch in batches:
                self.index.drop(batch)

    def _make(self) -> None:
        """Makes the folder and an environment to write to."""
        if self.own is not None:
            return
        # Nobody else may enter meanwhile: environments are named after the lock.
        with self.guard:
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
                self.others.add(self.own)
                self.own = None
            name = f"{Path(self.lock.lock_file).stem}-{self.made}"
            self.made += 1
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
        if self.own is not None:
            self._add_blocks(self.own)

    def remove_own(self) -> None:
        """Removes what this process has written, at once or when it has been written."""
        with self.guard:
            self.index = RowIndex()
            self.must_remove = True
            if not self.is_writing:
                self._remove_own()

    def _remove_own(self) -> None:
        self.must_remove = False
        self._close_environments()
        for name in self.own_names:
            shutil.rmtree(self.path / name, ignore_errors=True)
        self.others.refused |= {name for name in self.own_names if (self.path / name).exists()}
        self.own_names = set()

    def _close_environments(self) -> None:
        self.index = RowIndex()
        self.others.close()
        if self.own is not None:
            with suppress(*FAILURES):  # the disk is full, or the directory was removed
                self.own.close()
        self.own = None

    def close(self) -> None:
        """Closes all files."""
        with self.guard:
            self._close_environments()
            with suppress(OSError):
                if self.is_used or self.own_names:
                    about.mark_used(self.path)
            if self.lock is not None:
                locks.remove_left_locks(self.path)
                with suppress(OSError):
                    locks.let_go(self.lock)
            self.lock = None

    def leave_to_parent(self) -> None:
        """Uses the files no more, in a copy (fork) of the process that has them open."""
        self.guard = threading.RLock()
        self.index = RowIndex()
        self.users = WeakSet()
