"""Keeps a directory within its limit, and some of the disk free."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from keras_freeze.feature_cache.directory import about, locks
from keras_freeze.feature_cache.directory.folder_names import LEFT, REMOVED, fingerprints

FLOOR = 1 << 30  # bytes of the disk that stay free,
FLOOR_SHARE = 0.05  # or this share of a smaller disk


def bytes_on_disk(path: Path) -> int:
    """Returns the bytes of the disk that a folder takes."""
    return sum(_blocks(entry) for entry in _files(path))


def _files(path: Path) -> Iterator[str]:
    for folder, _, names in os.walk(path):
        yield from (os.path.join(folder, name) for name in names)


def _blocks(file: str) -> int:
    try:
        state = os.lstat(file)
    except OSError:
        return 0
    blocks = getattr(state, "st_blocks", None)  # Windows has none
    return state.st_size if blocks is None else int(blocks) * 512


def free_bytes(directory: Path) -> int:
    """Returns the bytes of the disk that may still be written."""
    usage = shutil.disk_usage(directory)
    return usage.free - min(FLOOR, int(FLOOR_SHARE * usage.total))


def make_room(directory: Path, needed: int, limit: int | None) -> bool:
    """Removes the least recently used fingerprints until there is room; False if there isn't.

    No fingerprint that a process uses is removed, and none at all if that wouldn't be enough.

    Args:
        directory: the directory.
        needed: bytes that are going to be written.
        limit: bytes that the directory may take; None = as many as the disk has.

    Raises:
        OSError: the directory was removed, or another process doesn't let go of it.
    """
    if _has_room(directory, needed, limit):
        return True
    for path in directory.iterdir():
        if LEFT.fullmatch(path.name) and not path.is_symlink():  # by a process that was killed
            shutil.rmtree(path, ignore_errors=True)
    unused = [path for path in fingerprints(directory) if not locks.is_in_use(path)]
    if not _has_room(directory, needed - sum(map(bytes_on_disk, unused)), limit):
        return False
    for path in sorted(unused, key=about.last_use):
        if _has_room(directory, needed, limit):
            return True
        with suppress(FileNotFoundError):  # another process was faster
            remove(path)
    return _has_room(directory, needed, limit)


def _has_room(directory: Path, needed: int, limit: int | None) -> bool:
    if needed > free_bytes(directory):
        return False
    return limit is None or bytes_on_disk(directory) + needed <= limit


def remove(folder: Path) -> bool:
    """Removes a fingerprint unless a process uses it."""
    with locks.of_directory(folder.parent):
        if locks.is_in_use(folder):
            return False
        away = folder.parent / f"{REMOVED}{uuid.uuid4().hex[:12]}"
        folder.rename(away)
    shutil.rmtree(away, ignore_errors=True)
    return not away.exists()
