"""Tells other processes that this one uses a fingerprint, with a file that it keeps locked.

The lock is released when the process ends, however it ends. A `.lock` file that isn't held was
left by a process that was killed.
"""

from __future__ import annotations

import uuid
from pathlib import Path

from filelock import FileLock, Timeout

SECONDS = 10.0  # to wait while another process opens or removes a fingerprint


def held_lock(folder: Path) -> FileLock:
    """Returns a new locked file in a folder. Its stem is the name of this run.

    Raises:
        OSError: the folder can't be written to.
    """
    lock = _lock(folder / f"{uuid.uuid4().hex[:12]}.lock")
    lock.acquire(timeout=SECONDS)
    return lock


def let_go(lock: FileLock) -> None:
    """Removes a held lock and its file."""
    lock.release()
    Path(lock.lock_file).unlink(missing_ok=True)


def is_held(file: Path) -> bool:
    """Returns True if a process holds a lock file, or if that can't be told."""
    if not file.exists():
        return False
    lock = _lock(file)
    try:
        lock.acquire(blocking=False)
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def is_in_use(folder: Path) -> bool:
    """Returns True if a process has a fingerprint open."""
    return any(map(is_held, folder.glob("*.lock")))


def remove_left_locks(folder: Path) -> None:
    """Removes the lock files that killed processes left."""
    for file in folder.glob("*.lock"):
        if not is_held(file):
            file.unlink(missing_ok=True)


def of_directory(directory: Path) -> FileLock:
    """Returns the lock for the moment in which a fingerprint is opened or removed."""
    return _lock(directory / ".opening.lock", SECONDS)


def _lock(file: Path, seconds: float = -1) -> FileLock:
    return FileLock(file, seconds, mode=0o600, thread_local=False)
