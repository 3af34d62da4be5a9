"""Where a base may be cut without splitting a block: the articulation points of its graph."""

from __future__ import annotations

from typing import Any

import keras

from keras_freeze.graph.tree import Layer, LayerTree, children


def block_starts(root: Layer) -> list[int]:
    """Returns the positions in `LayerTree(root).leaves` before which one single tensor passes.

    A cut there splits no residual block. 0 (before everything) is always one. Graphs are read
    from functional models and from `Sequential`; of a subclassed model only its direct sublayers
    are known, and each begins a block.
    """
    starts = {0, *_starts(root, 0)}
    return sorted(starts)


def _starts(layer: Layer, offset: int) -> set[int]:
    """Block starts inside `layer`, whose first leaf has the position `offset`."""
    if isinstance(layer, keras.Sequential):
        return _starts_of_chain(children(layer), offset)
    if isinstance(layer, keras.Model):
        # Functional models alone have a graph; subclassed ones have no `_nodes_by_depth`.
        # Tried on Keras 3.12.0 and 3.15.1.
        nodes = getattr(layer, "_nodes_by_depth", None)
        if nodes is None:
            return _starts_of_chain(children(layer), offset)
        return _starts_of_graph(layer, _in_order(nodes), offset)
    return set()


def _starts_of_chain(layers: list[Layer], offset: int) -> set[int]:
    found = set()
    for layer in layers:
        found |= {offset} | _starts(layer, offset)
        offset += len(LayerTree(layer).leaves)
    return found


def _in_order(nodes_by_depth: dict[int, list[Any]]) -> list[Any]:
    return [
        node for depth in sorted(nodes_by_depth, reverse=True) for node in nodes_by_depth[depth]
    ]


def _starts_of_graph(model: Layer, nodes: list[Any], offset: int) -> set[int]:
    """Walks the nodes with the set of tensors still needed: a single one is a block start."""
    last_use = _last_uses(model, nodes)
    last_call = {id(node.operation): index for index, node in enumerate(nodes)}
    found: set[int] = set()
    live: set[int] = set()
    shared_until = -1  # a layer called again further on must not be cut in two
    for index, node in enumerate(nodes):
        single_before = len(live) <= 1
        live |= {id(tensor) for tensor in node.outputs}
        live = {tensor for tensor in live if last_use[tensor] > index}
        first_call = last_call[id(node.operation)] >= index and index > shared_until
        shared_until = max(shared_until, last_call[id(node.operation)])
        size = _count_leaves(node.operation) if last_call[id(node.operation)] == index else 0
        if len(live) == 1 and shared_until <= index:
            if single_before and first_call:
                found |= _starts(node.operation, offset)
            found.add(offset + size)
        offset += size
    return found


def _last_uses(model: Layer, nodes: list[Any]) -> dict[int, int]:
    """The index of the last node that reads each tensor; outputs are read behind the last node."""
    uses = {id(tensor): -1 for node in nodes for tensor in node.outputs}
    for index, node in enumerate(nodes):
        uses.update({id(tensor): index for tensor in node.input_tensors})
    uses.update({id(tensor): len(nodes) for tensor in model.outputs})
    return uses


def _count_leaves(operation: Any) -> int:
    return len(LayerTree(operation).leaves) if isinstance(operation, keras.layers.Layer) else 0
