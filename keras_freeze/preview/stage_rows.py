"""Computes the rows of a preview: for each stage, layers, rates, memory and operations."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_freeze.display.fit_messages import shorten
from keras_freeze.errors import FreezeError, ScheduleError
from keras_freeze.fit_engine.collect_stage_report import names_of
from keras_freeze.fit_engine.learning_rate_multipliers import multipliers_of
from keras_freeze.fit_engine.make_plan import make_plan
from keras_freeze.fit_engine.stage_learning_rates import stage_rates
from keras_freeze.fit_engine.trainable_plan import Plan
from keras_freeze.graph.layer_tree import count_params
from keras_freeze.keras_internals import learning_rates
from keras_freeze.keras_internals.estimate_optimizer_bytes import slot_bytes
from keras_freeze.keras_internals.trainable_flags import flags_now, trained
from keras_freeze.preview.preview_footnotes import reasons
from keras_freeze.preview.work_of_stage import work_of_stage
from keras_freeze.schedule.schedule import Schedule
from keras_freeze.schedule.stage import Stage

Row = dict[str, Any]
ROOM = 60  # maximum number of characters for names in a cell


def stage_rows(
    schedule: Schedule,
    model: Any,
    *,
    epochs: int | None,
    steps_per_epoch: int | None,
    images: int | None,
    base: Any,
    views: int | None,
) -> list[Row]:
    """Returns a row for each stage; the arguments are those of `Schedule.preview`."""
    if not isinstance(model, keras.Model) or not model.built:
        raise FreezeError(
            "`model` of preview must be a built Keras model: call it on one batch, or give it an "
            f"Input. Received: model={model!r}"
        )
    _check_reached(schedule, epochs)
    chosen = schedule.base if base is None else base
    plan = make_plan(model, [], schedule, chosen, schedule.batch_norm or "freeze")
    optimizer = getattr(model, "optimizer", None)  # None before `compile`
    now = learning_rates.original_rates(optimizer) if optimizer is not None else None
    original, rows = now, []
    shares: learning_rates.Shares = [None] * len(now or ())
    for number in range(len(schedule) + 1):
        stage = plan.stage(number)
        if stage is not None and now is not None and original is not None:
            resets = _resets(schedule, stage)
            now, shares = stage_rates(stage, number, now, shares, original, resets=resets)
        begins, ends = _limits(schedule, number, epochs)
        row: Row = {
            "stage": number,
            "name": stage.name if stage is not None else "frozen base",
            "begins": stage.at if stage is not None else 0,
            **_length(begins, ends, steps_per_epoch),
            **_layers(plan, number),
            **_rates(plan, number, now, shares),
            **_memory(plan, number, optimizer),
            **work_of_stage(plan, number, model, (begins, ends), epochs, images, views),
        }
        triggers = _waits(schedule, number) or _waits(schedule, number + 1)
        row["why"] = reasons(row, row.pop("aside"), triggers, optimizer is not None)
        rows.append(row)
    return rows if schedule.number_at(0) == 0 else rows[1:]


def _waits(schedule: Schedule, number: int) -> bool:
    """Returns True if a stage begins by a trigger."""
    return 0 < number <= len(schedule) and not isinstance(schedule[number].at, int)


def _check_reached(schedule: Schedule, epochs: int | None) -> None:
    for number, stage in enumerate(schedule, start=1):
        if epochs is not None and isinstance(stage.at, int) and stage.at >= epochs:
            raise ScheduleError(
                f"{stage.title(number)} (at={stage.at}) is never reached in {epochs} epochs, which "
                f"count from 0. Train for {stage.at + 1} or more, or move the stage."
            )


def _resets(schedule: Schedule, stage: Stage) -> bool:
    return (stage.optimizer or schedule.optimizer) == "reset"


def _limits(schedule: Schedule, number: int, epochs: int | None) -> tuple[Any, Any]:
    """Returns at what a stage begins and ends: an epoch, a trigger, or None if unknown."""
    begins = schedule[number].at if number else 0
    return begins, schedule[number + 1].at if number < len(schedule) else epochs


def _length(begins: Any, ends: Any, steps: int | None) -> Row:
    """Returns the epochs and steps; None if a trigger decides or the end is unknown."""
    if not isinstance(begins, int) or not isinstance(ends, int):
        return {"epochs": None, "steps": None}
    return {"epochs": ends - begins, "steps": (ends - begins) * steps if steps else None}


def _flags(plan: Plan, number: int) -> dict[int, bool]:
    return flags_now(plan.tree) | plan.flags[number]


def _trained(plan: Plan, number: int) -> list[Any]:
    flags = _flags(plan, number)
    return [variable for leaf in plan.tree.leaves for variable in trained(leaf, flags)]


def _layers(plan: Plan, number: int) -> Row:
    count = count_params(_trained(plan, number))
    before = number - 1 if number else number
    changes = {
        "+ ": plan.unfrozen_layers(number, before),
        "- ": plan.unfrozen_layers(before, number),
    }
    named = [(sign, names_of(plan, set(map(id, leaves)))) for sign, leaves in changes.items()]
    return {
        "thawed": [leaf.name for leaf in changes["+ "]],
        "frozen": [leaf.name for leaf in changes["- "]],
        "layers": "; ".join(sign + shorten(names, ROOM) for sign, names in named if names) or None,
        "trainable_params": count,
        "frozen_params": int(plan.tree.root.count_params()) - count,
    }


def _rates(
    plan: Plan, number: int, now: list[Any] | None, base_shares: learning_rates.Shares
) -> Row:
    """Returns the rates of the optimizer, of the base, and the lowest one of a trained layer."""
    rate = now[0] if now is not None and len(now) == 1 else now
    share = base_shares[0] if len(base_shares) == 1 else None
    schedule = plan.schedule
    assert schedule is not None
    multipliers = multipliers_of(
        plan, number, lambda stage: _resets(schedule, stage), lambda _: share
    )
    learning = _trained(plan, number)
    shares = [multipliers[id(v)].scale if id(v) in multipliers else 1.0 for v in learning]
    base, lowest = rate, rate
    if isinstance(rate, float):
        base = rate if share is None else rate * share
        lowest = rate * min(shares, default=1.0)
    stage = plan.stage(number)
    return {
        "learning_rate": rate,
        "base_learning_rate": base,
        "lowest_rate": lowest,
        "warmup_steps": stage.warmup_steps if stage is not None else 0,
    }


def _memory(plan: Plan, number: int, optimizer: Any) -> Row:
    learning = _trained(plan, number)
    known = slot_bytes(optimizer, learning) if optimizer is not None else None
    return {"optimizer_bytes": known}


def number_of_images(data: Any) -> int | None:
    """Returns the number of samples in the data.

    Args:
        data: a number, arrays as `fit` takes them (`x`, `(x, y)`), or None.

    Raises:
        FreezeError: `data` is of another type, which can't be counted without reading it.
    """
    if data is None:
        return None
    if isinstance(data, (int, np.integer)) and not isinstance(data, bool) and data > 0:
        return int(data)
    first = keras.tree.flatten(data)[:1] if isinstance(data, (list, tuple, dict)) else [data]
    shape = getattr(first[0], "shape", None) if first else None
    if shape is not None and len(shape):
        return int(shape[0])
    raise FreezeError(
        "`data` of preview must be the number of samples, or arrays as fit takes them. "
        f"Received: data={type(data).__name__}"
    )


def memory_of(row: Row) -> tuple[int, int]:
    """Returns the sort key of a row for the order by memory: slots, then trained parameters."""
    return (row["optimizer_bytes"] or 0, row["trainable_params"])
