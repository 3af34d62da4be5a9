"""Features in a directory: no row is lost or wrong, whatever happens to a process or to files."""

from __future__ import annotations

import ctypes
import itertools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("lmdb")
pytest.importorskip("filelock")

from filelock import FileLock

from keras_freeze import CacheError
from keras_freeze.feature_cache.directory import (
    arguments,
    background_writer,
    blocks,
    cache_directory,
    checked_files,
    environments,
    feature_folder,
    locks,
    marks,
    portions,
    room,
)
from keras_freeze.feature_cache.directory.blocks import Block, DamagedError, packed
from tests.reference import directory_rows
from tests.reference.directory_rows import (
    NAME,
    WIDTH,
    Process,
    User,
    files_of,
    found_in,
    in_process,
    keys,
    rows,
    user_of,
)

pytestmark = pytest.mark.one_backend
# By hand, with more of what depends on chance: DIRECTORY_TRIES=10 pytest tests/test_directory.py
TRIES = int(os.environ.get("DIRECTORY_TRIES", "1"))
BATCHES = [range(0, 1), range(1, 3), range(3, 8), range(8, 40), range(40, 100)]
OTHER = "fedcba9876543210" * 2  # another fingerprint


@pytest.fixture
def path(tmp_path: Path):
    yield tmp_path / "features"
    for directory in list(cache_directory._shared.values()):
        directory.close()


@pytest.fixture
def filled(path: Path) -> Path:
    """A directory that a process has written, with rows 0 to 99."""
    in_process(directory_rows.write_all, path, BATCHES, WIDTH)
    return path


def data_files(path: Path) -> list[Path]:
    return [file for file in files_of(path) if file.name == "data.mdb"]


def is_open(path: Path) -> bool:
    """Returns True if this process has a file of a directory open, or a thread that writes."""
    process = psutil.Process()
    opened = [file.path for file in process.open_files()]
    mapped = [each.path for each in process.memory_maps()] if sys.platform == "linux" else []
    threads = [thread.name for thread in threading.enumerate()]
    is_there = any(name.startswith(str(path)) for name in [*opened, *mapped])
    return is_there or f"keras_freeze writer of {path}" in threads


# Blocks


DTYPES = ["float16", "float32", "float64", "bfloat16", "int8", "uint8", "int64", "bool"]


@st.composite
def columns_of_rows(draw: Any) -> dict[str, np.ndarray]:
    count = draw(st.integers(1, 4))
    chance = np.random.default_rng(draw(st.integers(0, 99)))
    columns = {}
    for name in draw(st.lists(st.sampled_from("abcü"), min_size=1, max_size=3, unique=True)):
        dtype = np.dtype(getattr(ml_dtypes, kind := draw(st.sampled_from(DTYPES)), kind))
        shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
        array = chance.integers(0, 2, (2 * count, *shape)).astype(dtype)
        if kind != "bool":
            array = np.frombuffer(chance.bytes(array.nbytes), dtype).reshape(array.shape)
        form = draw(st.sampled_from(["C", "F", "strided", "reversed", "swapped"]))
        columns[name] = {
            "C": lambda array: array[:count],
            "F": lambda array: np.asfortranarray(array[:count]),
            "strided": lambda array: array[::2],
            "reversed": lambda array: array[count - 1 :: -1],
            "swapped": lambda array: array[:count].astype(array.dtype.newbyteorder()),
        }[form](array)
    return columns


@given(columns_of_rows(), st.sampled_from([None, (0, 2, 1), ()]))
def test_rows_come_back_from_a_block(columns: dict[str, np.ndarray], axes: Any):
    count = len(next(iter(columns.values())))
    block = Block(packed(keys(range(count)), columns, {"a": axes}))
    assert block.keys == keys(range(count))
    assert block.names == list(columns)
    assert {layout.name: layout.axes for layout in block.layouts}.get("a", axes) == axes
    assert all(block.is_whole(row) for row in range(count))
    chosen = [*range(count), 0]
    for name, array in block.take(chosen).items():
        expected = np.ascontiguousarray(columns[name][chosen])
        expected = expected.astype(expected.dtype.newbyteorder("="))
        assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
        assert array.tobytes() == expected.tobytes()
        assert array.flags.c_contiguous


