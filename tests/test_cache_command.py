"""`keras-freeze cache`: what it prints, what it leaves on disk, and what it never touches."""

from __future__ import annotations

import calendar
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lmdb")
pytest.importorskip("filelock")

from keras_freeze import BottleneckCache, GradualUnfreeze
from keras_freeze.cli import main
from keras_freeze.feature_cache.directory import (
    checked_files,
    contents,
    folder_names,
    marks,
    room,
)
from keras_freeze.feature_cache.directory.about import About
from keras_freeze.feature_cache.directory.cache_directory import shared_directory
from keras_freeze.feature_cache.directory.environments import Written
from keras_freeze.feature_cache.storage.row_hashes import row_keys
from tests import builders

pytestmark = pytest.mark.one_backend

ONE, TWO, THREE = "1" * 32, "2" * 32, "3" * 32
ROWS = 6  # of a run


class User:
    """Uses folders, in place of a fit."""


USER = User()


def features_of(run: int) -> np.ndarray:
    return np.random.default_rng(run).normal(size=(ROWS, 4)).astype("float32")


def open_folder(directory: Path, name: str, *, network: str = "base", data: str | None = None):
    about = About(
        network=network, cut=["b3"], features=["float32(4,)"], made_with={"keras": "3"}, data=data
    )
    return shared_directory(directory, None).open(name, about, USER)


def add_run(directory: Path, name: str, run: int = 0, **about: Any) -> None:
    """Writes the rows of a run, as a `fit` does."""
    folder = open_folder(directory, name, **about)
    features = features_of(run)
    cache = shared_directory(directory, None)
    cache.add(folder, row_keys([features]), {"features": features}, {}, patiently=True)
    cache.let_go([folder], USER)


def used(directory: Path, name: str, days_ago: float) -> None:
    then = time.time() - 86400 * days_ago
    os.utime(directory / name / "about.json", (then, then))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Two fingerprints; the second was used more recently."""
    add_run(tmp_path / "features", ONE, network="old")
    add_run(tmp_path / "features", TWO, network="new", data="photos-v1")
    used(tmp_path / "features", ONE, 10)
    used(tmp_path / "features", TWO, 2)
    return tmp_path / "features"


def ask(capsys: pytest.CaptureFixture[str], *arguments: Any, status: int = 0) -> Any:
    """Returns the JSON that a subcommand prints."""
    assert main(["cache", *map(str, arguments), "--json"]) == status
    printed = capsys.readouterr()
    assert printed.err == ""
    return json.loads(printed.out)


def told(capsys: pytest.CaptureFixture[str], *arguments: Any, status: int = 0) -> str:
    assert main(["cache", *map(str, arguments)]) == status
    return capsys.readouterr().out


def files_of(directory: Path, name: str) -> list[Path]:
    return sorted((directory / name).glob("*/data.mdb"))


def rows_in(directory: Path, name: str) -> dict[bytes, bytes]:
    """Reads rows as a `fit` does."""
    folder = open_folder(directory, name)
    keys = list(folder.index.places)
    found = folder.take(keys)
    rows = {} if found is None else found.columns["features"]
    whole = (
        {keys[place]: rows[n].tobytes() for n, place in enumerate(found.positions)} if keys else {}
    )
    shared_directory(directory, None).let_go([folder], USER)
    return whole


def written(*runs: int) -> dict[bytes, bytes]:
    return {
        key: row.tobytes()
        for run in runs
        for key, row in zip(row_keys([features_of(run)]), features_of(run), strict=True)
    }


def tree(directory: Path) -> dict[str, Any]:
    """All files with their content; locks and LMDB's list of readers aside."""
    return {
        str(path.relative_to(directory)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "lock.mdb" and path.suffix != ".lock"
    }


def flip_rows(file: Path, run: int, count: int = 1) -> None:
    """Changes a byte of each of the first rows of a run."""
    raw = bytearray(file.read_bytes())
    for row in features_of(run)[:count]:
        assert raw.count(row.tobytes()) == 1
        raw[raw.index(row.tobytes())] ^= 1
    file.write_bytes(raw)


# ls


def test_ls_prints_a_table(directory: Path, capsys):
    lines = told(capsys, "ls", directory).splitlines()
    assert lines[0].split("  ")[0] == "fingerprint"
    assert [line.split()[:3] for line in lines[2:4]] == [
        ["2" * 12, "new", "b3"],
        ["1" * 12, "old", "b3"],
    ]
    assert "float32(4,)" in lines[2]
    assert "photos-v1" in lines[2]
    day = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() - 2 * 86400))
    assert day[:-1] in lines[2]
    assert lines[2].endswith("no")
    assert re.fullmatch(r"2 fingerprints, 12 rows, [\d.]+ KB", lines[5])
    assert max(map(len, lines)) <= 130


