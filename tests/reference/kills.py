"""Kills fits, continues them from their backups, and compares them with fits that ran through.

KERAS_BACKEND=torch OMP_NUM_THREADS=1 python -m tests.reference.kills --kills 30

One run is killed several times: after a step, within validation, within the writing of a backup, or
at any time. Weights, the optimizer and the History must equal those of the same run without kills,
to the bit. Each process is forked from one that has imported Keras but has run nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import keras
import numpy as np

from keras_freeze.backup import array_files, folder
from keras_freeze.keras_internals.copy_to_numpy import to_numpy
from tests.reference.kill_recipes import EPOCHS, RECIPES, fit

with contextlib.suppress(ImportError):
    import tensorflow  # noqa: F401 (`set_random_seed` would import it in each process)

BACKEND = keras.backend.backend()
KINDS = ("step", "validation", "write", "any time")
MOMENTS = ("opened", "half written", "written", "renamed")  # of a file
REMOVING = ("old files", "removed")
AT_END = 1000  # place of the removal of the backup
PAUSE = 0.004  # seconds after each batch, so that epochs are long enough to be killed
TIMEOUT = 300.0

Where = tuple[str, str]  # file and moment
Results = dict[str, Any]  # arrays and texts by name


@dataclass
class Event:
    """Something that happens in a run, at which it may be killed.

    Attributes:
        kind: one of KINDS.
        epoch: the running epoch.
        place: the batch; for "write" the number of steps that are done, 0 = after the epoch.
        files: files that are written.
    """

    kind: str
    epoch: int
    place: int
    files: list[str] = field(default_factory=list)

    def is_at(self, other: Event | None) -> bool:
        if other is None or (self.kind, self.place) != (other.kind, other.place):
            return False
        return self.epoch == other.epoch or self.place == AT_END  # no epoch may have run before


@dataclass
class Kill:
    """How a run was killed: in which stage, and for "write" at which file."""

    kind: str
    stage: int
    file: str = ""
    moment: str = ""


class Watch(keras.callbacks.Callback):
    """Notes what happens in a run, tells the parent process, and kills its own process.

    Args:
        tell: sends a message to the parent process.
        target: when to kill; None = never.
        where: at which file, for "write".
    """

    def __init__(self, tell: Any, target: Event | None, where: Where | None):
        super().__init__()
        self.tell, self.target, self.where = tell, target, where
        self.events: list[Event] = []
        self.epoch = -1
        self.writing: Event | None = None
        self.name = ""  # of the file that is written

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self.events.append(Event("any time", epoch, 0))
        self.tell(("epoch", epoch))

    def happens(self, kind: str, place: int) -> None:
        self.events.append(Event(kind, self.epoch, place))
        if self.events[-1].is_at(self.target):
            self.die()

    def die(self, where: Where = ("", "")) -> None:
        self.tell(("killed", where))
        os.kill(os.getpid(), signal.SIGKILL)

    def writes(self, moment: str) -> None:
        """Kills within the writing of a file, if the time has come."""
        here = self.name, moment
        # A file that is the same as before isn't written: then kill before old ones are removed.
        if self.is_due and here in (self.where, REMOVING):
            self.die(here)

    @property
    def is_due(self) -> bool:
        return self.writing is not None and self.writing.is_at(self.target)

    def patch(self) -> None:
        """Replaces what writes backups by functions that may kill between any two steps of it."""
        original, removes = folder.Folder.write, array_files.remove_others

        def write(itself: Any, about: Any, state: Any, arrays: Any, **kwargs: Any) -> None:
            step = state["step"]
            self.writing = Event("write", state["epoch"] - (step == 0), step)
            self.events.append(self.writing)
            original(itself, about, state, arrays, **kwargs)
            self.writing = None

        def opened(path: Path, mode: str) -> Any:
            self.name = path.name.split(".")[0].split("-")[0]
            if self.writing is not None:
                self.writing.files.append(self.name)
            stream = open(path, mode)  # noqa: SIM115 (array_files closes it)
            self.writes("opened")
            return stream

        def fsync(number: int) -> None:
            if self.is_due and self.where == (self.name, "half written"):
                os.ftruncate(number, os.fstat(number).st_size // 2)
            self.writes("half written")
            os.fsync(number)
            self.writes("written")

        def replace(old: Path, new: Path) -> None:
            os.replace(old, new)
            self.writes("renamed")

        def remove(path: Path, kept: set[str]) -> None:
            if self.writing is None:  # the end of the run; no epoch may have run
                self.writing = Event("write", self.epoch, AT_END)
                self.events.append(self.writing)
            if self.is_due:
                others = sorted({each.name for each in path.iterdir()} - kept)
                removes(path, kept | set(others[::2]))
            self.name = REMOVING[0]
            self.writes(REMOVING[1])
            removes(path, kept)

        system = SimpleNamespace(fsync=fsync, replace=replace)
        mock.patch.object(array_files, "os", system).start()
        mock.patch.object(array_files, "open", opened, create=True).start()
        mock.patch.object(folder, "remove_others", remove).start()
        mock.patch.object(folder.Folder, "write", write).start()


class WatchBatches(Watch):
    """Sees each batch too."""

    def on_train_batch_end(self, batch, logs=None):
        time.sleep(PAUSE)
        self.happens("step", batch)

    def on_test_batch_end(self, batch, logs=None):
        time.sleep(PAUSE)
        self.happens("validation", batch)


# In the forked process


def child(connection: Any, name: str, path: Path, target: Event | None, where: Any) -> None:
    """Runs a fit; sends its results, with all that happened."""
    try:
        _use_one_thread()
        recipe = RECIPES[name]
        watch = (WatchBatches if recipe.watched else Watch)(connection.send, target, where)
        watch.patch()
        model, history = fit(recipe, path, watch)
        connection.send(("done", results(model, history, path), watch.events))
    except BaseException:
        connection.send(("failed", traceback.format_exc()))
    connection.close()
    os._exit(0)  # without waiting for the threads of a backend


def _use_one_thread() -> None:
    if BACKEND == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    if BACKEND == "torch":
        import torch

        torch.set_num_threads(1)


def results(model: keras.Model, history: Any, path: Path) -> Results:
    """Returns all that must be equal."""
    found: Results = {}
    for number, variable in enumerate(model.variables):
        found[f"model {number} {variable.path}"] = to_numpy(variable)
    for number, variable in enumerate(model.optimizer.variables):
        found[f"optimizer {number} {variable.path}"] = to_numpy(variable)
    for key, values in {**history.history, "epochs": history.epoch}.items():
        found[f"history {key}"] = np.asarray(values)
        found[f"types {key}"] = [type(value).__name__ for value in values]
    found["random numbers"] = np.array([random.random(), np.random.random()])
    found["stop_training"] = model.stop_training
    found["files"] = sorted(each.name for each in path.iterdir())
    return found | dict(_saved(path / "best.weights.h5"))


def _saved(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields the weights that ModelCheckpoint saved."""
    import h5py

    if not path.exists():
        return
    with h5py.File(path) as file:
        names: list[str] = []
        file.visit(names.append)
        for name in names:
            if isinstance(file[name], h5py.Dataset):
                yield f"file {name}", file[name][()]


