"""Where a base may be cut without splitting a block: the articulation points of its graph."""

from __future__ import annotations

from typing import Any

import keras

from keras_freeze.graph.tree import Layer, LayerTree, children, own_variables

CUT = None  # among the layers in the order of their calls: one single tensor passes here


def block_starts(root: Layer) -> list[int]:
    """Returns the positions in `LayerTree(root).leaves` before which one single tensor passes.

    A cut there splits no residual block, and no layer is called on both sides of it. 0 (before
    everything) is always one. Graphs are read from functional models and from `Sequential`; of a
    subclassed model only its direct sublayers are known, and each begins a block.
    """
    calls = _calls(root, live=set())
    last = {id(leaf): index for index, leaf in enumerate(calls) if leaf is not CUT}
    starts, seen, open_until = {0}, set(), -1
    for index, leaf in enumerate(calls):
        if leaf is not CUT:
            seen.add(id(leaf))
            open_until = max(open_until, last[id(leaf)])
        elif open_until < index:
            starts.add(len(seen))
    return sorted(starts)


def weighted_blocks(tree: LayerTree, leaves: list[Layer]) -> list[list[Layer]]:
    """Returns the layers with weights among some leaves, by block, from the input on.

    A block reaches from one place where the graph may be cut to the next. One that holds nothing
    but a BatchNormalization goes with the block before it.

    Args:
        tree: whose graph is read.
        leaves: of the tree.
    """
    wanted = {id(leaf) for leaf in leaves if own_variables(leaf)}
    starts = set(block_starts(tree.root))
    blocks: list[list[Layer]] = [[]]
    for position, leaf in enumerate(tree.leaves):
        if position in starts and blocks[-1]:
            blocks.append([])
        if id(leaf) in wanted:
            blocks[-1].append(leaf)
    joined: list[list[Layer]] = []
    for block in filter(None, blocks):
        normalises = all(isinstance(leaf, keras.layers.BatchNormalization) for leaf in block)
        if joined and normalises:
            joined[-1] += block
        else:
            joined.append(block)
    return joined


def _calls(layer: Layer, live: set[int] | None = None) -> list[Layer | None]:
    """The leaves in the order of their calls, a shared one each time, with the cuts between.

    Args:
        layer: a layer or model.
        live: ids of the tensors that pass before the first layer. None = all inputs: those of a
            nested model are there before it. At the top an input begins at its `InputLayer`.
    """
    if isinstance(layer, keras.Model):
        # Functional models alone have a graph; subclassed ones have no `_nodes_by_depth`.
        # Tried on Keras 3.12.0 and 3.15.1.
        nodes = getattr(layer, "_nodes_by_depth", None)
        if nodes is None or isinstance(layer, keras.Sequential):
            return [call for child in children(layer) for call in (*_calls(child), CUT)]
        live = {id(tensor) for tensor in layer.inputs} if live is None else live
        return _calls_of_graph(layer, _in_order(layer, nodes), live)
    return list(LayerTree(layer).leaves)


def _in_order(model: Layer, nodes_by_depth: dict[int, list[Any]]) -> list[Any]:
    """The nodes in the order of `model.layers`."""
    place = {id(operation): index for index, operation in enumerate(model.operations)}
    return [
        node
        for depth in sorted(nodes_by_depth, reverse=True)
        for node in sorted(nodes_by_depth[depth], key=lambda node: place[id(node.operation)])
    ]


def _calls_of_graph(model: Layer, nodes: list[Any], live: set[int]) -> list[Layer | None]:
    """Walks the nodes with the set of tensors still needed; where it is a single one is a cut."""
    last_use = _last_uses(model, nodes)
    calls: list[Layer | None] = []
    for index, node in enumerate(nodes):
        single_before = len(live) == 1
        live |= {id(tensor) for tensor in node.outputs}
        live = {tensor for tensor in live if last_use[tensor] > index}
        single = len(live) == 1
        if isinstance(node.operation, keras.layers.Layer):
            inside = _calls(node.operation)
            cuts_hold = single_before and single  # nothing passes the layer by
            calls += inside if cuts_hold else [call for call in inside if call is not CUT]
        calls += [CUT] if single else []
    return calls


def _last_uses(model: Layer, nodes: list[Any]) -> dict[int, int]:
    """The index of the last node that reads each tensor; outputs are read behind the last node."""
    uses = {id(tensor): -1 for node in nodes for tensor in node.outputs}
    for index, node in enumerate(nodes):
        uses.update({id(tensor): index for tensor in node.input_tensors})
    uses.update({id(tensor): len(nodes) for tensor in model.outputs})
    return uses
