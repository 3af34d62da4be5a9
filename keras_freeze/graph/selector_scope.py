"""The layers that a selector can choose from."""

from __future__ import annotations

import keras

from keras_freeze.graph.layer_tree import Layer, LayerTree


class Scope:
    """The layers that a selector can choose from: all leaves of a tree, or some of them."""

    def __init__(self, tree: LayerTree, leaves: list[Layer] | None = None):
        self.tree = tree
        chosen = {id(leaf) for leaf in (tree.leaves if leaves is None else leaves)}
        # Includes `InputLayer`s, so that an index means the same as in `base.layers`.
        self.indexed = [leaf for leaf in tree.leaves if id(leaf) in chosen]
        self.leaves = [leaf for leaf in self.indexed if not _is_input(leaf)]

    def restrict(self, layers: list[Layer]) -> list[Layer]:
        """Returns those of `layers` that are in the scope, in execution order, each once."""
        wanted = {id(layer) for layer in layers}
        return [leaf for leaf in self.leaves if id(leaf) in wanted]

    def names(self) -> list[str]:
        return [layer.name for layer in self.tree if not _is_input(layer)]


def _is_input(layer: Layer) -> bool:
    return isinstance(layer, keras.layers.InputLayer)