# In the parent process


@dataclass
class End:
    """How a process ended: with results, or killed.

    Attributes:
        results: what a whole run gave, or None.
        events: what happened in it.
        begun: when each epoch began, in seconds; at last when the process ended.
        where: the file and the moment at which it was killed.
    """

    results: Results | None = None
    events: list[Event] = field(default_factory=list)
    begun: dict[int, float] = field(default_factory=dict)
    where: Where = ("", "")

    @property
    def epoch(self) -> int:
        """The last epoch that began."""
        return max(epoch for epoch in self.begun if epoch < EPOCHS)


def run(
    name: str, path: Path, target: Event | None = None, where: Where | None = None, delay: float = 0
) -> End:
    """Runs a fit in a process of its own.

    Args:
        name: name of the recipe.
        path: folder for all files.
        target: when to kill; None = never.
        where: at which file, for "write".
        delay: seconds after the beginning of the epoch, for "any time".
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(theirs, name, path, target, where))
    process.start()
    theirs.close()
    end, by_us = End(), target is not None and target.kind == "any time"
    try:
        for message, *rest in _messages(ours):
            if message == "done":
                end.results, end.events = rest
            elif message == "failed":
                raise RuntimeError(f"The run {name!r} failed.\n{rest[0]}")
            elif message == "killed":
                end.where = rest[0]
            elif message == "epoch":
                end.begun[rest[0]] = time.monotonic()
                if by_us and target is not None and rest[0] >= target.epoch:
                    time.sleep(delay)
                    process.kill()
                    by_us = False
    finally:
        process.kill()
        process.join()
    end.begun[EPOCHS] = time.monotonic()
    return end


def _messages(connection: Any) -> Iterator[Any]:
    while True:
        if not connection.poll(TIMEOUT):
            raise TimeoutError("A process has sent nothing for a long time.")
        try:
            yield connection.recv()
        except EOFError:
            return


class KilledRun:
    """A run that is killed again and again.

    Args:
        name: name of the recipe.
        path: an empty folder.
        draws: chooses the moments.
    """

    def __init__(self, name: str, path: Path, draws: random.Random):
        self.name, self.path, self.draws = name, path, draws
        self.seconds = -time.monotonic()
        (path / "whole").mkdir(parents=True)
        whole = run(name, path / "whole")
        assert whole.results is not None
        self.expected = whole.results
        self.events, self.begun = whole.events, whole.begun
        if RECIPES[name].noise:  # a run that begins anew after its end would find its views on disk
            self.events = [each for each in self.events if each.place != AT_END]
        self.stages = self.expected["history stage"].tolist()
        self._begin()

    def _begin(self) -> None:
        shutil.rmtree(self.path / "killed", ignore_errors=True)
        (self.path / "killed").mkdir()
        self.kills: list[Kill] = []
        self.later = self.events  # those that are still to come

    def kill_at(self, moments: list[tuple[str, int]]) -> None:
        """Kills the run at each of these kinds of moments, in these stages."""
        while not all(self.kill(*moment) for moment in moments):
            self._begin()  # its last epoch was shorter than before

    def kill(self, kind: str, stage: int) -> bool:
        """Starts the run or continues it, and kills it; False if it ended before.

        If nothing is left in the stage, it is killed in a later one, or not at all.
        """
        if not self.later:
            return True
        if not RECIPES[self.name].watched and kind in ("step", "validation"):
            kind = "any time"  # in a group of steps
        in_stage = [each for each in self.later if self.stages[each.epoch] == stage]
        fitting = [each for each in in_stage if each.kind == kind] or in_stage or self.later
        target = self.draws.choice(fitting)
        where = self._where(target.files) if target.kind == "write" else None
        delay = 0.8 * self.draws.random() * self._duration(target.epoch)
        end = run(self.name, self.path / "killed", target, where, delay)
        if end.results is not None:
            return False
        epoch = end.epoch if target.kind == "any time" else target.epoch
        is_over = target.kind == "any time" and epoch == len(self.stages) - 1
        if is_over and not (self.path / "killed" / "backup" / folder.LATEST).exists():
            return False
        if target.kind == "any time":
            self.later = [each for each in self.events if each.epoch > end.epoch]
        else:
            self.later = self.events[self.events.index(target) + 1 :]
        self.kills.append(Kill(target.kind, self.stages[epoch], *end.where))
        return True

    def _duration(self, epoch: int) -> float:
        return min(at for e, at in self.begun.items() if e > epoch) - self.begun[epoch]

    def _where(self, files: list[str]) -> Where:
        arrays = [name for name in files if name not in ("backup", "previous", "stage")]
        others = [name for name in files if name not in arrays]
        chosen = self.draws.choice((arrays, others, others, [REMOVING[0]]))
        name = self.draws.choice(chosen or others or [REMOVING[0]])
        return (name, REMOVING[1] if name == REMOVING[0] else self.draws.choice(MOMENTS))

    def different(self) -> list[str]:
        """Lets the run end; returns the names of what isn't equal."""
        end = run(self.name, self.path / "killed")
        assert end.results is not None
        self.seconds += time.monotonic()
        self.found = end.results
        names = self.expected | end.results
        return [name for name in names if not self._is_equal(name)]

    def _is_equal(self, name: str) -> bool:
        if name not in self.expected or name not in self.found:
            return False
        one, other = np.asarray(self.expected[name]), np.asarray(self.found[name])
        return one.dtype == other.dtype and one.shape == other.shape and same_bits(one, other)

    def is_close(self, names: list[str]) -> bool:
        """True if all differences are within float rounding."""
        return all(self._is_close(name) for name in names)

    def _is_close(self, name: str) -> bool:
        if name not in self.expected or name not in self.found:
            return False
        one, other = np.asarray(self.expected[name]), np.asarray(self.found[name])
        same_kind = one.dtype == other.dtype and one.shape == other.shape
        if not same_kind or one.dtype.kind != "f":
            return self._is_equal(name)
        return np.allclose(one, other, rtol=1e-4, atol=1e-5)

    def details(self, names: list[str]) -> Iterator[str]:
        """Yields the values that aren't equal."""
        for name in names:
            values = self.expected.get(name), self.found.get(name)
            yield f"  {name}\n    without kills: {values[0]}\n    with kills:    {values[1]}"


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    return np.ascontiguousarray(one).tobytes() == np.ascontiguousarray(other).tobytes()