def small_block() -> tuple[bytearray, dict[str, np.ndarray]]:
    columns = {"a": rows(range(3), 4), "b": np.array([True, False, True])}
    return packed(keys(range(3)), columns, {"a": (0, 1)}), columns


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_no_changed_byte_of_a_block_gives_a_wrong_row(mask: int):
    raw, columns = small_block()
    refused = 0
    for place in range(len(raw)):
        raw[place] ^= mask
        try:
            block = Block(raw)
        except DamagedError:
            refused += 1
        else:
            whole = [row for row in range(3) if block.is_whole(row)]
            assert len(whole) == 2, "the row with that byte is found out, and no other"
            assert block.keys == keys(range(3))
            for name, array in block.take(whole).items():
                np.testing.assert_array_equal(array, columns[name][whole])
        raw[place] ^= mask
    assert len(raw) - refused == 3 * 17, "bytes of the rows"


def test_a_block_of_another_length_is_refused():
    raw, _ = small_block()
    for length in range(len(raw)):
        with pytest.raises(DamagedError):
            Block(raw[:length])
    with pytest.raises(DamagedError):
        Block(raw + b"?")
    with pytest.raises(DamagedError):
        Block(b"kfb0" + raw[4:])


# Writing and finding


def test_rows_are_found_again_here_and_in_other_processes(path: Path):
    with user_of(path) as user:
        for numbers in BATCHES:
            user.write(numbers)
        assert user.find(range(120)) == set(range(100))
        assert user.failure == ""
    assert found_in(path, range(120)) == set(range(100))
    assert in_process(directory_rows.find_all, path, 120, WIDTH) == [set(range(100))]
    assert not is_open(path)
    assert not list(path.rglob("*/*.lock"))


def test_rows_are_found_while_they_wait_to_be_written(path: Path):
    with user_of(path) as user:
        columns = {"features": rows(range(5))}
        batch = user.folder.wait_for(keys(range(5)), columns, {})
        assert user.find([4, 7, 0, 4]) == {0, 4}
        assert not path.joinpath(NAME).exists()
        user.folder.write([batch])
        assert user.find(range(9)) == set(range(5))
    assert found_in(path, range(9)) == set(range(5))


def test_known_rows_are_not_written_again(filled: Path):
    before = data_files(filled)
    with user_of(filled) as user:
        user.write(range(50))
        assert user.folder.own is None
        user.write(range(90, 110))
        user.write(range(90, 110))
        assert user.folder.own.written == 1
        user.folder.own.count = 0
        (block,) = user.folder.own.new_blocks()
        assert block.keys == keys(range(100, 110))
    assert len(data_files(filled)) == len(before) + 1
    assert found_in(filled, range(110)) == set(range(110))


def test_a_row_that_is_given_twice_is_written_once(path: Path):
    with user_of(path) as user:
        user.write([1, 2, 1, 1])
        assert len(user.folder) == 2
        assert user.find([1, 2]) == {1, 2}
    assert found_in(path, [2, 1]) == {1, 2}


def test_rows_without_numbers_are_kept_too(path: Path):
    with user_of(path) as user:
        user.write(range(5), width=0)
    assert found_in(path, range(9), width=0) == set(range(5))


def test_many_small_batches_stay_whole(path: Path):
    """LMDB keeps several small blocks on a page, and moves them."""
    with user_of(path) as user:
        for number in range(150):
            user.write([number], width=10)
        assert user.find(range(150), width=10) == set(range(150))
        assert user.directory.problems == []
    assert found_in(path, range(150), width=10) == set(range(150))


def test_full_files_are_followed_by_others(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environments, "MAP", 1 << 17)
    with user_of(path) as user:
        for begin in range(0, 400, 20):
            user.write(range(begin, begin + 20))
        assert user.find(range(400)) == set(range(400))
        assert user.failure == ""
    assert len(data_files(path)) >= 3
    assert not is_open(path)
    assert found_in(path, range(400)) == set(range(400))


def test_a_batch_that_fits_into_no_file_is_a_failure(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environments, "MAP", 1 << 17)
    with user_of(path) as user:
        user.write(range(10))
        user.write(range(10, 1000))
        assert user.failure == "a batch doesn't fit into a file"
        user.write(range(1000, 1001))
        assert user.find(range(1100)) == set(range(10))
    assert found_in(path, range(1100)) == set(range(10))


