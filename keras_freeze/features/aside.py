"""Why a cache gives up: raised anywhere in this room, caught in one place, told in one warning."""

from __future__ import annotations

from typing import Any

NOTHING_FROZEN = "no frozen layer with weights stands before all that is trained"


class StepAsideError(BaseException):
    """The frozen part can't be cached.

    Not an `Exception`: it may be raised inside a call of a layer, and Keras would wrap it.

    Args:
        reason: what is in the way.
        remedy: what the user can do, as an imperative.
    """

    def __init__(self, reason: str, remedy: str):
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


def moves(variable: Any) -> tuple[str, str]:
    """Returns reason and remedy for a state that the frozen part changes when it runs."""
    return (
        f"{variable.path!r} of the frozen part changes in each step",
        "keep such a layer out of the base",
    )
