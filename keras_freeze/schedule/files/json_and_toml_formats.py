"""Reads and writes JSON and TOML, with line numbers for errors; lists all file formats."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from typing import Any

from keras_freeze.schedule.files import yaml_format
from keras_freeze.schedule.files.position import MOST_DEEP, Source

TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')
TABLE = re.compile(r"\s*(\[\[?)([^\[\]]+)\]\]?\s*(?:#.*)?")
PAIR = re.compile(r"\s*(\"[^\"]*\"|'[^']*'|[\w-]+)\s*=")


def load_json(source: Source, text: str) -> Any:
    """Returns the data of a JSON text; records the lines of its values in `source`.

    Raises:
        ScheduleError: the text is invalid JSON, or has a key twice.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise source.error(f"the JSON is invalid: {error.msg}.", line=error.lineno) from None
    except RecursionError:
        raise source.error("the JSON is nested too deeply.") from None
    except ValueError:  # Python doesn't read numbers of more than 4300 digits
        raise source.error("the JSON has a number that is too long.") from None
    _note_json(source, text)
    return data


def _note_json(source: Source, text: str) -> None:
    """Records the line of each value of a valid JSON text."""
    path: list[Any] = []  # the path of the current value; None = a key comes next
    seen: list[set[str]] = []  # the keys of each open object; a list has an empty set
    line, last = 1, 0
    for token in TOKEN.finditer(text):
        sign = token[0]
        line, last = line + text.count("\n", last, token.start()), token.start()
        if sign in "]}":
            path.pop()
            seen.pop()
        elif sign == ",":
            path[-1] = path[-1] + 1 if isinstance(path[-1], int) else None
        elif sign != ":" and path and path[-1] is None:
            key = json.loads(sign)
            source.check_new(key, seen[-1], line)
            seen[-1].add(key)
            path[-1] = key
            source.lines[tuple(path)] = line
        elif sign != ":":
            source.lines.setdefault(tuple(path), line)
            if sign in "[{":
                path.append(0 if sign == "[" else None)
                seen.append(set())
        if len(path) > MOST_DEEP:
            raise source.error("this is nested too deeply.", line=line)


def load_toml(source: Source, text: str) -> Any:
    """Returns the data of a TOML text; records the lines of its tables and pairs in `source`.

    Raises:
        ScheduleError: the text is invalid TOML.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what, _, place = str(error).partition(" (at line ")
        number = re.match(r"\d+", place)
        line = int(number[0]) if number else text.count("\n") + 1
        raise source.error(f"the TOML is invalid: {what}.", line=line) from None
    except RecursionError:
        raise source.error("the TOML is nested too deeply.") from None
    except ValueError:  # Python doesn't read numbers of more than 4300 digits
        raise source.error("the TOML has an invalid date or a number that is too long.") from None
    _note_toml(source, text)
    return data


def _note_toml(source: Source, text: str) -> None:
    """Records the lines of tables and of `key = value`, which tomllib doesn't return.

    A line within a value of several lines may be mistaken for a pair. For a repeated name, the
    first line is kept. This affects only the line numbers in messages.
    """
    table: list[Any] = []
    count: dict[str, int] = {}
    for line, content in enumerate(text.splitlines(), start=1):
        header = TABLE.fullmatch(content)
        if header:
            name = header[2].strip()
            count[name] = count.get(name, -1) + (header[1] == "[[")
            first, *rest = (part.strip().strip("\"'") for part in name.split("."))
            inside = [count[first]] if count.get(first, -1) >= 0 else []
            table = [first, *inside, *rest]
            source.lines.setdefault(tuple(table), line)
        elif pair := PAIR.match(content):
            source.lines.setdefault((*table, pair[1].strip("\"'")), line)


def dump_json(source: Source, data: Any) -> str:
    """Returns the JSON text of plain data."""
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def dump_toml(source: Source, data: Any) -> str:
    """Returns the TOML text of plain data.

    Raises:
        ScheduleError: tomli-w is missing, or a value is None, which TOML can't hold.
    """
    try:
        import tomli_w
    except ImportError:
        raise source.error(
            "writing TOML needs tomli-w, which isn't installed. Run `pip install tomli-w` (or "
            "`pip install 'keras_freeze[toml]'`), or use a .json file."
        ) from None
    try:
        return str(tomli_w.dumps(data))
    except TypeError as error:
        raise source.error(f"TOML can't hold this schedule: {error}. Use a .json file.") from None


LOAD: dict[str, Callable[[Source, str], Any]] = {
    ".yaml": yaml_format.load,
    ".yml": yaml_format.load,
    ".json": load_json,
    ".toml": load_toml,
}
DUMP: dict[str, Callable[[Source, Any], str]] = {
    ".yaml": yaml_format.dump,
    ".yml": yaml_format.dump,
    ".json": dump_json,
    ".toml": dump_toml,
}