def test_large_batches_become_several_blocks(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(portions, "AT_ONCE", 10 * 4 * WIDTH)
    with user_of(path) as user:
        user.write(range(95))
        assert user.folder.own.written == 10
    monkeypatch.setattr(portions, "AT_ONCE", 1)
    with user_of(path) as user:
        user.write(range(95, 100))
        assert user.folder.own.written == 5
    assert found_in(path, range(120)) == set(range(100))


def test_two_users_share_a_folder_and_the_last_one_closes_it(path: Path):
    one, two, three = User(path), User(path), User(path, name=OTHER)
    assert one.folder is two.folder
    assert one.directory is three.directory
    one.write(range(10))
    one.close()
    assert two.find(range(10)) == set(range(10))
    two.write(range(10, 20))
    two.close()
    assert one.find(range(10)) == set()
    assert cache_directory._shared
    three.close()
    assert not cache_directory._shared
    assert not is_open(path)
    assert found_in(path, range(30)) == set(range(20))


def test_a_directory_that_was_closed_meanwhile_can_be_used(path: Path):
    first = cache_directory.shared_directory(path, None)
    User(path).close()
    folder = first.open(NAME, directory_rows.ABOUT, first)
    assert cache_directory.shared_directory(path, None) is first
    first.add(folder, keys([1]), {"features": rows([1])}, {}, patiently=True)
    first.let_go([folder], first)
    assert found_in(path, [1]) == {1}
    assert not is_open(path)


def test_rows_of_different_shapes_are_never_mixed(path: Path):
    with user_of(path) as user:
        user.write(range(10), width=4)
        user.write(range(10, 20), width=6)
        assert user.find(range(10), width=4) == set(range(10))
        assert user.find(range(10, 20), width=6) == set(range(10, 20))
        found = user.folder.take(keys(range(5, 15)))
        assert found.positions.tolist() == [0, 1, 2, 3, 4]
        assert found.columns["features"].shape == (5, 4)


def test_several_columns_with_their_axes(path: Path):
    columns = {
        "features": rows(range(3), 24).reshape(3, 2, 3, 4).transpose(0, 2, 3, 1),
        "mask": np.array([[True], [False], [True]]),
    }
    axes = {"features": (0, 3, 1, 2), "mask": None}
    for is_written in (False, True):
        with user_of(path) as user:
            if not is_written:
                user.directory.add(user.folder, keys(range(3)), columns, axes, patiently=True)
            found = user.folder.take(keys([2, 0]))
            assert found.axes == axes
            for name, array in found.columns.items():
                np.testing.assert_array_equal(array, columns[name][[2, 0]])
                assert array.flags.c_contiguous


def test_rows_of_running_processes_are_found(path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also when their file has become larger than it was when it was opened."""
    monkeypatch.setattr(feature_folder, "AGAIN", 0.05)
    with user_of(path) as user:
        user.write([0], width=1 << 18)
        other = Process(directory_rows.find_until, path, [1, 30], 1 << 18)
        assert other.hear() == 1
        for number in range(1, 30):
            user.write([number], width=1 << 18)
        assert other.end() == [1, 30]


# Kills


def test_no_committed_row_is_lost_when_a_process_is_killed(path: Path):
    chance = random.Random(0)
    committed = 0
    for kill in range(8 * TRIES):
        sizes = [chance.choice([1, 2, 5, 30, 100]) for _ in range(chance.choice([1, 1, 4]))]
        process = Process(directory_rows.write_forever, path, committed, sizes)
        if chance.random() < 0.7:
            process.hear()
        time.sleep(chance.uniform(0, 0.05))
        said = process.kill()
        assert all(isinstance(each, int) for each in said), said
        committed = max([committed, *said])
        with user_of(path) as user:
            assert user.find(range(committed + 500)) >= set(range(committed)), kill
            assert (user.failure, user.directory.problems) == ("", [])
        assert not list(path.rglob("*/*.lock")), "those that are left are removed"
    assert committed > 0
    assert in_process(directory_rows.find_all, path, committed, WIDTH) == [set(range(committed))]


def test_a_mark_that_was_cut_off_by_a_kill_is_written_again(path: Path):
    for begun in ("", marks.SIGNATURE[:20]):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        (path / marks.TAG).write_text(begun)
        assert arguments.check_directory(path) == path
        with user_of(path) as user:
            user.write([1])
        assert (path / marks.TAG).read_text() == marks.SIGNATURE
        (path / marks.TAG).write_text("?")
        assert arguments.check_directory(path) == path
        (path / "thesis.tex").touch()
        with pytest.raises(CacheError, match="holds other files"):
            arguments.check_directory(path)


# Several processes


def test_eight_processes_write_and_read_the_same_rows(path: Path):
    count = 300
    for attempt in range(TRIES):
        work = [
            Process(directory_rows.write_and_read, path, 8 * attempt + seed, count, 40)
            for seed in range(8)
        ]
        said = [process.end()[-1] for process in work]
        written = set().union(*(own for _, own, _, _ in said))
        for _, _, failure, problems in said:
            assert (failure, problems) == ("", [])
        assert found_in(path, range(count)) >= written
        assert not list(path.rglob("*/*.lock"))
        shutil.rmtree(path)


def test_two_threads_use_a_directory(path: Path):
    errors = []

    def use(begin: int) -> None:
        try:
            for at in range(begin, begin + 200, 5):
                with user_of(path) as user:
                    user.write(range(at, at + 20))
                    assert user.find(range(at, at + 20)) == set(range(at, at + 20))
                    assert user.failure == ""
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=use, args=(begin,)) for begin in (0, 50, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    assert found_in(path, range(320)) == set(range(315))
    assert not is_open(path)


# Damaged files


@pytest.mark.parametrize(("width", "tries"), [(WIDTH, 60), (2048, 25)])
def test_damaged_files_never_crash_or_give_a_wrong_row(path: Path, width: int, tries: int):
    ends = [0, 1, 3, 8, 38, 100, 101, 150, 250, 400]
    batches = [range(*both) for both in itertools.pairwise(ends)]
    in_process(directory_rows.write_all, path, batches[:5], width)
    in_process(directory_rows.write_all, path, batches[5:], width)
    seeds = range(tries * TRIES)
    said = Process(directory_rows.read_damaged, path, 400, width, seeds).end()
    done = [each for each in said if len(each) > 2]
    assert len(done) == len(seeds)
    assert max(seconds for *_, seconds in done) < 20
    failures = {failure for *_, failure, _ in done if failure}
    assert failures <= {"Is a directory"}, failures  # .opening.lock was replaced by one


@pytest.mark.parametrize(("width", "tries"), [(WIDTH, 20), (2048, 10)])
def test_files_may_be_cut_off_and_removed_while_they_are_open(path: Path, width: int, tries: int):
    in_process(directory_rows.write_all, path, [range(100), range(100, 101)], width)
    in_process(directory_rows.write_all, path, [range(101, 200)], width)
    seeds = range(tries * TRIES)
    said = Process(directory_rows.spoil_while_open, path, 200, width, seeds).end()
    assert len([each for each in said if len(each) > 2]) == len(seeds)


def flip_in(file: Path, numbers: list[int]) -> None:
    raw = file.read_bytes()
    for number in numbers:
        row = rows([number]).tobytes()
        assert raw.count(row) == 1
        raw = raw.replace(row, row[:100] + bytes([row[100] ^ 4]) + row[101:])
    file.write_bytes(raw)


def test_a_damaged_row_is_told_and_written_again(filled: Path):
    flip_in(data_files(filled)[0], [50, 60])
    with user_of(filled) as user:
        assert user.find(range(100)) == set(range(100)) - {50, 60}
        (problem,) = user.directory.problems
        assert "damaged rows" in problem
        user.write(range(100))
    for _ in range(2):
        with user_of(filled) as user:
            assert user.find(range(100)) == set(range(100))
            assert user.directory.problems == []


def test_a_row_that_is_damaged_in_one_file_is_found_in_another(path: Path):
    for name in ("a", "b"):
        in_process(directory_rows.write_all, path.with_name(name), [range(10)], WIDTH)
    for run in path.with_name("b").joinpath(NAME).glob("*-0"):
        shutil.move(run, path.with_name("a") / NAME)
    one, two = data_files(path.with_name("a"))
    flip_in(one, [1, 2])
    flip_in(two, [2, 3])
    assert found_in(path.with_name("a"), range(10)) == set(range(10)) - {2}


def test_a_damaged_file_is_removed_and_told(filled: Path):
    (file,) = data_files(filled)
    raw = file.read_bytes()
    file.write_bytes(raw[: len(raw) // 2])
    with user_of(filled) as user:
        assert user.find(range(100)) == set()
        (problem,) = user.directory.problems
        assert f"damaged file, and computes its rows again: {file}" in problem
        assert not file.exists()
        user.write(range(100))
    assert found_in(filled, range(100)) == set(range(100))


def test_a_file_that_was_damaged_after_it_was_written_is_checked_again(path: Path):
    with user_of(path) as user:
        user.write(range(100))
        (file,) = data_files(path)
        time.sleep(0.02)  # more than the resolution of its time
        with file.open("r+b") as stream:
            stream.truncate(9000)
    with user_of(path) as user:
        assert user.find(range(100)) == set()
        user.write(range(100))
    assert found_in(path, range(100)) == set(range(100))


# The check in a process of its own


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return str(path)


@pytest.mark.parametrize("text", ["exit 0", "exit 3", "echo ok", "echo begin; exit 1", None, ""])
def test_without_python_for_the_check_no_file_is_read_or_removed(
    filled: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
):
    python = program(filled.with_name("python"), text) if text else text
    monkeypatch.setattr(sys, "executable", python)
    with pytest.raises(OSError, match=r"t run read_through|known where Python is"):
        User(filled)
    cache_directory.shared_directory(filled, None).let_go([], None)
    assert not is_open(filled)
    monkeypatch.undo()
    assert found_in(filled, range(100)) == set(range(100))


def test_without_python_later_on_training_goes_on(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(feature_folder, "AGAIN", 0.0)
    with user_of(path) as user:
        user.write(range(10))
        in_process(directory_rows.write_all, path, [range(10, 20)], WIDTH)
        monkeypatch.setattr(sys, "executable", str(path / "missing"))
        assert user.find(range(20)) == set(range(10))
        (problem,) = user.directory.problems
        assert problem.startswith("can't read what other processes write: ")
        monkeypatch.undo()
        monkeypatch.setattr(feature_folder, "AGAIN", 0.0)
        assert user.find(range(20)) == set(range(20))


@pytest.mark.parametrize("name", ["INT", "TERM", "KILL"])
def test_a_check_that_somebody_stops_says_nothing_about_the_file(
    filled: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    stopped = program(filled.with_name("python"), f"echo begin; kill -{name} $$; sleep 9")
    monkeypatch.setattr(sys, "executable", stopped)
    assert found_in(filled, range(100)) == set()
    monkeypatch.undo()
    assert found_in(filled, range(100)) == set(range(100))


def test_a_check_that_crashes_finds_a_damaged_file(filled: Path, monkeypatch: pytest.MonkeyPatch):
    crashing = program(filled.with_name("python"), "echo begin; kill -SEGV $$")
    monkeypatch.setattr(sys, "executable", crashing)
    with user_of(filled) as user:
        assert user.find(range(100)) == set()
        assert "damaged file" in user.directory.problems[0]
    assert not data_files(filled)


def test_a_check_that_hangs_ends(filled: Path, monkeypatch: pytest.MonkeyPatch):
    slow = program(filled.with_name("python"), "echo begin; exec sleep 60")
    monkeypatch.setattr(sys, "executable", slow)
    monkeypatch.setattr(checked_files, "SECONDS", 0.2)
    began = time.monotonic()
    assert found_in(filled, range(100)) == set()
    assert time.monotonic() - began < 10
    monkeypatch.undo()
    assert found_in(filled, range(100)) == set(range(100))


def test_the_check_finds_lmdb_where_this_process_has_it(
    filled: Path, monkeypatch: pytest.MonkeyPatch
):
    """Also if that is a folder of the user, or one that was added to `sys.path`."""
    bare = filled.with_name("bare")
    subprocess.run([sys._base_executable, "-m", "venv", "--without-pip", bare], check=True)
    monkeypatch.setattr(sys, "executable", str(bare / "bin" / "python"))
    assert found_in(filled, range(100)) == set(range(100))


@pytest.mark.parametrize("name", ["two\nlines", "ü \u2028", os.fsdecode(b"x\xff"), "-I", "w"])
def test_any_name_of_a_directory_works(tmp_path: Path, name: str):
    in_process(directory_rows.write_all, tmp_path / name, [range(10)], WIDTH)
    with user_of(tmp_path / name) as user:
        assert user.find(range(20)) == set(range(10))
        user.write(range(20))
        assert user.failure == ""
    assert found_in(tmp_path / name, range(20)) == set(range(20))


# Faults


def obey_permissions() -> None:
    """Lets root not write where the permissions forbid it."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    able = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, able) == 0
    able[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, able) == 0


def read_only(path: Path, count: int, say: Callable[[Any], None]) -> None:
    obey_permissions()
    with user_of(path) as user:
        found = user.find(range(count))
        user.write(range(count + 10))
        say((found, user.failure, user.find(range(count))))


@pytest.mark.skipif(sys.platform != "linux", reason="it is root who can't be stopped")
@pytest.mark.parametrize("is_seen", [True, False])
def test_a_directory_that_can_only_be_read(filled: Path, is_seen: bool):
    folders = [filled, *filled.rglob("*")]
    for folder in folders if is_seen else [filled]:
        folder.chmod((0o555 if folder.is_dir() else 0o444) if is_seen else 0)
    try:
        ((found, failure, again),) = in_process(read_only, filled, 100)
    finally:
        for folder in folders:
            folder.chmod(0o700)
    assert found == again == (set(range(100)) if is_seen else set())
    assert failure == "Permission denied"
    assert found_in(filled, range(120)) == set(range(100))


def test_a_directory_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").touch()
    with user_of(tmp_path / "file" / "features") as user:
        assert user.failure == "Not a directory"
        assert not user.directory.is_usable
        user.write(range(3))
        assert user.find(range(3)) == set()


@pytest.mark.parametrize("what", ["directory", "fingerprint", "file"])
def test_a_directory_that_is_removed_meanwhile(
    filled: Path, monkeypatch: pytest.MonkeyPatch, what: str
):
    monkeypatch.setattr(feature_folder, "AGAIN", 0.0)
    with user_of(filled) as user:
        user.write(range(100, 110))
        gone = {"directory": filled, "fingerprint": filled / NAME, "file": data_files(filled)[0]}
        shutil.rmtree(gone[what]) if gone[what].is_dir() else gone[what].unlink()
        assert user.find(range(120)) == set(range(110)), "what is open can still be read"
        user.write(range(110, 120))
        assert user.find(range(120)) >= set(range(110))
        assert user.failure == ("No such file or directory" if what == "directory" else "")
    assert filled.exists() == (what != "directory")
    assert not is_open(filled)
    assert User(filled).failure == ""


Usage = namedtuple("Usage", "total used free")


def test_a_full_disk_is_a_failure(filled: Path, monkeypatch: pytest.MonkeyPatch):
    full = Usage(10**12, 10**12 - room.FLOOR - 60_000, room.FLOOR + 60_000)
    with user_of(filled) as user:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
        user.write(range(100, 110))
        assert user.failure == ""
        user.write(range(110, 200))
        assert user.failure == "the disk has only 60.0 KB left to use"
        assert user.find(range(240)) == set(range(110))
    assert found_in(filled, range(140)) == set(range(110))


def write_until_full(path: Path, say: Callable[[Any], None]) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, 1 << 17))
    with user_of(path) as user:
        done = 0
        while not user.failure:
            user.write(range(done, done + 20))
            done += 20
        user.write(range(done, done + 1))
        found = user.find(range(done + 20))
        say((done, found, user.failure))