def test_ls_prints_json(directory: Path, capsys):
    new, old = ask(capsys, "ls", directory)
    size = room.bytes_on_disk(directory / TWO)
    assert new | {"last_use": "", "made": ""} == {
        "fingerprint": TWO,
        "network": "new",
        "cut": ["b3"],
        "features": ["float32(4,)"],
        "data": "photos-v1",
        "made_with": {"keras": "3"},
        "made": "",
        "last_use": "",
        "in_use": False,
        "rows": ROWS,
        "bytes": size,
        "files": 1,
        "damaged_files": 0,
    }
    assert old["data"] is None
    then = calendar.timegm(time.strptime(new["last_use"], "%Y-%m-%dT%H:%M:%SZ"))
    assert abs(time.time() - 2 * 86400 - then) < 60


def test_rows_that_two_runs_have_written_count_once(directory: Path, capsys):
    run = files_of(directory, ONE)[0].parent
    shutil.copytree(run, run.with_name("0123456789ab-0"))
    assert ask(capsys, "ls", directory)[1]["rows"] == ROWS
    assert ask(capsys, "verify", directory)[1]["whole_rows"] == ROWS


def test_an_empty_directory_is_described_in_words(directory: Path, capsys):
    for name in (ONE, TWO):
        shutil.rmtree(directory / name)
    assert told(capsys, "ls", directory) == f"{directory} holds no features.\n"
    assert ask(capsys, "ls", directory) == []
    assert told(capsys, "verify", directory) == f"{directory} holds no features.\n"
    assert ask(capsys, "verify", directory) == []
    assert "nothing to remove" in told(capsys, "gc", directory)


def test_it_reads_what_a_fit_has_written(tmp_path: Path, capsys):
    model = builders.compiled(builders.nested())
    x, y = builders.data()
    cache = BottleneckCache(directory=tmp_path / "features")
    model.fit(x, y, epochs=2, verbose=0, callbacks=[GradualUnfreeze({1: "b3"}), cache])
    capsys.readouterr()
    listed = ask(capsys, "ls", tmp_path / "features")
    assert sorted(each["cut"] for each in listed) == [["b2"], ["b3"]]
    for each in listed:
        assert (each["rows"], each["network"], each["in_use"]) == (24, "base", False)
        assert each["features"] == ["float32(8,)"]
    for each in ask(capsys, "verify", tmp_path / "features"):
        assert (each["whole_rows"], each["is_whole"]) == (24, True)
    assert ask(capsys, "gc", tmp_path / "features")["removed"] == []
    assert ask(capsys, "ls", tmp_path / "features") == listed


# verify


def test_verify_says_that_all_is_whole(directory: Path, capsys):
    assert told(capsys, "verify", directory).splitlines() == [
        f"{'2' * 12}  new: 6 whole rows",
        f"{'1' * 12}  old: 6 whole rows",
        "All rows are whole.",
    ]


def test_verify_finds_bad_rows(directory: Path, capsys):
    flip_rows(files_of(directory, ONE)[0], 0, 2)
    before = tree(directory)
    text = told(capsys, "verify", directory, status=1)
    assert f"{'1' * 12}  old: 4 whole rows, 2 bad rows" in text
    assert f"`keras-freeze cache gc {directory}` removes" in text
    new, old = ask(capsys, "verify", directory, status=1)
    assert (old["whole_rows"], old["bad_rows"], old["is_whole"]) == (4, 2, False)
    assert new["is_whole"]
    assert tree(directory) == before


def test_verify_finds_a_bad_block(directory: Path, capsys):
    file = files_of(directory, ONE)[0]
    raw = file.read_bytes()
    file.write_bytes(raw.replace(b'"float32"', b'"float99"'))
    old = ask(capsys, "verify", directory, status=1)[1]
    assert (old["whole_rows"], old["bad_blocks"]) == (0, 1)


