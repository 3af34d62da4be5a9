"""The error that stops caching, its reasons and remedies, and the warning that names them."""

from __future__ import annotations

from typing import Any

from keras_freeze.errors import CacheWarning, warn
from keras_freeze.graph.layer_tree import is_seed

# Why the output of a layer changes from step to step.
TRAINS = "it is trainable"
MOVES = "its statistics change in training"
LOSS = "it adds to the loss"
RANDOM = "it is random even in inference"
RANDOM_IN_TRAINING = "it is random in training"
TOLD = "its `call` takes `training`, so its output may change from step to step"

VARIES = (RANDOM, RANDOM_IN_TRAINING, TOLD)  # new values in each epoch, which may be recorded

NOTHING_FROZEN = "no frozen layer with weights comes before the trainable layers"
RECORD = "record a few augmented epochs with views=8, or move it after the base"
BEFORE_FIT = (
    "apply it to the data before `fit`, with a few variants of each row, or move it after the base"
)
FROZEN = "let FreezeBase() freeze it with the base, or remove it"
INFERENCE = "let FreezeBase() freeze it with the base, so that it runs in inference mode"


class NotCacheableError(BaseException):
    """The frozen part can't be cached.

    It isn't an `Exception`, which Keras would wrap if a layer call raised it.

    Args:
        reason: why it can't be cached.
        remedy: what the user can do, as an imperative.
        in_training: whether the reason holds with `training=True` only, so that validation may
            still be served.
    """

    def __init__(self, reason: str, remedy: str, *, in_training: bool = False):
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy
        self.in_training = in_training


class StaleRowsError(NotCacheableError):
    """Features that an earlier run left aren't what the frozen part computes now."""

    def __init__(self) -> None:
        super().__init__("the features in the directory are stale", "remove them")


def obstacle(where: str, why: str, *, is_inside: bool) -> NotCacheableError:
    """Returns the error about a layer whose output changes.

    Args:
        where: names the layer and its place: "'drop' comes before frozen layers".
        why: why its output changes, as `DeterministicLayers` returns it.
        is_inside: whether frozen layers also come before it, as before a Dropout of the base.
    """
    if why == LOSS:
        return NotCacheableError(f"{where}, and {LOSS}", "remove that loss")
    if why == MOVES:
        return NotCacheableError(f"{where}, and {MOVES}", FROZEN)
    if why == RANDOM:
        return NotCacheableError(f"{where}, and {RANDOM}", "let its `call` take `training`")
    if why == TOLD:
        return NotCacheableError(
            f"{where}, and {TOLD}", INFERENCE if is_inside else BEFORE_FIT, in_training=True
        )
    if why == RANDOM_IN_TRAINING and is_inside:
        return NotCacheableError(f"{where}, and {RANDOM_IN_TRAINING}", INFERENCE, in_training=True)
    if why == RANDOM_IN_TRAINING:
        return NotCacheableError(
            f"{where}, and {RANDOM_IN_TRAINING}, so each epoch has different inputs",
            RECORD,
            in_training=True,
        )
    return NotCacheableError(f"{where}, and {TRAINS}", FROZEN)


def not_told(what: str) -> NotCacheableError:
    """Returns the error about a layer that may be random in validation too.

    Args:
        what: names the layer and its call: "'noise' is called before 'base'".
    """
    return NotCacheableError(
        f"{what} in validation without `training=False`", "pass `training` on in the model's `call`"
    )


def nothing_frozen(base_is_known: bool) -> NotCacheableError:
    """Returns the error about a run that has nothing to cache in any stage.

    Args:
        base_is_known: whether a callback freezes and unfreezes a base.
    """
    return NotCacheableError(
        NOTHING_FROZEN,
        "begin with a stage in which layers of the base are frozen, or remove the callback"
        if base_is_known
        else "freeze the base: add FreezeBase() to the list of callbacks",
    )


def moved(variables: list[Any]) -> NotCacheableError:
    """Returns the error about variables that change when the frozen part runs.

    Random code usually runs in training only. If it runs in validation too, a check finds it there.
    """
    path = variables[0].path
    if all(map(is_seed, variables)):
        return NotCacheableError(
            f"random code runs before the base or in it: {path!r} changes in each step",
            BEFORE_FIT,
            in_training=True,
        )
    return NotCacheableError(
        f"the variable {path!r} of the frozen part changes in each step",
        "move the layer that changes it out of the base",
    )


def drawn() -> NotCacheableError:
    """Returns the error about random code that uses the backend's generator, not Keras'."""
    return NotCacheableError(
        "random code runs before the base or in it: it draws from the backend's random generator",
        BEFORE_FIT,
        in_training=True,
    )


def tell(text: str) -> None:
    """Issues a `CacheWarning`; `text` continues "BottleneckCache ..."."""
    warn(f"BottleneckCache {text}", CacheWarning)