def test_a_disk_that_gets_full_is_a_failure(path: Path):
    ((done, found, failure),) = in_process(write_until_full, path)
    assert found == set(range(done - 20))
    assert done >= 100
    assert failure
    assert found_in(path, range(done)) == found


def test_a_lock_that_another_process_keeps_is_waited_for_once(
    filled: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(locks, "SECONDS", 0.5)
    monkeypatch.setattr(feature_folder, "AGAIN", 0.0)
    with FileLock(filled / ".opening.lock"):
        began = time.monotonic()
        users = [User(filled), User(filled, name=OTHER)]
        for _ in range(5):
            assert users[0].find(range(120)) == set(range(100))
            users[1].write(range(10))
            users[0].write(range(120))
        assert "another process doesn't let go of" in users[0].failure
        for user in users:
            user.close()
        assert time.monotonic() - began < 4 * locks.SECONDS
    with user_of(filled) as user:
        user.write(range(120))
        assert user.failure == ""
    assert found_in(filled, range(120)) == set(range(120))


def test_a_run_that_seems_to_go_on_does_not_hold_up(filled: Path):
    (file,) = data_files(filled)
    with FileLock(filled / NAME / f"{file.parent.name.split('-')[0]}.lock"):
        began = time.monotonic()
        with user_of(filled) as user:
            assert user.find(range(100)) == set(range(100))
            user.write(range(100, 110))
        assert time.monotonic() - began < 5
        assert len(list(filled.rglob("*/*.lock"))) == 1
    assert found_in(filled, range(110)) == set(range(110))


Mount = namedtuple("Mount", "mountpoint fstype")


@pytest.mark.parametrize("kinds", [["nfs4"], ["autofs", "nfs"], ["fuse.sshfs"], ["cifs"]])
def test_a_network_file_system_is_not_used(
    path: Path, monkeypatch: pytest.MonkeyPatch, kinds: list[str]
):
    mounts = [Mount("/", "ext4"), *(Mount(str(path.parent), kind) for kind in kinds)]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)
    with user_of(path) as user:
        assert not user.directory.is_usable
        assert user.failure == (f"it is on a network file system ({kinds[-1]}); use a local disk")
        user.write(range(3))
    assert not files_of(path)


