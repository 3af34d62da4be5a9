"""Reads and writes YAML by the rules of YAML 1.2, with the line of each value.

PyYAML follows YAML 1.1, which reads `1e-5` as a string, `1:20` as 80 and `off` as false. Here only
its parser is used; scalars are converted by YAML 1.2's core schema. Aliases and tags are errors, so
a file can't grow when it is read, and can't name a Python object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from keras_freeze.errors import ScheduleError
from keras_freeze.schedule.files.position import MOST_DEEP, Path, Source

TOO_DEEP = "this is nested too deeply"
INTEGER = re.compile(r"[-+]?[0-9]+")
FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


def load(source: Source, text: str) -> Any:
    """Returns the data of a YAML text; records the lines of its values in `source`.

    Raises:
        ScheduleError: PyYAML is missing, or the text isn't one document of plain values.
    """
    yaml = import_yaml(source)
    # The parser in C is about 20 times as fast; not every build of PyYAML has it.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return _Reader(source, yaml.parse(text, Loader=loader)).document()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        place = mark.index if mark else getattr(error, "position", 0)
        line = text.count("\n", 0, place) + 1
        if "nesting depth" in what:  # PyYAML 6.0.4 has a limit of its own, and reads ahead
            raise source.error(f"{TOO_DEEP}.", line=line) from None
        raise source.error(
            f"the YAML is invalid: {what}. Put names with the characters : * ! % {{ [ in quotes, "
            "and indent with spaces.",
            line=line,
        ) from None


def dump(source: Source, data: Any) -> str:
    """Returns the YAML text of plain data, which `load` reads back unchanged."""
    yaml = import_yaml(source)

    class Dumper(yaml.SafeDumper):  # type: ignore[name-defined]
        """Quotes strings that YAML 1.1 or 1.2 would read as another type."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    Dumper.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(rf"(?:{FLOAT.pattern})\Z"), list("-+.0123456789")
    )
    # PyYAML writes these three characters unescaped, and reads them as the end of a line.
    breaks = re.search("[\x85\u2028\u2029]", json.dumps(data, ensure_ascii=False))
    return str(yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=not breaks))


def import_yaml(source: Source) -> Any:
    """Returns PyYAML, imported only when needed, as most schedules are written in code."""
    try:
        import yaml
    except ImportError:
        raise source.error(
            "YAML needs PyYAML, which isn't installed. Run `pip install pyyaml` (or "
            "`pip install 'keras_freeze[yaml]'`), or use a .json file."
        ) from None
    return yaml


class _Reader:
    """Builds plain data from the parser's events."""

    def __init__(self, source: Source, events: Iterator[Any]):
        self.source = source
        self.events = events

    def document(self) -> Any:
        next(self.events)  # the stream begins
        data = self.node(next(self.events), ()) if self._begins(next(self.events)) else None
        for event in self.events:
            if type(event).__name__ == "DocumentStartEvent":
                raise self._refuse("a second document begins here; a file holds only one", event)
        return data

    def _begins(self, event: Any) -> bool:
        return type(event).__name__ == "DocumentStartEvent"

    def node(self, event: Any, path: Path) -> Any:
        kind = type(event).__name__
        if kind == "AliasEvent":
            raise self._refuse(
                f'aliases (*) are not allowed. Put a pattern in quotes: "*{event.anchor}"',
                event,
            )
        if event.anchor is not None:
            raise self._refuse(f"anchors (&{event.anchor}) are not allowed. Write it out", event)
        if event.tag is not None:
            raise self._refuse(
                f"tags ({event.tag}) are not allowed. Put a selector that begins with '!' in "
                'quotes: "!bn_*"',
                event,
            )
        if len(path) > MOST_DEEP:
            raise self._refuse(TOO_DEEP, event)
        self.source.lines.setdefault(path, event.start_mark.line + 1)
        if kind == "ScalarEvent":
            return self._scalar(event)
        return self._list(path) if kind == "SequenceStartEvent" else self._mapping(path)

    def _list(self, path: Path) -> list[Any]:
        items: list[Any] = []
        for event in self.events:
            if type(event).__name__ == "SequenceEndEvent":
                break
            items.append(self.node(event, (*path, len(items))))
        return items

    def _mapping(self, path: Path) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for event in self.events:
            if type(event).__name__ == "MappingEndEvent":
                break
            if type(event).__name__ in ("SequenceStartEvent", "MappingStartEvent"):
                raise self._refuse("a key must be a word or an epoch", event)
            key = self.node(event, (*path, None))
            del self.source.lines[(*path, None)]
            line = event.start_mark.line + 1
            self.source.check_new(key, found, line)
            self.source.lines[(*path, key)] = line
            found[key] = self.node(next(self.events), (*path, key))
        return found

    def _scalar(self, event: Any) -> Any:
        text = event.value
        if not event.implicit[0]:  # in quotes
            return text
        if text in WORDS:
            return WORDS[text]
        if INTEGER.fullmatch(text):
            try:
                return int(text)
            except ValueError:
                raise self._refuse(f"a number of {len(text)} digits is too long", event) from None
        if FLOAT.fullmatch(text):
            return float(re.sub(r"\.(inf|nan)", r"\1", text.lower()))
        return text

    def _refuse(self, message: str, event: Any) -> ScheduleError:
        return self.source.error(f"{message}.", line=event.start_mark.line + 1)
