"""Makes room in a directory: removes what nobody needs, and merges small files.

Nothing of a fingerprint that a process uses is touched, and no file that the cache hasn't made.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from keras_freeze.feature_cache.directory import locks, room
from keras_freeze.feature_cache.directory.contents import (
    Fingerprint,
    RunFile,
    checked_rows,
    fingerprints_in,
    foreign_files,
    left_behind,
    left_inside,
)
from keras_freeze.feature_cache.directory.environments import MAP
from keras_freeze.feature_cache.directory.merge import FAILURES, merge, moved_away

MANY = 4  # files that a fingerprint may have before they are merged,
SMALL = MAP // 2  # bytes of a file; larger ones wouldn't become fewer
LEFT = "left by a process that was killed"
NO_ROWS = "without rows"
DAMAGED = "damaged"
OLD = "not used for a long time"
LEAST_USED = "least recently used"


@dataclass(frozen=True)
class Removed:
    """A folder or file that was removed.

    Attributes:
        path: where it was.
        why: the reason, in words.
        nbytes: bytes that it took on disk.
    """

    path: Path
    why: str
    nbytes: int


@dataclass(frozen=True)
class Rewritten:
    """Files of a fingerprint whose whole rows were written into a new file.

    Attributes:
        fingerprint: its folder.
        files: number of files that the new one replaces.
        bad: number of rows or blocks that were left out since they were damaged.
        rows: rows in the new file.
        nbytes: bytes that were freed; None if they can't be told before.
    """

    fingerprint: Path
    files: int
    bad: int
    rows: int
    nbytes: int | None


@dataclass
class CleanUp:
    """What a clean-up has done.

    Attributes:
        removed: what was removed.
        rewritten: files that were merged or written anew.
        used: fingerprints that a process uses, of which nothing was touched.
        problems: what couldn't be done, in words.
        nbytes: bytes that the directory takes now.
    """

    removed: list[Removed] = field(default_factory=list)
    rewritten: list[Rewritten] = field(default_factory=list)
    used: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    nbytes: int = 0

    @property
    def freed(self) -> int:
        """Bytes that were freed."""
        removed = sum(each.nbytes for each in self.removed)
        return removed + sum(each.nbytes or 0 for each in self.rewritten)


def clean_up(
    directory: Path,
    *,
    limit: int | None = None,
    unused_for: float | None = None,
    dry_run: bool = False,
) -> CleanUp:
    """Makes room in a directory.

    Args:
        directory: the directory.
        limit: bytes that it may take afterwards; None = any number.
        unused_for: seconds; a fingerprint that wasn't used for longer is removed. None = none is.
        dry_run: whether only to find out what would be done.

    Raises:
        OSError: the directory can't be written to, or Python can't be started to check the files.
    """
    return _Cleaner(directory, dry_run=dry_run).run(limit, unused_for)


class _Cleaner:
    """One clean-up of a directory."""

    def __init__(self, directory: Path, *, dry_run: bool):
        self.directory = directory
        self.dry_run = dry_run
        self.done = CleanUp()

    def run(self, limit: int | None, unused_for: float | None) -> CleanUp:
        for path in left_behind(self.directory):
            self._remove_left(path)
        every = fingerprints_in(self.directory)
        self.done.used = [each.path for each in every if each.is_used]
        kept = [each for each in every if not each.is_used and self._tidy(each)]
        if unused_for is not None:
            before = time.time() - unused_for
            old = [each for each in kept if each.last_use < before]
            kept = [each for each in kept if each not in old or not self._remove(each, OLD)]
        if limit is not None:
            kept = self._keep_within(limit, kept)
        for each in kept:
            self._rewrite(each)
        self.done.nbytes = self._taken()
        return self.done

    def _taken(self) -> int:
        """Returns the bytes of the directory, without those that a dry run would have freed."""
        pretended = self.done.freed if self.dry_run else 0
        return room.bytes_on_disk(self.directory) - pretended

    def _keep_within(self, limit: int, kept: list[Fingerprint]) -> list[Fingerprint]:
        """Removes the least recently used fingerprints, and returns the others."""
        waiting, stuck = sorted(kept, key=lambda each: each.last_use), []
        while waiting and self._taken() > limit:
            least = waiting.pop(0)
            if not self._remove(least, LEAST_USED):
                stuck.append(least)
        return [*stuck, *waiting]

    # Removing

    def _tidy(self, fingerprint: Fingerprint) -> bool:
        """Removes what isn't needed of a fingerprint; returns True if rows are left."""
        folder = fingerprint.path
        bad = [file for file in fingerprint.files if file.state == "damaged"]
        empty = [file for file in fingerprint.files if file.state == "ok" and not file.blocks]
        if len(bad) + len(empty) == len(fingerprint.files):
            return not self._remove(fingerprint, DAMAGED if bad else NO_ROWS)
        for file, why in [*((file, DAMAGED) for file in bad), *((file, NO_ROWS) for file in empty)]:
            self._remove_inside(folder, file.path, why)
        for path in left_inside(folder):
            self._remove_inside(folder, path, LEFT)
        return True

    def _remove_left(self, path: Path) -> None:
        size = room.bytes_on_disk(path)
        if not self.dry_run:
            shutil.rmtree(path, ignore_errors=True)
        self._note(path, LEFT, size)

    def _remove(self, fingerprint: Fingerprint, why: str) -> bool:
        """Removes a fingerprint; returns False if it must stay."""
        path = fingerprint.path
        try:
            if foreign := foreign_files(path):
                self.done.problems.append(f"{path} stays: it holds another file, {foreign[0].name}")
                return False
            counted = [each.nbytes for each in self.done.removed if path in each.path.parents]
            size = fingerprint.nbytes - sum(counted)
            if not self.dry_run:
                room.remove(path)
        except FileNotFoundError:
            return True  # another process was faster
        except OSError as error:
            return self._failed(path, error)
        return self._note(path, why, size)

    def _remove_inside(self, folder: Path, path: Path, why: str) -> None:
        """Removes a part of a fingerprint, unless a process uses it."""
        try:
            size = _size(path)
            if not self.dry_run:
                self._take_away(folder, path)
        except FileNotFoundError:
            return
        except OSError as error:
            self._failed(path, error)
            return
        self._note(path, why, size)

    def _take_away(self, folder: Path, path: Path) -> None:
        with locks.of_directory(self.directory):
            if locks.is_in_use(folder):
                return
            if not path.is_dir():
                path.unlink()
                return
            away = moved_away(self.directory, path)
        shutil.rmtree(away, ignore_errors=True)

    def _failed(self, path: Path, error: Exception) -> bool:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        self.done.problems.append(f"{path} stays: {text}")
        return False

    def _note(self, path: Path, why: str, size: int) -> bool:
        """Notes that a path was removed, or that it wasn't."""
        if not self.dry_run and path.exists():
            self.done.problems.append(f"{path} stays: a process uses it, or it can't be removed")
            return False
        self.done.removed.append(Removed(path, why, size))
        return True

    # Merging

    def _rewrite(self, fingerprint: Fingerprint) -> None:
        """Merges small files if there are many, and leaves out bad rows."""
        files = [file for file in fingerprint.files if file.state == "ok" and file.blocks]
        bad, chosen = 0, []
        small = [file for file in files if file.nbytes < SMALL]
        for file in files:
            rows = checked_rows(file)
            bad += rows.bad + rows.bad_blocks
            if rows.damaged:  # the disk can't read it
                self._remove_inside(fingerprint.path, file.path, DAMAGED)
            elif not rows.is_whole or (len(small) > MANY and file in small):
                chosen.append(file)
        if chosen:
            self._merge(fingerprint, chosen, bad)

    def _merge(self, fingerprint: Fingerprint, files: list[RunFile], bad: int) -> None:
        folder, size = fingerprint.path, sum(file.nbytes for file in files)
        if self.dry_run:
            self.done.rewritten.append(Rewritten(folder, len(files), bad, 0, None))
            return
        if size > room.free_bytes(self.directory):
            self.done.problems.append(f"{folder} stays: the disk has no room to merge its files")
            return
        before = room.bytes_on_disk(folder)
        try:
            rows = merge(folder, [file.path for file in files])
        except FAILURES as error:
            self._failed(folder, error)
            return
        if rows is None:
            self.done.problems.append(f"{folder} stays: a process began to use it")
            return
        freed = before - room.bytes_on_disk(folder)
        self.done.rewritten.append(Rewritten(folder, len(files), bad, rows, freed))
        if not rows and len(files) == len(fingerprint.files):
            self._remove(replace(fingerprint, nbytes=room.bytes_on_disk(folder)), NO_ROWS)


def _size(path: Path) -> int:
    """Returns the bytes of the disk that a folder or a file takes."""
    if path.is_dir():
        return room.bytes_on_disk(path)
    state = path.stat()
    return getattr(state, "st_blocks", 0) * 512 or state.st_size
