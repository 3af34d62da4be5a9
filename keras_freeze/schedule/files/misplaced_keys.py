"""Finds valid keys of a schedule file that are in the wrong place."""

from __future__ import annotations

import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel

from keras_freeze.errors import shown
from keras_freeze.schedule.files.position import Path, Source
from keras_freeze.schedule.files.schema import Entry, Settings, Trigger, WhenOver

# The right place of the keys of each model.
HOMES: tuple[tuple[type[BaseModel], str], ...] = (
    (Settings, "It belongs at the top of the file, next to `stages`."),
    (Entry, "It belongs in a stage, an item of `stages`."),
    (WhenOver, "It belongs under `at`: `at: {plateau: {patience: 3}}`."),
    (Trigger, "It belongs in a trigger, under `at`: `at: {plateau: {patience: 3}}`."),
)


def check_no_lone_stage(source: Source, data: Mapping[Any, Any], path: Path) -> None:
    """Raises `ScheduleError` if the keys of one stage are in place of a list of stages."""
    own = [key for key in data if key in Entry.model_fields and key not in Settings.model_fields]
    if not own or "stages" in data:
        return
    where = "under `stages`" if path else "at the top of the file"
    raise source.error(
        f"the keys of one stage are {where}, but stages must be a list. {_as_list(source)} "
        f"Received: {shown(dict(data))}",
        path=(*path, own[0]),
    )


def _as_list(source: Source) -> str:
    """Returns how to begin a stage in a file of this format."""
    suffix = pathlib.PurePath(source.name).suffix.lower()
    if suffix == ".toml":
        return "Begin each stage with [[stages]], in two brackets."
    if suffix == ".json":
        return 'Put each stage into a list, in braces: {"stages": [{"at": 3, "unfreeze": "..."}]}.'
    return "Under `stages:`, begin each stage with a dash: `- at: 3`."


def home_of(key: Any, known: Collection[str]) -> str:
    """Returns a hint with the right place of a key; "" if the key is valid nowhere."""
    homes = [where for model, where in HOMES if key in model.model_fields]
    return f" {homes[0]}" if homes and key not in known else ""
