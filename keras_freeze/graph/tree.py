"""The tree of layers below a model: leaves in execution order, their paths and their parents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

Layer = Any  # keras.layers.Layer: Keras ships no type annotations


def children(layer: Layer) -> list[Layer]:
    """Returns the layers directly below `layer`, in execution order where the graph tells it."""
    if isinstance(layer, keras.Model):
        return list(layer.layers)
    # `_layers` is the only list of the sublayers of a layer that is no model (Wrapper,
    # MultiHeadAttention, a custom block). Tried on Keras 3.12.0 and 3.15.1.
    return list(layer._layers)


def own_variables(layer: Layer) -> list[Any]:
    """Returns the variables that `layer` itself could train, without those of its sublayers."""
    # Tried on Keras 3.12.0 and 3.15.1; the public properties always recurse.
    return list(layer._trainable_variables)


def is_leaf(layer: Layer) -> bool:
    """True for a layer that is frozen and thawed as one: no sublayers, or weights of its own."""
    return not children(layer) or bool(own_variables(layer))


class LayerTree:
    """All layers below `root`, read once.

    Attributes:
        root: the model or layer at the top.
        leaves: the leaf layers in execution order, each once, `InputLayer`s among them.
    """

    def __init__(self, root: Layer):
        self.root = root
        self.leaves: list[Layer] = []
        self._layers: dict[int, Layer] = {}
        self._paths: dict[int, list[str]] = {}
        self._parents: dict[int, list[Layer]] = {}
        self._below: dict[int, dict[int, Layer]] = {}
        self._read(root, ())

    def _read(self, layer: Layer, names: tuple[str, ...]) -> dict[int, Layer]:
        """Records `layer` under the path `names`; returns the leaves at or below it, by id."""
        self._paths.setdefault(id(layer), []).append("/".join(names))
        known = id(layer) in self._below
        self._layers.setdefault(id(layer), layer)
        below = self._below.setdefault(id(layer), {})
        if is_leaf(layer) and not known:
            self.leaves.append(layer)
            below[id(layer)] = layer
        for child in children(layer):
            self._add_parent(child, layer)
            found = self._read(child, (*names, child.name))
            if not known:
                below.update(found)
        return below

    def _add_parent(self, child: Layer, parent: Layer) -> None:
        parents = self._parents.setdefault(id(child), [])
        if not _holds(parents, parent):
            parents.append(parent)

    def __contains__(self, layer: Layer) -> bool:
        return id(layer) in self._layers

    def __iter__(self) -> Iterator[Layer]:
        """All layers, containers and leaves, parents before children."""
        return iter(self._layers.values())

    def paths(self, layer: Layer) -> list[str]:
        """Returns the paths of `layer`, with and without the name of the root in front."""
        found = []
        for path in self._paths[id(layer)]:
            full = f"{self.root.name}/{path}" if path else self.root.name
            found += [path, full] if path else [full]
        return found

    def below(self, layer: Layer) -> list[Layer]:
        """Returns the leaves at or below `layer`, in execution order."""
        return list(self._below[id(layer)].values())

    def ancestors(self, layer: Layer) -> list[Layer]:
        """Returns every container above `layer`, nearest first."""
        found: list[Layer] = []
        for parent in self._parents.get(id(layer), []):
            for candidate in (parent, *self.ancestors(parent)):
                if not _holds(found, candidate):
                    found.append(candidate)
        return found


def _holds(layers: list[Layer], layer: Layer) -> bool:
    """Membership by identity: a user's layer may define `__eq__`."""
    return any(candidate is layer for candidate in layers)
