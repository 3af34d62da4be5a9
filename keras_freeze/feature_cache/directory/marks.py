"""Marks a directory as a cache, and tells on which file system it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil

TAG, IGNORE = "CACHEDIR.TAG", ".gitignore"
SIGNATURE = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# This directory holds features cached by keras_freeze. It may be deleted.\n"
    "# See https://bford.info/cachedir/\n"
)
REMOTE = ("nfs", "cifs", "smb", "afs", "ceph", "lustre", "gpfs", "9p", "davfs", "fuse")
LOCAL = ("fuseblk", "fuse.fuse-overlayfs", "fuse-overlayfs")  # despite their names


def mark(path: Path) -> None:
    """Marks a directory as a cache that backup programs and git leave out."""
    if not is_marked(path):  # nothing is left of it, or only a part
        (path / TAG).write_text(SIGNATURE)
    if not (path / IGNORE).exists():
        (path / IGNORE).write_text("*\n")


def is_marked(path: Path) -> bool:
    """Returns True for a directory that a cache has made."""
    try:
        text = (path / TAG).read_text()
        return text.startswith(SIGNATURE.split("\n")[0]) and "keras_freeze" in text
    except (OSError, UnicodeError):
        return False


def is_remote(kind: str) -> bool:
    """Returns True for the type of a network file system, on which LMDB loses data."""
    return kind.startswith(REMOTE) and kind not in LOCAL


def file_system(path: Path) -> str:
    """Returns the type of the file system of a path, such as "ext4"; "" if it can't be told."""
    try:
        mounts: list[Any] = psutil.disk_partitions(all=True)
    except (OSError, psutil.Error):
        return ""
    whole = Path(os.path.realpath(path))
    above = [mount for mount in mounts if whole.is_relative_to(mount.mountpoint)]
    # Of two at the same place, the later one hides the other, such as nfs an autofs.
    above.sort(key=lambda mount: len(mount.mountpoint))
    return str(above[-1].fstype) if above else ""
