"""Decides whether the steps of an epoch run in groups, and how many steps a group has."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

TRIED = 4  # most steps of each of the first groups, until one was measured
CALL = 0.5  # seconds that a group should take at most, so that the progress bar moves
GAIN = 0.6  # share of a step's time that a group is expected to save
WORTH = 1.0  # seconds saved for each second of the first step; a loop compiles in half of that
KEPT = 31  # steps of which the median is taken, as some compile for another batch size


@dataclass
class StepTimes:
    """What the steps of one kind ("train" or "test") take in the running stage.

    Attributes:
        compiling: seconds of the first step, most of which traces and compiles it.
        alone: seconds of steps that ran alone, with all that `fit` does between two steps.
        grouped: seconds of a step in a group.
        is_off: whether groups are of no use in this stage.
    """

    compiling: float | None = None
    alone: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    grouped: float | None = None
    is_off: bool = False
    groups: int = 0  # run so far in this stage
    last: float | None = None  # when the last step ended that ran alone in this epoch

    @property
    def single(self) -> float | None:
        """The median seconds of a step that runs alone."""
        return statistics.median(self.alone) if self.alone else None


class GroupSizes:
    """Sizes of groups in the stages of a `fit`. One call of a compiled function runs a group.

    The first epoch of a stage runs step by step. If the time that groups save until the end of the
    stage is more than what their function takes to compile, two small groups are tried next.
    """

    def __init__(self) -> None:
        self.begin_stage()

    def begin_stage(self) -> None:
        self.times = {"train": StepTimes(), "test": StepTimes()}
        self.tried = TRIED

    def begin_epoch(self, kind: str, steps: int) -> None:
        """Begins an epoch of so many steps."""
        self.times[kind].last = None
        self.tried = min(TRIED, max(1, steps // 4))

    def add_single(self, kind: str, seconds: float, *, known: bool) -> None:
        """Adds a step that ran alone.

        Args:
            kind: "train" or "test".
            seconds: what it took.
            known: whether all its rows were known, so that the prefix didn't run.
        """
        times, now = self.times[kind], time.perf_counter()
        if times.compiling is None:
            times.compiling = seconds
        if known and times.last is not None:
            times.alone.append(now - times.last)
        times.last = now

    def add_group(self, kind: str, steps: int, seconds: float) -> None:
        """Adds a group that took `seconds`; the first one is mostly compiled."""
        times = self.times[kind]
        times.groups += 1
        if times.groups > 1:
            times.grouped = min(times.grouped or math.inf, seconds / steps)
        times.is_off = times.groups > 2 and is_slower(times)

    def stop(self, kind: str) -> None:
        """Runs the steps of this stage alone from now on."""
        self.times[kind].is_off = True

    def is_worth_it(self, kind: str, steps: int, epochs: int) -> bool:
        """Returns True if groups save time.

        Args:
            kind: "train" or "test".
            steps: number of steps in an epoch.
            epochs: number of epochs until the end of the stage.
        """
        times = self.times[kind]
        single = times.single
        if times.is_off or single is None or times.compiling is None:
            return False
        saved = GAIN * single * steps * epochs
        ready = times.groups > 0 and epochs > 0
        return ready or saved > WORTH * times.compiling

    def size(self, kind: str) -> int:
        """Returns how many steps the next group should have."""
        times = self.times[kind]
        if times.is_off:
            return 1
        return self.tried if times.grouped is None else max(1, int(CALL / times.grouped))


class GroupTimer:
    """Measures groups of steps, each when the next one begins.

    Not right after it was started: on JAX, Ctrl-C would leave Keras without the new state.

    Args:
        sizes: gets what each group took.
    """

    def __init__(self, sizes: GroupSizes):
        self.sizes = sizes
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Doesn't measure the last group, since other work has followed it."""
        self.running: tuple[int, float] | None = None  # steps of the last group, and its start

    def begin_group(self, kind: str, steps: int, wait: Callable[[], None]) -> None:
        """Begins to measure a group of so many steps; `wait` waits for the one before."""
        if self.running is not None:
            before, began = self.running
            wait()
            self.sizes.add_group(kind, before, time.perf_counter() - began)
        self.running = steps, time.perf_counter()


def is_slower(times: StepTimes) -> bool:
    """Returns True if a step in a group takes longer than one that runs alone."""
    single = times.single
    return times.grouped is not None and single is not None and times.grouped > single
