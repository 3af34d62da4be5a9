"""Finds the base of a model: the pretrained part, whose layers are frozen and unfrozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras

from keras_freeze.errors import LayerMatchError
from keras_freeze.graph.base_detection import guess_base
from keras_freeze.graph.layer_tree import Layer, LayerTree, children, own_variables
from keras_freeze.graph.selector_scope import Scope
from keras_freeze.graph.selectors import select


@dataclass(frozen=True)
class Base:
    """The layers of a base.

    Attributes:
        label: its name in messages.
        scope: the layers of the base, in which selectors look up names and indices.
        is_guessed: True if the user passed no base.
    """

    label: str
    scope: Scope
    is_guessed: bool = False

    @property
    def leaves(self) -> list[Layer]:
        return self.scope.leaves


def find_base(model: Layer, base: Any = None) -> Base:
    """Returns the base of `model`.

    Args:
        model: a built model.
        base: a layer or model, a layer's name, a selector, a list of these, or None = detect it
            (see `guess_base`).

    Raises:
        LayerMatchError: no layer matches, there is more than one candidate, or the base isn't part
            of the model.
    """
    tree = LayerTree(model)
    if base is None:
        guess = guess_base(tree)
        return Base(guess.label, Scope(guess.tree, guess.leaves), is_guessed=True)
    if isinstance(base, (list, tuple)) and len(base) == 1:
        (base,) = base
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
    """Returns the only layer of that name that holds layers, if there is exactly one.

    `"20%"` and `"-20:"` then count within its own graph.
    """
    named = [layer for layer in tree if layer.name == name and children(layer)]
    return named[0] if len(named) == 1 and named[0] is not tree.root else None


def _from_layer(tree: LayerTree, base: Layer) -> Base:
    """Returns the base for a layer of the model, or for a model whose layers the model reuses."""
    own = LayerTree(base)
    held = [leaf for leaf in own.leaves if leaf in tree]
    if base not in tree and not any(own_variables(leaf) for leaf in held):
        nested = [repr(layer.name) for layer in children(tree.root)][:8]
        raise LayerMatchError(
            f"`base` must be part of the model that is fitted. Received: base={base.name!r}, "
            f"which isn't in {tree.root.name!r}. Its layers are {', '.join(nested)}, ..."
        )
    return Base(base.name, Scope(own, held if base not in tree else None))
