"""The learning rate of an optimizer, whatever wraps it and whatever it was before.

Private names of `keras.optimizers.Optimizer` used here were tried on Keras 3.12.0 and 3.15.1:
`_learning_rate`, `_variables`.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import keras

from keras_freeze.errors import ScheduleError
from keras_freeze.keras_internals.optimizer_rebuild import hold, leaves
from keras_freeze.keras_internals.variable_values import to_numpy

Optimizer = Any
Rate = Any  # a float, a LearningRateSchedule or a callable
Shares = list[float | None]  # of the base, one for each rate

# {optimizer: (the rate before a schedule of ours changed it, the rate that we set last)}
_CHANGED: weakref.WeakKeyDictionary[Optimizer, tuple[list[Rate], list[Rate]]]
_CHANGED = weakref.WeakKeyDictionary()


def rates_of(optimizer: Optimizer) -> list[Rate]:
    """Returns the rate of each optimizer that updates variables."""
    return [_rate(member) for member in leaves(optimizer)]


def original_rates(optimizer: Optimizer) -> list[Rate]:
    """Returns the rates that were compiled: before stages of an earlier `fit` changed them."""
    now = rates_of(optimizer)
    original, set_last = _CHANGED.get(optimizer, (now, now))
    return original if now == set_last else now


def changed(now: list[Rate], wanted: Any, stage: str) -> list[Rate]:
    """Returns the rates after a stage.

    Args:
        now: before it.
        wanted: a rate, `{"factor": 0.1}`, or None.
        stage: for the message.

    Raises:
        ScheduleError: a factor of a rate that is no number.
    """
    if wanted is None:
        return now
    if not isinstance(wanted, Mapping):
        return [wanted] * len(now)
    if not all(isinstance(rate, float) for rate in now):
        raise ScheduleError(
            f"{stage} asks for {wanted['factor']} times the learning rate before, but that is no "
            f"number: {now}. Give the stage a rate of its own."
        )
    return [rate * wanted["factor"] for rate in now]


def base_shares(now: Shares, wanted: Any, of: list[Rate], stage: str) -> Shares:
    """Returns which share of each rate the base gets in a stage; None = none was asked for.

    Args:
        now: before it.
        wanted: a rate of the base, `{"factor": 0.1}`, or None.
        of: the rates of the stage.
        stage: for the message.

    Raises:
        ScheduleError: a rate of the base beside one that begins at 0.
    """
    if wanted is None:
        return now
    if isinstance(wanted, Mapping):
        return [wanted["factor"]] * len(of)
    first = [_first(rate) for rate in of]
    if not all(first):
        raise ScheduleError(
            f"{stage} asks for base_learning_rate={wanted}, which is kept as a part of "
            f"`learning_rate`, but that begins at 0: {of}. Write the part itself, such as "
            "base_learning_rate={'factor': 0.1}."
        )
    return [wanted / rate for rate in first]


def _first(rate: Rate) -> float:
    """The rate with which a schedule begins; another one's value now."""
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        return float(to_numpy(rate(0)))
    return float(to_numpy(rate() if callable(rate) else rate))


def set_rates(optimizer: Optimizer, rates: list[Rate]) -> bool:
    """Sets the rates; True if the step functions must be made anew (a schedule came or went)."""
    original = original_rates(optimizer)
    changed = [_set(member, rate) for member, rate in zip(leaves(optimizer), rates, strict=True)]
    _CHANGED[optimizer] = (original, rates_of(optimizer))
    return any(changed)


def keep_original(optimizer: Optimizer, original: list[Rate]) -> None:
    """At the end of a `fit`: whatever the rates are by now, the next one begins at `original`."""
    if optimizer in _CHANGED:
        _CHANGED[optimizer] = (original, rates_of(optimizer))


def log_rates(optimizer: Optimizer, shares: Shares | None = None) -> dict[str, float]:
    """Returns `{"learning_rate": rate now}`; under a MultiOptimizer one entry for each.

    Args:
        optimizer: of the model.
        shares: of the base: adds `"base_learning_rate"`.
    """
    members = leaves(optimizer)
    names = ["" if len(members) == 1 else f"_{member.name}" for member in members]
    now = [float(to_numpy(member.learning_rate)) for member in members]
    logs = {f"learning_rate{name}": rate for name, rate in zip(names, now, strict=True)}
    for name, rate, part in zip(names, now, shares or (), strict=shares is not None):
        logs[f"base_learning_rate{name}"] = rate if part is None else rate * part
    return logs


def _rate(optimizer: Optimizer) -> Rate:
    rate = optimizer._learning_rate
    if isinstance(rate, keras.Variable):
        return float(to_numpy(rate))
    return rate


def _set(optimizer: Optimizer, rate: Rate) -> bool:
    now = optimizer._learning_rate
    if isinstance(rate, float) and isinstance(now, keras.Variable):
        now.assign(rate)
        return False
    if rate is now:
        return False
    if isinstance(rate, float):
        _put_variable(optimizer, rate)
    else:
        optimizer.learning_rate = rate
    return True


def _put_variable(optimizer: Optimizer, rate: float) -> None:
    """Keras has no way back from a schedule to a float: make the variable that __init__ makes.

    It stands second, after `iterations`, as in an optimizer that was built with a float: weights
    files hold an optimizer's variables by index.
    """
    with keras.name_scope(optimizer.name):
        variable = keras.Variable(
            rate,
            name="learning_rate",
            dtype=keras.backend.floatx(),
            trainable=False,
            aggregation="only_first_replica",
        )
    object.__setattr__(optimizer, "_learning_rate", None)
    optimizer._learning_rate = variable  # appended to the variables
    iterations, *behind = [held for held in optimizer._variables if held is not variable]
    hold(optimizer, [iterations, variable, *behind])
