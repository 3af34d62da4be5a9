"""Makes the plan of a `fit` (which layers are trainable in which stage) from names of layers."""

from __future__ import annotations

from typing import Any, NamedTuple

from keras_freeze.errors import ScheduleError
from keras_freeze.fit_engine.plan_checks import (
    check_something_trains,
    warn_of_idle_stage,
    warn_of_unreached,
)
from keras_freeze.fit_engine.trainable_plan import Plan
from keras_freeze.graph.find_base import Base, find_base
from keras_freeze.graph.layer_tree import Layer, LayerTree, adapters
from keras_freeze.graph.selector_hints import LORA
from keras_freeze.graph.selector_scope import Scope
from keras_freeze.graph.selectors import select
from keras_freeze.keras_internals.trainable_flags import (
    check_not_only_batch_norm,
    flags_now,
    may_unfreeze,
)
from keras_freeze.schedule.schedule import Schedule
from keras_freeze.schedule.stage import Stage


def plan_of_callbacks(model: Any, freezing: list[Any], gradual: Any, epochs: int | None) -> Plan:
    """Makes the plan from the callbacks' arguments.

    Args:
        model: the built model that is fitted.
        freezing: the FreezeBase callbacks.
        gradual: the GradualUnfreeze, or None.
        epochs: number of epochs, if known; each stage that begins later is a warning.
    """
    asked = [callback.batch_norm for callback in (*freezing, gradual) if callback is not None]
    schedule = gradual.schedule if gradual else None
    plan = make_plan(
        model,
        [callback.base for callback in freezing],
        schedule,
        gradual.base if gradual else None,
        "train" if "train" in asked else "freeze",
    )
    if schedule is not None and epochs is not None:
        warn_of_unreached(schedule, epochs)
    return plan


def make_plan(
    model: Any, frozen: list[Any], schedule: Schedule | None, base: Any, batch_norm: str
) -> Plan:
    """Makes the plan; finds the layers that bases and stages name.

    Args:
        model: the built model that is fitted.
        frozen: the `base` argument of each FreezeBase.
        schedule: the schedule of GradualUnfreeze, or None.
        base: the `base` argument of GradualUnfreeze.
        batch_norm: `"freeze"` or `"train"`.

    Raises:
        LayerMatchError: a base or a selector matches no layer.
        ScheduleError: a stage would leave nothing trainable, or freezes what it unfreezes.
    """
    bases = [find_base(model, given) for given in frozen]
    tree = LayerTree(model)
    scope = Scope(tree, [leaf for found in bases for leaf in found.leaves])
    if len(bases) == 1:
        scope = bases[0].scope  # "20%" and "-20:" need the base's own graph
    if schedule is not None and (base is not None or not bases):
        own = find_base(model, base)
        same = next((found for found in bases if _is_same(found, own)), None)
        bases, scope = bases if same else [*bases, own], (same or own).scope
    plan = Plan(tree, bases, schedule, batch_norm)
    plan.flags = _flags(plan, scope)
    for number in range(plan.number_at(0), len(plan.flags)) if plan.bases else ():
        check_something_trains(plan, number)
    return plan


def _is_same(one: Base, other: Base) -> bool:
    return {id(leaf) for leaf in one.leaves} == {id(leaf) for leaf in other.leaves}


class Change(NamedTuple):
    """The changes of one stage.

    Attributes:
        flags: whether layers and variables are trainable, as in `trained`.
        adapters: the flags among them of LoRA adapters that the stage names by `"lora"`.
    """

    flags: dict[int, bool]
    adapters: dict[int, bool]


def _flags(plan: Plan, scope: Scope) -> list[dict[int, bool]]:
    """Returns the flags of each stage.

    The base begins frozen. Its LoRA adapters begin trainable unless a stage unfreezes them by
    `"lora"`. A layer outside the base begins as it is, or trainable if the first stage that names
    it freezes it.
    """
    stages = [] if plan.schedule is None else list(plan.schedule)
    changes = [_change(plan, scope, number, stage) for number, stage in enumerate(stages, start=1)]
    first: dict[int, bool] = {}
    for change in changes:
        first = {key: not trainable for key, trainable in change.adapters.items()} | first
    start = {id(leaf): False for leaf in plan.base_leaves}
    for leaf in plan.base_leaves:
        start |= {id(v): first.get(id(v), True) for v in adapters(leaf)}
    inside, now = set(start), flags_now(plan.tree)
    for change in changes:
        for key, trainable in change.flags.items():
            start.setdefault(key, now[key] or not trainable)
    flags = [start]
    for number, change in enumerate(changes, start=1):
        flags.append({**flags[-1], **change.flags})
        stage = stages[number - 1]
        names_a_head = stage.freeze is None and inside.isdisjoint(change.flags)
        if flags[-1] == flags[-2] and not names_a_head:  # listing the head again is no mistake
            warn_of_idle_stage(stage, number)
    return flags


def _change(plan: Plan, scope: Scope, number: int, stage: Stage) -> Change:
    unfrozen, unfrozen_lora = _selected(plan, scope, number, stage, "unfreeze")
    frozen, frozen_lora = _selected(plan, scope, number, stage, "freeze")
    both = [leaf.name for leaf in unfrozen if any(leaf is other for other in frozen)]
    if both:
        raise ScheduleError(
            f"{stage.title(number)} (at={stage.at}) both unfreezes and freezes {both[:5]}. "
            f"Remove them from one. Received: unfreeze={stage.unfreeze!r}, freeze={stage.freeze!r}"
        )
    base = {id(leaf) for leaf in plan.base_leaves}
    ruled = [leaf for leaf in unfrozen if id(leaf) in base]  # by `batch_norm`
    if len(ruled) == len(unfrozen):
        where = f"`unfreeze` of {stage.title(number)} (at={stage.at})"
        check_not_only_batch_norm(unfrozen, plan.batch_norm, where)
    change = {id(leaf): True for leaf in unfrozen}
    change |= {id(leaf): may_unfreeze(leaf, plan.batch_norm) for leaf in ruled}
    change |= {id(leaf): False for leaf in frozen}
    change |= {id(v): change[id(leaf)] for leaf in (*unfrozen, *frozen) for v in adapters(leaf)}
    lora = {id(v): True for v in unfrozen_lora} | {id(v): False for v in frozen_lora}
    return Change(change | lora, lora)


def _selected(
    plan: Plan, scope: Scope, number: int, stage: Stage, argument: str
) -> tuple[list[Layer], list[Any]]:
    """Returns the layers that a stage names, and the adapters that it names by `"lora"`."""
    selector = getattr(stage, argument)
    items = list(selector) if isinstance(selector, (list, tuple)) else [selector]
    where = f"`{argument}` of {stage.title(number)} (at={stage.at})"
    options: dict[str, Any] = {"where": where, "fallback": Scope(plan.tree)}
    lora: list[Any] = []
    if any(isinstance(item, str) and item == LORA for item in items):
        named = select(scope, LORA, **options)
        lora = [variable for leaf in named for variable in adapters(leaf)]
    if lora:
        items = [item for item in items if not isinstance(item, str) or item != LORA]
    rest = items if isinstance(selector, (list, tuple)) else items[0] if items else None
    nothing = rest is None or (bool(lora) and rest == [])
    return ([] if nothing else select(scope, rest, **options)), lora
