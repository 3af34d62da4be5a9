"""Detects the base of a model from its graph, for a user who doesn't name it.

The base reads the model's inputs and feeds the rest of the model. The head is made of the last
layers with weights before each output, and of all layers after a pooling or Flatten that all data
pass through. The number of weights only excludes candidates: a part that is much smaller than
another one isn't the base.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from keras_freeze.errors import LayerMatchError
from keras_freeze.graph.data_flow import Flow, Unit, read_flow
from keras_freeze.graph.layer_tree import Layer, LayerTree, count_params, own_variables

FAR_SMALLER = 0.2  # of the weights of the largest part
ABOUT_AS_LARGE = 0.8
# How the class names of layers that upsample begin; others end in "Transpose".
UPSAMPLES = ("UpSampling", "Resizing", "Resize")

Units = list[Unit]


@dataclass(frozen=True)
class Guess:
    """A part of a model that may be the base.

    Attributes:
        label: its name in messages.
        tree: the tree of the model that it is, or that it is a part of.
        leaves: its layers.
        base: the value of `base` with which the user chooses it.
    """

    label: str
    tree: LayerTree
    leaves: list[Layer]
    base: str | list[str]

    @property
    def params(self) -> int:
        variables = {id(v): v for leaf in self.leaves for v in own_variables(leaf)}
        return count_params(variables.values())


def guess_base(tree: LayerTree) -> Guess:
    """Returns the base of the model at the root of `tree`.

    Raises:
        LayerMatchError: the model has too few layers, or more than one part could be the base.
    """
    guesses = _guesses(tree, tree)
    if not guesses:
        count = sum(bool(own_variables(leaf)) for leaf in tree.leaves)
        raise LayerMatchError(
            f"`base` must be given: {tree.root.name!r} has {count} layer(s) with weights and no "
            "part that feeds another one, so no base and head. Is the model built? "
            "Received: base=None"
        )
    if len(guesses) > 1:
        listed = "; ".join(f"base={guess.base!r} ({guess.params:,} params)" for guess in guesses)
        raise LayerMatchError(
            f"`base` must be given: {len(guesses)} parts of {tree.root.name!r} could be it. Pass "
            f"one of these, the most likely first: {listed}. Received: base=None"
        )
    return guesses[0]


def _guesses(top: LayerTree, tree: LayerTree) -> list[Guess]:
    """Returns all parts of a model that may be the base, the most likely first.

    Args:
        top: the tree of the model that is fitted.
        tree: the tree of the same model, or of a nested model that holds all weights.
    """
    backbone = getattr(tree.root, "backbone", None)
    if isinstance(backbone, keras.layers.Layer) and backbone in tree and backbone is not tree.root:
        return [_whole(backbone)]
    flow = read_flow(tree)
    weighted = flow.weighted
    if len(weighted) == 1:
        model = weighted[0].model
        return [] if model is None or model is tree.root else _guesses(top, LayerTree(model))
    head = _head(flow)
    body = [unit for unit in weighted if unit not in head]
    if not body:
        return _within(top, weighted)

    def flat(part: Units) -> Guess:
        return _flat(top, tree, flow, part)

    for narrower in (_before_upsampling(flow, body), _before_all_heads(flow, body, head)):
        if narrower and len(narrower) < len(body):
            left = _params(body) - _params(narrower)
            if not _is_nested(narrower) and left >= FAR_SMALLER * _params(narrower):
                return [flat(narrower), flat(body)]
            body = narrower
    return _of_parts(_connected(body), flat)


def _within(top: LayerTree, units: Units) -> list[Guess]:
    """Searches models that run side by side, each with its own output; the trained ones first."""
    models = [unit for unit in units if unit.model is not None]
    trained = [unit for unit in models if not unit.is_frozen] or models
    return [guess for unit in trained for guess in _guesses(top, LayerTree(unit.model))]


def _of_parts(parts: list[Units], flat: Callable[[Units], Guess]) -> list[Guess]:
    """Chooses among parts that only meet in the head: the largest, and others of similar size."""
    largest = max(map(_params, parts))
    rivals = [part for part in parts if _params(part) >= FAR_SMALLER * largest]
    found = [_of_part(part, flat) for part in sorted(rivals, key=_params, reverse=True)]
    guesses = [guess for of_part in found for guess in of_part]
    return guesses if len(rivals) == 1 else [*guesses, _together([one[0] for one in found])]


def _of_part(part: Units, flat: Callable[[Units], Guess]) -> list[Guess]:
    """Chooses within one part: a nested model with a few layers around it, or a flat network.

    The blocks of a flat network may be nested models.
    """
    models = [unit for unit in part if unit.model is not None]
    if not models:
        return [flat(part)]
    largest = max(models, key=lambda unit: unit.params)
    rivals = [unit for unit in models if unit.params >= FAR_SMALLER * largest.params]
    inside = sum(len(unit.weighted) for unit in models)
    outside = sum(len(unit.weighted) for unit in part if unit.model is None)
    if len(models) > 1 and outside > inside:
        return [flat(part)]
    if len(rivals) == 2:
        rivals = _without_what_follows(*rivals)
    guesses = [_whole(unit.model) for unit in rivals]
    if len(rivals) > 1:
        return [*guesses, _together(guesses)]
    return guesses if outside <= len(rivals[0].weighted) else [flat(part), *guesses]


def _without_what_follows(one: Unit, other: Unit) -> Units:
    """Returns the first of two models if the second reads it.

    Returns both if they are independent, or if they may be the two halves of one base.
    """
    if one in other.descendants:
        one, other = other, one
    if other not in one.descendants:
        return [one, other]
    alike = ABOUT_AS_LARGE <= one.params / other.params <= 1 / ABOUT_AS_LARGE
    chosen_before = one.is_frozen and not other.is_frozen
    return [one, other] if alike and not chosen_before else [one]


# Body and head


def _head(flow: Flow) -> set[Unit]:
    """Returns the head: the last layers with weights, and the layers after the pooling."""
    weighted = flow.weighted
    head = {unit for unit in weighted if not any(u.params for u in unit.descendants - {unit})}
    for unit in flow.units:
        learned = any(before.params for before in unit.ancestors)
        if learned and unit.model is not None and _opens_with_pooling(unit.model):
            head |= {unit, *unit.descendants}
        elif (learned or unit.params) and _pools(unit) and not flow.passes_by(unit):
            head |= unit.descendants - {unit} - _last_norms(unit)
    return head & set(weighted)


def _last_norms(pooling: Unit) -> set[Unit]:
    """Returns a LayerNormalization right after the pooling; in ConvNeXt it is part of the base."""
    kinds = (keras.layers.LayerNormalization, keras.layers.RMSNormalization)
    return {unit for unit in pooling.after if isinstance(unit.operation, kinds)}


def _pools(unit: Unit) -> bool:
    """True if the output has one axis, the input more: pooling, Flatten, a mean, the first token.

    The batch axis doesn't count.
    """
    named = type(unit.operation).__name__.startswith(("Global", "Flatten"))
    return named or unit.rank_out <= 2 < unit.rank_in


def _opens_with_pooling(model: Layer) -> bool:
    """True if a nested model begins by pooling or flattening its inputs."""
    flow = read_flow(LayerTree(model))
    first = [unit for unit in flow.units if not any(u.params for u in unit.ancestors)]
    return any(_pools(unit) and not unit.params and unit.before for unit in first)


def _before_upsampling(flow: Flow, body: Units) -> Units:
    """Returns the body without the decoder, which begins at the first layer that upsamples."""
    growing = [unit for unit in flow.units if _upsamples(unit)]
    learned = [unit for unit in growing if any(before.params for before in unit.ancestors)]
    decoder = set(learned).union(*(unit.descendants for unit in learned))
    return [unit for unit in body if unit not in decoder]


def _upsamples(unit: Unit) -> bool:
    layers = LayerTree(unit.model).leaves if unit.model is not None else [unit.operation]
    names = [type(layer).__name__ for layer in layers]
    return any(name.startswith(UPSAMPLES) or name.endswith("Transpose") for name in names)


def _before_all_heads(flow: Flow, body: Units, head: set[Unit]) -> Units:
    """Returns the units that feed every head; a unit that feeds only one head belongs to it."""
    last = {unit for unit in head if not (unit.descendants - {unit}) & set(flow.weighted)}
    return [unit for unit in body if last <= unit.descendants]


def _connected(body: Units) -> list[Units]:
    """Splits the body into its connected parts."""
    parts: list[Units] = []
    for unit in body:
        near = unit.ancestors | unit.descendants
        touching = [part for part in parts if not near.isdisjoint(part)]
        parts = [part for part in parts if part not in touching]
        parts.append([*(other for part in touching for other in part), unit])
    return parts


def _params(units: Sequence[Unit]) -> int:
    return sum(unit.params for unit in units)


def _is_nested(units: Units) -> bool:
    """True if most weights are in one nested model."""
    return 2 * max((u.params for u in units if u.model is not None), default=0) > _params(units)


# Guesses


def _whole(model: Any) -> Guess:
    tree = LayerTree(model)
    return Guess(model.name, tree, tree.leaves, model.name)


def _together(guesses: list[Guess]) -> Guess:
    leaves = [leaf for guess in guesses for leaf in guess.leaves]
    names = [one for guess in guesses for one in _listed(guess.base)]
    return Guess(" + ".join(guess.label for guess in guesses), guesses[0].tree, leaves, names)


def _listed(base: str | list[str]) -> list[str]:
    return base if isinstance(base, list) else [base]


def _flat(top: LayerTree, tree: LayerTree, flow: Flow, part: Units) -> Guess:
    """Returns the layers from the first one with weights to the last one, or its pooling."""
    chosen = set(part)
    held = {id(leaf) for unit in part for leaf in unit.leaves}
    for unit in flow.units:
        before = not chosen.isdisjoint(unit.ancestors)
        if not unit.params and before and _leads_on(unit, flow, chosen):
            held |= {id(leaf) for leaf in unit.leaves}
    leaves = [leaf for leaf in tree.leaves if id(leaf) in held]
    last = leaves[-1].name
    return Guess(f"{tree.root.name} up to {last}", tree, leaves, _selector(top, leaves))


def _leads_on(unit: Unit, flow: Flow, chosen: set[Unit]) -> bool:
    """True for a unit between two layers of the base, or before the pooling that ends the base."""
    after = {unit, *unit.descendants}
    ends = {other for other in after if _pools(other) and not other.params}
    direct = {end for end in ends if not any(u.params for u in end.ancestors - chosen)}
    return not chosen.isdisjoint(after) or any(not flow.passes_by(end) for end in direct)


def _selector(top: LayerTree, leaves: list[Layer]) -> str | list[str]:
    """Returns a selector, for the whole model, of those of `leaves` that have weights."""
    names = [layer.name for layer in top]

    def named(leaf: Layer) -> str:
        return leaf.name if names.count(leaf.name) == 1 else top.paths(leaf)[0]

    wanted = [leaf for leaf in leaves if own_variables(leaf)]
    every = [leaf for leaf in top.leaves if own_variables(leaf)]
    start, stop = every.index(wanted[0]), every.index(wanted[-1]) + 1
    if every[start:stop] != wanted:
        return [named(leaf) for leaf in wanted]
    return f"{named(wanted[0]) if start else ''}:{named(leaves[-1])}"
