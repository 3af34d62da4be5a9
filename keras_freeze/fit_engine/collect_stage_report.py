"""Collects what is printed when a stage begins, from the model's state at that time."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from keras_freeze.display.fit_messages import StageReport, base_line
from keras_freeze.fit_engine.trainable_plan import Plan
from keras_freeze.graph.layer_tree import LayerTree, adapters, count_params, own_variables
from keras_freeze.graph.shorten_layer_names import closed_containers, names_in_short
from keras_freeze.keras_internals.trainable_flags import flags_now, may_unfreeze


def trainable_layers(tree: LayerTree) -> set[int]:
    """Returns the ids of the leaves (layers without sublayers) whose weights are trained."""
    now = flags_now(tree)
    return {id(leaf) for leaf in tree.leaves if own_variables(leaf) and now[id(leaf)]}


def names_of(plan: Plan, leaves: Collection[int]) -> dict[str, int]:
    """Returns short names for some layers, and how many layers each name stands for.

    A container is named in place of all its layers, even if its BatchNormalization stays frozen.
    """
    closed = closed_containers(plan.tree, [base.leaves for base in plan.bases])
    idle = {id(leaf) for leaf in plan.base_leaves if not may_unfreeze(leaf, plan.batch_norm)}
    return names_in_short(plan.tree, leaves, closed, idle)


def describe_base(plan: Plan) -> str:
    """Returns the description of the base for the first lines that are printed."""
    weighted = {id(leaf) for leaf in plan.base_leaves if own_variables(leaf)}
    label = " + ".join(found.label for found in plan.bases)
    found = any(found.is_guessed for found in plan.bases)
    return base_line(label, len(weighted), found) if plan.bases else ""


def stage_report(
    model: Any,
    plan: Plan,
    title: str,
    when: str,
    before: set[int],
    now: set[int],
    rates: dict[str, float],
    optimizer_did: str,
    base: str,
) -> StageReport:
    """Returns the report of what a stage changed.

    Args:
        model: the model that is fitted.
        plan: which layers are trainable in which stage.
        title: title of the stage.
        when: when it begins.
        before: the trainable layers of the stage before it, as `trainable_layers` returns them.
        now: the trainable layers of this stage.
        rates: the learning rates, as in the logs.
        optimizer_did: what happened to the optimizer.
        base: description of the base, "" if it was printed before.
    """
    trainable = count_params(model.trainable_variables)
    return StageReport(
        title=title,
        when=when,
        unfrozen=names_of(plan, now - before),
        frozen=names_of(plan, before - now),
        trainable_params=trainable,
        frozen_params=int(model.count_params()) - trainable,
        rates=rates,
        optimizer=optimizer_did,
        base=base,
        adapters=sum(any(v.trainable for v in adapters(leaf)) for leaf in plan.tree.leaves),
    )
