"""Computes the learning-rate multiplier of each variable in a stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from keras_freeze.fit_engine.trainable_plan import Plan
from keras_freeze.graph.block_boundaries import weighted_blocks
from keras_freeze.graph.find_base import Base
from keras_freeze.graph.layer_tree import own_variables
from keras_freeze.keras_internals.apply_learning_rate_multipliers import FULL, Multiplier
from keras_freeze.schedule.stage import Stage

Multipliers = dict[int, Multiplier]  # by the id of the variable


def multipliers_of(
    plan: Plan,
    number: int,
    resets: Callable[[Stage], bool],
    share: Callable[[Any], float | None],
) -> Multipliers:
    """Returns the multipliers of a stage, without warm-up. Those equal to 1 are left out.

    `layer_decay` is applied from the head downwards. If the base has its own learning rate, its
    last block gets that rate.

    Args:
        plan: which layers are trainable in which stage.
        number: number of the stage.
        resets: returns whether a stage resets the optimizer.
        share: returns the base's rate divided by the head's, for a variable; None = no own rate.
    """
    decay = None
    for earlier in range(1, number + 1):
        stage = plan.stage(earlier)
        if stage is not None and (stage.layer_decay is not None or resets(stage)):
            decay = stage.layer_decay
    multipliers: Multipliers = {}
    for base in plan.bases:
        depths = depths_in(base) if decay is not None else {}
        for variable in [v for leaf in base.leaves for v in own_variables(leaf)]:
            part, depth = share(variable), depths.get(id(variable), 0)
            if part is not None:
                depth = max(0, depth - 1)
            scale = (1.0 if part is None else part) * (decay or 1.0) ** depth
            if scale != 1:
                multipliers[id(variable)] = Multiplier(scale)
    return multipliers


def depths_in(base: Base) -> dict[int, int]:
    """Returns by id how many blocks each variable of a base is away from the head.

    A block lies between two articulation points of the graph, so a residual block isn't divided.
    """
    blocks = weighted_blocks(base.scope.tree, base.leaves)
    numbered = enumerate(reversed(blocks), start=1)
    return {
        id(v): depth for depth, block in numbered for leaf in block for v in own_variables(leaf)
    }


def still_rising(multipliers: Multipliers, before: Multipliers) -> Multipliers:
    """Returns the multipliers of a stage; an unfinished warm-up continues."""
    rising = {key: multiplier for key, multiplier in before.items() if multiplier.steps}
    return multipliers | {
        key: replace(multiplier, scale=multipliers.get(key, FULL).scale)
        for key, multiplier in rising.items()
    }


def warmed_up(
    multipliers: Multipliers, unfrozen: list[Any], steps: int, updates: Mapping[int, int]
) -> Multipliers:
    """Returns the multipliers with a warm-up for unfrozen variables.

    Args:
        multipliers: the multipliers of the stage.
        unfrozen: the variables that the stage unfreezes.
        steps: length of the warm-up in steps.
        updates: number of updates that each variable's optimizer has made, by the variable's id.
    """
    slow = {id(v): multipliers.get(id(v), FULL) for v in unfrozen}
    return multipliers | {
        key: Multiplier(multiplier.scale, updates[key], steps)
        for key, multiplier in slow.items()
        if key in updates
    }