def plan(kills: int, names: list[str]) -> dict[str, list[tuple[str, int]]]:
    """Returns for each recipe at which kinds of moments it is killed, and in which stages.

    Each recipe is killed once in each stage before one is killed more often. All kinds come
    equally often in each stage.
    """
    planned: dict[str, list[tuple[str, int]]] = {name: [] for name in names}
    for number in range(kills):
        turn, place = divmod(number, len(names))
        kind = KINDS[(place + turn + number // (3 * len(names))) % len(KINDS)]
        planned[names[place]].append((kind, turn % 3))
    return {name: sorted(given, key=lambda each: each[1]) for name, given in planned.items()}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", action="append", choices=list(RECIPES), help="default: all")
    parser.add_argument("--details", action="store_true", help="show all that isn't equal")
    given = parser.parse_args(arguments)
    runs: list[tuple[KilledRun, list[str]]] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        for name, moments in plan(given.kills, given.recipe or list(RECIPES)).items():
            draws = random.Random(f"{given.seed} {name}")
            killed = KilledRun(name, Path(directory) / name, draws)
            killed.kill_at(moments)
            runs.append((killed, killed.different()))
            print(line(*runs[-1]), flush=True)
            if given.details:
                print(*killed.details(runs[-1][1]), sep="\n")
    print(table(runs))
    count = sum(len(killed.kills) for killed, _ in runs)
    print(f"{count} kills on {BACKEND} in {time.monotonic() - began:.0f} s")
    return int(any(different for _, different in runs))


def line(killed: KilledRun, different: list[str]) -> str:
    """Describes a run."""
    verdict = "equal"
    if different:
        how = "close" if killed.is_close(different) else "NOT equal"
        verdict = f"{how}: {len(different)} of {len(killed.expected)}: {', '.join(different[:4])}"
    kills = ", ".join(
        " ".join(filter(None, (each.kind, each.file, each.moment))) for each in killed.kills
    )
    stages = "".join(map(str, killed.stages))
    return f"{killed.name} (stages {stages}, {killed.seconds:.0f} s), killed at {kills}: {verdict}"


def table(runs: list[tuple[KilledRun, list[str]]]) -> str:
    """Shows how many kills of each kind there were, and after how many the run was equal."""
    count: Counter[tuple[str, int]] = Counter()
    equal: Counter[tuple[str, int]] = Counter()
    for killed, different in runs:
        for each in killed.kills:
            count[each.kind, each.stage] += 1
            equal[each.kind, each.stage] += not different
    rows = [f"{'killed':<12}{'stage':>6}{'count':>7}{'equal':>7}"]
    rows += [
        f"{kind:<12}{stage:>6}{count[kind, stage]:>7}{equal[kind, stage]:>7}"
        for kind in KINDS
        for stage in range(3)
    ]
    return "\n".join([*rows, f"{'all':<12}{'':>6}{count.total():>7}{equal.total():>7}"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
