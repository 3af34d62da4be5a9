"""Finds the compiled learning rates again in a fit that continues a run of another process.

A saved optimizer has the rates of the stage that ran last. The compiled ones, with which a stage
with `optimizer="reset"` begins, follow from them if the stages so far only multiplied the rate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from keras_freeze.errors import warn
from keras_freeze.fit_engine.stage_learning_rates import stage_rates
from keras_freeze.fit_engine.trainable_plan import Plan
from keras_freeze.keras_internals import learning_rates
from keras_freeze.schedule.stage import Stage

Resets = Callable[[Stage], bool]  # whether a stage resets the optimizer


class FoundRates(NamedTuple):
    """What is known of the rates of a loaded optimizer.

    Attributes:
        original: the compiled rates; the loaded ones if they are unknown.
        shares: the base's rate now, as a part of each rate.
    """

    original: list[Any]
    shares: learning_rates.Shares


def find_rates(plan: Plan, last: int, loaded: list[Any], resets: Resets) -> FoundRates:
    """Returns the compiled rates and the base's shares; warns if the run needs unknown ones.

    Args:
        plan: which layers are trainable in which stage.
        last: number of the stage that ran last.
        loaded: the rates of the optimizer.
        resets: returns whether a stage resets the optimizer.
    """
    found = _compiled(plan, last, loaded, resets)
    if found is None:
        _warn_of_resets(plan, last, loaded, resets)
    return FoundRates(found or loaded, _shares(plan, last, loaded, found, resets))


def _compiled(plan: Plan, last: int, loaded: list[Any], resets: Resets) -> list[Any] | None:
    """Returns the compiled rates; None if a stage has set others since then."""
    factors: list[float] = []
    for number in range(last, 0, -1):
        stage = plan.stage(number)
        assert stage is not None
        if isinstance(stage.learning_rate, Mapping):
            factors.insert(0, stage.learning_rate["factor"])
        elif stage.learning_rate is not None:
            return None
        if resets(stage):
            break
    return [learning_rates.before_factors(rate, factors) for rate in loaded]


def _shares(
    plan: Plan, last: int, loaded: list[Any], compiled: list[Any] | None, resets: Resets
) -> learning_rates.Shares:
    """Returns the base's shares in the last stage, by going through the stages so far."""
    numbers = [rate if isinstance(rate, float) else 1.0 for rate in loaded]
    original = compiled or numbers  # unknown rates, which only unknown shares depend on
    now = original
    shares: learning_rates.Shares = [None] * len(loaded)
    rates_known, unknown = compiled is not None, 0
    for number in range(1, last + 1):
        stage = plan.stage(number)
        assert stage is not None
        if resets(stage):
            rates_known, unknown = compiled is not None, 0
        if stage.learning_rate is not None and not isinstance(stage.learning_rate, Mapping):
            rates_known = True
        now, shares = stage_rates(stage, number, now, shares, original, resets=resets(stage))
        now = list(map(learning_rates.stored, now))
        if stage.base_learning_rate is not None:
            is_part = isinstance(stage.base_learning_rate, Mapping)
            unknown = 0 if is_part or rates_known else number
    if unknown:
        _warn_of_share(plan, unknown)
    return shares


def _warn_of_resets(plan: Plan, last: int, loaded: list[Any], resets: Resets) -> None:
    for number in range(last + 1, len(plan.flags)):
        stage = plan.stage(number)
        assert stage is not None
        own = stage.learning_rate
        if resets(stage) and (own is None or isinstance(own, Mapping)):
            warn(
                f"{stage.title(number)} resets the optimizer and begins with the learning rate set "
                "by `compile`. The optimizer was loaded from a file, which has only the rate that "
                f"an earlier stage set, so that rate is used: {loaded}. Give the stage a "
                f"`learning_rate`. Received: {stage!r}"
            )
            return


def _warn_of_share(plan: Plan, number: int) -> None:
    stage = plan.stage(number)
    assert stage is not None
    warn(
        f"{stage.title(number)} sets the base's learning rate, which is kept as a part of "
        "`learning_rate`. The optimizer was loaded from a file, which doesn't have the "
        "`learning_rate` of that stage, so the part isn't known: the present rate is used in its "
        "place. Pass the part itself, such as base_learning_rate={'factor': 0.1}. "
        f"Received: {stage!r}"
    )
