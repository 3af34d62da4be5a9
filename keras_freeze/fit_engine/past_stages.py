"""Finds which stages ran before a `fit` that continues a run of another process.

A saved model has the flags of its layers, and the slots, rates and update count of its optimizer.
When stages began isn't saved. For stages at epochs it follows from the schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from keras_freeze.errors import warn
from keras_freeze.fit_engine.stage_clock import StageClock
from keras_freeze.fit_engine.trainable_plan import Plan
from keras_freeze.graph.layer_tree import own_variables
from keras_freeze.keras_internals import optimizer_rebuild, variable_ages
from keras_freeze.keras_internals.trainable_flags import trained
from keras_freeze.schedule.plateau import Plateau
from keras_freeze.schedule.stage import Stage


class Ran(NamedTuple):
    """A stage that ran.

    Attributes:
        number: its number.
        start: the epoch with which it began.
        passed: numbers of the stages that began then: the skipped ones, and this one.
    """

    number: int
    start: int
    passed: range


@dataclass(frozen=True)
class PastRun:
    """The stages that ran before a fit which continues a loaded run.

    Attributes:
        plan: which layers are trainable in which stage.
        ran: the stages, in order. The last one ran in the epoch before `epoch`.
        epoch: the epoch with which the fit begins.
        mode: returns how a stage treats the optimizer, "carry" or "reset".
    """

    plan: Plan
    ran: list[Ran]
    epoch: int
    mode: Callable[[Any], str]

    @property
    def last(self) -> int:
        """The number of the stage that ran last."""
        return self.ran[-1].number

    @property
    def reset(self) -> int:
        """The epoch that began with the last reset of the optimizer."""
        return max((run.start for run in self.ran[1:] if self._resets(run)), default=0)

    def _resets(self, run: Ran) -> bool:
        return any(self.mode(stage) == "reset" for stage in self.begun_with(run))

    def begun_with(self, run: Ran) -> list[Stage]:
        """Returns a stage and those that were skipped right before it."""
        found = [self.plan.stage(number) for number in run.passed]
        return [stage for stage in found if stage is not None]

    @property
    def restored_best(self) -> int | None:
        """The number of a stage that restored the best epoch, since the reset; or None."""
        for run in self.ran[1:]:
            if run.start > self.reset and any(s.restore_best for s in self.begun_with(run)):
                return run.number
        return None


def stages_before(plan: Plan, epoch: int, begun: dict[int, int]) -> list[Ran]:
    """Returns the stages that ran before an epoch, in order.

    Args:
        plan: which layers are trainable in which stage.
        epoch: the epoch.
        begun: epochs at which stages began, if not at those of the schedule.
    """
    ran: list[Ran] = []
    for each in range(epoch):
        number = plan.number_at(each, begun)
        if not ran:
            ran.append(Ran(number, each, range(number, number + 1)))
        elif number != ran[-1].number:
            ran.append(Ran(number, each, range(ran[-1].number + 1, number + 1)))
    return ran


def find_past(
    model: Any, plan: Plan, clock: StageClock, mode: Callable[[Any], str], *, ends_early: bool
) -> PastRun | None:
    """Returns what ran before this fit, if it continues a run of another process; else None.

    Warns if a stage may have begun that the schedule alone doesn't tell of, or if the optimizer
    has no slots for layers that were trained before.

    Args:
        model: the model.
        plan: which layers are trainable in which stage.
        clock: the running epoch, and when stages began.
        mode: returns how a stage treats the optimizer, "carry" or "reset".
        ends_early: whether other callbacks end stages, see `PerStage`.
    """
    is_loaded = optimizer_rebuild.is_loaded(model.optimizer)
    variable_ages.know(optimizer_rebuild.leaves(model.optimizer))
    if not clock.epoch or plan.schedule is None or not is_loaded:
        return None
    past = PastRun(plan, stages_before(plan, clock.epoch, clock.begun), clock.epoch, mode)
    held = set(optimizer_rebuild.updates_of(model.optimizer))
    as_planned = _trains(plan, past.last, held)
    may_run = _unplanned(plan, past.last, ends_early=ends_early)
    others = [number for number in may_run if _trains(plan, number, held)]
    if others:
        _warn_of_stage(past, others[0], as_planned=as_planned)
    elif not as_planned:
        _warn_of_slots(past, held)
    return past if as_planned else None


def _trains(plan: Plan, number: int, held: set[int]) -> bool:
    """Returns True if an optimizer holds just the variables that a stage trains.

    If not, the optimizer is from elsewhere: a `fit` without the callbacks, or another schedule.
    """
    for leaf in plan.ruled:
        own = {id(variable) for variable in own_variables(leaf)}
        if own & held != {id(variable) for variable in trained(leaf, plan.flags[number])}:
            return False
    return True


def _unplanned(plan: Plan, last: int, *, ends_early: bool) -> list[int]:
    """Returns the stages after `last` that may have begun before their time."""
    found = []
    for number in range(last + 1, len(plan.flags)):
        stage = plan.stage(number)
        if stage is None or not (ends_early or isinstance(stage.at, Plateau)):
            break
        found.append(number)
    return found


def _warn_of_slots(past: PastRun, held: set[int]) -> None:
    """Warns of layers that have no slots. A weights file may have put those of others there."""
    flags = past.plan.flags[past.last]
    ruled = past.plan.ruled
    bare = [leaf.name for leaf in ruled if any(id(v) not in held for v in trained(leaf, flags))]
    if bare:
        warn(
            f"The optimizer was trained on other layers than those of {_title(past)}, which "
            f"the schedule has for epoch {past.epoch - 1}: it has no slots for {bare[:5]}. These "
            "begin with new slots, and the optimizer's learning rate is taken for the compiled "
            "one. To continue a run, load a whole model, saved with "
            "ModelCheckpoint('{epoch}.keras'), or use keras_freeze.BackupAndRestore."
        )


def _warn_of_stage(past: PastRun, number: int, *, as_planned: bool) -> None:
    stage = past.plan.stage(number)
    assert stage is not None
    what = "may have begun" if as_planned else "seems to have begun"
    warn(
        f"{stage.title(number)} (at={stage.at}) {what} before epoch {past.epoch}, by the layers "
        "that the loaded optimizer has trained. A file doesn't say whether and when, and `begun` "
        f"of GradualUnfreeze has no entry for it. So this fit continues with {_title(past)}: its "
        "layers are trained, and learning rate and ages follow from it. Assign `begun` of the "
        "earlier GradualUnfreeze to this one before `fit`, or save runs with "
        "keras_freeze.BackupAndRestore."
    )


def _title(past: PastRun) -> str:
    stage = past.plan.stage(past.last)
    return stage.title(past.last) if stage is not None else "Stage 0"
