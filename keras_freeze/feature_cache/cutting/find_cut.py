"""Finds the last tensors of a graph that depend on frozen, deterministic layers only."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from keras_freeze.feature_cache.not_cacheable import TRAINS, VARIES
from keras_freeze.graph.layer_calls import LayerCall, Program, Value


@dataclass(frozen=True)
class Cut:
    """A graph (a list of layer calls, the program) divided into a cached part and the rest.

    Attributes:
        values: the tensors that are computed once for each row of the data and cached.
        tail: the layer calls that run in each step.
        given: the places of the inputs that the tail reads itself.
        fixed: all tensors that are the same in each step.
        obstacle: a layer without which frozen layers after it could be cached, or None.
        reason: why the obstacle's output changes.
        is_inside: whether frozen layers also come before the obstacle.
    """

    values: tuple[Value, ...]
    tail: tuple[LayerCall, ...]
    given: tuple[int, ...]
    fixed: frozenset[Value]
    obstacle: Any = None
    reason: str = ""
    is_inside: bool = False


def find_cut(
    program: Program,
    why_not: Callable[[Any], str],
    is_frozen: Callable[[Any], bool],
    *,
    records: bool = False,
) -> Cut:
    """Finds the latest possible cut of a program.

    Args:
        program: the graph.
        why_not: returns why a layer's output changes from step to step; "" if it doesn't.
        is_frozen: returns whether a layer has weights and all are frozen. Layers without such a
            layer before them, as a Rescaling, run in each step and aren't cached.
        records: whether epochs are recorded as they run, so that random layers may come before
            frozen ones.
    """
    fixed, worth = set(program.inputs), set[Value]()
    frontier: list[tuple[LayerCall, str]] = []
    for call in program.calls:
        reason = "" if call.enters else why_not(call.operation)
        ready = fixed.issuperset(call.reads.values())
        is_drawn = records and reason in VARIES and _goes_to(program, call, is_frozen, why_not)
        if ready and (is_drawn or not reason):
            fixed.update(call.writes)
            is_worth_it = is_drawn or is_frozen(call.operation)
            if is_worth_it or not worth.isdisjoint(call.reads.values()):
                worth.update(call.writes)
        elif ready:
            frontier.append((call, reason))
    values, tail, needed = set[Value](), list[LayerCall](), set(program.outputs)
    for call in reversed(program.calls):
        if needed.isdisjoint(call.writes):
            continue
        kept = needed.intersection(call.writes) & fixed & worth
        if kept:
            values |= kept
        else:
            tail.append(call)
            needed.update(call.reads.values())
    given = tuple(place for place, number in enumerate(program.inputs) if number in needed)
    barrier, reason = _obstacle(program, frontier, is_frozen, why_not if records else _nothing)
    return Cut(
        values=tuple(sorted(values)),
        tail=tuple(reversed(tail)),
        given=given,
        fixed=frozenset(fixed),
        obstacle=barrier and barrier.operation,
        reason=reason,
        is_inside=barrier is not None and not worth.isdisjoint(barrier.reads.values()),
    )


def _obstacle(
    program: Program,
    frontier: list[tuple[LayerCall, str]],
    is_frozen: Callable[[Any], bool],
    why_not: Callable[[Any], str],
) -> tuple[LayerCall | None, str]:
    """Returns an untrained layer's call whose output changes and goes to frozen layers, and why."""
    for call, reason in frontier:
        if reason != TRAINS and _goes_to(program, call, is_frozen, why_not):
            return call, reason
    return None, ""


def _nothing(operation: Any) -> str:
    return ""


def _goes_to(
    program: Program,
    call: LayerCall,
    is_frozen: Callable[[Any], bool],
    why_not: Callable[[Any], str],
) -> bool:
    """Returns True if frozen layers come after a call, not behind layers that train."""
    return any(is_frozen(other.operation) for other in _behind(program, call, why_not))


def _behind(
    program: Program, first: LayerCall, why_not: Callable[[Any], str]
) -> Iterable[LayerCall]:
    reached = set(first.writes)
    for call in program.calls:
        trains = not call.enters and why_not(call.operation) == TRAINS
        if not trains and not reached.isdisjoint(call.reads.values()):
            reached.update(call.writes)
            yield call


def prefix_of(program: Program, values: Iterable[Value]) -> tuple[tuple[LayerCall, ...], list[int]]:
    """Returns the layer calls that compute `values`, and the places of the inputs they read."""
    needed, calls = set(values), []
    for call in reversed(program.calls):
        if not needed.isdisjoint(call.writes):
            calls.append(call)
            needed.update(call.reads.values())
    places = [place for place, number in enumerate(program.inputs) if number in needed]
    return tuple(reversed(calls)), places


def calls_after(
    calls: Iterable[LayerCall], values: Iterable[Value], known: Collection[Value]
) -> tuple[tuple[LayerCall, ...], set[Value]]:
    """Returns the layer calls that compute `values` from known ones, and what they begin with.

    Args:
        calls: the calls of the prefix, in order.
        values: the values to compute.
        known: values from which to begin, where possible.
    """
    needed, sources, kept = set(values), set[Value](), list[LayerCall]()
    for call in reversed(list(calls)):
        wanted = needed.intersection(call.writes)
        needed -= wanted
        if wanted and wanted.issubset(known):
            sources |= wanted
        elif wanted:
            kept.append(call)
            needed.update(call.reads.values())
    return tuple(reversed(kept)), sources | needed