@pytest.mark.parametrize("harm", ["short", "empty", "noise", "zeros"])
def test_verify_finds_damaged_files(harm: str, directory: Path, capsys, monkeypatch):
    monkeypatch.setattr(checked_files, "_checked", {})  # as in a process that hasn't written it
    file = files_of(directory, ONE)[0]
    raw = file.read_bytes()
    noise = np.random.default_rng(0).bytes(len(raw))
    file.write_bytes(
        {"short": raw[: len(raw) // 2], "empty": b"", "noise": noise, "zeros": bytes(len(raw))}[
            harm
        ]
    )
    before = tree(directory)
    assert ask(capsys, "ls", directory)[1]["damaged_files"] == 1
    assert "1 damaged file: `keras-freeze cache gc" in told(capsys, "ls", directory)
    new, old = ask(capsys, "verify", directory, status=1)
    assert old["damaged_files"] == [str(file)]
    assert new["is_whole"]
    assert f"damaged: {file}" in told(capsys, "verify", directory, status=1)
    assert tree(directory) == before


def test_a_file_that_the_disk_cant_read_is_damaged(directory: Path, capsys, monkeypatch):
    bad = files_of(directory, ONE)[0]
    monkeypatch.setattr(contents, "_can_be_read", lambda file: file != bad)
    assert ask(capsys, "verify", directory, status=1)[1]["damaged_files"] == [str(bad)]
    assert ask(capsys, "gc", directory)["removed"][0]["why"] == "damaged"
    assert not bad.exists()


def test_a_file_that_cant_be_used_here_is_neither_whole_nor_removed(
    directory: Path, capsys, monkeypatch
):
    def unusable(paths, live):
        return {path: "unusable" if path.parent.name == ONE else "ok" for path in paths}

    monkeypatch.setattr(contents, "check_files", unusable)
    assert ask(capsys, "verify", directory, status=1)[1]["unreadable_files"]
    assert "may be whole" in told(capsys, "verify", directory, status=1)
    assert ask(capsys, "gc", directory)["removed"] == []


def test_damaged_words_about_a_fingerprint_dont_matter(directory: Path, capsys):
    (directory / ONE / "about.json").write_text("{")
    assert ask(capsys, "ls", directory)[0]["network"] is None
    assert "?" in told(capsys, "ls", directory)
    assert "?: 6 whole rows" in told(capsys, "verify", directory)


# gc


def test_gc_removes_what_killed_runs_left(directory: Path, capsys):
    (directory / ".removed-0123456789ab").mkdir()
    (directory / ".removed-0123456789ab" / "data.mdb").write_bytes(bytes(10_000))
    (directory / ".merging-0123456789ab").mkdir()
    Written(directory / ".merging-0123456789ab" / "0123456789ab-0").close()
    (directory / ONE / "0123456789ab.lock").touch()
    (directory / ONE / ".about.json.123").write_text("{")
    (directory / ONE / "0123456789ab-0").mkdir()
    Written(directory / ONE / "0123456789ab-1").close()
    (directory / THREE).mkdir()
    (directory / THREE / "0123456789ab.lock").touch()
    before = tree(directory)
    assert "Killed processes have left" in told(capsys, "ls", directory)
    planned = ask(capsys, "gc", directory, "--dry-run")
    assert tree(directory) == before
    done = ask(capsys, "gc", directory)
    assert done | {"dry_run": True} == planned
    assert {Path(each["path"]).name: each["why"] for each in done["removed"]} == {
        ".removed-0123456789ab": "left by a process that was killed",
        ".merging-0123456789ab": "left by a process that was killed",
        "0123456789ab.lock": "left by a process that was killed",
        ".about.json.123": "left by a process that was killed",
        "0123456789ab-0": "left by a process that was killed",
        "0123456789ab-1": "without rows",
        THREE: "without rows",
    }
    assert done["freed_bytes"] >= 10_000
    assert done["bytes"] == room.bytes_on_disk(directory)
    assert sorted(path.name for path in directory.iterdir() if path.is_dir()) == [ONE, TWO]
    assert len(list((directory / ONE).iterdir())) == 2
    assert ask(capsys, "gc", directory)["removed"] == []


def test_gc_mends_what_verify_found(directory: Path, capsys):
    add_run(directory, ONE, 1)
    add_run(directory, ONE, 2)
    used(directory, ONE, 10)
    names = {run: file for file in files_of(directory, ONE) for run in range(3) if has(file, run)}
    flip_rows(names[0], 0, 2)
    names[1].write_bytes(b"")
    ask(capsys, "verify", directory, status=1)
    text = told(capsys, "gc", directory)
    assert f"removed {names[1].parent} (damaged" in text
    assert f"rewrote 1 file of {'1' * 12} as one, without what is damaged (2)" in text
    assert ask(capsys, "verify", directory)[1]["whole_rows"] == 10
    kept = dict(list(written(0).items())[2:]) | written(2)
    assert rows_in(directory, ONE) == kept
    assert names[2].exists()


def has(file: Path, run: int) -> bool:
    return features_of(run)[0].tobytes() in file.read_bytes()


def test_gc_removes_a_fingerprint_of_which_nothing_is_whole(directory: Path, capsys):
    flip_rows(files_of(directory, ONE)[0], 0, ROWS)
    files_of(directory, TWO)[0].write_bytes(b"")
    ask(capsys, "gc", directory)
    assert ask(capsys, "ls", directory) == []
    assert not folder_names.fingerprints(directory)


def test_gc_keeps_within_a_size(directory: Path, capsys):
    size = room.bytes_on_disk(directory)
    assert ask(capsys, "gc", directory, "--max-bytes", size)["removed"] == []
    planned = ask(capsys, "gc", directory, "--max-bytes", size - 1, "--dry-run")
    assert (directory / ONE).exists()
    done = ask(capsys, "gc", directory, "--max-bytes", f"{size - 1} B")
    assert done["removed"] == planned["removed"]
    assert [Path(each["path"]).name for each in done["removed"]] == [ONE]
    assert done["freed_bytes"] == size - room.bytes_on_disk(directory) > 0
    assert done["bytes"] == room.bytes_on_disk(directory) < size
    assert [each["fingerprint"] for each in ask(capsys, "ls", directory)] == [TWO]


def test_gc_removes_what_wasnt_used_for_long(directory: Path, capsys):
    assert ask(capsys, "gc", directory, "--older-than", 11)["removed"] == []
    text = told(capsys, "gc", directory, "--older-than", 5.5, "--dry-run")
    assert f"would remove {directory / ONE} (not used for a long time" in text
    assert (directory / ONE).exists()
    assert f"removed {directory / ONE}" in told(capsys, "gc", directory, "--older-than", 5.5)
    assert not (directory / ONE).exists()
    assert (directory / TWO).exists()


def test_gc_merges_the_files_of_many_runs(directory: Path, capsys):
    for run in range(1, 4):
        add_run(directory, ONE, run)
    assert ask(capsys, "gc", directory)["rewritten"] == []
    add_run(directory, ONE, 4)
    add_run(directory, ONE, 5)
    used(directory, ONE, 10)
    last_use = ask(capsys, "ls", directory)[1]["last_use"]
    before = tree(directory)
    assert "would rewrite 6 files" in told(capsys, "gc", directory, "--dry-run")
    assert tree(directory) == before
    (done,) = ask(capsys, "gc", directory)["rewritten"]
    assert (done["files"], done["rows"], done["bad_rows"]) == (6, 6 * ROWS, 0)
    assert done["freed_bytes"] > 0
    assert len(files_of(directory, ONE)) == 1
    assert ask(capsys, "ls", directory)[1]["last_use"] == last_use
    assert rows_in(directory, ONE) == written(*range(6))
    assert not list(directory.glob("*/*.lock"))
    assert ask(capsys, "gc", directory)["rewritten"] == []


def test_files_that_are_too_large_for_one_are_merged_into_several(
    directory: Path, capsys, monkeypatch
):
    from keras_freeze.feature_cache.directory import environments, merge

    for run in range(1, 6):
        add_run(directory, ONE, run)
    monkeypatch.setattr(merge, "AT_ONCE", 1)
    monkeypatch.setattr(environments, "MAP", 1 << 15)  # eight pages
    ask(capsys, "gc", directory)
    assert 1 < len(files_of(directory, ONE)) < 6
    assert rows_in(directory, ONE) == written(*range(6))


def test_a_merge_that_cant_be_written_changes_nothing(directory: Path, capsys, monkeypatch):
    for run in range(1, 5):
        add_run(directory, ONE, run)
    before = tree(directory)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Written, "add", full)
        done = ask(capsys, "gc", directory)
    assert done["problems"] == [f"{directory / ONE} stays: No space left on device"]
    assert done["rewritten"] == []
    assert tree(directory) == before
    monkeypatch.setattr(room, "free_bytes", lambda directory: 0)
    assert "no room" in ask(capsys, "gc", directory)["problems"][0]
    assert tree(directory) == before


