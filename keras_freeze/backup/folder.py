"""The folder of a backup: the last state, the one before it, and that before the stage began."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from keras_freeze.backup.array_files import (
    Array,
    DamagedError,
    Entry,
    read,
    remove_others,
    replace_whole,
    write,
)
from keras_freeze.errors import FreezeError, warn

FORMAT = "keras_freeze.BackupAndRestore 1"
LATEST, PREVIOUS, STAGE = "backup.json", "previous.json", "stage.json"
START = "start.json"
OF_KERAS = ("latest.weights.h5", "training_metadata.json")


class Manifest(BaseModel):
    """What a backup holds; it names the files with the arrays.

    Attributes:
        format: the format of the file.
        about: the model, the optimizer and the plan of the run, to compare.
        state: the state of the run, as JSON; arrays are numbers in `arrays`.
        arrays: where each array is.
    """

    format: str
    about: dict[str, Any]
    state: dict[str, Any]
    arrays: list[Entry]


class Folder:
    """The folder of a backup.

    Args:
        path: the folder; it is made when the first backup is written.
    """

    def __init__(self, path: Path):
        self.path = path
        self.known: dict[str, Entry] = {}  # arrays in files that will stay, by content
        self.is_new = True  # no backup was found
        self.is_damaged = False  # the last backup

    def find(self) -> tuple[Manifest, list[Array]] | None:
        """Returns the last whole backup; None if there is none.

        Raises:
            FreezeError: there is one, but it is damaged, or of Keras' own callback.
        """
        if not self.path.exists():
            return None
        if not self.path.is_dir():
            raise FreezeError(
                "`backup_dir` of BackupAndRestore must be a directory, but it is a file. "
                f"Received: backup_dir={str(self.path)!r}"
            )
        damages = []
        for name in (LATEST, PREVIOUS):
            try:
                found = self.take(name)
            except DamagedError as error:
                damages.append(str(error))
                continue
            if found is not None:
                self.is_new, self.is_damaged = False, bool(damages)
                if damages:
                    warn(
                        f"The last backup in {str(self.path)!r} is damaged ({damages[0]}). "
                        "Training continues from the one before it."
                    )
                return found
        if damages:
            raise FreezeError(
                f"The backup in {str(self.path)!r} is damaged: {damages[0]}. Nothing was changed. "
                "To begin anew, remove the directory. With double_checkpoint=True, the backup "
                "before the last one is kept too."
            )
        self._check_foreign()
        return None

    def take(self, name: str) -> tuple[Manifest, list[Array]] | None:
        """Returns one backup with its arrays; None if there is none.

        Raises:
            DamagedError: a file is damaged or missing.
        """
        manifest = self._manifest(name)
        if manifest is None:
            return None
        return manifest, read(self.path, manifest.arrays)

    def _manifest(self, name: str) -> Manifest | None:
        try:
            given = json.loads((self.path / name).read_bytes())
            manifest = Manifest.model_validate(given)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, ValidationError) as error:
            raise DamagedError(f"{name} can't be read ({type(error).__name__})") from error
        if manifest.format != FORMAT:
            raise DamagedError(f"{name} has another format, {manifest.format!r}")
        return manifest

    def _check_foreign(self) -> None:
        """Raises if the folder holds a backup of Keras' own callback, or files named as ours."""
        names = sorted(each.name for each in self.path.iterdir())
        if any(name in names for name in OF_KERAS):
            raise FreezeError(
                f"{str(self.path)!r} holds a backup of keras.callbacks.BackupAndRestore, which has "
                "no stages, so it can't be continued exactly. Nothing was changed. Pass another "
                "`backup_dir`, or remove it."
            )
        for name in (STAGE, START):
            if name in names and not self._is_ours(name):
                raise FreezeError(
                    f"{str(self.path / name)!r} isn't from BackupAndRestore, which uses this name. "
                    "Pass a `backup_dir` for the backup alone."
                )

    def _is_ours(self, name: str) -> bool:
        try:
            given = json.loads((self.path / name).read_bytes())
        except (OSError, ValueError):
            return False
        return isinstance(given, dict) and given.get("format") == FORMAT

    def write(
        self,
        about: dict[str, Any],
        state: dict[str, Any],
        arrays: list[tuple[str, Array]],
        *,
        double: bool,
        ends_stage: bool,
    ) -> None:
        """Writes a backup; the last one stays until the new one is whole.

        Args:
            about: what the next run compares.
            state: the state of the run.
            arrays: its arrays, each with the name of its group.
            double: whether the last backup stays as the one before it.
            ends_stage: whether the next stage begins from here.

        Raises:
            OSError: a file can't be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        entries = write(self.path, arrays, self.known)
        given = {"format": FORMAT, "about": about, "state": state}
        text = json.dumps(given | {"arrays": [entry.model_dump() for entry in entries]}).encode()
        if self.is_new:
            (self.path / STAGE).unlink(missing_ok=True)  # of another run
        if double and not self.is_damaged and (self.path / LATEST).exists():
            old = (self.path / LATEST).read_bytes()
            replace_whole(self.path / PREVIOUS, lambda stream: stream.write(old))
        replace_whole(self.path / LATEST, lambda stream: stream.write(text))
        if ends_stage:
            replace_whole(self.path / STAGE, lambda stream: stream.write(text))
        if not double:
            (self.path / PREVIOUS).unlink(missing_ok=True)
        self.is_new = self.is_damaged = False
        _make_disk_keep(self.path)
        kept = [*self._of_others(), *entries]  # two files may hold the same array
        self.known = {entry.content: entry for entry in kept}
        remove_others(self.path, {entry.file for entry in kept})

    def _of_others(self) -> Iterator[Entry]:
        for name in (PREVIOUS, STAGE):
            try:
                manifest = self._manifest(name)
            except DamagedError:
                continue
            yield from manifest.arrays if manifest is not None else ()

    def note_views(self, found: int) -> None:
        """Notes how many recorded views a run found when it began.

        If it is killed before its first backup, the next one must find no more.

        Raises:
            OSError: the file can't be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"format": FORMAT, "views": found}).encode()
        replace_whole(self.path / START, lambda stream: stream.write(text))

    def views_at_start(self) -> int | None:
        """Returns how many views a run had found that was killed before its first backup."""
        try:
            return int(json.loads((self.path / START).read_bytes())["views"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def remove(self) -> None:
        """Removes the files of the backup, and the folder if it is empty then."""
        if not self.path.is_dir():
            return
        for name in (LATEST, PREVIOUS, STAGE):
            (self.path / name).unlink(missing_ok=True)
        remove_others(self.path, set())
        (self.path / START).unlink(missing_ok=True)  # last: a run may be killed in between
        with suppress(OSError):  # a link, the current directory, or other files in it
            self.path.rmdir()


def _make_disk_keep(folder: Path) -> None:
    """Makes the disk keep the names of new files, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
