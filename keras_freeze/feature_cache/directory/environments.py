"""LMDB environments: those that this process writes, and those that it only reads.

An environment is a folder with a file of blocks, numbered in the order in which they were written.
Only the process that made it writes to it, and no block is ever replaced or removed. So the bytes
of a block stay where they are until the environment is closed.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import lmdb

from keras_freeze.feature_cache.directory import checked_files
from keras_freeze.feature_cache.directory.blocks import Block, DamagedError

MAP = 1 << 34  # bytes of address space of an environment; its file grows as it is written
NUMBER = struct.Struct(">Q")
UNREADABLE = (lmdb.Error, OSError, DamagedError, ValueError, KeyError, TypeError)


class FullError(Exception):
    """An environment has no room for another block."""


class Environment:
    """An environment that is open.

    Args:
        path: its folder.
        environment: LMDB's object.
    """

    def __init__(self, path: Path, environment: lmdb.Environment):
        self.path = path
        self.environment = environment
        self.file = os.open(path / "data.mdb", os.O_RDONLY)
        self.page = environment.stat()["psize"]
        self.count = 0  # blocks that were read

    def new_blocks(self) -> Iterator[Block | None]:
        """Yields the blocks that were added since the last call. A damaged one is None."""
        if not self.is_whole():
            return
        with self.environment.begin(buffers=True) as reader, reader.cursor() as cursor:
            found = cursor.set_range(NUMBER.pack(self.count))
            while found:
                is_next = bytes(cursor.key()) == NUMBER.pack(self.count)
                self.count += 1
                yield _read(cursor.value()) if is_next else None
                found = cursor.next()

    def is_whole(self) -> bool:
        """Returns False if the file was cut off since it was opened: reading it would crash."""
        try:
            pages = self.environment.info()["last_pgno"] + 1
            return os.fstat(self.file).st_size >= pages * self.page
        except (lmdb.Error, OSError):
            return False

    def close(self) -> None:
        """Closes the file. Its blocks must not be used any more."""
        self.environment.close()
        os.close(self.file)


def _read(raw: memoryview) -> Block | None:
    try:
        return Block(raw)
    except UNREADABLE:
        return None


def opened(path: Path, *, is_live: bool) -> Environment:
    """Opens an environment that another run made and that was checked (see `checked_files`).

    Args:
        path: its folder.
        is_live: whether a process may write to it now.

    Raises:
        lmdb.Error, OSError: it can't be read.
    """
    environment = lmdb.open(str(path), readonly=True, lock=is_live, create=False, max_spare_txns=0)
    return Environment(path, environment)


class Written(Environment):
    """An environment that this process makes and writes.

    A block that was committed survives if the process is killed.

    Args:
        path: its folder, which must not exist.

    Raises:
        lmdb.Error, OSError: the environment can't be made.
    """

    def __init__(self, path: Path):
        path.mkdir(mode=0o700)
        # metasync=False: a crash of the whole machine may lose the last commit, but no other.
        super().__init__(path, lmdb.open(str(path), map_size=MAP, metasync=False, mode=0o600))
        self.written = 0  # blocks

    def add(self, blocks: list[bytearray]) -> None:
        """Commits blocks.

        Raises:
            FullError: the environment is full. Nothing was added.
            lmdb.Error, OSError: the file can't be written. Nothing was added.
        """
        try:
            with self.environment.begin(write=True) as writer:
                for number, block in enumerate(blocks, self.written):
                    writer.put(NUMBER.pack(number), block, append=True)
        except lmdb.MapFullError as error:
            raise FullError from error
        self.written += len(blocks)

    def close(self) -> None:
        """Closes the file, which is complete then."""
        try:
            self.environment.sync(True)
        finally:
            super().close()
        checked_files.remember(self.path)