@pytest.mark.parametrize("error", [OSError, psutil.AccessDenied])
def test_an_unknown_file_system_is_used(path: Path, monkeypatch: pytest.MonkeyPatch, error: Any):
    def fail(all: bool) -> Any:
        raise error

    monkeypatch.setattr(psutil, "disk_partitions", fail)
    with user_of(path) as user:
        user.write(range(3))
    assert found_in(path, range(3)) == {0, 1, 2}


def test_other_formats_and_fingerprints_are_not_found(path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "MARK", b"kfb0")
        with user_of(path) as user:
            user.write(range(10))
    with user_of(path) as user:
        assert user.find(range(10)) == set()
        user.write(range(10))
    with user_of(path, name=OTHER) as user:
        assert user.find(range(10)) == set()
        assert user.directory.has(NAME)
        assert not user.directory.has(OTHER)
    assert found_in(path, range(10)) == set(range(10))


def fork_while_open(path: Path, say: Callable[[Any], None]) -> None:
    user = User(path)
    user.write(range(10))
    if (child := os.fork()) == 0:
        code = 1
        try:
            assert user.find(range(10)) == set()
            user.write(range(10, 20))
            user.close()
            for name in (OTHER, NAME):
                own = User(path, name=name)
                own.write(range(50, 55))
                assert own.find(range(60)) == set(range(50, 55))
                assert not own.failure
                own.close()
            cache_directory._close_all()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    say(len(list((path / NAME).glob("*.lock"))))
    say([locks.is_held(file) for file in (path / NAME).glob("*.lock")])
    user.write(range(20, 30))
    say((user.find(range(40)), user.failure))
    user.close()


