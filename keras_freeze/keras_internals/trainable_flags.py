"""Freezes and unfreezes layers: sets the `trainable` flags of layers and variables.

A leaf is a layer that is frozen as one, a container a layer that holds layers (see
`graph.layer_tree`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from keras_freeze.errors import LayerMatchError, check_choice, names_unknown
from keras_freeze.graph.layer_tree import (
    Layer,
    LayerTree,
    adapters,
    known_containers,
    own_variables,
)

BATCH_NORM = ("freeze", "train")


@names_unknown()
def freeze(layers: Any, batch_norm: str = "freeze") -> None:
    """Freezes layers, without `fit`. Compile the model afterwards, as Keras requires.

    Args:
        layers: a layer or model (all layers in it are frozen), or a list of them.
        batch_norm: has no effect; it exists for symmetry with `unfreeze`. A frozen
            BatchNormalization runs in inference mode with either value.

    Raises:
        FreezeError: `batch_norm` is neither `"freeze"` nor `"train"`.
        LayerMatchError: `layers` is empty, or an item isn't a layer.

    Examples:
        >>> base = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="d")])
        >>> freeze(base)
        >>> base.trainable, len(base.trainable_weights)
        (False, 0)
    """
    check_choice("batch_norm", batch_norm, BATCH_NORM)
    _set_all(layers, False)


@names_unknown()
def unfreeze(layers: Any, batch_norm: str = "freeze") -> None:
    """Makes layers trainable, without `fit`. Compile the model afterwards, as Keras requires.

    The models and layers that hold them become trainable too, if `select_layers`, `freeze` or a
    callback has read them before: a Keras layer has no reference to what holds it. So after Keras'
    own `base.trainable = False`, pass `select_layers(model, "name")` rather than
    `model.get_layer("name")`.

    Args:
        layers: a layer or model (all layers in it are unfrozen), or a list, such as
            `select_layers` returns.
        batch_norm: `"freeze"` keeps every BatchNormalization frozen, so in inference mode;
            `"train"` unfreezes it with the other layers.

    Raises:
        FreezeError: `batch_norm` is neither `"freeze"` nor `"train"`.
        LayerMatchError: `layers` is empty, or an item isn't a layer.

    Examples:
        >>> base = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="a"),
        ...                          keras.layers.Dense(4, name="b")])
        >>> freeze(base)
        >>> unfreeze(base.get_layer("b"))
        >>> base.trainable, len(base.trainable_weights)
        (True, 2)
    """
    check_choice("batch_norm", batch_norm, BATCH_NORM)
    _set_all(layers, True, batch_norm)


def _set_all(layers: Any, trainable: bool, batch_norm: str = "freeze") -> None:
    given = list(layers) if isinstance(layers, (list, tuple)) else [layers]
    for layer in given:
        if not isinstance(layer, keras.layers.Layer):
            raise LayerMatchError(
                "`layers` must be a Keras layer or model, or a list of them (see `select_layers`). "
                f"Received: {layer!r}"
            )
    if not given:
        raise LayerMatchError("`layers` is empty: nothing would be changed. Received: []")
    trees = [LayerTree(layer) for layer in given]
    leaves = [leaf for tree in trees for leaf in tree.leaves]
    if trainable:
        check_not_only_batch_norm(leaves, batch_norm, "`layers`")
    containers: dict[int, Layer] = {}
    for tree in trees:
        apply_flags(tree, {id(f): trainable and may_unfreeze(f, batch_norm) for f in tree.leaves})
        containers |= known_containers(tree.root)
    for container in containers.values():
        below = LayerTree(container).below(container)
        _set_own_flag(container, any(leaf.trainable for leaf in below))


def is_batch_norm(layer: Layer) -> bool:
    """True for the layers to which the `batch_norm` policy applies."""
    return isinstance(layer, keras.layers.BatchNormalization)


def may_unfreeze(leaf: Layer, batch_norm: str) -> bool:
    """True if the `batch_norm` policy allows `leaf` to become trainable."""
    return batch_norm == "train" or not is_batch_norm(leaf)


def check_not_only_batch_norm(leaves: list[Layer], batch_norm: str, where: str) -> None:
    """Raises `LayerMatchError` if the policy would keep all of the layers frozen."""
    if leaves and not any(may_unfreeze(leaf, batch_norm) for leaf in leaves):
        raise LayerMatchError(
            f"{where} names only BatchNormalization layers, which batch_norm='freeze' keeps "
            "frozen, so nothing would be unfrozen. Pass batch_norm='train' to train them. "
            f"Received: {[leaf.name for leaf in leaves]}"
        )


def trained(leaf: Layer, flags: Mapping[int, bool]) -> list[Any]:
    """Returns the variables of a leaf that are trained with these flags.

    Args:
        leaf: a leaf.
        flags: `{id(leaf): trainable}`, and `{id(variable): trainable}` of LoRA adapters, which
            override the flag of their leaf. For other leaves, the current flags are used.
    """
    of_leaf = flags.get(id(leaf))
    return [
        variable
        for variable in own_variables(leaf)
        if flags.get(
            id(variable), leaf.trainable and variable.trainable if of_leaf is None else of_leaf
        )
    ]


def flags_now(tree: LayerTree) -> dict[int, bool]:
    """Returns the current flags of the leaves, as `trained` takes them."""
    flags = {}
    for leaf in tree.leaves:
        added = adapters(leaf)
        own = [v for v in own_variables(leaf) if not any(v is each for each in added)]
        flags[id(leaf)] = bool(leaf.trainable and (not added or any(v.trainable for v in own)))
        flags |= {id(v): bool(leaf.trainable and v.trainable) for v in added}
    return flags


def apply_flags(tree: LayerTree, flags: Mapping[int, bool]) -> bool:
    """Sets the flags of leaves and of the containers above them; True if anything changed.

    A container's own flag must be True if any leaf below it is trainable: it is saved in the
    config, and loading a False flag would freeze everything below.

    Args:
        tree: the whole model.
        flags: as in `trained`; other leaves don't change.
    """
    before = flags_of(tree)
    ruled = {id(leaf) for leaf in tree.leaves if _is_ruled(leaf, flags)}
    for leaf in tree.leaves:
        if id(leaf) in ruled:
            learning = {id(variable) for variable in trained(leaf, flags)}
            for variable in own_variables(leaf):
                variable.trainable = id(variable) in learning
            _set_own_flag(leaf, bool(learning) or flags.get(id(leaf), False))
    for layer in tree:
        below = tree.below(layer)
        if any(id(leaf) in ruled for leaf in below):
            _set_own_flag(layer, any(leaf.trainable for leaf in below))
    return differ(before, flags_of(tree))


def _is_ruled(leaf: Layer, flags: Mapping[int, bool]) -> bool:
    return id(leaf) in flags or any(id(variable) in flags for variable in adapters(leaf))


def restore_flags(tree: LayerTree, before: Mapping[int, bool]) -> None:
    """Restores all flags to what `flags_of` returned."""
    for layer in tree:
        if id(layer) in before:
            _set_own_flag(layer, before[id(layer)])
        for variable in own_variables(layer):
            variable.trainable = before.get(id(variable), variable.trainable)


def open_containers(tree: LayerTree) -> None:
    """Sets the flag of every container with a trainable leaf below to True; sets none to False."""
    for layer in tree:
        if not layer.trainable and any(leaf.trainable for leaf in tree.below(layer)):
            _set_own_flag(layer, True)


def _set_own_flag(layer: Layer, trainable: bool) -> None:
    """Sets the flag of one layer only; the public setter would set all layers below it too."""
    layer._trainable = trainable  # tried on Keras 3.12.0 and 3.15.1


def flags_of(tree: LayerTree) -> dict[int, bool]:
    """Returns the flag of each layer and variable, by id; a compiled step depends on these."""
    flags = {}
    for layer in tree:
        flags[id(layer)] = bool(layer.trainable)
        flags |= {id(variable): bool(variable.trainable) for variable in own_variables(layer)}
    return flags


def differ(before: Mapping[int, bool], after: Mapping[int, bool]) -> bool:
    """True if a flag changed; variables that were created in between don't count."""
    return any(before.get(key, flag) != flag for key, flag in after.items())
