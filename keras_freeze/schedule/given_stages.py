"""Reads the argument `schedule`: converts all that a user may pass into a list of stages."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from keras_freeze.errors import FreezeError, LayerMatchError, ScheduleError, check_choice, nearest
from keras_freeze.graph.selectors import check_selector
from keras_freeze.schedule.stage import KEYS, Stage, refuse_unknown
from keras_freeze.schedule.stage_arguments import check_at

# Arguments of `GradualUnfreeze` that a schedule may set, with their choices; None = any selector.
SETTINGS = {
    "base": None,
    "optimizer": (None, "carry", "reset"),
    "batch_norm": (None, "freeze", "train"),
}
PRESETS = ("two_phase", "lp_ft", "ulmfit", "chain_thaw", "auto")
SUFFIXES = (".yaml", ".yml", ".json", ".toml")


def is_path(stages: Any) -> bool:
    """True for a string that looks like the name of a file; no other string is a schedule."""
    suffix = pathlib.PurePath(stages).suffix if isinstance(stages, str) else ""
    return suffix[1:].isalnum()


def _hint(stages: Any) -> str:
    """Returns a hint for a string that doesn't look like the name of a file."""
    if not isinstance(stages, str) or not stages.strip():
        return ""
    files = [stages + suffix for suffix in SUFFIXES if pathlib.Path(stages + suffix).is_file()]
    if files:
        return f" Did you mean {files[0]!r}?"
    preset = nearest(stages, PRESETS, least=0.75)
    if preset:
        return f" Did you mean Schedule.{preset[0]}(...)?"
    return f" A selector needs its epoch: {{10: {stages!r}}}."


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raises an error if `base`, `optimizer` or `batch_norm` is invalid."""
    for key, value in settings.items():
        choices = SETTINGS[key]
        if choices is None:
            check_selector(value, f"`{key}` of Schedule")
            continue
        try:
            check_choice(key, value, choices)
        except FreezeError as error:
            raise ScheduleError(f"Schedule: {error}") from None


def in_order(stages: list[Stage]) -> list[Stage]:
    """Sorts stages by epoch; keeps their order if one has a trigger instead of an epoch."""
    epochs = [stage.at for stage in stages if isinstance(stage.at, int)]
    if len(epochs) < len(stages):
        return stages
    return [stages[place] for place in sorted(range(len(stages)), key=epochs.__getitem__)]


def stages_of(stages: Any) -> list[Stage]:
    """Returns the stages of the argument `schedule`, or raises `ScheduleError`."""
    if isinstance(stages, Mapping):
        return [_stage_from(at, value) for at, value in stages.items()]
    if isinstance(stages, Stage):
        return [stages]
    if isinstance(stages, (list, tuple)):
        return [_from_list(item) for item in stages]
    raise ScheduleError(
        "`schedule` must be {epoch: selector or Stage}, a list of Stage, a Schedule, or the path "
        f"of a .yaml, .yml, .json or .toml file.{_hint(stages)} "
        f"Received: {stages!r} (of type {type(stages).__name__})"
    )


def _from_list(item: Any) -> Stage:
    if isinstance(item, Stage):
        return item
    if isinstance(item, Mapping) and "at" in item:
        return _stage_from(check_at(item["at"]), item)
    raise ScheduleError(
        "`schedule` as a list must hold Stage objects, or mappings with the keys "
        f"{', '.join(KEYS)} (`at` is required). Received: {item!r}"
    )


def _stage_from(at: Any, value: Any) -> Stage:
    """Reads one entry of `{epoch: selector or Stage}`; a mapping holds `Stage`'s arguments."""
    check_at(at)
    if isinstance(value, Mapping):
        refuse_unknown({k: v for k, v in value.items() if k not in KEYS}, f"stage at epoch {at}")
        value = Stage(**{"at": at, **value})
    if isinstance(value, Stage):
        if value.at != at:
            under = f"epoch {at}" if isinstance(at, int) else at
            raise ScheduleError(
                f"`schedule` has Stage(at={value.at}) under {under}. Use the same epoch in both."
            )
        return value
    if value is None:
        raise ScheduleError(
            f"`schedule` has no selector for epoch {at}. Write what to unfreeze, for example "
            f"{{{at}: 'block5_*'}}. Received: None"
        )
    try:
        return Stage(at, unfreeze=value)
    except LayerMatchError as error:
        raise LayerMatchError(f"`schedule`: {error}") from None
