"""Reads schedules from YAML, JSON and TOML files, and writes them."""

from __future__ import annotations

import json
import os
import pathlib
import stat
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from keras_freeze.errors import FreezeError, ScheduleError, closest, shown
from keras_freeze.schedule.files.json_and_toml_formats import DUMP, LOAD
from keras_freeze.schedule.files.position import Source
from keras_freeze.schedule.files.validation import named_in, schedule_arguments
from keras_freeze.schedule.plateau import Plateau
from keras_freeze.schedule.serialize_stage_values import check_written, rate_to_config
from keras_freeze.schedule.stage import Stage

T = TypeVar("T")
MOST_BYTES = 128 * 1024  # about two thousand stages


def read_schedule(path: str | os.PathLike[str], make: Callable[..., T]) -> T:
    """Returns the schedule in a file.

    Args:
        path: the path of the file.
        make: returns a schedule for the arguments of `Schedule`.
    """
    source, file = _source(path)
    text = _text(source, file)
    arguments = schedule_arguments(source, LOAD[file.suffix.lower()](source, text))
    try:
        return make(**arguments)
    except FreezeError as error:
        raise source.error(str(error), path=named_in(str(error))) from None


def write_schedule(
    stages: Iterable[Stage], settings: Mapping[str, Any], path: str | os.PathLike[str]
) -> None:
    """Writes the stages and settings of a schedule to a file."""
    source, file = _source(path)
    data = _plain(stages, settings)
    try:
        json.dumps(data, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise source.error(f"a name can't be written as UTF-8: {error.reason}.") from None
    text = DUMP[file.suffix.lower()](source, data)
    try:
        _replace(file, text.encode("utf-8"))
    except (OSError, ValueError) as error:
        raise source.error(f"the file can't be written: {_why(error)}.") from None


def _source(path: Any) -> tuple[Source, pathlib.Path]:
    if not isinstance(path, (str, os.PathLike)):
        raise ScheduleError(f"`path` must be the path of a file. Received: path={shown(path)}")
    file = pathlib.Path(path)
    source = Source(path)
    if file.suffix.lower() not in LOAD:
        hint = closest(file.suffix.lower(), LOAD)
        raise source.error(
            f"the name of a schedule file must end in {', '.join(LOAD)}.{hint} "
            f"Received: {file.suffix!r}"
        )
    return source, file


def _text(source: Source, file: pathlib.Path) -> str:
    """Returns the text of a file, after a check of its kind and size."""
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise source.error(
                f"this is {'a folder' if stat.S_ISDIR(status.st_mode) else 'a special file'}, "
                "not a schedule file."
            )
        if status.st_size > MOST_BYTES:
            raise source.error(
                f"the file is too large for a schedule: {status.st_size} bytes. The maximum is "
                f"{MOST_BYTES} bytes."
            )
        with file.open("rb") as stream:
            content = stream.read(MOST_BYTES)
    except FileNotFoundError:
        raise source.error(f"there is no such file.{_near(file)}") from None
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        raise source.error(f"the file can't be read: {_why(error)}.") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise source.error(
            f"the file isn't UTF-8: byte {content[error.start]:#04x}. Save it as UTF-8.", line=line
        ) from None


def _why(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _near(file: pathlib.Path) -> str:
    """Returns a hint for a file that doesn't exist."""
    try:
        names = [each.name for each in file.parent.iterdir() if each.suffix.lower() in LOAD]
    except OSError:
        return f" There is no folder {os.fspath(file.parent)!r} either."
    return closest(file.name, names)


def _replace(file: pathlib.Path, content: bytes) -> None:
    """Replaces a file atomically, so that a reader never sees a part of it."""
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        pathlib.Path(name).chmod(file.stat().st_mode if file.exists() else 0o644)
        os.replace(name, file)
    except BaseException:
        os.unlink(name)
        raise


def _plain(stages: Iterable[Stage], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a schedule as strings, numbers, lists and mappings."""
    check_written(settings.get("base"), "`base` of Schedule")
    plain = {key: _lists(value) for key, value in settings.items()}
    return {**plain, "stages": [_plain_stage(stage) for stage in stages]}


def _plain_stage(stage: Stage) -> dict[str, Any]:
    stage.check_writable()
    given = {key: _lists(value) for key, value in stage.given().items()}
    if isinstance(stage.at, Plateau):
        given["at"] = {"plateau": stage.at.given()}
    rate = given.get("learning_rate")
    if rate is not None and not isinstance(rate, (float, Mapping)):
        given["learning_rate"] = rate_to_config(rate, f"Stage(at={stage.at})")
    return given


def _lists(value: Any) -> Any:
    """Replaces tuples by lists, as some formats have no tuples."""
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value
