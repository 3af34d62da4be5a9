"""The file `about.json` of a fingerprint: what its features are, for people and for `ls`."""

from __future__ import annotations

import os
import time
from pathlib import Path

from pydantic import BaseModel, ValidationError

NAME = "about.json"


class About(BaseModel):
    """What the features of a fingerprint are. Nothing here is needed to read them.

    Attributes:
        network: name of the model or of its base.
        cut: names of the layers whose outputs are kept.
        features: dtype and shape of a row of each.
        made_with: versions of Keras and of the backend.
        data: the name that the user gave the data, for recorded views.
        made: when the fingerprint was first used, in seconds since 1970.
    """

    network: str
    cut: list[str]
    features: list[str]
    made_with: dict[str, str]
    data: str | None = None
    made: float = 0.0


def write(folder: Path, about: About) -> None:
    """Writes the file, if there is none."""
    file = folder / NAME
    if file.exists():
        return
    new = folder / f".{NAME}.{os.getpid()}"
    new.write_text(about.model_copy(update={"made": time.time()}).model_dump_json(indent=2) + "\n")
    new.replace(file)


def read(folder: Path) -> About | None:
    """Reads the file; None if it is missing or damaged."""
    try:
        return About.model_validate_json((folder / NAME).read_text())
    except (OSError, ValidationError, UnicodeError):
        return None


def mark_used(folder: Path) -> None:
    """Notes that the fingerprint is used now."""
    os.utime(folder / NAME)


def last_use(folder: Path) -> float:
    """Returns when the fingerprint was last used, in seconds since 1970."""
    try:
        return (folder / NAME).stat().st_mtime
    except OSError:
        return 0.0
