"""Tells other processes that this one uses a fingerprint, with a file that it keeps locked.

The lock is released when the process ends, however it ends. A `.lock` file that isn't held was
left by a process that was killed.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

SECONDS = 10.0  # to wait while another process opens or removes a fingerprint
MOMENT = 0.005  # seconds; asking whether a lock is held takes less
_stuck: set[Path] = set()  # directories for whose lock this process has waited in vain


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
    if not _is_held(file):
        return False
    time.sleep(MOMENT)  # another process may be asking the same
    return _is_held(file)


def _is_held(file: Path) -> bool:
    try:
        file.lstat()
        lock = _lock(file)
        lock.acquire(blocking=False)
    except FileNotFoundError:
        return False
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def is_in_use(folder: Path) -> bool:
    """Returns True if a process has a fingerprint open."""
    return any(map(is_held, folder.glob("*.lock")))


def remove_left_locks(folder: Path) -> None:
    """Removes the lock files that killed processes left, unless another process is about to open.

    A process that opens the fingerprint makes its lock file first, and holds it a moment later.
    """
    with suppress(OSError), of_directory(folder.parent, 0):
        for file in folder.glob("*.lock"):
            if not is_held(file):
                file.unlink(missing_ok=True)


@contextmanager
def of_directory(directory: Path, seconds: float | None = None) -> Iterator[None]:
    """Holds the lock for the moment in which a fingerprint is opened or removed.

    A process that doesn't let go of it is waited for only once.

    Args:
        directory: the directory.
        seconds: how long to wait for it; None = `SECONDS`.

    Raises:
        OSError: another process holds it for too long, or the directory can't be written to.
    """
    file = directory / ".opening.lock"
    if seconds is None:
        seconds = 0 if directory in _stuck else SECONDS
    lock = _lock(file)
    try:
        lock.acquire(timeout=seconds)
    except Timeout as error:
        if seconds:
            _stuck.add(directory)
        raise TimeoutError(f"another process doesn't let go of {file}") from error
    _stuck.discard(directory)
    try:
        yield
    finally:
        lock.release()


def _lock(file: Path) -> FileLock:
    if not file.parent.is_dir():  # the lock would make it
        raise FileNotFoundError(f"{file.parent} was removed")
    return FileLock(file, mode=0o600, thread_local=False)
