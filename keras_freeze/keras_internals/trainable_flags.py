"""Which layers are trainable: the flags of leaves, variables and the containers above them."""

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
    """Freezes layers, without `fit`. Compile the model afterwards, as Keras asks.

    Args:
        layers: a layer or model (all below it is frozen), or a list of them.
        batch_norm: taken for symmetry with `unfreeze`: a frozen BatchNormalization runs in
            inference mode with either value.

    Raises:
        FreezeError: `batch_norm` is neither `"freeze"` nor `"train"`.
        LayerMatchError: `layers` holds something that is no layer, or nothing.

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
    """Makes layers trainable, without `fit`. Compile the model afterwards, as Keras asks.

    The containers above them are opened too, if they were read by `select_layers`, `freeze` or a
    callback: a layer alone doesn't know what it is in. So after Keras' own
    `base.trainable = False`, pass `select_layers(model, "name")` rather than
    `model.get_layer("name")`.

    Args:
        layers: a layer or model (all below it is unfrozen), or a list such as `select_layers`
            returns.
        batch_norm: `"freeze"` keeps every BatchNormalization frozen and so in inference mode;
            `"train"` lets it follow.

    Raises:
        FreezeError: `batch_norm` is neither `"freeze"` nor `"train"`.
        LayerMatchError: `layers` holds something that is no layer, or nothing.

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
    """True for the layers that the BatchNorm policy is about."""
    return isinstance(layer, keras.layers.BatchNormalization)


def may_unfreeze(leaf: Layer, batch_norm: str) -> bool:
    """Whether the BatchNorm policy lets `leaf` become trainable."""
    return batch_norm == "train" or not is_batch_norm(leaf)


def check_not_only_batch_norm(leaves: list[Layer], batch_norm: str, where: str) -> None:
    """Raises if the policy would leave everything that was to be unfrozen frozen."""
    if leaves and not any(may_unfreeze(leaf, batch_norm) for leaf in leaves):
        raise LayerMatchError(
            f"{where} names only BatchNormalization layers, which batch_norm='freeze' keeps "
            "frozen, so nothing would be unfrozen. Pass batch_norm='train' to train them. "
            f"Received: {[leaf.name for leaf in leaves]}"
        )


def trained(leaf: Layer, flags: Mapping[int, bool]) -> list[Any]:
    """Returns the variables of a leaf that are trained under flags.

    Args:
        leaf: a leaf layer.
        flags: `{id(leaf): trainable}`, and `{id(variable): trainable}` of LoRA adapters, which go
            before the flag of their leaf. A leaf that isn't in it is judged as it is.
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
    """Returns the flags that the leaves have now, as `trained` reads them."""
    flags = {}
    for leaf in tree.leaves:
        added = adapters(leaf)
        own = [v for v in own_variables(leaf) if not any(v is each for each in added)]
        flags[id(leaf)] = bool(leaf.trainable and (not added or any(v.trainable for v in own)))
        flags |= {id(v): bool(leaf.trainable and v.trainable) for v in added}
    return flags


def apply_flags(tree: LayerTree, flags: Mapping[int, bool]) -> bool:
    """Sets the flags of leaves, and of the containers above them; True if anything changed.

    A container's own flag must be True when any leaf below is trainable: saving writes it into
    the config, and loading would freeze everything below again.

    Args:
        tree: the whole model.
        flags: as in `trained`; leaves that aren't in it stay as they are.
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
    """Puts all flags back to what `flags_of` gave."""
    for layer in tree:
        if id(layer) in before:
            _set_own_flag(layer, before[id(layer)])
        for variable in own_variables(layer):
            variable.trainable = before.get(id(variable), variable.trainable)


def open_containers(tree: LayerTree) -> None:
    """Sets the flag of every container with a trainable leaf below; closes none."""
    for layer in tree:
        if not layer.trainable and any(leaf.trainable for leaf in tree.below(layer)):
            _set_own_flag(layer, True)


def _set_own_flag(layer: Layer, trainable: bool) -> None:
    """Sets the flag of one layer alone: the public setter would reach everything below."""
    layer._trainable = trainable  # tried on Keras 3.12.0 and 3.15.1


def flags_of(tree: LayerTree) -> dict[int, bool]:
    """Returns what a compiled step depends on: the flag of each layer and variable, by id."""
    flags = {}
    for layer in tree:
        flags[id(layer)] = bool(layer.trainable)
        flags |= {id(variable): bool(variable.trainable) for variable in own_variables(layer)}
    return flags


def differ(before: Mapping[int, bool], after: Mapping[int, bool]) -> bool:
    """True if a flag changed; a variable that a layer has built meanwhile is no change."""
    return any(before.get(key, flag) != flag for key, flag in after.items())
