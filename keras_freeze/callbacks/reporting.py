"""What is printed when a stage begins, read from the model as it is then."""

from __future__ import annotations

from typing import Any

from keras_freeze.callbacks.plan import Plan
from keras_freeze.graph.tree import LayerTree, adapters, count_params, own_variables
from keras_freeze.report.lines import StageReport, base_line
from keras_freeze.training.trainable import flags_now


def trainable_layers(tree: LayerTree) -> dict[int, str]:
    """Returns the leaves whose own weights are trained: names by id, paths where names repeat."""
    leaves = [leaf for leaf in tree.leaves if own_variables(leaf)]
    names = [leaf.name for leaf in leaves]
    labels = {
        id(leaf): leaf.name if names.count(leaf.name) == 1 else tree.paths(leaf)[0]
        for leaf in leaves
    }
    now = flags_now(tree)
    return {id(leaf): labels[id(leaf)] for leaf in leaves if now[id(leaf)]}


def describe_base(plan: Plan) -> str:
    """Returns what the base of a fit is, for the first line that is printed."""
    weighted = {id(leaf) for leaf in plan.base_leaves if own_variables(leaf)}
    label = " + ".join(found.label for found in plan.bases)
    found = any(found.is_guessed for found in plan.bases)
    return base_line(label, len(weighted), found) if plan.bases else ""


def stage_report(
    model: Any,
    tree: LayerTree,
    title: str,
    when: str,
    before: dict[int, str],
    now: dict[int, str],
    rates: dict[str, float],
    optimizer_did: str,
    base: str,
) -> StageReport:
    """Returns what a stage changed.

    Args:
        model: the model that is fitted.
        tree: all its layers.
        title: of the stage.
        when: it begins.
        before: the trainable layers of the stage before it, as `trainable_layers` gives them.
        now: those of this stage.
        rates: as the logs have them.
        optimizer_did: what happened to the optimizer.
        base: what the base is, "" if it was said before.
    """
    trainable = count_params(model.trainable_variables)
    return StageReport(
        title=title,
        when=when,
        thawed=[name for key, name in now.items() if key not in before],
        frozen=[name for key, name in before.items() if key not in now],
        trainable_params=trainable,
        frozen_params=int(model.count_params()) - trainable,
        rates=rates,
        optimizer=optimizer_did,
        base=base,
        adapters=sum(any(v.trainable for v in adapters(leaf)) for leaf in tree.leaves),
    )
