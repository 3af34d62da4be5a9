"""Reads the layers of a model, nested ones included, with their paths and parents.

A *leaf* is a layer that is frozen and unfrozen as one: it has no sublayers, or weights of its own.
A *container* is a layer that holds layers, such as a nested model.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import keras

Layer = Any  # keras.layers.Layer: Keras ships no type annotations
FOREIGN = ("TorchModuleWrapper", "JaxLayer", "FlaxLayer")  # they wrap another library's code


def children(layer: Layer) -> list[Layer]:
    """Returns the layers directly below `layer`, in execution order if there is a graph."""
    if isinstance(layer, keras.Model):
        return list(layer.layers)
    # Layers that aren't models (Wrapper, MultiHeadAttention, a custom block) list their sublayers
    # only in `_layers`. Tried on Keras 3.12.0 and 3.15.1.
    return list(layer._layers)


def own_variables(layer: Layer) -> list[Any]:
    """Returns the variables that `layer` itself could train, without those of its sublayers."""
    # Tried on Keras 3.12.0 and 3.15.1; the public properties always recurse.
    return list(layer._trainable_variables)


def adapters(layer: Layer) -> list[Any]:
    """Returns the LoRA variables of `layer`, which are trained while its own weights are frozen."""
    if not getattr(layer, "lora_enabled", False):
        return []
    return [variable for variable in own_variables(layer) if variable.name.startswith("lora_")]


def layers_of(operations: Iterable[Any]) -> list[Layer]:
    """Returns the layers among operations, with all layers inside them, each once."""
    layers = [one for one in operations if isinstance(one, keras.layers.Layer)]
    return list({id(below): below for layer in layers for below in LayerTree(layer)}.values())


def own_states(layer: Layer) -> list[Any]:
    """Returns the variables of `layer` itself that no optimizer updates: statistics, counters."""
    return list(layer._non_trainable_variables)  # tried on Keras 3.12.0 and 3.15.1


def draws_random_numbers(layer: Layer) -> bool:
    """True for a layer with a random generator of its own; a Dropout of rate 0 has none."""
    return bool(layer._seed_generators)  # tried on Keras 3.12.0 and 3.15.1


def seed_states(layer: Layer) -> list[Any]:
    """Returns the variables of the random generators of `layer` itself."""
    # Tried on Keras 3.12.0 and 3.15.1.
    return [generator.state for generator in layer._seed_generators]


def is_seed(variable: Any) -> bool:
    """True for the state of a random generator."""
    return bool(variable.name == "seed_generator_state")


def has_added_losses(layer: Layer) -> bool:
    """True if the last call of `layer` added to the loss."""
    return bool(layer._losses or layer._loss_ids)  # tried on Keras 3.12.0 and 3.15.1


def is_leaf(layer: Layer) -> bool:
    """True for a layer without sublayers, or with weights of its own."""
    return bool(own_variables(layer)) or not (children(layer) or isinstance(layer, keras.Model))


def count_params(variables: Iterable[Any]) -> int:
    """Returns the number of scalars in `variables`."""
    return sum(math.prod(int(length) for length in variable.shape) for variable in variables)


# {layer: the containers that hold it directly}, for all trees that were read. A Keras layer has no
# reference to its container, whose `trainable` must change with that of its leaves.
_CONTAINERS: weakref.WeakKeyDictionary[Layer, weakref.WeakSet[Layer]] = weakref.WeakKeyDictionary()


def known_containers(layer: Layer) -> dict[int, Layer]:
    """Returns the containers above `layer` in any tree that was read, by id."""
    found: dict[int, Layer] = {}
    for parent in list(_CONTAINERS.get(layer, ())):
        found |= {id(parent): parent, **known_containers(parent)}
    return found


class LayerTree:
    """All layers below `root`, read once.

    Attributes:
        root: the model or layer at the top.
        leaves: the leaves in execution order, each once, including `InputLayer`s.
    """

    def __init__(self, root: Layer):
        self.root = root
        self.leaves: list[Layer] = []
        self._layers: dict[int, Layer] = {}
        self._paths: dict[int, list[str]] = {}
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
            if not isinstance(layer, keras.layers.InputLayer):
                below[id(layer)] = layer
        for child in children(layer):
            _CONTAINERS.setdefault(child, weakref.WeakSet()).add(layer)
            found = self._read(child, (*names, child.name))
            if not known:
                below.update(found)
        return below

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
        """Returns the leaves at or below `layer` in execution order, without `InputLayer`s."""
        return list(self._below[id(layer)].values())


def hidden_layers(tree: LayerTree, busy: set[int]) -> list[tuple[Layer, str, list[Layer]]]:
    """Returns `(container, "_layers", layers in use)`: attributes that hide layers not in use.

    Keras finds weights, losses and states of a model by walking `_layers`. Tried on Keras 3.12.0
    and 3.15.1.

    Args:
        tree: the whole model.
        busy: ids of the leaves in use. Layers that are trained or hold metrics are never hidden.
    """
    hidden = []
    for layer in tree:
        kept = [child for child in layer._layers if _is_busy(child, tree, busy)]
        if len(kept) < len(layer._layers):
            hidden.append((layer, "_layers", kept))
    return hidden


def _is_busy(layer: Layer, tree: LayerTree, busy: set[int]) -> bool:
    if layer not in tree or layer.metrics:
        return True
    return any(id(leaf) in busy or leaf.trainable_variables for leaf in tree.below(layer))
