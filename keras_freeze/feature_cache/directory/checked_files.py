"""Checks LMDB files before this process reads them, so that a damaged one can't crash it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

PROGRAM = Path(__file__).with_name("read_through.py")
SECONDS = 30.0  # for all files, and
SECONDS_PER_GB = 5.0  # more for large ones
STATES = ("ok", "damaged", "unusable")
# A reader that ends in one of these ways was stopped by the file, and not by a person or by the
# system, which may be short of memory.
CRASHES = {
    -getattr(signal, name)
    for name in ("SIGSEGV", "SIGBUS", "SIGFPE", "SIGABRT", "SIGILL")
    if hasattr(signal, name)
}
WINDOWS_CRASHES = {0xC0000005, 0xC0000006, 0xC0000094, 0xC00000FD, 0xC0000409}

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
    live, stamps = set(written), {path: stamp(path) for path in paths}
    found = {path: "ok" if _checked.get(path) == is_now else "" for path, is_now in stamps.items()}
    found |= {path: "unusable" for path, is_now in stamps.items() if is_now is None}
    while left := [path for path, state in found.items() if not state]:
        found |= _run(left, live)
    for path, state in found.items():
        if state == "ok" and path not in live:
            remember(path, stamps[path])
    return found


def _run(paths: list[Path], live: set[Path]) -> dict[Path, str]:
    """Returns what the reader found, up to the environment at which it crashed, if it did."""
    if not sys.executable:
        raise OSError("it isn't known where Python is")
    size = sum(is_now[1] for path in paths if (is_now := stamp(path)) is not None)
    process = subprocess.Popen(
        [
            sys.executable,
            "-P",
            str(PROGRAM),
            *(("w" if p in live else "r") + str(p) for p in paths),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        start_new_session=True,  # so that Ctrl-C ends only this process
    )
    try:
        output, _ = process.communicate(timeout=SECONDS + SECONDS_PER_GB * size / 1e9)
        has_ended = True
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        has_ended = False
    except BaseException:
        process.kill()
        process.communicate()
        raise
    begin, *lines = output.decode(errors="replace").splitlines() or [""]
    states = [line for line in lines if line in STATES][: len(paths)]
    found = dict(zip(paths, states, strict=False))
    left = paths[len(states) :]
    if not left:
        return found
    if not has_ended:
        return found | dict.fromkeys(left, "unusable")
    code = process.returncode
    if begin != "begin" or code == 0 or (code > 0 and code not in WINDOWS_CRASHES):
        raise OSError(f"{sys.executable} can't run {PROGRAM.name}")
    return found | {left[0]: "damaged" if code in CRASHES | WINDOWS_CRASHES else "unusable"}


def remember(path: Path, is_now: Stamp | None) -> None:
    """Says that an environment was whole when it had this stamp."""
    if is_now is not None:
        _checked[path] = is_now


def stamp(path: Path) -> Stamp | None:
    """Returns what changes if a file changes; None if there is none."""
    try:
        state = (path / "data.mdb").stat()
    except OSError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns
