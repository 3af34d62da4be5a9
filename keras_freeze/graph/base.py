"""The base: the pretrained part of a model, whose layers are frozen and unfrozen."""

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
        label: how messages name it.
        scope: where selectors look for its layers.
        is_guessed: True if the user left it to be found.
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
        base: a layer or model, a layer's name, a selector, a list of these, or None = find it
            (see `guess_base`).

    Raises:
        LayerMatchError: nothing matches, more than one candidate fits, or the base isn't part of
            the model.
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
    """The one container of that name: its own graph then serves `"20%"` and `"-20:"`."""
    named = [layer for layer in tree if layer.name == name and children(layer)]
    return named[0] if len(named) == 1 and named[0] is not tree.root else None


def _from_layer(tree: LayerTree, base: Layer) -> Base:
    """A layer of the model, or a model some or all of whose layers were built into this one."""
    own = LayerTree(base)
    held = [leaf for leaf in own.leaves if leaf in tree]
    if base not in tree and not any(own_variables(leaf) for leaf in held):
        nested = [repr(layer.name) for layer in children(tree.root)][:8]
        raise LayerMatchError(
            f"`base` must be part of the model that is fitted. Received: base={base.name!r}, "
            f"which {tree.root.name!r} doesn't hold. Its layers are {', '.join(nested)}, ..."
        )
    return Base(base.name, Scope(own, held if base not in tree else None))
