"""Where a program is cut: the last values before which everything is frozen and deterministic."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from keras_freeze.feature_cache.not_cacheable import TRAINS
from keras_freeze.graph.flat_program import Program, Step, Value


@dataclass(frozen=True)
class Cut:
    """A program in two parts.

    Attributes:
        values: what is computed once for each image, and kept.
        tail: the steps that run in each training step.
        given: the places of the inputs that the tail reads itself.
        fixed: all values that are the same in each step.
        obstacle: the layer that alone keeps frozen layers after it from being cached, or None.
        reason: what is wrong with the obstacle.
        is_inside: whether frozen layers come before the obstacle too.
    """

    values: tuple[Value, ...]
    tail: tuple[Step, ...]
    given: tuple[int, ...]
    fixed: frozenset[Value]
    obstacle: Any = None
    reason: str = ""
    is_inside: bool = False


def find_cut(
    program: Program, why_not: Callable[[Any], str], is_frozen: Callable[[Any], bool]
) -> Cut:
    """Cuts a program as late as possible.

    Args:
        program: of the model.
        why_not: tells of a layer why its output changes from step to step; "" if it doesn't.
        is_frozen: whether a layer has weights and all are frozen. What no such layer is in front
            of (a Rescaling) is run again rather than kept.
    """
    fixed, worth = set(program.inputs), set[Value]()
    frontier: list[tuple[Step, str]] = []
    for step in program.steps:
        reason = "" if step.enters else why_not(step.operation)
        ready = fixed.issuperset(step.reads.values())
        if ready and not reason:
            fixed.update(step.writes)
            if is_frozen(step.operation) or not worth.isdisjoint(step.reads.values()):
                worth.update(step.writes)
        elif ready:
            frontier.append((step, reason))
    values, tail, needed = set[Value](), list[Step](), set(program.outputs)
    for step in reversed(program.steps):
        if needed.isdisjoint(step.writes):
            continue
        kept = needed.intersection(step.writes) & fixed & worth
        if kept:
            values |= kept
        else:
            tail.append(step)
            needed.update(step.reads.values())
    given = tuple(place for place, number in enumerate(program.inputs) if number in needed)
    barrier, reason = _obstacle(program, frontier, is_frozen)
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
    program: Program, frontier: list[tuple[Step, str]], is_frozen: Callable[[Any], bool]
) -> tuple[Step | None, str]:
    """The call of a layer that doesn't train, but changes, and has frozen layers after it."""
    for step, reason in frontier:
        behind = _behind(program, step) if reason != TRAINS else ()
        if any(is_frozen(other.operation) for other in behind):
            return step, reason
    return None, ""


def _behind(program: Program, first: Step) -> Iterable[Step]:
    reached = set(first.writes)
    for step in program.steps:
        if not reached.isdisjoint(step.reads.values()):
            reached.update(step.writes)
            yield step


def prefix_of(program: Program, values: Iterable[Value]) -> tuple[tuple[Step, ...], list[int]]:
    """Returns the steps that lead to `values`, and the places of the inputs that they read."""
    needed, steps = set(values), []
    for step in reversed(program.steps):
        if not needed.isdisjoint(step.writes):
            steps.append(step)
            needed.update(step.reads.values())
    places = [place for place, number in enumerate(program.inputs) if number in needed]
    return tuple(reversed(steps)), places
