"""Checks the data of a schedule file; an error names the file, line, stage and key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from keras_freeze.errors import FreezeError, ScheduleError, closest, shown
from keras_freeze.graph.selector_hints import number_hint
from keras_freeze.schedule.files.misplaced_keys import check_no_lone_stage, home_of
from keras_freeze.schedule.files.position import Path, Source
from keras_freeze.schedule.files.schema import (
    Entry,
    Factor,
    Plan,
    Trigger,
    WhenOver,
    rate_model,
)
from keras_freeze.schedule.given_stages import SETTINGS
from keras_freeze.schedule.plateau import MODES, Plateau
from keras_freeze.schedule.serialize_stage_values import RATES, rate_from_config
from keras_freeze.schedule.stage import Stage, meant_by

EPOCH = re.compile(r"[0-9]+")
EXAMPLE = 'Write, for example, [{at: 10, unfreeze: "block5_*"}] under `stages`'


def schedule_arguments(source: Source, data: Any) -> dict[str, Any]:
    """Returns the arguments of `Schedule` for the data of a file.

    Raises:
        ScheduleError: the data are invalid.
    """
    plan = _plan(source, data)
    plan.check()
    stages = [plan.stage(number) for number in range(len(plan.data["stages"]))]
    plan.check_epochs(stages)
    return {"stages": stages, **{key: plan.data.get(key) for key in SETTINGS}}


@dataclass
class _Written:
    """The data of a file, with the short forms expanded.

    Args:
        source: the file.
        data: `{"stages": [...], ...}`.
        origins: the path of each stage in the file.
    """

    source: Source
    data: dict[Any, Any]
    origins: list[Path]

    def check(self) -> None:
        """Raises `ScheduleError` unless the data have the keys and types of a schedule."""
        try:
            Plan.model_validate(self.data)
        except ValidationError as error:
            problems = error.errors(include_url=False, include_input=False, include_context=False)
            found = [(self._path(each["loc"]), each) for each in problems]
            # Report the first stage with an error, and of its errors the most deeply nested one.
            first = _stage_of(found[0][0])
            path, problem = max((e for e in found if _stage_of(e[0]) == first), key=_depth)
            raise self._explain(path, problem) from None

    def stage(self, place: int) -> Stage:
        """Returns a stage; call `check` before."""
        given = dict(self.data["stages"][place])
        path: Path = ("stages", place)
        try:
            if isinstance(given["at"], Mapping):
                given["at"] = Plateau(**given["at"]["plateau"])
            rate = given.get("learning_rate")
            if isinstance(rate, Mapping) and "class_name" in rate:
                path = (*path, "learning_rate")
                given["learning_rate"] = rate_from_config(rate["class_name"], rate["config"])
            return Stage(**given)
        except FreezeError as error:
            raise self.error(str(error), path + named_in(str(error))) from None

    def check_epochs(self, stages: list[Stage]) -> None:
        """Raises `ScheduleError` if two stages begin at the same epoch."""
        seen: dict[int, int] = {}
        for place, stage in enumerate(stages):
            if not isinstance(stage.at, int):
                continue
            if stage.at in seen:
                raise self.error(
                    f"stage {seen[stage.at] + 1} begins at epoch {stage.at} too. Join them (a list "
                    "of selectors is a selector), or move one.",
                    ("stages", place, "at"),
                )
            seen[stage.at] = place

    def error(self, message: str, path: Path) -> ScheduleError:
        stage = ""
        if len(path) > 1 and path[0] == "stages":
            place = path[1]
            at = self.data["stages"][place]
            at = at.get("at") if isinstance(at, Mapping) else None
            stage = f"stage {place + 1}" + (f" (at {at})" if _is_epoch(at) else "")
            path = self.origins[place] + path[2:]
        return self.source.error(message, path=path, stage=stage)

    def _path(self, location: Path) -> Path:
        """Returns pydantic's location without the names of types, as a path in the data."""
        here, path = self.data, []
        for part in location:
            inside = (isinstance(here, dict) and part in here) or (
                isinstance(here, list) and isinstance(part, int) and part < len(here)
            )
            if inside:
                here = here[part]
                path.append(part)
        return tuple(path)

    def _explain(self, path: Path, problem: Mapping[str, Any]) -> ScheduleError:
        kind, key = problem["type"], problem["loc"][-1]
        if kind == "missing":
            wanted = self._model_of(path).model_fields[key].description
            return self.error(f"`{key}` is missing. It must be {wanted}.", path)
        value = self._value(path)
        if kind in ("extra_forbidden", "invalid_key"):
            return self._unknown(path[:-1] if path[-1:] == (key,) else path, key)
        while path and isinstance(path[-1], int) and len(path) > 2:
            path = path[:-1]  # for an item of a list of selectors, report the key of the list
        if len(path) == 2 and path[0] == "stages":
            return self.error(
                f"a stage must be a mapping with `at` and what it changes. {EXAMPLE}. "
                f"Received: {shown(value)} (of type {type(value).__name__})",
                path,
            )
        field = self._model_of(path[:-1]).model_fields[path[-1]]
        return self.error(
            f"`{path[-1]}` must be {field.description}.{_near(path, value)} "
            f"Received: {path[-1]}={shown(self._value(path))}"
            f" (of type {type(self._value(path)).__name__})",
            path,
        )

    def _unknown(self, path: Path, key: Any) -> ScheduleError:
        known = [field.alias or name for name, field in self._model_of(path).model_fields.items()]
        known = sorted(known, key="at".__ne__)
        here = self._value(path)
        key = next((each for each in here if str(each) == str(key)), key)  # pydantic has "None"
        value = here.get(key)
        hint = home_of(key, known) or (meant_by(key) if "at" in known else closest(key, known))
        return self.error(
            f"unknown key {shown(key)}.{hint} Known keys: {', '.join(known)}. "
            f"Received: {key}={shown(value)}",
            (*path, key),
        )

    def _model_of(self, path: Path) -> type[BaseModel]:
        """Returns the model of the mapping at a path."""
        if path[:1] != ("stages",) or len(path) < 2:
            return Plan
        models: dict[Path, type[BaseModel]] = {
            ("at",): WhenOver,
            ("at", "plateau"): Trigger,
        }
        if path[2:] == ("learning_rate",):
            return rate_model(self._value(path))
        if path[2:] == ("base_learning_rate",):
            return Factor
        return models.get(path[2:], Entry)

    def _value(self, path: Path) -> Any:
        here: Any = self.data
        for part in path:
            here = here[part]
        return here


