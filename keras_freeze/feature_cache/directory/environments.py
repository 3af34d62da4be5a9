"""LMDB environments: those that this process writes, and those that it only reads.

An environment is a folder with a file of blocks, numbered in the order in which they were written.
Only the process that made it writes to it, and no block is ever replaced or removed. So the bytes
of a block stay where they are until the environment is closed, unless it is so small that it
shares its page with others: LMDB moves those, so they are copied.
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
LEAST = 1 << 24  # bytes of address space to read a complete file; LMDB takes more if needed
NUMBER = struct.Struct(">Q")
UNREADABLE = (lmdb.Error, OSError, DamagedError, ValueError, KeyError, TypeError, AttributeError)


class FullError(Exception):
    """An environment has no room for another block."""


class Environment:
    """An environment that is open.

    Args:
        path: its folder.
        environment: LMDB's object.
        is_live: whether blocks may be added to it while it is open.

    Raises:
        lmdb.Error, OSError: it can't be read.
    """

    def __init__(self, path: Path, environment: lmdb.Environment, *, is_live: bool):
        self.path = path
        self.environment = environment
        self.is_live = is_live
        self.count = 0  # blocks that were read
        self.is_read = False  # whether no other block will come
        try:
            self.file = os.open(path / "data.mdb", os.O_RDONLY)
        except OSError:
            environment.close()
            raise
        self.page = environment.stat()["psize"]
        self.nbytes = self._nbytes()  # that the file must have

    def new_blocks(self) -> Iterator[Block | None]:
        """Yields the blocks that were added since the last call. A damaged one is None."""
        if self.is_read or not self.is_whole():
            return
        with self.environment.begin(buffers=True) as reader, reader.cursor() as cursor:
            # `first` goes through a complete file in the way in which it was checked.
            found = cursor.set_range(NUMBER.pack(self.count)) if self.count else cursor.first()
            while found:
                is_next = bytes(cursor.key()) == NUMBER.pack(self.count)
                self.count += 1
                yield self._read(cursor.value()) if is_next else None
                found = cursor.next()
        self.is_read = not self.is_live

    def _read(self, raw: memoryview) -> Block | None:
        try:
            return Block(bytes(raw) if len(raw) < self.page else raw, self)
        except UNREADABLE:
            return None

    def is_whole(self) -> bool:
        """Returns False if the file was cut off since it was opened: reading it would crash."""
        try:
            # LMDB reads its size from the file's beginning, which may be gone too.
            if os.fstat(self.file).st_size < self.nbytes:
                return False
            if self.is_live:
                self.nbytes = self._nbytes()
            return os.fstat(self.file).st_size >= self.nbytes
        except (lmdb.Error, OSError):
            return False

    def _nbytes(self) -> int:
        return int(self.environment.info()["last_pgno"] + 1) * int(self.page)

    def close(self) -> None:
        """Closes the file. Its blocks must not be used any more."""
        try:
            self.environment.close()
        finally:
            os.close(self.file)


def opened(path: Path, *, is_live: bool) -> Environment:
    """Opens an environment that another run made and that was checked (see `checked_files`).

    Args:
        path: its folder.
        is_live: whether a process may write to it now.

    Raises:
        lmdb.Error, OSError: it can't be read.
    """
    # A file that grows beyond the map of a reader couldn't be read any more.
    size = MAP if is_live else LEAST
    environment = lmdb.open(
        os.fsencode(path),
        map_size=size,
        readonly=True,
        lock=is_live,
        create=False,
        max_spare_txns=0,
    )
    return Environment(path, environment, is_live=is_live)


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
        environment = lmdb.open(os.fsencode(path), map_size=MAP, metasync=False, mode=0o600)
        super().__init__(path, environment, is_live=True)
        self.written = 0  # blocks
        self.stamp = checked_files.stamp(path)

    def add(self, blocks: list[bytearray]) -> None:
        """Commits blocks.

        Raises:
            FullError: the environment is full. Nothing was added.
            lmdb.Error, OSError: the file can't be written. Nothing was added.
        """
        if not self.is_whole():
            raise OSError(f"{self.path / 'data.mdb'} was cut off")
        try:
            with self.environment.begin(write=True) as writer:
                for number, block in enumerate(blocks, self.written):
                    writer.put(NUMBER.pack(number), block, append=True)
        except lmdb.MapFullError as error:
            raise FullError from error
        self.written += len(blocks)
        self.stamp = checked_files.stamp(self.path)

    def close(self) -> None:
        """Closes the file, which is complete then."""
        is_as_written = self.is_whole() and self.stamp == checked_files.stamp(self.path)
        try:
            if is_as_written:
                self.environment.sync(True)
        finally:
            super().close()
        if is_as_written:
            checked_files.remember(self.path, self.stamp)
