"""Names of the folders in a directory. Nothing here needs LMDB."""

from __future__ import annotations

import re
from pathlib import Path

NAME_LENGTH = 32  # of a fingerprint's folder
REMOVED = ".removed-"  # in front of the names of folders that are being removed
LEFT = re.compile(rf"{re.escape(REMOVED)}[0-9a-f]{{12}}")


def fingerprints(directory: Path) -> list[Path]:
    """Returns the folders of all fingerprints."""
    try:
        return sorted(path for path in directory.iterdir() if is_fingerprint(path))
    except OSError:
        return []


def is_fingerprint(path: Path) -> bool:
    """Returns True for the folder of a fingerprint, judged by its name."""
    digits = set("0123456789abcdef")
    return len(path.name) == NAME_LENGTH and set(path.name) <= digits and path.is_dir()
