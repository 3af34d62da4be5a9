"""Shortens a list of layer names: one name replaces all layers of a block or nested model.

A container is a layer that holds layers, a leaf one that is frozen as one (see `layer_tree`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from keras_freeze.graph.layer_tree import Layer, LayerTree, children, own_variables


def names_in_short(
    tree: LayerTree, chosen: Collection[int], closed: Collection[int], idle: Collection[int]
) -> dict[str, int]:
    """Returns short names for some layers, with the number of layers that each name stands for.

    The name of a container (a transformer layer, a residual block that is a layer) replaces those
    of its layers if all its layers with weights are chosen, and there are at least two. If a name
    isn't unique, the path is used.

    Args:
        tree: all layers.
        chosen: ids of the leaves to name.
        closed: ids of containers that are never named; the root is one of them.
        idle: ids of leaves that needn't be chosen for their container to be named.
    """
    weighted = [leaf for leaf in tree.leaves if own_variables(leaf)]
    holders = [layer for layer in tree if children(layer) and layer is not tree.root]
    labels = _labels(tree, [*weighted, *(layer for layer in holders if layer not in weighted)])
    owners = _owners(tree, holders, chosen, closed, idle)
    named: dict[str, int] = {}
    for leaf in weighted:
        if id(leaf) in chosen:
            label = labels[owners.get(id(leaf), id(leaf))]
            named[label] = named.get(label, 0) + 1
    return named


def closed_containers(tree: LayerTree, bases: Collection[Collection[Layer]]) -> set[int]:
    """Returns the ids of the layers that hold a whole base; their names would say too little.

    Args:
        tree: all layers.
        bases: the leaves of each base.
    """
    wanted = [{id(leaf) for leaf in base if own_variables(leaf)} for base in bases]
    below = {id(layer): {id(leaf) for leaf in tree.below(layer)} for layer in tree}
    return {key for key, held in below.items() if any(each and each <= held for each in wanted)}


def _owners(
    tree: LayerTree,
    holders: list[Layer],
    chosen: Collection[int],
    closed: Collection[int],
    idle: Collection[int],
) -> dict[int, int]:
    """Returns `{id(leaf): id(container)}`: the largest container that replaces each leaf."""
    owners: dict[int, int] = {}
    for holder in holders:  # parents come before children
        held = [id(leaf) for leaf in tree.below(holder) if own_variables(leaf)]
        own = [key for key in held if key in chosen]
        complete = all(key in chosen or key in idle for key in held)
        if id(holder) not in closed and len(own) > 1 and complete and not owners.keys() & set(own):
            owners |= dict.fromkeys(own, id(holder))
    return owners


def _labels(tree: LayerTree, layers: list[Layer]) -> dict[int, str]:
    count = Counter(layer.name for layer in layers)
    return {
        id(layer): layer.name if count[layer.name] == 1 else tree.paths(layer)[0]
        for layer in layers
    }
