"""Rows that are a function of their number, and processes that write and read them in a directory.

A row that is found can be compared with what it must be, whoever has written it, and whenever.
"""

from __future__ import annotations

import faulthandler
import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from keras_freeze.feature_cache.directory import feature_folder
from keras_freeze.feature_cache.directory.about import About
from keras_freeze.feature_cache.directory.cache_directory import CacheDirectory, shared_directory
from keras_freeze.feature_cache.directory.feature_folder import FeatureFolder

NAME = "0123456789abcdef" * 2  # of a fingerprint
ABOUT = About(network="net", cut=["b3"], features=["int32(100,)"], made_with={"keras": "3"})
WIDTH = 100  # int32 numbers of a row

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.reference.directory_rows"])


def key(number: int) -> bytes:
    return number.to_bytes(16, "little")


def keys(numbers: Iterable[int]) -> list[bytes]:
    return [key(number) for number in numbers]


def rows(numbers: Sequence[int], width: int = WIDTH) -> np.ndarray:
    whole = b"".join(hashlib.shake_128(key(number)).digest(4 * width) for number in numbers)
    return np.frombuffer(whole, np.int32).reshape(len(numbers), width)


class User:
    """What a fit does with a directory."""

    def __init__(self, path: Path, name: str = NAME, limit: int | None = None):
        self.directory: CacheDirectory = shared_directory(path, limit)
        self.folder: FeatureFolder = self.directory.open(name, ABOUT, self)

    @property
    def failure(self) -> str:
        return self.directory.failure

    def add(self, numbers: Sequence[int], width: int = WIDTH) -> None:
        """Lets rows be written."""
        columns = {"features": rows(numbers, width)}
        self.directory.add(self.folder, keys(numbers), columns, {}, patiently=True)

    def write(self, numbers: Sequence[int], width: int = WIDTH) -> None:
        """Writes rows; they are written when this returns."""
        self.add(numbers, width)
        self.directory.flush()

    def find(self, numbers: Sequence[int], width: int = WIDTH) -> set[int]:
        """Returns the numbers of the rows that are found, which must be right."""
        found = self.folder.take(keys(numbers))
        if found is None:
            return set()
        there = [numbers[position] for position in found.positions]
        np.testing.assert_array_equal(found.columns["features"], rows(there, width))
        return set(there)

    def close(self) -> None:
        self.directory.let_go([self.folder], self)


@contextmanager
def user_of(path: Path, **options: Any) -> Any:
    user = User(path, **options)
    try:
        yield user
    finally:
        user.close()


def found_in(path: Path, numbers: Sequence[int], width: int = WIDTH) -> set[int]:
    with user_of(path) as user:
        return user.find(numbers, width)


# Processes


