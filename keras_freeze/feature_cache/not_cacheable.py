"""Why a cache gives up: raised anywhere in this room, caught in one place, told in one warning."""

from __future__ import annotations

from typing import Any

from keras_freeze.errors import CacheWarning, warn
from keras_freeze.graph.layer_tree import is_seed

# Why the output of a layer changes from step to step.
TRAINS = "trains"
MOVES = "its statistics move"
LOSS = "it adds to the loss"
RANDOM = "it stays random"
RANDOM_IN_TRAINING = "it stays random in training"
TOLD = "it is told that this is training, and may not do the same each time"

NOTHING_FROZEN = "no frozen layer with weights comes before all that is trained"
BEFORE_FIT = (
    "apply it to the data before `fit`, as a few variants of each image, or move it after the base"
)
FROZEN = "let FreezeBase() freeze it with the base, or take it out"
INFERENCE = "let FreezeBase() freeze it with the base, so that it runs in inference mode"


class NotCacheableError(BaseException):
    """The frozen part can't be cached.

    Not an `Exception`: it may be raised inside a call of a layer, and Keras would wrap it.

    Args:
        reason: what is in the way.
        remedy: what the user can do, as an imperative.
        in_training: whether it is in the way with `training=True` alone, so that validation may
            still be served.
    """

    def __init__(self, reason: str, remedy: str, *, in_training: bool = False):
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy
        self.in_training = in_training


def obstacle(where: str, why: str, *, is_inside: bool) -> NotCacheableError:
    """Returns the error about a layer whose output changes.

    Args:
        where: it stands.
        why: it changes, as `DeterministicLayers` says it.
        is_inside: whether frozen layers come before it too, as before a Dropout of the base.
    """
    if why == LOSS:
        return NotCacheableError(f"{where}, and {LOSS}", "take that loss away")
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
            f"{where}, and {RANDOM_IN_TRAINING}, so each epoch sees other images",
            BEFORE_FIT,
            in_training=True,
        )
    return NotCacheableError(f"{where}, and {TRAINS}", FROZEN)


def not_told(what: str) -> NotCacheableError:
    """Returns the error about a layer that may be random in validation too.

    Args:
        what: "'noise' is called before 'base'".
    """
    return NotCacheableError(
        f"{what} in validation without `training=False`", "pass `training` on in the model's `call`"
    )


def nothing_frozen(base_is_known: bool) -> NotCacheableError:
    """Returns the error about a run that has nothing to cache, from its first stage on.

    Args:
        base_is_known: whether a callback freezes and unfreezes a base.
    """
    return NotCacheableError(
        NOTHING_FROZEN,
        "begin with a stage in which layers of the base are frozen; or leave the callback out"
        if base_is_known
        else "freeze the base: put FreezeBase() into the list of callbacks",
    )


def moved(variables: list[Any]) -> NotCacheableError:
    """Returns the error about states that change when the frozen part runs.

    Random code runs in training, as a rule; if it runs in validation too, that is seen there.
    """
    path = variables[0].path
    if all(map(is_seed, variables)):
        return NotCacheableError(
            f"random code runs before the base or in it: {path!r} changes in each step",
            BEFORE_FIT,
            in_training=True,
        )
    return NotCacheableError(
        f"{path!r} of the frozen part changes in each step", "keep such a layer out of the base"
    )


def drawn() -> NotCacheableError:
    """Returns the error about random code whose generator isn't one of Keras'."""
    return NotCacheableError(
        "random code runs before the base or in it: it draws from the backend's own generator",
        BEFORE_FIT,
        in_training=True,
    )


def tell(text: str) -> None:
    """Warns of what a cache does."""
    warn(f"BottleneckCache {text}", CacheWarning)
