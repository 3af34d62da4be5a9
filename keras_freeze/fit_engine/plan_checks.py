"""Errors and warnings about a schedule's effect on a model, before the first step."""

from __future__ import annotations

from keras_freeze.errors import ScheduleError, warn
from keras_freeze.fit_engine.trainable_plan import Plan
from keras_freeze.graph.layer_tree import Layer, adapters, children, own_variables
from keras_freeze.keras_internals.trainable_flags import trained
from keras_freeze.schedule.schedule import Schedule
from keras_freeze.schedule.stage import Stage


def check_something_trains(plan: Plan, number: int) -> None:
    """Raises `ScheduleError` if a stage leaves nothing trainable."""
    flags = plan.flags[number]
    if any(trained(leaf, flags) for leaf in plan.tree.leaves):
        return
    stage = plan.stage(number)
    labels = ", ".join(repr(base.label) for base in plan.bases)
    outside = [leaf for leaf in plan.tree.leaves if own_variables(leaf)]
    base = {id(leaf) for leaf in plan.base_leaves}
    outside = [leaf for leaf in outside if id(leaf) not in base]
    rest = f"it holds all weights of {plan.tree.root.name!r}"
    if outside:
        rest = f"so is the rest: {_who_froze(plan, outside, number)}"
    title = stage.title(number) if stage else "Stage 0 (before the first)"
    raise ScheduleError(
        f"{title} leaves nothing trainable: the base ({labels}) is frozen, and {rest}. "
        f"{_remedy(plan, outside)} Received: {stage!r}"
    )


def _who_froze(plan: Plan, layers: list[Layer], number: int) -> str:
    """Returns which layers outside the base are frozen by which stage."""
    parts, left = [], list(layers)
    for each in range(number, 0, -1):
        flags, before = plan.flags[each], plan.flags[each - 1]
        found = [leaf for leaf in left if trained(leaf, before) and not trained(leaf, flags)]
        left = [leaf for leaf in left if leaf not in found]
        if found:
            parts.append(f"{_named(found)} by {plan.stage(each)!r}")
    return "; ".join([*parts, f"{_named(left)} since before `fit`"] if left else parts)


def _named(layers: list[Layer]) -> str:
    names = [repr(leaf.name) for leaf in layers]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _remedy(plan: Plan, outside: list[Layer]) -> str:
    """Returns the remedy. A base may hold all weights, as in a language model."""
    if outside:
        return f"Leave one of these trainable, or name a smaller base than {plan.bases[0].label!r}."
    root = plan.bases[0].scope.tree.root if plan.bases else plan.tree.root
    blocks = [layer for layer in children(root) if layer.weights]
    remedy = "Add a head after the base, or name a smaller base"
    if len(blocks) > 1:
        remedy += f": FreezeBase(':{blocks[(len(blocks) - 1) // 2].name}') freezes its lower layers"
    if any(adapters(leaf) for leaf in plan.base_leaves):
        return f"{remedy}. Or train its adapters from the start: remove 'lora' from `unfreeze`."
    if hasattr(root, "enable_lora"):
        return f"{remedy}. Or add adapters before `compile`: {root.name}.enable_lora(rank=4)."
    return f"{remedy}."


def warn_of_idle_stage(stage: Stage, number: int) -> None:
    """Warns about a stage that names layers but changes none."""
    named = stage.unfreeze is not None or stage.freeze is not None
    if named and stage.learning_rate is None:
        warn(
            f"{stage.title(number)} (at={stage.at}) changes no layer: the layers that it names "
            f"already have this state. Received: {stage!r}",
        )


def warn_of_unreached(schedule: Schedule, epochs: int) -> None:
    """Warns about stages after the last epoch."""
    for number, stage in enumerate(schedule, start=1):
        if isinstance(stage.at, int) and stage.at >= epochs:
            warn(
                f"{stage.title(number)} (at={stage.at}) is never reached: fit ends after "
                f"{epochs} epochs, and epochs count from 0. Pass epochs={stage.at + 1} or more to "
                "fit, or move the stage.",
            )


def warn_of_untrained_head(stage: Stage) -> None:
    """Warns that the first stage unfreezes the base before the head has learned anything."""
    warn(
        f"The base is unfrozen at epoch {stage.at} while the head is still untrained: the large "
        "gradients of a random head would overwrite the pretrained features. Train the head on "
        "the frozen base first, that is, begin the schedule at a later epoch. "
        f"Received: {stage!r}",
    )
