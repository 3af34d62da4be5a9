"""Begins stages when a metric stops improving (`Plateau`), and restores the best epoch."""

from __future__ import annotations

import math
from typing import Any

from keras_freeze.errors import ScheduleError, closest, warn
from keras_freeze.fit_engine.trainable_plan import Plan
from keras_freeze.graph.layer_tree import own_variables
from keras_freeze.keras_internals.best_epoch_snapshot import Snapshot
from keras_freeze.keras_internals.trainable_flags import trained
from keras_freeze.schedule.plateau import Plateau, Watched
from keras_freeze.schedule.schedule import Schedule
from keras_freeze.schedule.stage import Stage

Logs = dict[str, Any]


class Triggers:
    """Watches the logs of the running stage for the trigger of the next one.

    Args:
        schedule: the schedule of the fit.
        begun: epochs in which stages with a trigger began, by number; updated here.
        model: the model that is fitted.
        fixed: ids of the variables that can't change in the fit.
    """

    def __init__(self, schedule: Schedule, begun: dict[int, int], model: Any, fixed: set[int]):
        self.schedule = schedule
        self.begun = begun
        self.model = model
        self.fixed = fixed
        self.number = -1
        self.epoch = 0
        self.watched: Watched | None = None
        self.best: Snapshot | None = None
        self.best_epoch: int | None = None

    def enter(self, number: int) -> None:
        """Begins to watch for the stage after the one that begins."""
        self.number = number
        self.best = self.best_epoch = None
        following = self._following
        watch = self._waits or self._may_restore
        self.watched = Watched(monitor_of(following)) if following and watch else None

    def state(self) -> dict[str, Any]:
        """Returns what was seen of the running stage, without the best epoch's values."""
        seen = self.watched and (self.watched.best, self.watched.epochs, self.watched.wait)
        return {"epoch": self.epoch, "best_epoch": self.best_epoch, "seen": seen}

    def restore_state(
        self, epoch: int, best_epoch: int | None, seen: tuple[float | None, int, int] | None
    ) -> None:
        """Continues with what `state` returned, in the same stage."""
        self.epoch, self.best_epoch = epoch, best_epoch
        if self.watched is not None and seen is not None:
            self.watched.best, self.watched.epochs, self.watched.wait = seen

    @property
    def _following(self) -> Stage | None:
        is_last = self.number >= len(self.schedule)
        return None if is_last else self.schedule[self.number + 1]

    @property
    def _may_restore(self) -> bool:
        """True if a stage that may come next restores the best epoch of this one.

        That is the next stage, or, as long as triggers don't fire, the next one with a fixed epoch.
        """
        for stage in list(self.schedule)[self.number :]:
            if stage.restore_best:
                return True
            if isinstance(stage.at, int):
                return False
        return False

    @property
    def _waits(self) -> bool:
        return self.schedule.waiting_at(self.number) is not None

    def restore(self) -> bool:
        """Restores the best epoch of the running stage; returns False if none is known."""
        if self.best is None:
            return False
        self.best.restore()
        return True

    def see(self, epoch: int, logs: Logs) -> str:
        """Reads the logs of an epoch; returns what to print."""
        self.epoch = epoch
        following = self._following
        if self.watched is None or following is None:
            return ""
        monitor = self.watched.plateau.monitor
        value = logs.get(monitor)
        better = self.watched.see(None if value is None else float(value))
        if better:
            self.best_epoch = epoch
            if self._may_restore:
                self.best = Snapshot(self.model, self.fixed)
        if not self._waits or not self.watched.is_over:
            return ""
        self.begun[self.number + 1] = epoch + 1
        return f"{self._running} ends after epoch {epoch + 1}: {self._why(monitor)}"

    @property
    def _running(self) -> str:
        return self.schedule[self.number].title(self.number) if self.number else "Stage 0"

    def _why(self, monitor: str) -> str:
        watched = self.watched
        assert watched is not None
        limit = watched.plateau.max_epochs
        if limit is not None and watched.epochs >= limit:
            why = f"it has run for {limit} epochs (max_epochs)."
        else:
            why = f"{monitor} has not improved for {watched.wait} epochs."
        if watched.best is None or self.best_epoch is None:
            return why
        return f"{why} Best: {watched.best:.4g} in epoch {self.best_epoch + 1}."

    def end(self) -> None:
        """Warns at the end of the fit about triggers that never fired, or fired too late."""
        if self.number < 0:
            return  # a fit of no epochs
        for number, stage in enumerate(self.schedule, start=1):
            if not isinstance(stage.at, Plateau) or self.begun.get(number, math.inf) <= self.epoch:
                continue
            if number in self.begun:
                why = "its trigger fired in the last epoch"
            elif number < self.number:
                running = self.schedule[self.number]
                why = f"{running.title(self.number)} began first, at its epoch {running.at}"
            elif number > self.number + 1:
                why = f"the stage before it was never reached, or never ended ({self._running} ran)"
            else:
                best = self.watched.best if self.watched is not None else None
                why = f"the fit ended while {stage.at.monitor} was still being watched"
                why += f" (best: {best:.4g})" if best is not None else ", and had no value"
            warn(
                f"{stage.title(number)} (at={stage.at}) never began: {why}. Train for more epochs, "
                "lower `patience`, or set `max_epochs`.",
            )


def make_triggers(
    model: Any, plan: Plan, begun: dict[int, int], known: set[str] | None, *, is_final: bool
) -> Triggers | None:
    """Returns the triggers of a plan; None if it has no stages.

    Args:
        model: the model that is fitted.
        plan: which layers are trainable in which stage.
        begun: as in `Triggers`.
        known: the names of the metrics in the logs, if known.
        is_final: whether layers of the base that the plan never trains stay frozen.

    Raises:
        ScheduleError: a monitor isn't in the logs.
    """
    if plan.schedule is None:
        return None
    check_monitors(plan.schedule, known)
    leaves = plan.base_leaves if is_final else []
    fixed = {id(variable) for leaf in leaves for variable in own_variables(leaf)}
    fixed -= {id(v) for flags in plan.flags for leaf in leaves for v in trained(leaf, flags)}
    return Triggers(plan.schedule, begun, model, fixed)


def monitor_of(stage: Stage) -> Plateau:
    """Returns the `Plateau` that decides which epoch before a stage is the best."""
    return stage.at if isinstance(stage.at, Plateau) else Plateau("val_loss")


def check_monitors(schedule: Schedule, known: set[str] | None) -> None:
    """Raises `ScheduleError` if a monitored metric won't be in the logs.

    Args:
        schedule: the schedule of the fit.
        known: the names of the metrics in the logs; None = unknown before the first step.
    """
    for number, stage in enumerate(schedule, start=1):
        if not isinstance(stage.at, Plateau) and not stage.restore_best:
            continue
        name = monitor_of(stage).monitor
        if known is not None and name not in known:
            hint = closest(name, known)
            if name.startswith("val_") and not any(each.startswith("val_") for each in known):
                hint = " Pass `validation_data` or `validation_split` to fit."
            raise ScheduleError(
                f"{stage.title(number)} (at={stage.at}) watches {name!r}, which isn't in the logs."
                f"{hint} In the logs: {', '.join(sorted(known))}. Received: {stage!r}"
            )
