"""What of a stage has a written form: selectors that are strings, and Keras' own rate schedules."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import keras

from keras_freeze.errors import ScheduleError, closest, shown
from keras_freeze.schedule.plateau import finite

# Only these: a file can't make an object of any other class, and so can't run code.
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
    """Raises `ScheduleError` unless `selector` is made of strings alone (or None)."""
    if isinstance(selector, (list, tuple)):
        for item in selector:
            check_written(item, where)
    elif selector is not None and not isinstance(selector, str):
        raise ScheduleError(
            f"{where} can't be written: only names and patterns have a written form, and this is a "
            f"{'layer' if isinstance(selector, keras.layers.Layer) else 'function'}. Write "
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
    """Returns what equal arguments have in common: a file knows no tuples, and makes rates anew."""
    if isinstance(value, (list, tuple)):
        return [comparable(item) for item in value]
    if isinstance(value, keras.optimizers.schedules.LearningRateSchedule):
        try:
            return keras.saving.serialize_keras_object(value)
        except NotImplementedError:  # a class of the user that has no config
            return value
    return value


def rate_to_config(rate: Any, where: str) -> dict[str, Any]:
    """Returns a `LearningRateSchedule` as a file holds it: `{class_name, config}`.

    Raises:
        ScheduleError: it isn't one of Keras' own.
    """
    name = type(rate).__name__
    if name not in RATES or type(rate) is not getattr(keras.optimizers.schedules, name):
        raise ScheduleError(
            f"`learning_rate` of {where} can't be written: a file holds a float, or one of "
            f"{', '.join(RATES)} of {HOME}. Received: {shown(rate)}"
        )
    config = keras.saving.serialize_keras_object(rate)["config"]
    known = inspect.signature(type(rate)).parameters
    # TOML has no null: what is None by default is left out.
    given = {k: v for k, v in config.items() if v is not None or known[k].default is not None}
    for key, value in given.items():
        _check_argument(key, value, known[key].default, name)
    return {"class_name": name, "config": given}


def rate_from_config(name: str, config: Mapping[str, Any]) -> Any:
    """Returns the `LearningRateSchedule` of that name with these arguments.

    It is made by its class alone, without Keras' deserialisation, which would look up any object
    that a config names.

    Raises:
        ScheduleError: an argument is unknown, missing or can't be meant.
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
        raise ScheduleError(f"{name} refuses its `config`: {error}") from None


def _check_argument(key: str, value: Any, default: Any, name: str) -> None:
    """By the argument's default: a switch, a name, or else a number or a list of numbers."""
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
