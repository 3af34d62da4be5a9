"""Packs rows of features into blocks of bytes, with a checksum for each row, and reads them.

A block holds, one after the other: `MARK`; the lengths of the head and of the rows; the head, which
says how rows are laid out; the keys of the rows; the checksums of the rows; a checksum of all of
that; the rows. Nothing in it is code: no pickle.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from keras_freeze.feature_cache.storage.memory_limit_and_dtype import numpy_dtype
from keras_freeze.feature_cache.storage.memory_order import Axes

Array = np.ndarray[Any, Any]
Columns = dict[str, Array]
Key = bytes
MARK = b"kfb1"
LENGTHS = struct.Struct("<4sIII")  # MARK, bytes of the head, number of rows, bytes of a row
WIDTH = 16  # bytes of a key and of a checksum


class DamagedError(Exception):
    """Bytes that aren't what was written."""


@dataclass(frozen=True)
class ColumnLayout:
    """How the rows of a column are kept.

    Attributes:
        name: the column.
        dtype: name of its dtype.
        shape: the shape of a row.
        axes: the axes in memory order, if that isn't C order.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    axes: Axes | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of a row."""
        count = 1
        for length in self.shape:
            count *= length
        return int(count * numpy_dtype(self.dtype).itemsize)


def packed(keys: Sequence[Key], columns: Columns, axes: dict[str, Axes | None]) -> bytearray:
    """Returns a block.

    Args:
        keys: the key of each row, of 16 bytes.
        columns: arrays (rows, ...).
        axes: for each column, its axes in memory order, if that isn't C order.
    """
    # The name of a dtype doesn't tell its byte order.
    columns = {
        name: array.astype(_native(array.dtype), copy=False) for name, array in columns.items()
    }
    layouts = [
        ColumnLayout(name, array.dtype.name, array.shape[1:], axes.get(name))
        for name, array in columns.items()
    ]
    head = json.dumps([[c.name, c.dtype, c.shape, c.axes] for c in layouts]).encode()
    width = sum(layout.nbytes for layout in layouts)
    begin = LENGTHS.size + len(head)
    first = begin + 2 * WIDTH * len(keys) + WIDTH
    block = bytearray(first + width * len(keys))
    LENGTHS.pack_into(block, 0, MARK, len(head), len(keys), width)
    block[LENGTHS.size : begin] = head
    rows = np.frombuffer(block, np.uint8, width * len(keys), first).reshape(len(keys), width)
    place = 0
    for layout, array in zip(layouts, columns.values(), strict=True):
        flat = np.ascontiguousarray(array).reshape(len(keys), -1).view(np.uint8)
        rows[:, place : place + layout.nbytes] = flat
        place += layout.nbytes
    block[begin : begin + WIDTH * len(keys)] = b"".join(keys)
    checksums = b"".join(map(checksum, keys, rows))
    block[begin + WIDTH * len(keys) : first - WIDTH] = checksums
    block[first - WIDTH : first] = xxhash.xxh3_128_digest(memoryview(block)[: first - WIDTH])
    return block


def _native(dtype: Any) -> Any:
    return dtype.newbyteorder("=")


def checksum(key: Key, row: Array) -> bytes:
    """Returns the checksum of a row: a hash that depends on its key too."""
    return xxhash.xxh3_128_digest(row.data, xxhash.xxh3_64_intdigest(key))


class Block:
    """A block that was read. Its bytes may be those of a file.

    Args:
        raw: the bytes.
        source: what they belong to, such as the file.

    Attributes:
        keys: the key of each row.
        layouts: how each column is kept.

    Raises:
        DamagedError: the part before the rows isn't what was written.
    """

    def __init__(self, raw: memoryview | bytes | bytearray, source: object = None):
        self.source = source
        view = memoryview(raw)
        if len(view) < LENGTHS.size:
            raise DamagedError
        mark, length, count, width = LENGTHS.unpack_from(view)
        begin = LENGTHS.size + length
        first = begin + 2 * WIDTH * count + WIDTH
        if mark != MARK or len(view) != first + width * count:
            raise DamagedError
        before = bytes(view[: first - WIDTH])  # a copy, which can't change once it is checked
        if view[first - WIDTH : first] != xxhash.xxh3_128_digest(before):
            raise DamagedError
        described = json.loads(before[LENGTHS.size : begin])
        self.layouts = [
            ColumnLayout(name, dtype, tuple(shape), None if axes is None else tuple(axes))
            for name, dtype, shape, axes in described
        ]
        if sum(layout.nbytes for layout in self.layouts) != width:
            raise DamagedError
        names = before[begin : begin + WIDTH * count]
        self.keys = [names[i * WIDTH : (i + 1) * WIDTH] for i in range(count)]
        self.checksums = before[begin + WIDTH * count :]
        self.rows = np.frombuffer(view, np.uint8, width * count, first).reshape(count, width)

    @property
    def names(self) -> list[str]:
        """The names of the columns."""
        return [layout.name for layout in self.layouts]

    def is_whole(self, row: int) -> bool:
        """Returns True if a row is what was written."""
        wanted = self.checksums[row * WIDTH : (row + 1) * WIDTH]
        return checksum(self.keys[row], self.rows[row]) == wanted

    def take(self, rows: Sequence[int]) -> Columns:
        """Returns copies of rows as arrays (rows, ...) by column, in C order."""
        numbers = np.asarray(rows, np.int64)
        columns, place = {}, 0
        for layout in self.layouts:
            part = self.rows[:, place : place + layout.nbytes]
            flat = np.ascontiguousarray(part.take(numbers, axis=0))
            columns[layout.name] = flat.view(numpy_dtype(layout.dtype)).reshape(
                len(numbers), *layout.shape
            )
            place += layout.nbytes
        return columns
