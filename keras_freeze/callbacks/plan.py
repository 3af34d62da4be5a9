"""What one `fit` will do: which leaves are trainable in which stage. Checked before step 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from keras_freeze.errors import ScheduleError, warn
from keras_freeze.graph.base import Base, find_base
from keras_freeze.graph.hints import LORA
from keras_freeze.graph.selectors import Scope, select
from keras_freeze.graph.tree import Layer, LayerTree, adapters, children, own_variables
from keras_freeze.schedule.schedule import Schedule
from keras_freeze.schedule.stage import Stage
from keras_freeze.training.trainable import (
    check_not_only_batch_norm,
    flags_now,
    may_unfreeze,
    trained,
)


@dataclass
class Plan:
    """The trainable state of each stage.

    Attributes:
        tree: the whole model.
        bases: the bases that are frozen first; none if no callback asks for one.
        schedule: the stages, or None.
        batch_norm: `"freeze"` or `"train"`.
        flags: for each stage number, those of all leaves that the plan rules, as in `trained`.
    """

    tree: LayerTree
    bases: list[Base]
    schedule: Schedule | None
    batch_norm: str
    flags: list[dict[int, bool]] = field(default_factory=list)

    @property
    def base_leaves(self) -> list[Layer]:
        return [leaf for base in self.bases for leaf in base.leaves]

    @property
    def ruled(self) -> list[Layer]:
        """The leaves that a stage, or the freezing of a base, says something of."""
        keys = {key for flags in self.flags for key in flags}
        return [
            leaf
            for leaf in self.tree.leaves
            if id(leaf) in keys or any(id(variable) in keys for variable in adapters(leaf))
        ]

    def flags_after(self, number: int, epochs: int | None) -> list[dict[int, bool]]:
        """Returns the flags of the stages that come after one and are reached."""
        stages = [(n, stage.at) for n, stage in enumerate(self.schedule or (), start=1)]
        unreached = [n for n, at in stages if epochs and isinstance(at, int) and at >= epochs]
        return [self.flags[n] for n, _ in stages if n > number and n not in unreached]

    def unfrozen(self, number: int, before: int) -> list[Any]:
        """The variables that are trained in a stage and weren't in another one."""
        return [v for leaf in self.ruled for v in self._new(leaf, number, before)]

    def unfrozen_layers(self, number: int, before: int) -> list[Layer]:
        """The layers of these variables."""
        return [leaf for leaf in self.ruled if self._new(leaf, number, before)]

    def _new(self, leaf: Layer, number: int, before: int) -> list[Any]:
        then = {id(variable) for variable in trained(leaf, self.flags[before])}
        return [v for v in trained(leaf, self.flags[number]) if id(v) not in then]

    def stage(self, number: int) -> Stage | None:
        """The stage of that number; None before the first."""
        return self.schedule[number] if self.schedule is not None and number else None

    def title(self, number: int) -> str:
        """How the user's lines call the stage of that number."""
        stage = self.stage(number)
        return stage.title(number) if stage else "Stage 0 (frozen base)"

    def number_at(self, epoch: int, begun: Mapping[int, int] | None = None) -> int:
        return 0 if self.schedule is None else self.schedule.number_at(epoch, begun)


def make_plan(
    model: Any, frozen: list[Any], schedule: Schedule | None, base: Any, batch_norm: str
) -> Plan:
    """Resolves every name against the model.

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
        scope = bases[0].scope  # its own graph serves "20%" and "-20:"
    if schedule is not None and (base is not None or not bases):
        own = find_base(model, base)
        same = next((found for found in bases if _is_same(found, own)), None)
        bases, scope = bases if same else [*bases, own], (same or own).scope
    plan = Plan(tree, bases, schedule, batch_norm)
    plan.flags = _flags(plan, scope)
    for number in range(plan.number_at(0), len(plan.flags)) if plan.bases else ():
        _check_something_trains(plan, number)
    return plan


def _is_same(one: Base, other: Base) -> bool:
    return {id(leaf) for leaf in one.leaves} == {id(leaf) for leaf in other.leaves}


class Change(NamedTuple):
    """What one stage says.

    Attributes:
        flags: as in `trained`.
        adapters: those of them that are of LoRA adapters that were named as such.
    """

    flags: dict[int, bool]
    adapters: dict[int, bool]


def _flags(plan: Plan, scope: Scope) -> list[dict[int, bool]]:
    """The base begins frozen; its LoRA adapters don't, unless a stage unfreezes them by `"lora"`.

    Outside the base a layer begins as it is, but trainable if the first stage that names it freezes
    it.
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
        if flags[-1] == flags[-2] and not names_a_head:  # who lists the head means no harm
            _warn_of_idle_stage(stage, number)
    return flags


def _change(plan: Plan, scope: Scope, number: int, stage: Stage) -> Change:
    unfrozen, unfrozen_lora = _selected(plan, scope, number, stage, "unfreeze")
    frozen, frozen_lora = _selected(plan, scope, number, stage, "freeze")
    both = [leaf.name for leaf in unfrozen if any(leaf is other for other in frozen)]
    if both:
        raise ScheduleError(
            f"{stage.title(number)} (at={stage.at}) both unfreezes and freezes {both[:5]}. "
            f"Take them out of one. Received: unfreeze={stage.unfreeze!r}, freeze={stage.freeze!r}"
        )
    base = {id(leaf) for leaf in plan.base_leaves}
    ruled = [leaf for leaf in unfrozen if id(leaf) in base]  # by the BatchNorm policy
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
    """The leaves that a stage names, and the adapters that it names by `"lora"`."""
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


def _check_something_trains(plan: Plan, number: int) -> None:
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
    """Which layers outside the base are frozen by which line."""
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
    """What to do about it; a base may hold all weights, as that of a language model does."""
    if outside:
        return f"Leave one of these trainable, or name a smaller base than {plan.bases[0].label!r}."
    root = plan.bases[0].scope.tree.root if plan.bases else plan.tree.root
    blocks = [layer for layer in children(root) if layer.weights]
    remedy = "Add a head after the base, or name a smaller base"
    if len(blocks) > 1:
        remedy += f": FreezeBase(':{blocks[(len(blocks) - 1) // 2].name}') freezes its lower layers"
    if any(adapters(leaf) for leaf in plan.base_leaves):
        return f"{remedy}. Or let its adapters train from the start: take 'lora' out of `unfreeze`."
    if hasattr(root, "enable_lora"):
        return f"{remedy}. Or add adapters before `compile`: {root.name}.enable_lora(rank=4)."
    return f"{remedy}."


def _warn_of_idle_stage(stage: Stage, number: int) -> None:
    named = stage.unfreeze is not None or stage.freeze is not None
    if named and stage.learning_rate is None:
        warn(
            f"{stage.title(number)} (at={stage.at}) changes no layer: what it names is already so. "
            f"Received: {stage!r}",
        )


def warn_of_unreached(schedule: Schedule, epochs: int) -> None:
    """Warns of stages that lie after the last epoch."""
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
