"""Names the file, line and stage of a value in error messages."""

from __future__ import annotations

import os
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

from keras_freeze.errors import ScheduleError, shown

Path = tuple[Any, ...]  # keys, and indices in lists, from the top of the file
MOST_DEEP = 20  # the maximum depth of nesting; a schedule needs 6


@dataclass
class Source:
    """A file that is read or written.

    Args:
        name: the path as the user wrote it.
        lines: the line of each value, if known, by its path.
    """

    name: str | os.PathLike[str]
    lines: dict[Path, int] = field(default_factory=dict)

    def error(
        self, message: str, *, path: Path = (), stage: str = "", line: int | None = None
    ) -> ScheduleError:
        """Returns a `ScheduleError` that names file, line and stage before the message.

        Args:
            message: what is wrong.
            path: the path of the value, for its line or the line of what holds it.
            stage: the stage's name in messages, if the message is about a stage.
            line: the line, if known.
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
        """Returns the line of the value at `path`, or of what holds it; None if unknown."""
        known = (self.lines.get(path[:length]) for length in range(len(path), 0, -1))
        return next((line for line in known if line), None)

    def check_new(self, key: Any, known: Container[Any], line: int | None = None) -> None:
        """Raises `ScheduleError` if a mapping already has the key."""
        if key in known:
            raise self.error(f"the key {shown(key)} appears twice. Remove one.", line=line)
