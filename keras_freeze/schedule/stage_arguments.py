"""Checks the arguments of a stage, one at a time."""

from __future__ import annotations

import numbers
import operator
import sys
from collections.abc import Mapping
from typing import Any

import keras

from keras_freeze.errors import ScheduleError, shown
from keras_freeze.schedule.plateau import MOST_EPOCHS, Plateau, finite


def check_at(at: Any) -> int | Plateau:
    """Returns `at` as an int >= 0 or a `Plateau`, or raises `ScheduleError`."""
    if isinstance(at, Plateau):
        return at
    if isinstance(at, bool) or not isinstance(at, numbers.Integral):
        raise ScheduleError(
            "`at` must be an epoch, a whole number counted from 0 as in Keras, or a Plateau. "
            f"Received: at={at!r} (of type {type(at).__name__})"
        )
    epoch = operator.index(at)
    if epoch < 0:
        raise ScheduleError(f"`at` must be an epoch >= 0, counted from 0. Received: at={shown(at)}")
    if epoch > MOST_EPOCHS:
        raise ScheduleError(
            f"`at` must be an epoch that a run can reach, at most {MOST_EPOCHS}. "
            f"Received: at={shown(at)}"
        )
    return epoch


def check_rate(rate: Any) -> Any:
    """Returns `learning_rate` as a float, `{"factor": float}` or a schedule of Keras."""
    if rate is None or isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        return rate
    checked = _number_or_factor(rate)
    if checked is not None:
        return checked
    raise ScheduleError(
        "`learning_rate` must be a float above 0, a LearningRateSchedule, or {'factor': 0.1} to "
        f"multiply the rate before. Received: learning_rate={shown(rate)}"
    )


def check_base_rate(rate: Any) -> Any:
    """Returns `base_learning_rate` as a float or `{"factor": float}`."""
    checked = _number_or_factor(rate)
    if rate is None or checked is not None:
        return checked
    schedule = isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)
    hint = (
        " Pass a schedule as `learning_rate`; the base follows it at its own ratio."
        if schedule
        else ""
    )
    raise ScheduleError(
        "`base_learning_rate` must be a float above 0, or {'factor': 0.1} for a part of "
        f"`learning_rate`.{hint} Received: base_learning_rate={shown(rate)}"
    )


def _number_or_factor(rate: Any) -> float | dict[str, float] | None:
    """Returns a float above 0, or `{"factor": float above 0}`; None if `rate` is neither."""
    factor = rate["factor"] if isinstance(rate, Mapping) and [*rate] == ["factor"] else None
    number = _positive(rate if factor is None else factor)
    return number if number is None or factor is None else {"factor": number}


def check_decay(decay: Any) -> float | None:
    """Returns `layer_decay` as a float above 0, at most 1."""
    number = _positive(decay)
    if decay is None or (number is not None and number <= 1):
        return number
    raise ScheduleError(
        "`layer_decay` must be a float above 0, at most 1, by which the rate is multiplied from "
        f"block to block. Received: layer_decay={shown(decay)}"
    )


def _positive(value: Any) -> float | None:
    """Returns the value as a float, or None if it isn't a finite number above 0."""
    number = finite(value)
    return number if number is not None and number > 0 else None


def check_steps(steps: Any) -> int:
    """Returns `warmup_steps` as an int, 0 or more."""
    whole = isinstance(steps, numbers.Integral) and not isinstance(steps, bool)
    if whole and 0 <= steps <= sys.maxsize:
        return operator.index(steps)
    raise ScheduleError(
        "`warmup_steps` must be a whole number of updates, 0 or more. "
        f"Received: warmup_steps={shown(steps)}"
    )