def test_a_copy_of_the_process_leaves_the_files_alone(path: Path):
    expected = {*range(10), *range(20, 30)}
    assert in_process(fork_while_open, path) == [1, [True], (expected, "")]
    assert found_in(path, range(60)) == {*expected, *range(50, 55)}
    with user_of(path, name=OTHER) as user:
        assert user.find(range(60)) == set(range(50, 55))


def interrupt(path: Path, say: Callable[[Any], None]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    go_on = threading.Event()
    user = User(path)
    write = user.folder.write
    user.folder.write = lambda batches: go_on.wait() and write(batches)
    user.add(range(10))
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        user.close()
    except KeyboardInterrupt:
        say("interrupted")
    with_next = User(path)
    say(with_next.find(range(10)))
    go_on.set()
    with_next.close()
    say((is_open(path), list(cache_directory._shared)))


def test_ctrl_c_while_rows_are_written_loses_none(path: Path):
    assert in_process(interrupt, path) == ["interrupted", set(range(10)), (False, [])]
    assert found_in(path, range(10)) == set(range(10))


def test_a_disk_that_does_not_answer_is_a_failure(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(background_writer, "SECONDS", 0.2)
    monkeypatch.setattr(background_writer, "WAITING", 100)
    go_on = threading.Event()
    user = User(path)
    write = user.folder.write
    user.folder.write = lambda batches: go_on.wait() and write(batches)
    began = time.monotonic()
    for number in range(10):
        user.add([number])
    assert user.failure == "the disk doesn't answer"
    assert user.find(range(10)) == {0}, "it is still in memory"
    user.folder.remove_own()
    user.close()
    assert time.monotonic() - began < 5
    go_on.set()
    user.directory.flush()
    User(path).close()
    assert not is_open(path)
    assert found_in(path, range(10)) == set()


def test_what_was_written_can_be_removed_at_any_moment(filled: Path):
    with user_of(filled) as user:
        user.write(range(100, 110))
        user.folder.remove_own()
        assert user.find(range(120)) == set()
        user.folder.look()
        assert user.find(range(120)) == set(range(100))
        batch = user.folder.wait_for(keys([110]), {"features": rows([110])}, {})
        user.folder.remove_own()
        user.folder.write([batch])  # it was to be removed before it was written
        assert user.find([110]) == set()
        user.write([111])
        assert user.failure == ""
    assert found_in(filled, range(120)) == {*range(100), 111}


def test_without_a_thread_training_goes_on(path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with user_of(path) as user, monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        user.write(range(3))
        assert user.failure == "can't start new thread"


@pytest.mark.parametrize("wrong", ["a\0b", "~nobody-has-this-name/x", 3, "", " "])
def test_a_path_that_is_none_is_an_error(wrong: Any):
    with pytest.raises(CacheError, match="directory"):
        arguments.check_directory(wrong)


# Budget


def fill(path: Path, count: int = 4, size: int = 50) -> list[Path]:
    """Makes fingerprints; the first one was least recently used."""
    folders = []
    for number in range(count):
        name = f"{number:032x}"
        with user_of(path, name=name) as user:
            user.write(range(size))
        os.utime(path / name / "about.json", (1000 + number, 1000 + number))
        folders.append(path / name)
    return folders


def hold(path: Path, name: str, say: Callable[[Any], None]) -> None:
    User(path, name=name)
    say("open")
    time.sleep(60)


def test_bytes_of_the_disk_are_counted(path: Path):
    fill(path)
    with (path / "sparse").open("wb") as stream:
        stream.truncate(10**9)
    (path / "link").symlink_to("/proc/kcore")
    counted = room.bytes_on_disk(path)
    used = sum(os.lstat(file).st_blocks * 512 for file in path.rglob("*") if not file.is_dir())
    assert counted == used < 10**7


def test_the_least_recently_used_fingerprint_goes_first(path: Path):
    folders = fill(path)
    size = room.bytes_on_disk(folders[0])
    limit = room.bytes_on_disk(path)
    assert room.make_room(path, 0, limit)
    assert all(folder.exists() for folder in folders)
    assert room.make_room(path, size + 1, limit)
    assert [folder.exists() for folder in folders] == [False, False, True, True]
    assert not list(path.glob(".removed-*"))


def test_a_fingerprint_in_use_stays(path: Path):
    folders = fill(path)
    limit = room.bytes_on_disk(path)
    other = Process(hold, path, folders[0].name)
    assert other.hear() == "open"
    with user_of(path, name=folders[1].name) as user:
        assert room.make_room(path, limit // 3, limit)
        assert [folder.exists() for folder in folders] == [True, True, False, False]
        assert not room.make_room(path, limit - 4096, limit)
        other.kill()
        assert not room.make_room(path, limit, limit)
        assert folders[0].exists(), "nothing is removed if that isn't enough"
        assert room.make_room(path, limit // 2, limit)
        assert [folder.exists() for folder in folders] == [False, True, False, False]
        assert user.find(range(50)) == set(range(50))


def test_what_killed_processes_left_goes_before_any_fingerprint(path: Path):
    folders = fill(path)
    shutil.copytree(folders[3], path / ".removed-0123456789ab")
    assert room.make_room(path, 0, room.bytes_on_disk(path) - 1)
    assert all(folder.exists() for folder in folders)
    assert not (path / ".removed-0123456789ab").exists()


def test_the_limit_of_a_directory_is_kept(path: Path):
    folders = fill(path)
    limit = room.bytes_on_disk(path) + 50_000
    with user_of(path, limit=limit) as user:
        done = 0
        while not user.failure:
            user.write(range(done, done + 50))
            assert room.bytes_on_disk(path) <= limit
            done += 50
        assert user.failure.startswith("`max_bytes`, ")
        assert user.find(range(done)) == set(range(done - 50))
    assert not any(folder.exists() for folder in folders)


def test_some_of_the_disk_stays_free(path: Path, monkeypatch: pytest.MonkeyPatch):
    folders = fill(path)

    def usage(total: int, free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(total, total - free, free))

    usage(10**12, room.FLOOR + 1000)
    assert room.make_room(path, 1000, None)
    usage(10**9, 50_001_000)  # a small disk, of which a twentieth stays free
    assert room.make_room(path, 1000, None)
    assert all(folder.exists() for folder in folders)
    usage(10**12, room.FLOOR - 10**9)
    assert not room.make_room(path, 1000, None)
    assert all(folder.exists() for folder in folders), "removing all wouldn't be enough"
    usage(10**12, room.FLOOR + 999)
    assert not room.make_room(path, 1000, None), "the disk says that nothing became free"
    assert not any(folder.exists() for folder in folders)


def test_processes_that_make_room_at_once_do_not_fail(path: Path, monkeypatch: pytest.MonkeyPatch):
    folders = fill(path)
    limit = room.bytes_on_disk(path)
    remove = room.remove

    def slower(folder: Path) -> bool:
        if folder == folders[0]:
            shutil.rmtree(folder)  # another process has removed it meanwhile
        return remove(folder)

    monkeypatch.setattr(room, "remove", slower)
    assert room.make_room(path, 1, limit)
    assert [folder.exists() for folder in folders] == [False, True, True, True]
