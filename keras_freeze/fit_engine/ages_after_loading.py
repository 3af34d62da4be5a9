"""Finds the ages of variables again in a fit that continues a run of another process.

A saved model has the optimizer's slots and its update count, but not when each variable was
unfrozen. For stages at epochs that follows from the schedule, if each epoch had the same number of
steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras_freeze.errors import warn
from keras_freeze.fit_engine.trainable_plan import Plan
from keras_freeze.keras_internals import optimizer_rebuild, variable_ages
from keras_freeze.keras_internals.trainable_flags import trained


def find_ages(
    model: Any, plan: Plan, epoch: int, begun: dict[int, int], mode: Callable[[Any], str]
) -> None:
    """Sets the births of variables of an optimizer that no fit of this process has used.

    Args:
        model: the model.
        plan: which layers are trainable in which stage.
        epoch: the epoch with which the fit begins.
        begun: epochs at which stages began, if not at those of the schedule.
        mode: returns how a stage treats the optimizer, "carry" or "reset".
    """
    members = optimizer_rebuild.leaves(model.optimizer)
    unknown = [member for member in members if variable_ages.is_unknown(member)]
    variable_ages.know(members)
    if not epoch or plan.schedule is None or not unknown:
        return
    births, epochs = births_of_epochs(plan, epoch, begun, mode)
    for member in unknown if any(births.values()) else ():
        updates = variable_ages.updates(member)
        if updates % epochs:
            _warn(updates, epochs)
            return
        steps = updates // epochs
        variable_ages.set_births_of(member, {key: at * steps for key, at in births.items()})


def births_of_epochs(
    plan: Plan, epoch: int, begun: dict[int, int], mode: Callable[[Any], str]
) -> tuple[dict[int, int], int]:
    """Returns when variables were unfrozen, and how many epochs the optimizer has counted.

    Args:
        plan: which layers are trainable in which stage.
        epoch: the epoch with which the fit begins.
        begun: epochs at which stages began, if not at those of the schedule.
        mode: returns how a stage treats the optimizer.

    Returns:
        For variables that are trained before `epoch`, by id: epochs between the last reset of the
        optimizer and the stage that unfroze them. Then: epochs since that reset.
    """
    last = plan.number_at(epoch - 1, begun)
    starts = {0: 0}
    for number in range(1, last + 1):
        stage = plan.stage(number)
        at = None if stage is None else stage.at
        starts[number] = begun.get(number, at if isinstance(at, int) else starts[number - 1])
    numbers = [each for each in range(1, last + 1) if mode(plan.stage(each)) == "reset"]
    reset = max((starts[number] for number in numbers), default=0)
    births = {}
    for leaf in plan.ruled:
        for variable in trained(leaf, plan.flags[last]):
            number = last
            while number and _is_trained(variable, leaf, plan.flags[number - 1]):
                number -= 1
            births[id(variable)] = max(0, starts[number] - reset)
    return births, epoch - reset


def _is_trained(variable: Any, leaf: Any, flags: dict[int, bool]) -> bool:
    return any(each is variable for each in trained(leaf, flags))


def _warn(updates: int, epochs: int) -> None:
    warn(
        "The optimizer was loaded from a file, which doesn't say when its variables were unfrozen, "
        f"and its {updates} updates aren't the same number in each of {epochs} epochs. So these "
        "variables get the bias correction of the whole run, and their next updates may be too "
        "large. Continue with the same number of steps in each epoch, or reset the optimizer: "
        "GradualUnfreeze(..., optimizer='reset')."
    )
