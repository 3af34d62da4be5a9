"""Times steps with and without the cache, if it isn't clear that the cache is faster."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from keras_freeze.feature_cache.not_cacheable import NotCacheableError

AFTER = 1.0  # seconds of served steps; a shorter run can't lose more
TIMED = 6  # steps of each turn, after one to warm up
TURNS = ("served", "whole") * 4
GAP = 0.02  # share of a step by which the whole model must be faster


class Running(Protocol):
    """Runs steps, which a device may queue."""

    def wait(self) -> None: ...


class StepTrial:
    """A trial of one stage: turns of steps on cached features, and of steps of the whole model.

    Both train alike, so the trial changes no result. A turn is timed from step to step, with
    batches, callbacks and all else that `fit` does between; only turns within an epoch count.
    """

    def __init__(self) -> None:
        self.begin_stage()

    def begin_stage(self) -> None:
        self.spent = 0.0
        self.turns: list[float] = []  # seconds a step of each turn
        self.is_over = False
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Begins the running turn again, since validation and other work came between."""
        self.step = 0
        self.began = 0.0
        self.last: float | None = None

    def wants_whole(self, is_clear: Callable[[], bool], running: Sequence[Running]) -> bool:
        """Returns True if the next training step should run the whole model.

        Args:
            is_clear: returns True if serving is clearly faster, so that no trial is needed.
            running: what has run the steps until now.

        Raises:
            NotCacheableError: the trial has ended, and the whole model is faster.
        """
        if self.is_over or not self._is_under_way(is_clear):
            return False
        if self.step in (1, TIMED + 1):
            self._mark(running)
        if self.is_over:
            return False
        self.step += 1
        return TURNS[len(self.turns)] == "whole"

    def _is_under_way(self, is_clear: Callable[[], bool]) -> bool:
        now = time.perf_counter()
        self.spent += 0.0 if self.last is None else now - self.last
        self.last = now
        if self.spent < AFTER:
            return False
        self.is_over = not self.turns and not self.step and is_clear()
        return not self.is_over

    def _mark(self, running: Sequence[Running]) -> None:
        """Begins or ends the timed steps of a turn, when no step is queued any more."""
        for each in running:
            each.wait()
        now = time.perf_counter()
        if self.step == 1:
            self.began = now
            return
        self.turns.append((now - self.began) / TIMED)
        self.step = 0
        if len(self.turns) == len(TURNS):
            self._compare()

    def _compare(self) -> None:
        self.is_over = True
        served, whole = min(self.turns[::2]), min(self.turns[1::2])
        if whole < (1 - GAP) * served:
            raise NotCacheableError(
                f"a step on cached features takes {1e3 * served:.3g} ms, and one of the whole "
                f"model {1e3 * whole:.3g} ms",
                "freeze more layers, or pass arrays to `fit`, whose rows are hashed only once",
            )
