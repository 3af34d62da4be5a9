"""Which stage of a plan runs in which epoch, and which ones were passed on the way."""

from __future__ import annotations

from typing import Any

from keras_freeze.errors import ScheduleError, warn
from keras_freeze.fit_engine.trainable_plan import Plan
from keras_freeze.schedule.stage import Stage


class StageClock:
    """The stages of one `fit`.

    Args:
        plan: of the fit.
        gradual: the GradualUnfreeze that knows when stages of an earlier fit began, or None.

    Attributes:
        epoch: that runs.
        number: of the stage that runs, -1 before the first epoch.
        before: the number of the one that ran before it, -1 if there was none in this fit.
        begun: epochs of stages that began otherwise than by their own.
    """

    def __init__(self, plan: Plan, gradual: Any):
        self.plan = plan
        self.gradual = gradual
        self.epoch = 0
        self.number = self.before = -1
        self.begun: dict[int, int] = {}

    def begin_epoch(self, epoch: int) -> bool:
        """Goes to an epoch; returns True if another stage holds there than before."""
        self.epoch = epoch
        if self.number < 0 and self.gradual is not None:
            # A fit that goes on where another one ended knows when its stages began.
            self.begun |= {n: at for n, at in self._recorded().items() if at <= epoch}
            self.gradual.begun = self.begun
        number = self.plan.number_at(epoch, self.begun)
        if number == self.number:
            return False
        self.before, self.number = self.number, number
        return True

    def _recorded(self) -> dict[int, int]:
        """When stages began in an earlier fit; JSON makes strings of the numbers."""
        begun = {int(number): int(at) for number, at in self.gradual.begun.items()}
        unknown = [n for n in begun if not 1 <= n <= len(self.gradual.schedule)]
        if unknown:
            raise ScheduleError(
                f"`begun` of GradualUnfreeze has stage {unknown[0]}, but the schedule has "
                f"{len(self.gradual.schedule)}. Received: begun={self.gradual.begun!r}"
            )
        return begun

    @property
    def is_first(self) -> bool:
        """True while the first stage of this fit runs."""
        return self.before < 0

    @property
    def stage(self) -> Stage | None:
        """The stage that runs; None before the first one of the schedule."""
        return self.plan.stage(self.number)

    def passed(self) -> list[Stage]:
        """The stage that begins, and those before it that were skipped."""
        first = self.number if self.is_first else self.before + 1
        found = [self.plan.stage(each) for each in range(first, self.number + 1)]
        return [stage for stage in found if stage is not None]

    def begins(self) -> bool:
        """False where a fit goes on in the middle of a stage."""
        return self.plan.number_at(self.epoch - 1, self.begun) < self.number

    def goes_back(self) -> bool:
        """True if the stage that begins asks for the best epoch of the one before it."""
        asked = any(stage.restore_best for stage in self.passed())
        if asked and self.is_first and self.epoch and self.begins():
            warn(
                f"Stage {self.number} asks for the best epoch of the stage before it, which was in "
                "an earlier fit: nothing is restored.",
            )
        return asked

    def ends_as_planned(self) -> bool:
        """True if the schedule itself has another stage in the epoch that follows."""
        return self.plan.number_at(self.epoch + 1, self.begun) != self.number

    def end_stage(self) -> bool:
        """Lets the next stage begin after the epoch that runs; False if there is none."""
        if self.plan.schedule is None or self.number >= len(self.plan.schedule):
            return False
        self.begun[self.number + 1] = self.epoch + 1
        return True
