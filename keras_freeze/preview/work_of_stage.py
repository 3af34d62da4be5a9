"""Computes what a cache holds and what work a step has in a stage, for a preview."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras_freeze.feature_cache.cutting.choose_cached_part import ChosenCut, choose, symbols_of
from keras_freeze.feature_cache.cutting.graph_to_cut import CachedModel
from keras_freeze.feature_cache.cutting.prefix_and_tail import GraphPrefix
from keras_freeze.feature_cache.cutting.tensors_to_cache import Flags
from keras_freeze.feature_cache.not_cacheable import NOTHING_FROZEN, NotCacheableError
from keras_freeze.feature_cache.storage.memory_limit_and_dtype import row_bytes
from keras_freeze.fit_engine.trainable_plan import Plan
from keras_freeze.graph.flops import backward_flops, total_flops
from keras_freeze.graph.layer_calls import Program
from keras_freeze.keras_internals.trainable_flags import flags_now, trained

Row = dict[str, Any]


def work_of_stage(
    plan: Plan,
    number: int,
    model: Any,
    limits: tuple[Any, Any],
    epochs: int | None,
    images: int | None,
    views: int | None,
) -> Row:
    """Returns the cut of a cache, its bytes, and the work as a share of training all layers.

    Args:
        plan: which layers are trainable in which stage.
        number: number of the stage.
        model: the model.
        limits: the epochs at which the stage begins and ends, if they are known.
        epochs: the epochs of the fit, if known.
        images: number of samples of the data, if known.
        views: as in `BottleneckCache`.
    """
    now = flags_now(plan.tree) | plan.flags[number]
    later = [now | flags for flags in plan.flags_after(number, epochs)]
    cached_model = CachedModel(model, plan.tree, plan.base_leaves, plan.base_leaves)
    choice, aside = _choice(cached_model, now, later, views)
    part = choice.part if choice is not None else None
    row: Row = dict.fromkeys(("cut", "row_bytes", "cache_bytes", "work", "work_cached"))
    row["aside"] = aside
    if choice is not None and part is not None:
        size = _row_bytes(cached_model, choice, views)
        total = size * images * (views or 1) if size is not None and images is not None else None
        row |= {"cut": choice.names, "row_bytes": size, "cache_bytes": total}
    program = cached_model.program if cached_model.is_readable else None
    forward = total_flops(program, program.calls) if program is not None else 0.0
    if program is None or not forward:
        return row
    backward = backward_flops(program, lambda layer: _trains(plan, layer, now))
    row["work"] = (forward + backward) / (3 * forward)
    if isinstance(part, GraphPrefix):
        served = total_flops(program, part.cut.tail) + backward
        row["work_cached"] = _mean(served, forward + backward, limits, views) / (3 * forward)
    return row


def _row_bytes(cached_model: CachedModel, choice: ChosenCut, views: int | None) -> int | None:
    """Returns the bytes of a row: of features and, in a recording, of inputs; no targets."""
    symbols = symbols_of(choice.part) if choice.part is not None else None
    program = cached_model.program
    if symbols is not None and views is not None and program is not None and choice.given:
        symbols = [*symbols, *(_input(program, place) for place in choice.given)]
    return None if symbols is None else row_bytes(symbols)


def _input(program: Program, place: int) -> Any:
    return program.symbols[program.inputs[place]]


def _mean(served: float, live: float, limits: tuple[Any, Any], views: int | None) -> float:
    """Returns the mean work of the stage's steps: those of recorded epochs run in full."""
    begins, ends = limits
    if views is None or not isinstance(begins, int) or not isinstance(ends, int):
        return served
    recorded = min(max(views - begins, 0), ends - begins)
    return served + (live - served) * recorded / max(1, ends - begins)


def _choice(
    cached_model: CachedModel, now: Flags, later: Sequence[Flags], views: int | None
) -> tuple[ChosenCut | None, str]:
    """Returns what a cache would serve in training, or why it would serve nothing."""
    try:
        cached_model.check()
        choice = choose(cached_model, now, later, records=views is not None)
    except NotCacheableError as error:
        return None, error.reason
    return choice, NOTHING_FROZEN if choice.part is None else ""


def _trains(plan: Plan, layer: Any, flags: dict[int, bool]) -> bool:
    below = plan.tree.below(layer) if layer in plan.tree else []
    return any(trained(leaf, flags) for leaf in below)
