"""Schedules as files: YAML, JSON and TOML."""

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
MOST_BYTES = 128 * 1024  # some two thousand stages


def read_schedule(path: str | os.PathLike[str], make: Callable[..., T]) -> T:
    """Returns the schedule in a file.

    Args:
        path: of the file.
        make: makes a schedule of the arguments of `Schedule`.
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
            f"a schedule's file must end in {', '.join(LOAD)}.{hint} Received: {file.suffix!r}"
        )
    return source, file


def _text(source: Source, file: pathlib.Path) -> str:
    """The text of a file, which is looked at before it is read."""
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise source.error(
                f"this is {'a folder' if stat.S_ISDIR(status.st_mode) else 'no regular file'}, "
                "not a schedule's file."
            )
        if status.st_size > MOST_BYTES:
            raise source.error(
                f"the file is too large for a schedule: {status.st_size} bytes, and at most "
                f"{MOST_BYTES} are read."
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
    """What the user may have meant by a file that isn't there."""
    try:
        names = [each.name for each in file.parent.iterdir() if each.suffix.lower() in LOAD]
    except OSError:
        return f" There is no folder {os.fspath(file.parent)!r} either."
    return closest(file.name, names)


def _replace(file: pathlib.Path, content: bytes) -> None:
    """Writes a file as a whole: a reader never sees half of it."""
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
    """A schedule as strings, numbers, lists and mappings."""
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
    """The value, with lists for tuples, which not every format knows."""
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value
