"""Reads and sets the learning rate of an optimizer, also of one that wraps others.

Private names of `keras.optimizers.Optimizer` used here were tried on Keras 3.12.0 and 3.15.1:
`_learning_rate`, `_variables`.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_freeze.errors import ScheduleError
from keras_freeze.keras_internals.copy_to_numpy import to_numpy
from keras_freeze.keras_internals.optimizer_rebuild import hold, leaves

Optimizer = Any
Rate = Any  # a float, a LearningRateSchedule or a callable
Shares = list[float | None]  # the base's rate as a part of each rate; None = not set

# {optimizer: (the rates before our first change, the rates that we set last)}
_CHANGED: weakref.WeakKeyDictionary[Optimizer, tuple[list[Rate], list[Rate]]]
_CHANGED = weakref.WeakKeyDictionary()


def rates_of(optimizer: Optimizer) -> list[Rate]:
    """Returns the rate of each optimizer that updates variables."""
    return [_rate(member) for member in leaves(optimizer)]


def original_rates(optimizer: Optimizer) -> list[Rate]:
    """Returns the compiled rates, without the changes by stages of an earlier `fit`."""
    now = rates_of(optimizer)
    original, set_last = _CHANGED.get(optimizer, (now, now))
    return original if now == set_last else now


def set_original(optimizer: Optimizer, original: list[Rate]) -> None:
    """Sets what `original_rates` returns, for an optimizer that was loaded with other rates."""
    _CHANGED[optimizer] = (original, rates_of(optimizer))


def stored(rate: Rate) -> Rate:
    """Returns a rate as an optimizer stores it: numbers are rounded to `floatx`."""
    return float(np.asarray(rate, keras.backend.floatx())) if isinstance(rate, float) else rate


def before_factors(rate: Rate, factors: list[float]) -> Rate:
    """Returns the rate that was multiplied by factors, one after the other.

    Several numbers may round to the same product. Rates are mostly written by hand, so the one
    with the fewest digits is returned.
    """
    if not factors:
        return rate
    quotient = rate / math.prod(factors)
    for digits in range(1, 18):
        short = product = stored(float(f"{quotient:.{digits}g}"))
        for factor in factors:
            product = stored(product * factor)
        if product == rate:
            return short
    return quotient


def changed(now: list[Rate], wanted: Any, stage: str) -> list[Rate]:
    """Returns the rates after a stage.

    Args:
        now: the rates before the stage.
        wanted: a rate, `{"factor": 0.1}`, or None.
        stage: the stage's name in messages.

    Raises:
        ScheduleError: `wanted` is a factor, but a rate isn't a number.
    """
    if wanted is None:
        return now
    if not isinstance(wanted, Mapping):
        return [wanted] * len(now)
    if not all(isinstance(rate, float) for rate in now):
        raise ScheduleError(
            f"{stage} multiplies the learning rate by {wanted['factor']}, but that isn't a number: "
            f"{now}. Pass a float or a LearningRateSchedule to the stage."
        )
    return [rate * wanted["factor"] for rate in now]


def base_shares(now: Shares, wanted: Any, of: list[Rate], stage: str) -> Shares:
    """Returns the base's rate in a stage as a part of each rate; None if no stage has set it.

    Args:
        now: the shares before the stage.
        wanted: a rate of the base, `{"factor": 0.1}`, or None.
        of: the rates of the stage.
        stage: the stage's name in messages.

    Raises:
        ScheduleError: `wanted` is a rate, but `learning_rate` begins at 0.
    """
    if wanted is None:
        return now
    if isinstance(wanted, Mapping):
        return [wanted["factor"]] * len(of)
    first = [_first(rate) for rate in of]
    if not all(first):
        raise ScheduleError(
            f"{stage} has base_learning_rate={wanted}, which is kept as a part of "
            f"`learning_rate`, but `learning_rate` begins at 0: {of}. Pass the part itself, such "
            "as base_learning_rate={'factor': 0.1}."
        )
    return [wanted / rate for rate in first]


def _first(rate: Rate) -> float:
    """Returns the first rate of a schedule, or the current value of any other rate."""
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        return float(to_numpy(rate(0)))
    return float(to_numpy(rate() if callable(rate) else rate))


def set_rates(optimizer: Optimizer, rates: list[Rate]) -> bool:
    """Sets the rates; True if step functions must be rebuilt: a schedule was set or removed."""
    original = original_rates(optimizer)
    changed = [_set(member, rate) for member, rate in zip(leaves(optimizer), rates, strict=True)]
    _CHANGED[optimizer] = (original, rates_of(optimizer))
    return any(changed)


def keep_original(optimizer: Optimizer, original: list[Rate]) -> None:
    """Makes the next `fit` begin at the rates `original`; called at the end of a `fit`."""
    if optimizer in _CHANGED:
        _CHANGED[optimizer] = (original, rates_of(optimizer))


def log_rates(optimizer: Optimizer, shares: Shares | None = None) -> dict[str, float]:
    """Returns the logs `{"learning_rate": rate}`; for a MultiOptimizer, one entry per optimizer.

    Args:
        optimizer: the optimizer of the model.
        shares: the base's parts of the rates; adds `"base_learning_rate"` to the logs.
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
    """Replaces a schedule by a float, which Keras can't: creates the variable as `__init__` does.

    The variable must be the second one, after `iterations`, as in an optimizer that was created
    with a float: weights files store an optimizer's variables by index.
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
