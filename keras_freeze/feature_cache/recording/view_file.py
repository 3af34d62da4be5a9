"""The file of a recorded view in a directory: how its rows become batches again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from keras_freeze.feature_cache.recording.batch_layout import BatchLayout
from keras_freeze.feature_cache.recording.view import View

Plain = Any  # what JSON holds


class UnknownStructureError(Exception):
    """A structure of targets or inputs that a file can't hold."""


class ViewFile(BaseModel):
    """What a view has besides its rows.

    Attributes:
        recording: a random name; the keys of the rows depend on it.
        sizes: number of rows in each batch.
        inputs: kind of each input that is kept, by its position.
        others: kinds of targets and sample weights, in their structure.
        x: the structure of `x`.
        specs: row shape and dtype of each tensor of `x`.
    """

    recording: str
    sizes: list[int]
    inputs: dict[int, str | None]
    others: Plain
    x: Plain
    specs: list[tuple[list[int], str]]


def described(view: View, recording: str) -> ViewFile:
    """Returns the file of a view.

    Raises:
        UnknownStructureError: its batches have a structure that a file can't hold.
    """
    assert view.layout is not None
    structure, specs = view.inputs
    return ViewFile(
        recording=recording,
        sizes=view.sizes,
        inputs=view.layout.inputs,
        others=_packed(view.layout.structure),
        x=_packed(structure),
        specs=[(list(shape), dtype) for shape, dtype in specs],
    )


def restore(view: View, file: ViewFile, backend: Any) -> None:
    """Gives a view with rows what it has besides them."""
    view.sizes = list(file.sizes)
    view.layout = BatchLayout.of_kinds(dict(file.inputs), _unpacked(file.others), backend)
    view.inputs = _unpacked(file.x), [(tuple(shape), dtype) for shape, dtype in file.specs]


def write(path: Path, file: ViewFile) -> None:
    """Writes a file; one that is there is replaced at once.

    Raises:
        OSError: it can't be written.
    """
    new = path.with_name(f".{path.name}.{file.recording}")
    new.write_text(file.model_dump_json() + "\n")
    new.replace(path)


def read(path: Path) -> ViewFile | None:
    """Reads a file; None if it is missing or damaged."""
    try:
        return ViewFile.model_validate_json(path.read_text())
    except (OSError, ValidationError, UnicodeError):
        return None


def _packed(tree: Any) -> Plain:
    """Returns a structure of dicts, lists and tuples for JSON, which has no tuples."""
    if tree is None or isinstance(tree, str):
        return tree
    if type(tree) is dict and all(isinstance(key, str) for key in tree):
        return {"dict": [[key, _packed(part)] for key, part in tree.items()]}
    if type(tree) in (list, tuple):
        return {type(tree).__name__: [_packed(part) for part in tree]}
    raise UnknownStructureError(type(tree).__name__)


def _unpacked(packed: Plain) -> Any:
    if not isinstance(packed, dict):
        return packed
    ((kind, parts),) = packed.items()
    if kind == "dict":
        return {key: _unpacked(part) for key, part in parts}
    whole = [_unpacked(part) for part in parts]
    return tuple(whole) if kind == "tuple" else whole
