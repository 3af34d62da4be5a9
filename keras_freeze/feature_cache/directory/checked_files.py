"""Checks LMDB files before this process reads them, so that a damaged one can't crash it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

PROGRAM = Path(__file__).with_name("read_through.py")
SECONDS = 60.0  # for all files, and
SECONDS_PER_GB = 5.0  # more for large ones

Stamp = tuple[int, int, int]
_checked: dict[Path, Stamp] = {}  # files that this process has checked or written


def check_files(paths: Iterable[Path], written: Iterable[Path] = ()) -> dict[Path, str]:
    """Returns "ok", "damaged" or "unusable" for each environment.

    Args:
        paths: folders of environments.
        written: those of them to which a process writes.

    Raises:
        OSError: Python can't be started.
    """
    live, stamps = set(written), {path: _stamp(path) for path in paths}
    found = {path: "ok" if _checked.get(path) == stamp else "" for path, stamp in stamps.items()}
    found |= {path: "unusable" for path, stamp in stamps.items() if stamp is None}
    while left := [path for path, state in found.items() if not state]:
        found |= _run(left, live)
    for path, state in found.items():
        if state == "ok" and path not in live:
            remember(path)
    return found


def _run(paths: list[Path], live: set[Path]) -> dict[Path, str]:
    """Returns what the reader found, up to the environment at which it crashed, if it did."""
    size = sum((path / "data.mdb").stat().st_size for path in paths)
    arguments = [("w" if path in live else "r") + str(path) for path in paths]
    process = subprocess.Popen(
        [sys.executable, "-I", str(PROGRAM), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        text, _ = process.communicate(timeout=SECONDS + SECONDS_PER_GB * size / 1e9)
        broken = "damaged"
    except subprocess.TimeoutExpired:
        process.kill()
        text, _ = process.communicate()
        broken = "unusable"
    pairs = [line.split(" ", 1) for line in text.splitlines()]
    found = {Path(path): state for state, path in pairs}
    if len(found) < len(paths):
        if process.returncode > 0:
            raise OSError(f"{sys.executable} can't run {PROGRAM.name}")
        found[next(path for path in paths if path not in found)] = broken
    return found


def remember(path: Path) -> None:
    """Says that an environment is whole as it is now."""
    stamp = _stamp(path)
    if stamp is not None:
        _checked[path] = stamp


def _stamp(path: Path) -> Stamp | None:
    """Returns what changes if a file changes; None if there is none."""
    try:
        state = (path / "data.mdb").stat()
    except OSError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns
