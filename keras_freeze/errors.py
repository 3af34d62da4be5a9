"""The errors and warnings of keras_freeze, and the functions that write their messages.

    FreezeError(ValueError)     an invalid argument or model
    |-- ScheduleError           an invalid schedule or stage
    |-- LayerMatchError         a selector or a base that matches no layer of the model
    `-- CacheError              an invalid argument of the cache
    CacheWarning(UserWarning)   the cache can't be used, or found a problem

Errors are raised before the first training step. After a warning the run continues, and its
results are correct.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import re
import reprlib
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from types import FrameType
from typing import ParamSpec, TypeVar

import keras

# Packages that call `fit` for the user, or that `fit` calls.
NOT_THE_USERS = ("keras", "keras_freeze", "keras_hub", "keras_tuner", "sklearn", "joblib")
P = ParamSpec("P")
R = TypeVar("R")


class FreezeError(ValueError):
    """An invalid argument, or a model that can't be used in this way.

    Examples:
        >>> raise FreezeError("`batch_norm` must be 'freeze' or 'train'.")
        Traceback (most recent call last):
        ...
        keras_freeze.errors.FreezeError: `batch_norm` must be 'freeze' or 'train'.
    """


class ScheduleError(FreezeError):
    """An invalid schedule, or an invalid stage of one.

    Examples:
        >>> Schedule({-1: "block5_*"})
        Traceback (most recent call last):
        ...
        keras_freeze.errors.ScheduleError: `at` must be an epoch >= 0, counted from 0. \
Received: at=-1
    """


class LayerMatchError(FreezeError):
    """A selector or a base that matches no layer.

    Examples:
        >>> model = keras.Sequential([keras.layers.Dense(1, name="head")], name="model")
        >>> select_layers(model, "haed")
        Traceback (most recent call last):
        ...
        keras_freeze.errors.LayerMatchError: `selector`: no layer of 'model' matches 'haed'. \
Closest names: 'head'. Received: 'haed'
    """


class CacheError(FreezeError):
    """An invalid argument of `BottleneckCache`.

    Examples:
        >>> BottleneckCache(dtype="float8")
        Traceback (most recent call last):
        ...
        keras_freeze.errors.CacheError: `dtype` must be None (the dtype of the features), \
'float16', 'bfloat16' or 'float32'. Did you mean 'float32'? Received: dtype='float8'
    """


class CacheWarning(UserWarning):
    """The cache can't be used, or only in part; the run continues without it.

    Examples:
        >>> import warnings
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", CacheWarning)  # stop rather than run uncached
    """


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warns at the line of the user's code that calls `fit` or a function of keras_freeze.

    The warning shows a line that the user can change, and warning filters by module or by line
    refer to the user's code. (From Python 3.12 on, `skip_file_prefixes` does the same.) In a
    thread that Keras starts there is no such line; the warning shows the caller of this function.
    """
    caller = _caller()
    frame = _users_frame(caller) or caller
    warnings.warn_explicit(
        message,
        category,
        filename=frame.f_code.co_filename,
        lineno=frame.f_lineno,
        module=frame.f_globals.get("__name__", "<string>"),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )


def _caller() -> FrameType:
    """Returns the frame of the caller's caller.

    A variable of a frame must not refer to the frame itself: the cycle would keep data alive.
    """
    frame = inspect.currentframe()
    inner = frame.f_back if frame is not None else None
    assert inner is not None
    assert inner.f_back is not None
    return inner.f_back


def _users_frame(frame: FrameType) -> FrameType | None:
    """Returns the nearest caller outside `NOT_THE_USERS`; while `fit` runs, the caller of `fit`.

    Between `fit` and our code there may be a custom `train_step` or functions of the backend.
    """
    here: FrameType | None = _running_fit(frame) or frame
    while here is not None and _package(here) in NOT_THE_USERS:
        here = here.f_back
    return here


def _running_fit(frame: FrameType) -> FrameType | None:
    """Returns the frame of the running Keras `fit`; None if there is none."""
    here: FrameType | None = frame
    while here is not None:
        is_fit = here.f_code.co_name == "fit" and _package(here) == "keras"
        if is_fit and isinstance(here.f_locals.get("self"), keras.Model):
            return here
        here = here.f_back
    return None


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).split(".")[0]


def closest(received: object, choices: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?", or "" if no choice is similar."""
    near = nearest(str(received), choices)
    return f" Did you mean {near[0]!r}?" if near else ""


def nearest(
    received: str, choices: Iterable[str], *, most: int = 1, least: float = 0.5
) -> list[str]:
    """Returns the choices that are similar to `received`, the most similar first.

    Args:
        received: the text that the user wrote.
        choices: the valid texts.
        most: the maximum number of choices to return.
        least: the minimum similarity, from 0 to 1.

    Examples:
        >>> nearest("VGG", ["input", "vgg19", "head"])
        ['vgg19']
        >>> nearest("lr", ["layer_decay", "learning_rate"])
        ['learning_rate']
    """
    likeness = {choice: _likeness(received, choice) for choice in dict.fromkeys(choices)}
    near = [choice for choice in likeness if likeness[choice][0] >= least]
    return sorted(near, key=lambda choice: (likeness[choice], choice), reverse=True)[:most]


def _likeness(received: str, choice: str) -> tuple[float, float]:
    """Returns the similarity, from 0 to 1, and the plain ratio of `difflib` to break ties.

    Besides `difflib`'s ratio, it counts: equal except for case and punctuation, initials, a prefix,
    a part of the name.
    """
    here, there = (re.sub(r"[\W_]", "", text.lower()) for text in (received, choice))
    ratio = difflib.SequenceMatcher(None, choice.lower(), received.lower()).ratio()
    initials = "".join(word[0] for word in re.findall(r"[^\W_]+", choice.lower()))
    rules = (
        (1.0, here == there),
        (0.95, here == initials),  # lr
        (0.9, there.startswith(here)),  # VGG
        (0.85, here.startswith(there) and len(there) > 2),
        (0.8, here in there and len(here) > 3),  # rate
    )
    known = [likeness for likeness, holds in rules if holds and len(here) > 1]
    return max([ratio, *known]), ratio


def names_unknown(
    kind: type[FreezeError] = FreezeError,
    elsewhere: Mapping[str, Collection[str]] | None = None,
    *,
    of: str = "",
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a function: an unknown keyword argument raises an error with the closest name.

    The function keeps its signature, for editors and type checkers.

    Args:
        kind: the class of the error.
        elsewhere: `{class: arguments}` of other classes whose arguments are easily passed to this
            function by mistake.
        of: the public class of the function, if the function is defined in another class.

    Examples:
        >>> @names_unknown()
        ... def sail(*, to_port=False):
        ...     return to_port
        >>> sail(toport=True)
        Traceback (most recent call last):
        ...
        keras_freeze.errors.FreezeError: sail has no argument 'toport'. Did you mean 'to_port'? \
It has `to_port`. Received: toport=True
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        known = [name for name in inspect.signature(function).parameters if name not in HIDDEN]
        name = f"{of}.{function.__name__}" if of else function.__qualname__
        name = name.removesuffix(".__init__")

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            for key, value in kwargs.items():
                if key not in known:
                    raise kind(unknown_argument(name, key, value, known, elsewhere or {}))
            return function(*args, **kwargs)

        return checked

    return decorate


HIDDEN = ("self", "cls")


def unknown_argument(
    name: str,
    key: str,
    value: object,
    known: Collection[str],
    elsewhere: Mapping[str, Collection[str]],
) -> str:
    """Returns the message for an unknown argument; see `names_unknown`."""
    owner = next((owner for owner, keys in elsewhere.items() if key in keys), "")
    hint = f" It is an argument of {owner}." if owner else closest(key, known)
    listed = ", ".join(f"`{each}`" for each in known)
    return f"{name} has no argument {key!r}.{hint} It has {listed}. Received: {key}={shown(value)}"


def check_choice(argument: str, received: object, choices: tuple[object, ...]) -> None:
    """Raises `FreezeError` unless `received` is one of `choices`."""
    if isinstance(received, (str, type(None))) and received in choices:
        return
    listed = " or ".join(repr(choice) for choice in choices)
    hint = closest(received, [choice for choice in choices if isinstance(choice, str)])
    raise FreezeError(f"`{argument}` must be {listed}.{hint} Received: {argument}={received!r}")


def shown(value: object) -> str:
    """Returns the repr of `value`, shortened for use in a message."""
    short = reprlib.Repr()
    short.maxlist = short.maxdict = short.maxtuple = 8
    short.maxstring = short.maxlong = short.maxother = 100
    try:
        return short.repr(value)
    except ValueError:  # Python doesn't print numbers of more than 4300 digits
        return f"a value too long to show (of type {type(value).__name__})"
