"""Finds ages of variables and warm-ups again in a fit that continues a run of another process.

A saved model has the optimizer's slots and its update count, but not when each variable was
unfrozen. For stages at epochs that follows from the schedule, if each epoch had the same number of
steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from keras_freeze.errors import warn
from keras_freeze.fit_engine.learning_rate_multipliers import Multipliers
from keras_freeze.fit_engine.past_stages import PastRun
from keras_freeze.keras_internals import optimizer_rebuild, variable_ages
from keras_freeze.keras_internals.apply_learning_rate_multipliers import Multiplier
from keras_freeze.keras_internals.trainable_flags import trained


class WarmUp(NamedTuple):
    """The warm-up of a variable.

    Attributes:
        start: epochs between the last reset of the optimizer and the begin of the warm-up.
        steps: its length in updates.
    """

    start: int
    steps: int


def find_ages(model: Any, past: PastRun) -> Multipliers:
    """Sets the births of variables; returns the multipliers of the warm-ups so far.

    Args:
        model: the model.
        past: the stages that ran before the fit.
    """
    _warn_of_best_epoch(past)
    births, warm_ups = births_in_epochs(past), warm_ups_in_epochs(past)
    members = optimizer_rebuild.leaves(model.optimizer)
    updates = [variable_ages.updates(member) for member in members]
    epochs = past.epoch - past.reset
    starts = [*births.values(), *(warm_up.start for warm_up in warm_ups.values())]
    if max(updates) % epochs and any(starts):
        _warn(max(updates), epochs)
        return {}
    steps = max(updates) // epochs

    def count_at(start: int, updates: int) -> int:
        """Counts back from now: one of several optimizers may have had no variables at first."""
        return max(0, updates - steps * (epochs - start)) if start else 0

    for member, each in zip(members, updates, strict=True):
        born = {key: count_at(start, each) for key, start in births.items()}
        variable_ages.set_births_of(member, born)
    counts = [
        (n, m.gradient_accumulation_steps or 1) for n, m in zip(updates, members, strict=True)
    ]
    by_variable = optimizer_rebuild.by_variable(model.optimizer, counts)
    multipliers: Multipliers = {}
    for key, warm_up in warm_ups.items():
        each, window = by_variable.get(key, counts[0])
        start = count_at(warm_up.start, each) // window
        multipliers[key] = Multiplier(start=start, steps=warm_up.steps)
    return multipliers


def births_in_epochs(past: PastRun) -> dict[int, int]:
    """Returns when the variables that the last stage trains were unfrozen.

    Returns:
        By the id of the variable, epochs between the last reset of the optimizer and the stage
        that unfroze it.
    """
    births = {}
    for leaf in past.plan.ruled:
        flags = [past.plan.flags[run.number] for run in past.ran]
        for variable in trained(leaf, flags[-1]):
            index = len(flags) - 1
            while index and _is_trained(variable, leaf, flags[index - 1]):
                index -= 1
            births[id(variable)] = max(0, past.ran[index].start - past.reset)
    return births


def warm_ups_in_epochs(past: PastRun) -> dict[int, WarmUp]:
    """Returns the warm-ups since the last reset of the optimizer, by the id of the variable.

    Those that have ended count too: their rounding stays.
    """
    found: dict[int, WarmUp] = {}
    for run in past.ran:
        start = run.start - past.reset
        for number in run.passed if start >= 0 else ():
            stage = past.plan.stage(number)
            if stage is not None and stage.warmup_steps:
                unfrozen = past.plan.unfrozen(number, number - 1)
                trained_now = _trained_in(past, run.number)
                warm_up = WarmUp(start, stage.warmup_steps)
                found |= {id(v): warm_up for v in unfrozen if id(v) in trained_now}
    return found


def _trained_in(past: PastRun, number: int) -> set[int]:
    flags = past.plan.flags[number]
    return {id(variable) for leaf in past.plan.ruled for variable in trained(leaf, flags)}


def _is_trained(variable: Any, leaf: Any, flags: dict[int, bool]) -> bool:
    return any(each is variable for each in trained(leaf, flags))


def _warn(updates: int, epochs: int) -> None:
    warn(
        "The optimizer was loaded from a file, which doesn't say when its variables were unfrozen, "
        f"and its {updates} updates aren't the same number in each of {epochs} epochs. So these "
        "variables get the bias correction of the whole run, and their next updates may be too "
        "large; a warm-up that wasn't finished ends. Continue with the same number of steps in "
        "each epoch, or reset the optimizer: GradualUnfreeze(..., optimizer='reset'). Or save runs "
        "with keras_freeze.BackupAndRestore."
    )


def _warn_of_best_epoch(past: PastRun) -> None:
    """Warns that slots may be younger than they seem: those of an epoch before the last."""
    number = past.restored_best
    stage = past.plan.stage(number) if number is not None else None
    if number is not None and stage is not None:
        warn(
            f"{stage.title(number)} restored the best epoch of the stage before it, in the run "
            "that the loaded optimizer is from. A file doesn't say which epoch that was, so "
            "variables get the bias correction of the last epoch. Adam's next updates may be a "
            "little too large. To continue exactly, save runs with keras_freeze.BackupAndRestore."
        )
