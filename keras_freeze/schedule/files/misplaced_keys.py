"""Keys of a schedule file that are right, but stand in the wrong place."""

from __future__ import annotations

import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel

from keras_freeze.errors import shown
from keras_freeze.schedule.files.position import Path, Source
from keras_freeze.schedule.files.schema import Entry, Settings, Trigger, WhenOver

# Where a key stands that is unknown where it was found.
HOMES: tuple[tuple[type[BaseModel], str], ...] = (
    (Settings, "It stands at the top of the file, beside `stages`."),
    (Entry, "It stands in a stage, an item of `stages`."),
    (WhenOver, "It stands under `at`: `at: {plateau: {patience: 3}}`."),
    (Trigger, "It stands in a trigger, under `at`: `at: {plateau: {patience: 3}}`."),
)


def check_no_lone_stage(source: Source, data: Mapping[Any, Any], path: Path) -> None:
    """Raises `ScheduleError` where the keys of one stage stand in place of a list of stages."""
    own = [key for key in data if key in Entry.model_fields and key not in Settings.model_fields]
    if not own or "stages" in data:
        return
    where = "under `stages`" if path else "at the top of the file"
    raise source.error(
        f"the keys of one stage stand {where}, and stages are a list. {_as_list(source)} "
        f"Received: {shown(dict(data))}",
        path=(*path, own[0]),
    )


def _as_list(source: Source) -> str:
    """How a file of that format begins a stage."""
    suffix = pathlib.PurePath(source.name).suffix.lower()
    if suffix == ".toml":
        return "Begin each stage with [[stages]], in two brackets."
    if suffix == ".json":
        return 'Put each stage in braces into a list: {"stages": [{"at": 3, "unfreeze": "..."}]}.'
    return "Under `stages:`, begin each stage with a dash: `- at: 3`."


def home_of(key: Any, known: Collection[str]) -> str:
    """Returns where a key stands that would be right elsewhere; "" if it is right nowhere."""
    homes = [where for model, where in HOMES if key in model.model_fields]
    return f" {homes[0]}" if homes and key not in known else ""
