"""Builds the stages of schedules that papers and Keras' guides recommend."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

import keras

from keras_freeze.errors import ScheduleError
from keras_freeze.graph.block_boundaries import weighted_blocks
from keras_freeze.graph.find_base import Base, find_base
from keras_freeze.graph.layer_tree import Layer, LayerTree, count_params, own_variables
from keras_freeze.graph.selector_scope import Scope
from keras_freeze.schedule.plateau import Plateau
from keras_freeze.schedule.stage import Stage
from keras_freeze.schedule.stage_arguments import check_at

Blocks = list[list[Layer]]


def two_phase(
    unfreeze: Any, start: int | Plateau, learning_rate: Any, base_learning_rate: Any
) -> list[Stage]:
    """Returns the stages of `Schedule.two_phase`: feature extraction, then fine-tuning."""
    rates = {"learning_rate": learning_rate, "base_learning_rate": base_learning_rate}
    return [Stage(start, unfreeze, **rates, name="fine-tuning")]


def lp_ft(start: int | Plateau, learning_rate: Any) -> list[Stage]:
    """Returns the stages of `Schedule.lp_ft`: the head until its best epoch, then everything."""
    best = isinstance(start, Plateau)
    return [Stage(start, "all", learning_rate=learning_rate, restore_best=best, name="fine-tuning")]


def ulmfit(base: Any, start: int, every: int, learning_rate: Any, decay: float) -> list[Stage]:
    """Returns the stages of `Schedule.ulmfit`: a block at a time, from the head down."""
    found = _base_in(base)
    blocks = _blocks(found)
    firsts = [_name(found, block[0]) for block in reversed(blocks)]
    return _from_the_top(firsts, start, every, learning_rate, decay)


def auto(
    base: Any, stages: int, start: int, every: int, learning_rate: Any, decay: float | None
) -> list[Stage]:
    """Returns the stages of `Schedule.auto`, each with about as many parameters."""
    found = _base_in(base)
    blocks = _blocks(found)[::-1]  # from the head down
    count = _whole("stages", stages)
    if count > len(blocks):
        raise ScheduleError(
            f"`stages` must be at most {len(blocks)}: {found.label!r} has no more blocks that can "
            f"be unfrozen one after the other. Received: stages={stages!r}"
        )
    firsts = [_name(found, block[0]) for block in _balanced(blocks, count)]
    return _from_the_top(firsts, start, every, learning_rate, decay)


def chain_thaw(model: Any, base: Any, start: int, every: int, learning_rate: Any) -> list[Stage]:
    """Returns the stages of `Schedule.chain_thaw`: each block alone, then all of them."""
    if not isinstance(model, keras.Model):
        raise ScheduleError(
            "`model` of chain_thaw must be the whole model, as its head is frozen and unfrozen "
            f"too. Received: model={model!r}"
        )
    found = find_base(model, base)
    whole = LayerTree(model)
    inside = {id(leaf) for leaf in found.leaves}
    head = [leaf for leaf in whole.leaves if id(leaf) not in inside and own_variables(leaf)]
    names = [_unique(whole, leaf) for leaf in head]
    groups = [[_name(found, leaf) for leaf in block] for block in _blocks(found)]
    first, step = _epoch(start), _whole("every", every)
    frozen, chain = names, []
    for number, group in enumerate(groups):
        chain.append(
            Stage(first + number * step, group, frozen or None, name=f"block {number + 1}")
        )
        frozen = group
    at = first + len(groups) * step
    chain.append(Stage(at, ["all", *names], learning_rate=learning_rate, name="all"))
    return chain


def _from_the_top(
    firsts: list[str], start: int, every: int, learning_rate: Any, decay: float | None
) -> list[Stage]:
    """Returns stages that unfreeze from a layer on, each from a layer further down."""
    begin, step = _epoch(start), _whole("every", every)
    selectors = [f"{first}:" for first in firsts[:-1]] + ["all"]
    # Repeat the rate in each stage, in case the optimizer is reset. A factor isn't repeated: it
    # would multiply the rate again.
    again = None if isinstance(learning_rate, Mapping) else learning_rate
    rates = [learning_rate] + [again] * (len(selectors) - 1)
    return [
        Stage(begin + number * step, selector, learning_rate=rate, layer_decay=decay)
        for number, (selector, rate) in enumerate(zip(selectors, rates, strict=True))
    ]


def _balanced(blocks: Blocks, count: int) -> Blocks:
    """Returns the last block of each of `count` groups of about as many parameters."""
    sizes = [count_params(v for leaf in block for v in own_variables(leaf)) for block in blocks]
    total, ends = sum(sizes), [-1]
    for number in range(1, count):
        # At least one block for this group, and one for each group after it.
        places = range(ends[-1] + 1, len(blocks) - (count - number))
        wanted = total * number / count
        ends.append(min(places, key=lambda end: abs(math.fsum(sizes[: end + 1]) - wanted)))
    return [blocks[end] for end in [*ends[1:], len(blocks) - 1]]


def _base_in(base: Any) -> Base:
    """Returns the base for the argument `base`; raises `ScheduleError` unless it is a layer."""
    if not isinstance(base, keras.layers.Layer):
        raise ScheduleError(
            "`base` must be the base itself, a built model or layer, as its blocks are read from "
            f"its graph. Received: base={base!r}"
        )
    return Base(base.name, Scope(LayerTree(base)))


def _blocks(base: Base) -> Blocks:
    blocks = weighted_blocks(base.scope.tree, base.leaves)
    if not blocks:
        raise ScheduleError(
            f"{base.label!r} has no weights, so there is nothing to unfreeze. Build it first, or "
            "pass another base."
        )
    return blocks


def _name(base: Base, leaf: Layer) -> str:
    return _unique(base.scope.tree, leaf)


def _unique(tree: LayerTree, leaf: Layer) -> str:
    """Returns the name of a layer, or its path if the name isn't unique."""
    alike = [other for other in tree.leaves if other.name == leaf.name]
    return leaf.name if len(alike) == 1 else tree.paths(leaf)[0]


def _epoch(start: Any) -> int:
    """Returns the epoch of the first of several stages; a trigger is an error."""
    at = check_at(start)
    if isinstance(at, Plateau):
        raise ScheduleError(
            "`start` must be an epoch, as the stages that follow are counted from it. For triggers "
            f"make a Schedule of Stage(Plateau(...), ...). Received: start={start!r}"
        )
    return at


def _whole(argument: str, value: Any) -> int:
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if whole and value >= 1:
        return int(value)
    raise ScheduleError(
        f"`{argument}` must be a whole number, 1 or more. Received: {argument}={value!r}"
    )