class Process:
    """A process that calls a function with what is given and a way to `say` something."""

    def __init__(self, function: Callable[..., None], *given: Any):
        self.ear, mouth = _context.Pipe(duplex=False)
        self.process = _context.Process(target=_call, args=(function, given, mouth), daemon=True)
        self.process.start()
        mouth.close()
        self.said: list[Any] = []

    def hear(self, seconds: float = 60.0) -> Any:
        """Returns the next thing that the process says; None if it says nothing more."""
        try:
            if self.ear.poll(seconds):
                self.said.append(self.ear.recv())
                return self.said[-1]
        except (EOFError, OSError):
            pass
        return None

    def end(self, seconds: float = 120.0) -> list[Any]:
        """Waits for the end of the process, which must be a good one; returns what it said."""
        while self.hear(seconds) is not None:
            continue
        self.process.join(seconds)
        assert self.process.exitcode == 0, (self.process.exitcode, self.said[-1:])
        return self.said

    def kill(self) -> list[Any]:
        """Kills the process; returns what it said."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()
        while self.hear(1.0) is not None:
            continue
        return self.said


def _call(function: Callable[..., None], given: tuple[Any, ...], mouth: Connection) -> None:
    faulthandler.enable()
    try:
        function(*given, mouth.send)
    except BaseException:
        mouth.send(traceback.format_exc())
        raise


def in_process(function: Callable[..., None], *given: Any) -> list[Any]:
    return Process(function, *given).end()


def write_forever(path: Path, begin: int, sizes: list[int], say: Callable[[Any], None]) -> None:
    """Writes batches of rows, and says how many are committed."""
    user, done = User(path), begin
    while True:
        for size in sizes:
            user.add(range(done, done + size))
            done += size
        user.directory.flush()
        assert not user.failure, user.failure
        say(done)


def write_all(path: Path, batches: list[range], width: int, say: Callable[[Any], None]) -> None:
    with user_of(path) as user:
        for numbers in batches:
            user.write(numbers, width)
        assert not user.failure, user.failure


def find_all(path: Path, count: int, width: int, say: Callable[[Any], None]) -> None:
    say(found_in(path, range(count), width))


def find_until(path: Path, counts: list[int], width: int, say: Callable[[Any], None]) -> None:
    """Finds rows that another process is writing, and says when there are as many as expected."""
    feature_folder.AGAIN = 0.05
    with user_of(path) as user:
        for count in counts:
            while len(user.find(range(count), width)) < count:
                time.sleep(0.02)
            say(count)
        assert not user.directory.problems


def write_and_read(
    path: Path, seed: int, count: int, times: int, say: Callable[[Any], None]
) -> None:
    """Writes and reads rows that other processes write and read too; says what it has committed."""
    chance = random.Random(seed)
    feature_folder.AGAIN = 0.05
    committed: set[int] = set()
    user = User(path)
    for _ in range(times):
        begin = chance.randrange(count)
        numbers = range(begin, min(count, begin + chance.choice([1, 3, 20, 60])))
        user.add(numbers)
        if chance.random() < 0.3:
            user.directory.flush()
            committed |= set(numbers)
        found = user.find([chance.randrange(count) for _ in range(50)])
        lost = committed - user.find(range(count)) if chance.random() < 0.1 else set()
        assert not lost, f"{len(lost)} rows were lost"
        if chance.random() < 0.05:  # as a fit that ends, and the next one
            user.close()
            user = User(path)
        assert found is not None
    user.directory.flush()
    own = user.find(range(count))
    assert committed <= own
    say(("committed", own, user.failure, user.directory.problems))
    user.close()


# Damage


def files_of(path: Path) -> list[Path]:
    return sorted(each for each in path.rglob("*") if each.is_file())


def _flip(raw: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice([1, 1, 1, 8])):
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)


def _flip_head(raw: bytearray, chance: random.Random) -> None:
    """The first bytes of a page say what LMDB finds in it."""
    page = 4096 * chance.randrange(max(1, len(raw) // 4096))
    raw[min(len(raw) - 1, page + chance.randrange(48))] = chance.randrange(256)


def _flip_meta(raw: bytearray, chance: random.Random) -> None:
    raw[min(len(raw) - 1, 4096 * chance.randrange(2) + chance.randrange(160))] ^= (
        1 << chance.randrange(8)
    )


def _random_bytes(raw: bytearray, chance: random.Random) -> None:
    begin = chance.randrange(len(raw))
    count = min(len(raw) - begin, chance.choice([4, 64, 700]))
    raw[begin : begin + count] = chance.randbytes(count)


def _page(raw: bytearray, chance: random.Random) -> None:
    begin = 4096 * chance.randrange(max(1, len(raw) // 4096))
    other = 4096 * chance.randrange(max(1, len(raw) // 4096))
    new = chance.choice([bytes(4096), chance.randbytes(4096), bytes(raw[other : other + 4096])])
    raw[begin : begin + 4096] = new[: len(raw[begin : begin + 4096])]


def _cut(raw: bytearray, chance: random.Random) -> None:
    del raw[chance.choice([0, 1, 100, 4096, 8192, chance.randrange(len(raw))]) :]


def _append(raw: bytearray, chance: random.Random) -> None:
    raw += chance.randbytes(chance.choice([1, 4096, 10000]))


DAMAGES = (_flip, _flip, _flip_head, _flip_head, _flip_meta, _random_bytes, _page, _cut, _append)


def damage(path: Path, chance: random.Random) -> str:
    """Damages a file of a closed directory; returns what was done."""
    files = files_of(path)
    data = [file for file in files if file.name == "data.mdb"]
    file = chance.choice(data) if chance.random() < 0.8 else chance.choice(files)
    kind = chance.random()
    if kind < 0.03:
        file.unlink()
        file.mkdir()
        return f"a directory in place of {file.name}"
    if kind < 0.06:
        other = chance.choice(files)
        one, two = file.read_bytes(), other.read_bytes()
        file.write_bytes(two)
        other.write_bytes(one)
        return f"{file.name} and {other.name} swapped"
    if kind < 0.08:
        file.unlink()
        return f"{file.name} removed"
    if kind < 0.10:
        (path / NAME / chance.choice(["0123456789ab.lock", "x.lock"])).write_bytes(b"?")
        (path / NAME / "0123456789ab-0").mkdir()
        (path / NAME / "0123456789ab-0" / chance.choice(["data.mdb", "lock.mdb"])).touch()
        return "a lock and an empty file"
    raw = bytearray(file.read_bytes())
    change = chance.choice(DAMAGES)
    if raw or change is _append:
        change(raw, chance)
    file.write_bytes(raw)
    return f"{change.__name__} in {file.name}"


def read_damaged(
    path: Path, count: int, width: int, seeds: range, say: Callable[[Any], None]
) -> None:
    """Damages copies of a directory, reads them, and writes to them; says how long it took."""
    spoiled = path.with_name(f"{path.name}-spoiled")
    for seed in seeds:
        chance = random.Random(seed)
        shutil.copytree(path, spoiled)
        what = damage(spoiled, chance)
        say((seed, what))  # known to the reader if this process crashes
        began = time.monotonic()
        with user_of(spoiled) as user:
            found = user.find(range(count), width)
            lost = sorted(set(range(count)) - found)
            user.write(lost or [count], width)
            again = user.find(range(count), width)
            assert user.failure or again == set(range(count)), "rows were not written again"
        later = found_in(spoiled, range(count), width)
        assert later == again, f"rows were not found again: {sorted(again - later)}"
        say((seed, what, len(found), user.failure, time.monotonic() - began))
        shutil.rmtree(spoiled)


def spoil_while_open(
    path: Path, count: int, width: int, seeds: range, say: Callable[[Any], None]
) -> None:
    """Cuts off, removes and damages files of a directory while it is open."""
    spoiled = path.with_name(f"{path.name}-open")
    for seed in seeds:
        chance = random.Random(seed)
        shutil.copytree(path, spoiled)
        user = User(spoiled)
        whole = chance.random() < 0.5
        if whole:
            assert user.find(range(count), width) == set(range(count))
        read = set(files_of(spoiled))
        user.write(range(count, count + 10), width)
        files = [file for file in files_of(spoiled) if file.name == "data.mdb"]
        file = chance.choice(files)
        what = chance.choice(["cut", "cut", "empty", "remove", "remove all", "flip", "replace"])
        if what == "flip" and file not in read:
            what = "cut"  # no process may survive that its own file is damaged while it writes
        say((seed, what))
        if what == "cut":
            os.truncate(file, chance.randrange(file.stat().st_size))
        elif what == "empty":
            os.truncate(file, 0)
        elif what == "remove":
            file.unlink()
        elif what == "remove all":
            shutil.rmtree(chance.choice([file.parent, spoiled / NAME, spoiled]))
        elif what == "flip":
            with file.open("r+b") as stream:
                for _ in range(30):
                    stream.seek(chance.randrange(file.stat().st_size))
                    stream.write(chance.randbytes(1))
        else:
            new = file.with_name("new")
            new.write_bytes(chance.randbytes(10000))
            new.replace(file)
        for _ in range(2):
            found = user.find(range(count + 10), width)
            user.write(sorted(set(range(count + 20)) - found), width)
        user.find(range(count + 20), width)
        with suppress(FileNotFoundError):
            user.close()
        found_in(spoiled, range(count + 20), width)
        say((seed, what, user.failure))
        shutil.rmtree(spoiled, ignore_errors=True)
