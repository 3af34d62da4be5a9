"""Converts selectors and learning rate schedules of a stage to plain data and back.

Only selectors made of strings, and Keras' own learning rate schedules, can be saved.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import keras

from keras_freeze.errors import ScheduleError, closest, shown
from keras_freeze.schedule.plateau import finite

# A file can't create objects of any other class, so it can't run code.
RATES = (
    "CosineDecay",
    "CosineDecayRestarts",
    "ExponentialDecay",
    "InverseTimeDecay",
    "PiecewiseConstantDecay",
    "PolynomialDecay",
)
HOME = "keras.optimizers.schedules"


def check_written(selector: Any, where: str) -> None:
    """Raises `ScheduleError` unless `selector` is None or consists of strings."""
    if isinstance(selector, (list, tuple)):
        for item in selector:
            check_written(item, where)
    elif selector is not None and not isinstance(selector, str):
        raise ScheduleError(
            f"{where} can't be saved: only names and patterns can be saved, and this is a "
            f"{'layer' if isinstance(selector, keras.layers.Layer) else 'function'}. Use "
            f"{_written_as(selector)}. Received: {shown(selector)}"
        )


def _written_as(selector: Any) -> str:
    layer = isinstance(selector, keras.layers.Layer)
    return f"its name, {selector.name!r}" if layer else "the layers' names, or a 're:...'"


def texts(selector: Any) -> set[str]:
    """Returns the strings in a selector."""
    if isinstance(selector, (list, tuple)):
        return set().union(*map(texts, selector))
    return {selector} if isinstance(selector, str) else set()


def comparable(value: Any) -> Any:
    """Returns a form that is equal for equal arguments, also after reading them from a file."""
    if isinstance(value, (list, tuple)):
        return [comparable(item) for item in value]
    if isinstance(value, keras.optimizers.schedules.LearningRateSchedule):
        try:
            return keras.saving.serialize_keras_object(value)
        except NotImplementedError:  # a custom class without `get_config`
            return value
    return value


def rate_to_config(rate: Any, where: str) -> dict[str, Any]:
    """Returns a `LearningRateSchedule` as plain data: `{class_name, config}`.

    Raises:
        ScheduleError: it isn't one of Keras' own schedules.
    """
    name = type(rate).__name__
    if name not in RATES or type(rate) is not getattr(keras.optimizers.schedules, name):
        raise ScheduleError(
            f"`learning_rate` of {where} can't be saved: a file holds a float, or one of "
            f"{', '.join(RATES)} of {HOME}. Received: {shown(rate)}"
        )
    config = keras.saving.serialize_keras_object(rate)["config"]
    known = inspect.signature(type(rate)).parameters
    # TOML has no null: leave out arguments that are None by default.
    given = {k: v for k, v in config.items() if v is not None or known[k].default is not None}
    for key, value in given.items():
        _check_argument(key, value, known[key].default, name)
    return {"class_name": name, "config": given}


def rate_from_config(name: str, config: Mapping[str, Any]) -> Any:
    """Returns the `LearningRateSchedule` of that name with these arguments.

    It calls the class directly. Keras' deserialization would load any object that a config names.

    Raises:
        ScheduleError: an argument is unknown, missing or invalid.
    """
    made = getattr(keras.optimizers.schedules, name)
    known = inspect.signature(made).parameters
    for key, value in config.items():
        if key not in known:
            raise ScheduleError(
                f"{name} has no argument {key!r}.{closest(key, known)} Known: {', '.join(known)}. "
                f"Received: {key}={shown(value)}"
            )
        _check_argument(key, value, known[key].default, name)
    for key, argument in known.items():
        if argument.default is inspect.Parameter.empty and key not in config:
            raise ScheduleError(
                f"{name} needs `{key}` in its `config`. Received: {shown(dict(config))}"
            )
    try:
        return made(**config)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ScheduleError(f"`config` of {name} is invalid: {error}") from None


def _check_argument(key: str, value: Any, default: Any, name: str) -> None:
    """Raises `ScheduleError` unless an argument has the type of its default, or is a number."""
    if isinstance(default, bool):
        fits, wanted = isinstance(value, bool), "true or false"
    elif key == "name":
        fits, wanted = value is None or isinstance(value, str), "a string"
    elif name == "PiecewiseConstantDecay":
        fits = isinstance(value, list) and all(finite(item) is not None for item in value)
        wanted = "a list of numbers"
    else:
        fits = finite(value) is not None or (value is None and default is None)
        wanted = "a number"
    if not fits:
        raise ScheduleError(f"`{key}` of {name} must be {wanted}. Received: {key}={shown(value)}")
