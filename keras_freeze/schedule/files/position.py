"""Where in a file something stands, for messages."""

from __future__ import annotations

import os
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

from keras_freeze.errors import ScheduleError, shown

Path = tuple[Any, ...]  # keys and places in lists, from the top of the file
MOST_DEEP = 20  # a schedule needs 6


@dataclass
class Source:
    """A file that is read or written.

    Args:
        name: the path as the user wrote it.
        lines: the line of each value, by its keys from the top of the file; of those that the
            format lets us know.
    """

    name: str | os.PathLike[str]
    lines: dict[Path, int] = field(default_factory=dict)

    def error(
        self, message: str, *, path: Path = (), stage: str = "", line: int | None = None
    ) -> ScheduleError:
        """Returns the error that says where `message` applies.

        Args:
            path: of the value; its line is looked up, or that of what holds it.
            stage: how the stage is called, if one is meant.
            line: if it is known.
        """
        line = line or self.line_of(path)
        name = os.fspath(self.name)
        where = [
            name if len(name) < 300 else f"...{name[-200:]}",
            f"line {line}" if line else "",
            stage,
        ]
        return ScheduleError(f"{', '.join(filter(None, where))}: {message}")

    def line_of(self, path: Path) -> int | None:
        """The line of the value at `path`, or of what holds it; None of the file as a whole."""
        known = (self.lines.get(path[:length]) for length in range(len(path), 0, -1))
        return next((line for line in known if line), None)

    def check_new(self, key: Any, known: Container[Any], line: int | None = None) -> None:
        """Raises `ScheduleError` if a mapping has the key already."""
        if key in known:
            raise self.error(f"the key {shown(key)} is there twice. Remove one.", line=line)
