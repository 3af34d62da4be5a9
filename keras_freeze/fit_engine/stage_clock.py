"""Tracks the running epoch and stage of a `fit`, and the stages that were skipped."""

from __future__ import annotations

from typing import Any

from keras_freeze.errors import ScheduleError, warn
from keras_freeze.fit_engine.trainable_plan import Plan
from keras_freeze.schedule.stage import Stage


class StageClock:
    """Tracks the running epoch and stage of one `fit`.

    Args:
        plan: which layers are trainable in which stage.
        gradual: the GradualUnfreeze, which records when stages of earlier fits began, or None.

    Attributes:
        epoch: the running epoch.
        number: number of the running stage, -1 before the first epoch.
        before: number of the stage before it, -1 if there was none in this fit.
        loaded: number of the stage that ran last before a fit that continues a loaded run, else -1.
        begun: epochs of stages that began at another epoch than the schedule's, by number.
    """

    def __init__(self, plan: Plan, gradual: Any):
        self.plan = plan
        self.gradual = gradual
        self.epoch = 0
        self.number = self.before = self.loaded = -1
        self.begun: dict[int, int] = {}

    def begin_epoch(self, epoch: int) -> bool:
        """Begins an epoch; returns True if a stage begins with it."""
        self.epoch = epoch
        if self.number < 0 and self.gradual is not None:
            # A fit that continues an earlier one knows when its stages began.
            self.begun |= {n: at for n, at in self._recorded().items() if at <= epoch}
            self.gradual.begun = self.begun
        number = self.plan.number_at(epoch, self.begun)
        if number == self.number:
            return False
        self.before, self.number = self.number, number
        return True

    def continue_from(self, epoch: int, number: int, before: int, begun: dict[int, int]) -> None:
        """Continues as after an epoch, or within one, of an earlier process."""
        self.epoch, self.number, self.before = epoch, number, before
        self.begun |= begun
        if self.gradual is not None:
            self.gradual.begun = self.begun

    def _recorded(self) -> dict[int, int]:
        """Returns when stages began in an earlier fit. JSON converts the numbers to strings."""
        begun = {int(number): int(at) for number, at in self.gradual.begun.items()}
        unknown = [n for n in begun if not 1 <= n <= len(self.gradual.schedule)]
        if unknown:
            raise ScheduleError(
                f"`begun` of GradualUnfreeze has stage {unknown[0]}, but the schedule has "
                f"{len(self.gradual.schedule)} stages. Received: begun={self.gradual.begun!r}"
            )
        return begun

    @property
    def is_first(self) -> bool:
        """True while the first stage of this fit runs."""
        return self.before < 0

    @property
    def last(self) -> int:
        """Number of the stage before, in this fit or in the run that it continues; -1 if none."""
        return self.loaded if self.is_first else self.before

    @property
    def stage(self) -> Stage | None:
        """The running stage; None before the first one of the schedule."""
        return self.plan.stage(self.number)

    def passed(self) -> list[Stage]:
        """Returns the skipped stages and the stage that begins."""
        first = self.number if self.last < 0 else self.last + 1
        found = [self.plan.stage(each) for each in range(first, self.number + 1)]
        return [stage for stage in found if stage is not None]

    def begins(self) -> bool:
        """Returns False if a fit continues in the middle of a stage."""
        return self.plan.number_at(self.epoch - 1, self.begun) < self.number

    def goes_back(self) -> bool:
        """Returns True if the stage that begins restores the best epoch of the one before."""
        asked = any(stage.restore_best for stage in self.passed())
        if asked and self.is_first and self.epoch and self.begins():
            warn(
                f"Stage {self.number} asks for the best epoch of the stage before it, which was in "
                "an earlier fit: nothing is restored.",
            )
        return asked

    def ends_as_planned(self) -> bool:
        """Returns True if the schedule has another stage in the next epoch."""
        return self.plan.number_at(self.epoch + 1, self.begun) != self.number

    def epochs_left(self, epochs: int | None) -> int:
        """Returns how many epochs the running stage has left, if it ends as planned.

        Args:
            epochs: the epoch at which the fit ends, if known.
        """
        planned = [s.at for s in self.plan.schedule or () if isinstance(s.at, int)]
        later = [at for at in (*planned, *self.begun.values()) if at > self.epoch]
        starts = [at for at in later if self.plan.number_at(at, self.begun) != self.number]
        return max(1, min([epochs or 0, *starts]) - self.epoch)

    def end_stage(self) -> bool:
        """Lets the next stage begin after the running epoch; returns False if there is none."""
        if self.plan.schedule is None or self.number >= len(self.plan.schedule):
            return False
        self.begun[self.number + 1] = self.epoch + 1
        return True
