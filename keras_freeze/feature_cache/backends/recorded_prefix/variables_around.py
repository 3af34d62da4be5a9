"""Finds the variables that code around a prefix may change."""

from __future__ import annotations

from typing import Any


def variables_around(model: Any, inside: list[Any]) -> list[Any]:
    """Returns the variables of a model that no optimizer updates, except those `inside`."""
    ids = {id(variable) for variable in inside}
    every = [*model.non_trainable_variables, *model.metrics_variables]
    return [variable for variable in every if id(variable) not in ids]
