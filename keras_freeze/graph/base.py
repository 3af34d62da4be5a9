"""Finds the base: the pretrained part of a model, whose layers are frozen and thawed."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import keras

from keras_freeze.errors import LayerMatchError
from keras_freeze.graph.selectors import Scope, select
from keras_freeze.graph.tree import Layer, LayerTree, children, count_params

# Two nested models of about the same size: neither is clearly "the" base.
ABOUT_AS_LARGE = 0.8


@dataclass(frozen=True)
class Base:
    """The layers of a base.

    Attributes:
        label: how messages name it.
        scope: where selectors look for its layers.
    """

    label: str
    scope: Scope

    @property
    def leaves(self) -> list[Layer]:
        return self.scope.leaves


def find_base(model: Layer, base: Any = None) -> Base:
    """Returns the base of `model`.

    Args:
        model: a built model.
        base: a layer or model, a layer's name, a selector, a list of these, or None = find it:
            the model's `backbone`, else its largest nested model; of a flat model everything up
            to the last layer with weights before the head (the last layer with weights).

    Raises:
        LayerMatchError: nothing matches, more than one candidate fits, or the base isn't part of
            the model.
    """
    tree = LayerTree(model)
    if base is None:
        return _guess(tree)
    if isinstance(base, keras.layers.Layer):
        return _from_layer(tree, base)
    if isinstance(base, str):
        container = _container_named(tree, base)
        if container is not None:
            return _from_layer(tree, container)
    leaves = select(Scope(tree), base, where="`base`")
    return Base(_label(base), Scope(tree, leaves))


def _label(base: Any) -> str:
    if isinstance(base, (list, tuple)):
        return " + ".join(_label(part) for part in base)
    return str(getattr(base, "name", base))


def _container_named(tree: LayerTree, name: str) -> Layer | None:
    """The one container of that name: its own graph then serves `"20%"` and `"-20:"`."""
    named = [layer for layer in tree if layer.name == name and children(layer)]
    return named[0] if len(named) == 1 and named[0] is not tree.root else None


def _from_layer(tree: LayerTree, base: Layer) -> Base:
    """A layer of the model, or a model whose layers were built into a flat model."""
    own = LayerTree(base)
    missing = [leaf for leaf in own.leaves if leaf not in tree and leaf.weights]
    if base not in tree and (missing or not any(leaf in tree for leaf in own.leaves)):
        nested = [repr(layer.name) for layer in children(tree.root)][:8]
        raise LayerMatchError(
            f"`base` must be part of the model that is fitted. Received: base={base.name!r}, "
            f"which {tree.root.name!r} doesn't hold. Its layers are {', '.join(nested)}, ..."
        )
    return Base(base.name, Scope(own))


def _guess(tree: LayerTree) -> Base:
    backbone = getattr(tree.root, "backbone", None)
    if isinstance(backbone, keras.layers.Layer) and backbone in tree:
        return _from_layer(tree, backbone)
    nested = [
        layer for layer in children(tree.root) if isinstance(layer, keras.Model) and layer.weights
    ]
    if nested:
        return _from_layer(tree, _largest(tree, nested))
    return _front_of_flat_model(tree)


def _largest(tree: LayerTree, nested: list[Layer]) -> Layer:
    """The largest nested model, unless another is about as large."""
    nested = sorted(nested, key=lambda layer: -count_params(layer.weights))
    sizes = [count_params(layer.weights) for layer in nested]
    if len(nested) > 1 and sizes[1] >= ABOUT_AS_LARGE * sizes[0]:
        sized = zip(nested, sizes, strict=True)
        listed = ", ".join(f"{layer.name!r} ({size:,} params)" for layer, size in sized)
        names = [layer.name for layer in nested]
        raise LayerMatchError(
            f"`base` must be given: more than one nested model of {tree.root.name!r} could be it: "
            f"{listed}. Pass one, base={names[0]!r}, or several, base={names!r}. "
            "Received: base=None"
        )
    return nested[0]


def _front_of_flat_model(tree: LayerTree) -> Base:
    weighted = [leaf for leaf in tree.leaves if leaf.weights]
    if len(weighted) < 2:
        raise LayerMatchError(
            f"`base` must be given: {tree.root.name!r} has {len(weighted)} layer(s) with weights, "
            "too few for a base and a head. Is the model built? Received: base=None"
        )
    last = tree.leaves.index(weighted[-2])
    leaves = tree.leaves[: last + 1]
    _warn_of_deep_head(tree, leaves)
    return Base(f"{tree.root.name} up to {weighted[-2].name}", Scope(tree, leaves))


def _warn_of_deep_head(tree: LayerTree, leaves: list[Layer]) -> None:
    """Layers with weights behind the last pooling or Flatten look like a new head, not a base."""
    pools = [i for i, leaf in enumerate(leaves) if _ends_features(leaf)]
    behind = [leaf.name for leaf in leaves[pools[-1] :] if leaf.weights] if pools else []
    if behind:
        warnings.warn(
            f"The base was taken to be everything in {tree.root.name!r} up to "
            f"{leaves[-1].name!r}, so {behind} will be frozen. If that is part of a new head, "
            f"say where the base ends: base=':{leaves[pools[-1]].name}'.",
            stacklevel=2,
        )


def _ends_features(leaf: Layer) -> bool:
    return isinstance(leaf, keras.layers.Flatten) or type(leaf).__name__.startswith("Global")
