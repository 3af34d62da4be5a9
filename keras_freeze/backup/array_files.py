"""Writes arrays to files, one after the other, and reads them; each is checked by its hash.

A file appears under its name when it is whole, and never changes. Its name follows from its
content. An array that is in a file of an earlier backup isn't written again. An `.npz` file would
take longer: a model has hundreds of arrays, most of them small.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash
from pydantic import BaseModel

Array = np.ndarray[Any, Any]

NAME = re.compile(
    r"[a-z]+-[0-9a-f]{16}\.arrays(\.partial)?|(backup|previous|stage|start)\.json\.partial"
)


class DamagedError(Exception):
    """A file of a backup is missing or damaged."""


class Entry(BaseModel):
    """Where an array is.

    Attributes:
        file: name of the file.
        start: its first byte in the file.
        dtype: name of its dtype.
        shape: its shape.
        content: hash of its bytes, dtype and shape.
    """

    file: str
    start: int
    dtype: str
    shape: list[int]
    content: str


def content_of(array: Array) -> str:
    """Returns a hash of an array's bytes, dtype and shape."""
    hashed = xxhash.xxh3_128(f"{array.dtype.name}{array.shape}".encode())
    hashed.update(_bytes_of(array).data)
    return hashed.hexdigest()


def _bytes_of(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def write(
    folder: Path, arrays: Sequence[tuple[str, Array]], known: Mapping[str, Entry]
) -> list[Entry]:
    """Writes the arrays that no file holds yet; returns where each array is.

    Args:
        folder: the folder of the backup.
        arrays: each with the name of its group; the new arrays of a group share a file.
        known: arrays in files, by their content.

    Raises:
        OSError: a file can't be written.
    """
    contents = [content_of(array) for _, array in arrays]
    new: dict[str, dict[str, Array]] = {}
    for (group, array), content in zip(arrays, contents, strict=True):
        if content not in known and not any(content in each for each in new.values()):
            new.setdefault(group, {})[content] = array
    found = dict(known)
    for group, members in new.items():
        name = f"{group}-{xxhash.xxh3_64_hexdigest(''.join(members).encode())}.arrays"
        parts = [_bytes_of(array).data for array in members.values()]
        replace_whole(folder / name, lambda stream, parts=parts: stream.writelines(parts))
        start = 0
        for content, array in members.items():
            found[content] = Entry(
                file=name,
                start=start,
                dtype=array.dtype.name,
                shape=list(array.shape),
                content=content,
            )
            start += array.nbytes
    return [found[content] for content in contents]


def read(folder: Path, entries: Sequence[Entry]) -> list[Array]:
    """Reads arrays.

    Raises:
        DamagedError: an array is missing, or isn't what was written.
    """
    with ExitStack() as opened:
        files: dict[str, BinaryIO] = {}
        for name in {entry.file: None for entry in entries}:
            try:
                files[name] = opened.enter_context(open(folder / name, "rb"))
            except OSError as error:
                raise DamagedError(f"{name} can't be read ({type(error).__name__})") from error
        return [_read_one(files[entry.file], entry) for entry in entries]


def _read_one(file: BinaryIO, entry: Entry) -> Array:
    try:
        dtype = np.dtype(entry.dtype)
        file.seek(entry.start)
        held = file.read(math.prod(entry.shape) * dtype.itemsize)
        array: Array = np.frombuffer(bytearray(held), dtype).reshape(entry.shape)
        whole = content_of(array) == entry.content
    except (OSError, ValueError, TypeError) as error:
        raise DamagedError(f"{entry.file} can't be read ({type(error).__name__})") from error
    if not whole:
        raise DamagedError(f"{entry.file} isn't what was written")
    return array


def replace_whole(path: Path, write_to: Any) -> None:
    """Writes a file under a temporary name, makes the disk keep it, and renames it.

    Args:
        path: the file.
        write_to: writes the content to a binary stream.

    Raises:
        OSError: it can't be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    with open(partial, "wb") as stream:
        write_to(stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)


def remove_others(folder: Path, kept: set[str]) -> None:
    """Removes files of arrays that aren't named in `kept`, and files that were never whole."""
    for path in folder.iterdir():
        if NAME.fullmatch(path.name) and path.name not in kept:
            path.unlink(missing_ok=True)