def _plan(source: Source, data: Any) -> _Written:
    """Expands the short forms: a list of stages, `{epoch: selector or Stage's arguments}`."""
    top: Path = ("stages",)
    if data is None or data in ({}, []):
        raise source.error(f"the file holds no schedule. {EXAMPLE}.")
    if isinstance(data, list):
        data, top = {"stages": data}, ()
    if not isinstance(data, Mapping):
        raise source.error(
            f"a schedule file must hold a mapping with `stages`, or a list of stages. {EXAMPLE}. "
            f"Received: {shown(data)} (of type {type(data).__name__})"
        )
    if "stages" not in data and any(map(_looks_like_an_epoch, data)):
        for key, value in data.items():
            if not _looks_like_an_epoch(key):
                raise source.error(
                    f"the key {shown(key)} is next to epochs. Put the epochs under `stages`. "
                    f"Received: {key}={shown(value)}",
                    path=(key,),
                )
        data, top = {"stages": data}, ()
    check_no_lone_stage(source, data, ())
    if "stages" not in data:
        return _Written(source, dict(data), [])  # perhaps a typo, which `check` reports
    stages = data["stages"]
    if stages is None or stages in ({}, []):
        raise source.error(f"the file holds no stages. {EXAMPLE}.", path=("stages",))
    if isinstance(stages, Mapping):
        check_no_lone_stage(source, stages, top)
        written = [_write_out(source, key, value, (*top, key)) for key, value in stages.items()]
        return _Written(source, {**data, "stages": written}, [(*top, key) for key in stages])
    places = range(len(stages)) if isinstance(stages, list) else ()
    return _Written(source, dict(data), [(*top, place) for place in places])


def _write_out(source: Source, key: Any, value: Any, path: Path) -> dict[Any, Any]:
    """Returns one entry of `{epoch: selector or Stage's arguments}` as a stage."""
    text = isinstance(key, str) and EPOCH.fullmatch(key) is not None and len(key) < 20
    at = int(key) if text else key
    if not text and not _is_epoch(key):
        raise source.error(
            "a key of `stages` must be an epoch, a whole number counted from 0 and below "
            f'2147483648, as in {{10: "block5_*"}}. Received: {shown(key)}',
            path=path,
        )
    if value is None:
        raise source.error(
            f'there is no selector. Write what to unfreeze, for example {at}: "block5_*".',
            path=path,
            stage=f"stage at {at}",
        )
    if not isinstance(value, Mapping):
        return {"at": at, "unfreeze": value}
    if value.get("at", at) != at:
        raise source.error(
            f"the key and `at` of the stage are different epochs. Use the same in both. Received: "
            f"at={shown(value['at'])}",
            path=(*path, "at"),
            stage=f"stage at {at}",
        )
    return {"at": at, **value}


def _near(path: Path, value: Any) -> str:
    """Returns a hint with the closest valid value, for keys with a few valid values."""
    choices = {
        "optimizer": ("carry", "reset"),
        "batch_norm": ("freeze", "train"),
        "mode": MODES,
        "class_name": RATES,
    }
    if path[-1] in ("unfreeze", "freeze", "base"):
        return number_hint(value)
    return closest(value, choices.get(path[-1], ())) if isinstance(value, str) else ""


def named_in(message: str) -> Path:
    """Returns the key that a message of `Stage` or `Schedule` names first."""
    name = re.search(r"`(\w+)`", message)
    return (name[1],) if name else ()


def _stage_of(path: Path) -> Path:
    """Returns the path of the stage that holds a path; () at the top of the file."""
    return path[:2] if len(path) > 1 and path[0] == "stages" else ()


def _depth(found: tuple[Path, Any]) -> int:
    return len(found[0])


def _is_epoch(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _looks_like_an_epoch(key: Any) -> bool:
    if isinstance(key, str):
        return re.fullmatch(r"[-+]?[0-9.]+", key) is not None
    return isinstance(key, (int, float)) and not isinstance(key, bool)