def test_gc_never_removes_foreign_files(directory: Path, capsys):
    foreign = [
        directory / "notes.txt",
        directory / "photos" / "1.jpg",
        directory / ".removed-by-me" / "1.jpg",
        directory / "a.lock",
        directory / ("f" * 32) / "thesis.tex",
        directory / ("e" * 32) / "0123456789ab-0" / "thesis.tex",
        directory / ONE / "notes.txt",
    ]
    for file in foreign:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    elsewhere = directory.parent / "elsewhere"
    shutil.copytree(directory / TWO, elsewhere)
    (directory / ("d" * 32)).symlink_to(elsewhere, target_is_directory=True)
    (directory / ".removed-0123456789ab").symlink_to(elsewhere, target_is_directory=True)
    done = ask(capsys, "gc", directory, "--max-bytes", 1, "--older-than", 0)
    assert [Path(each["path"]).name for each in done["removed"]] == [TWO]
    assert [file for file in foreign if not file.exists()] == []
    assert len(list(elsewhere.rglob("data.mdb"))) == 1
    problems = "\n".join(done["problems"])
    assert f"{directory / ONE} stays: it holds another file, notes.txt" in problems
    assert "is more than 1 B, but nothing else may go" in problems


# Other processes

HELPER = """
import os, signal, sys
from pathlib import Path
from tests.test_cache_command import add_run, open_folder
from keras_freeze.feature_cache.directory import clean_up, locks, merge

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def after(function, times, then):
    calls = []
    def wrapped(*arguments, **options):
        result = function(*arguments, **options)
        calls.append(1)
        if len(calls) == times:
            then()
        return result
    return wrapped

POINTS = {
    "after a commit": (merge._Output, "_commit", 3),
    "before the move": (merge._Output, "close", 1),
    "after a move": (merge, "moved_away", 2),
    "after all moves": (locks, "let_go", 1),
    "after a removal": (merge.shutil, "rmtree", 1),
}
held = []
print("ready", flush=True)
for line in sys.stdin:
    what, directory, name = line.rstrip().split("|")
    if what == "hold":
        held.append(open_folder(Path(directory), name))
        print("held", flush=True)
        continue
    child = os.fork()
    if child == 0:
        merge.AT_ONCE = 1
        holder, function, times = POINTS[what]
        setattr(holder, function, after(getattr(holder, function), times, kill))
        clean_up.clean_up(Path(directory))
        os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def helper() -> Iterator[Any]:
    """Another process. It does what it is told: hold a fingerprint, or be killed in a merge."""
    environment = {**os.environ, "KERAS_BACKEND": "numpy"}  # it is imported in half the time
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(
        [sys.executable, "-c", HELPER],
        **pipes,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[1],
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"

    def tell(what: str, directory: Path, name: str) -> str:
        print(what, directory, name, sep="|", file=process.stdin, flush=True)
        return process.stdout.readline().strip()

    yield tell
    process.stdin.close()
    process.wait(60)


def test_nothing_that_a_process_uses_is_touched(directory: Path, capsys, helper):
    for run in range(1, 6):
        add_run(directory, ONE, run)
    file = files_of(directory, ONE)[0]
    flip_rows(file, next(run for run in range(6) if has(file, run)))
    assert helper("hold", directory, ONE) == "held"
    (directory / ONE / "0123456789ab-0").mkdir()
    before = tree(directory / ONE)
    listed = ask(capsys, "ls", directory)
    assert [(each["fingerprint"], each["in_use"]) for each in listed] == [(ONE, True), (TWO, False)]
    assert told(capsys, "ls", directory).splitlines()[2].endswith("yes")
    done = ask(capsys, "gc", directory, "--max-bytes", 1, "--older-than", 0)
    assert done["in_use"] == [ONE]
    assert [Path(each["path"]).name for each in done["removed"]] == [TWO]
    assert tree(directory / ONE) == before
    assert (directory / ONE / "0123456789ab-0").exists()
    assert f"in use, so left as it is: {'1' * 12}" in told(capsys, "gc", directory)


def test_a_process_that_comes_during_a_merge_keeps_its_files(
    directory: Path, capsys, helper, monkeypatch
):
    from keras_freeze.feature_cache.directory import merge

    for run in range(1, 6):
        add_run(directory, ONE, run)
    before = tree(directory)
    close = merge._Output.close

    def closed(output: Any) -> None:
        close(output)
        assert helper("hold", directory, ONE) == "held"

    monkeypatch.setattr(merge._Output, "close", closed)
    done = ask(capsys, "gc", directory)
    assert done["problems"] == [f"{directory / ONE} stays: a process began to use it"]
    assert tree(directory) == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    "point",
    ["after a commit", "before the move", "after a move", "after all moves", "after a removal"],
)
def test_no_row_is_lost_if_a_merge_is_killed(point: str, directory: Path, capsys, helper):
    for run in range(1, 6):
        add_run(directory, ONE, run)
    assert helper(point, directory, ONE) == "-9"
    assert ask(capsys, "verify", directory)[0]["whole_rows"] == 6 * ROWS
    assert rows_in(directory, ONE) == written(*range(6))
    ask(capsys, "gc", directory)
    assert rows_in(directory, ONE) == written(*range(6))
    assert len(files_of(directory, ONE)) <= 4
    assert contents.left_behind(directory) == []
    assert not list(directory.glob("*/*.lock"))


# Errors


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert main(["cache", *map(str, arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("keras-freeze: ")
    return printed.err


@pytest.mark.parametrize("action", ["ls", "verify", "gc"])
def test_a_path_that_is_no_cache_is_refused(action: str, directory: Path, capsys):
    above = directory.parent
    hint = f"Did you mean {str(directory)!r}?"
    assert hint in refused(capsys, action, above)
    assert "isn't a directory that BottleneckCache" in refused(capsys, action, above)
    assert hint in refused(capsys, action, directory / ONE)
    assert f"there is no directory {str(above / 'featurs')!r}. {hint}" in refused(
        capsys, action, above / "featurs"
    )
    (above / "file").touch()
    assert "is a file, not a directory" in refused(capsys, action, above / "file")
    other = above / "other"
    other.mkdir()
    (other / marks.TAG).write_text(marks.SIGNATURE.replace("keras_freeze", "ruff"))
    assert "isn't a directory that" in refused(capsys, action, other)


@pytest.mark.parametrize("action", ["ls", "verify", "gc"])
def test_without_lmdb_it_says_what_to_install(action: str, directory: Path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "lmdb" else find(name)
    )
    text = refused(capsys, action, directory)
    assert "need lmdb: pip install 'keras_freeze[disk]'" in text


def test_invalid_limits_are_refused(directory: Path, capsys):
    assert "Did you mean 'GB'?" in refused(capsys, "gc", directory, "--max-bytes", "5 GBB")
    assert "above 0" in refused(capsys, "gc", directory, "--max-bytes", "0")
    assert "from 0 on" in refused(capsys, "gc", directory, "--older-than", "-1")
    assert "from 0 on" in refused(capsys, "gc", directory, "--older-than", "nan")
    assert len(folder_names.fingerprints(directory)) == 2


def test_gc_needs_a_local_disk_and_the_right_to_write(directory: Path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(marks, "file_system", lambda path: "nfs4")
        assert "network file system (nfs4)" in refused(capsys, "gc", directory)
        assert len(ask(capsys, "ls", directory)) == 2
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "can't be written to" in refused(capsys, "gc", directory)
    assert len(folder_names.fingerprints(directory)) == 2


def test_an_error_of_the_system_is_told_in_words(directory: Path, capsys, monkeypatch):
    def broken(*_: Any) -> None:
        raise OSError("Python can't run read_through.py")

    monkeypatch.setattr(contents, "check_files", broken)
    assert "Python can't run" in refused(capsys, "ls", directory)
