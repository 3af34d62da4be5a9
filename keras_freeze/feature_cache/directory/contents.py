"""What a directory holds, as plain data: fingerprints, their files, and whether rows are whole."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import lmdb

from keras_freeze.feature_cache.directory import about, folder_names, locks, room
from keras_freeze.feature_cache.directory.about import About
from keras_freeze.feature_cache.directory.blocks import Key
from keras_freeze.feature_cache.directory.checked_files import check_files
from keras_freeze.feature_cache.directory.environments import Environment, opened

RUN = re.compile(r"[0-9a-f]{12}-\d+")  # name of the folder of a file
LOCK = re.compile(r"[0-9a-f]{12}\.lock")
HALF_WRITTEN = re.compile(rf"\.{re.escape(about.NAME)}\.\d+")
VIEW = re.compile(r"view-\d+\.json|\.view-\d+\.json\.[0-9a-f]+")
HIDDEN = re.compile(r"\.(?:removed|merging)-[0-9a-f]{12}")
TRIES = 5  # to list a directory whose files are being removed
PART = 1 << 24  # bytes that are read at once
FAILURES = (OSError, lmdb.Error)


@dataclass(frozen=True)
class RunFile:
    """An LMDB file that one run has written.

    Attributes:
        path: its folder.
        state: "ok", "damaged", or "unusable" (it can't be read here, but may be whole).
        is_live: whether a process may write to it now.
        nbytes: bytes on disk.
        blocks: number of blocks of rows in it; 0 unless it is ok.
    """

    path: Path
    state: str
    is_live: bool
    nbytes: int
    blocks: int = 0


@dataclass(frozen=True)
class Fingerprint:
    """A fingerprint and its files.

    Attributes:
        path: its folder.
        about: what its features are; None if that file is missing or damaged.
        files: its files.
        nbytes: bytes on disk.
        last_use: in seconds since 1970.
        is_used: whether a process has it open.
    """

    path: Path
    about: About | None
    files: tuple[RunFile, ...]
    nbytes: int
    last_use: float
    is_used: bool


@dataclass(frozen=True)
class Rows:
    """The rows of some files.

    Attributes:
        keys: the keys of rows that are whole, in any file.
        bad: number of rows that aren't what was written.
        bad_blocks: number of blocks whose rows can't even be counted.
        damaged: files that can't be read through.
        unusable: files that can't be read here, but may be whole.
    """

    keys: frozenset[Key] = frozenset()
    bad: int = 0
    bad_blocks: int = 0
    damaged: tuple[Path, ...] = ()
    unusable: tuple[Path, ...] = ()

    def __or__(self, other: Rows) -> Rows:
        return Rows(
            self.keys | other.keys,
            self.bad + other.bad,
            self.bad_blocks + other.bad_blocks,
            self.damaged + other.damaged,
            self.unusable + other.unusable,
        )

    @property
    def is_whole(self) -> bool:
        """True if no damage was found."""
        return not (self.bad or self.bad_blocks or self.damaged)


def fingerprints_in(directory: Path) -> list[Fingerprint]:
    """Returns all fingerprints, the most recently used first. Changes nothing.

    Raises:
        OSError: Python can't be started to check the files.
    """
    for _ in range(TRIES - 1):
        try:
            return _listed(directory)
        except FileNotFoundError:
            continue  # another process has just removed a file
    return _listed(directory)


def _listed(directory: Path) -> list[Fingerprint]:
    folders = [path for path in folder_names.fingerprints(directory) if not path.is_symlink()]
    files = {folder: sorted(run.parent for run in folder.glob("*/data.mdb")) for folder in folders}
    runs = [run for of_folder in files.values() for run in of_folder]
    live = {run for run in runs if locks.is_held(run.parent / f"{run.name.split('-')[0]}.lock")}
    # One process checks all files: it takes a while to start.
    states = check_files(runs, live) if runs else {}
    found = [
        Fingerprint(
            folder,
            about.read(folder),
            tuple(_run_file(run, states[run], is_live=run in live) for run in files[folder]),
            room.bytes_on_disk(folder),
            _last_use(folder),
            locks.is_in_use(folder),
        )
        for folder in folders
    ]
    return sorted(found, key=lambda each: (each.is_used, each.last_use), reverse=True)


def _run_file(path: Path, state: str, *, is_live: bool) -> RunFile:
    file = RunFile(path, state, is_live, room.bytes_on_disk(path))
    if not is_live and _is_empty(path / "data.mdb"):
        return replace(file, state="damaged")  # LMDB only says that it can't open it
    if state != "ok":
        return file
    try:
        with _open(file) as environment:
            return replace(file, blocks=environment.environment.stat()["entries"])
    except FAILURES:
        return replace(file, state="unusable")


def _is_empty(file: Path) -> bool:
    try:
        return file.stat().st_size == 0
    except OSError:
        return False


def _last_use(folder: Path) -> float:
    try:
        return about.last_use(folder) or folder.stat().st_mtime
    except OSError:
        return 0.0  # it was removed meanwhile


@contextmanager
def _open(file: RunFile) -> Iterator[Environment]:
    environment = opened(file.path, is_live=file.is_live)
    try:
        yield environment
    finally:
        environment.close()


def listed_rows(files: Iterable[RunFile]) -> int:
    """Returns the number of rows in files, without reading the rows."""
    keys: set[Key] = set()
    for file in files:
        if file.state != "ok":
            continue
        try:
            with _open(file) as environment:
                for block in environment.new_blocks():
                    keys.update(block.keys if block is not None else ())
        except FAILURES:
            continue
    return len(keys)


def checked_rows(file: RunFile) -> Rows:
    """Reads all rows of a file, and compares each with its checksum. Changes nothing."""
    if file.state == "unusable":
        return Rows(unusable=(file.path,))
    if file.state == "damaged" or not _can_be_read(file.path / "data.mdb"):
        return Rows(damaged=(file.path,))
    whole: set[Key] = set()
    bad = bad_blocks = 0
    try:
        with _open(file) as environment:
            for block in environment.new_blocks():
                if block is None:
                    bad_blocks += 1
                    continue
                good = [key for row, key in enumerate(block.keys) if block.is_whole(row)]
                bad += len(block.keys) - len(good)
                whole.update(good)
    except FAILURES:
        return Rows(damaged=(file.path,))
    return Rows(frozenset(whole), bad, bad_blocks)


def _can_be_read(file: Path) -> bool:
    """Returns False if the disk can't read a part of a file.

    An ordinary read gets an error then; a read through LMDB's map would end the process.
    """
    try:
        with file.open("rb", buffering=0) as stream:
            while stream.read(PART):
                pass
    except OSError:
        return False
    return True


def left_behind(directory: Path) -> list[Path]:
    """Returns the folders of killed processes that were removing or merging files."""
    return sorted(
        path
        for path in directory.iterdir()
        if HIDDEN.fullmatch(path.name)
        and path.is_dir()
        and not path.is_symlink()
        and not _is_merging(path)
    )


def _is_merging(path: Path) -> bool:
    """Returns True if a process is writing merged files to a folder."""
    run = path.name.rpartition("-")[2]
    return any(map(locks.is_held, path.parent.glob(f"*/{run}.lock")))


def left_inside(folder: Path) -> list[Path]:
    """Returns what killed processes left in a fingerprint that no process uses."""
    return sorted(
        path
        for path in folder.iterdir()
        if LOCK.fullmatch(path.name)
        or HALF_WRITTEN.fullmatch(path.name)
        or (_is_run(path) and not (path / "data.mdb").exists())
    )


def foreign_files(folder: Path) -> list[Path]:
    """Returns what the cache hasn't made in the folder of a fingerprint."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.name != about.NAME
        and not LOCK.fullmatch(path.name)
        and not HALF_WRITTEN.fullmatch(path.name)
        and not VIEW.fullmatch(path.name)
        and not _is_run(path)
    )


def _is_run(path: Path) -> bool:
    """Returns True for a folder that holds nothing but an LMDB file and its lock."""
    if not RUN.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
        return False
    return {each.name for each in path.iterdir()} <= {"data.mdb", "lock.mdb"}
