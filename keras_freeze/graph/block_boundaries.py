"""Finds where a model can be cut without splitting a block: the articulation points of its graph.

A leaf is a layer without sublayers, or with weights of its own (see `layer_tree`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras

from keras_freeze.graph.layer_tree import Layer, LayerTree, children, own_variables
from keras_freeze.graph.tensors_within_blocks import (
    NOTHING,
    Ties,
    has_graph,
    in_order,
    inputs_without_gradient,
    read_ties,
)
from keras_freeze.graph.trace_transformer_stack import RANK_OF_SEQUENCES, traced


@dataclass(frozen=True)
class Call:
    """One call of a leaf.

    Attributes:
        leaf: the layer that is called.
        begins: True if no tensor that it reads has a gradient to weights, as for an embedding.
    """

    leaf: Layer
    begins: bool = False


CUT = None  # among the calls in their order: the graph may be cut here
Calls = list[Call | None]


def block_starts(root: Layer) -> list[int]:
    """Returns the positions in `LayerTree(root).leaves` before which a block may begin.

    Only the result of one call crosses such a cut, so no residual block is split. Masks, positions
    and contexts may cross it too (see `block_ties`). No layer with weights is called on both sides
    of a cut, unless its later calls begin a stream of their own: an embedding that an encoder and
    a decoder share does so. 0 (before everything) is always a start.

    Graphs are read from functional models, from `Sequential`, and from layers that stack
    transformer layers. For a subclassed model only the direct sublayers are known, and each of
    them begins a block.
    """
    calls = _calls_of_root(root)
    ties = [bool(call and not call.begins and own_variables(call.leaf)) for call in calls]
    last = {id(call.leaf): index for index, call in enumerate(calls) if call and ties[index]}
    starts, seen, open_until = {0}, set(), -1
    for index, call in enumerate(calls):
        if call is not CUT:
            seen.add(id(call.leaf))
            open_until = max(open_until, last.get(id(call.leaf), -1))
        elif open_until < index:
            starts.add(len(seen))
    return sorted(starts)


def weighted_blocks(tree: LayerTree, leaves: list[Layer]) -> list[list[Layer]]:
    """Returns those of `leaves` that have weights, grouped by block, from the input on.

    A block is what lies between two cuts. A block that only normalizes is joined with the block
    before it. The embeddings of a text form one block.

    Args:
        tree: the tree whose graph is read.
        leaves: some leaves of the tree.
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
        if joined and _goes_with(joined[-1], block):
            joined[-1] += block
        else:
            joined.append(block)
    return joined


def _goes_with(before: list[Layer], block: list[Layer]) -> bool:
    """True if a block is joined with the one before: it only normalizes, or both are embeddings."""
    normalises = all(_normalises(leaf) for leaf in block)
    return normalises or (all(map(_embeds, before)) and all(map(_embeds, block)))


def _normalises(leaf: Layer) -> bool:
    """True for a BatchNormalization, and for any normalization of sequences, as after a stack.

    These are recognized by name, as KerasHub has its own classes. Other normalizations don't
    count: the blocks of ConvNeXt begin with one.
    """
    if isinstance(leaf, keras.layers.BatchNormalization):
        return True
    shape = (leaf.get_build_config() or {}).get("input_shape") or ()
    return "norm" in type(leaf).__name__.lower() and len(shape) == RANK_OF_SEQUENCES


def _embeds(leaf: Layer) -> bool:
    return type(leaf).__name__.endswith("Embedding")


def _calls_of_root(root: Layer) -> Calls:
    """Like `_calls`, for the whole model; a functional model begins at its `InputLayer`s."""
    if not has_graph(root):
        return _calls(root)
    nodes = in_order(root)
    inputs = {id(tensor) for tensor in root.inputs}
    return _calls_of_graph(nodes, read_ties(nodes, root.outputs, inputs), {})


def _calls(layer: Layer, node: Any = None, around: Ties = NOTHING) -> Calls:
    """Returns the calls of leaves in order, with the cuts between them.

    A shared leaf appears once for each call.

    Args:
        layer: a layer or model.
        node: the node of the call, if `layer` is called in a graph.
        around: the ties of that graph.
    """
    if has_graph(layer):
        return _calls_within(layer, _outputs_that_are_read(layer, node, around), node, around)
    if isinstance(layer, keras.Model):
        return [call for child in children(layer) for call in (*_calls(child), CUT)]
    with traced(layer, node, around.read) as graph:
        calls = _calls_within(graph, graph.outputs, node, around) if graph else []
    return _in_order_of_tree(layer, calls, node is not None and around.is_free(node))


def _outputs_that_are_read(model: Layer, node: Any, around: Ties) -> list[Any]:
    if node is None or len(node.outputs) != len(model.outputs):  # the model overrides `call`
        return list(model.outputs)
    pairs = zip(model.outputs, node.outputs, strict=True)
    return [symbol for symbol, tensor in pairs if id(tensor) in around.read]


def _calls_within(graph: Any, outputs: list[Any], node: Any, around: Ties) -> Calls:
    """Returns the calls within a model or layer, whose inputs exist before the first call."""
    nodes = in_order(graph)
    free = inputs_without_gradient(graph, node, around.free) if node else set()
    ties = read_ties(nodes, outputs, free)
    return _calls_of_graph(nodes, ties, {id(tensor): -1 for tensor in graph.inputs})


def _calls_of_graph(nodes: list[Any], ties: Ties, live: dict[int, int]) -> Calls:
    """Walks the nodes with the tensors still needed; cuts where these don't hold calls together.

    Args:
        nodes: the nodes of the graph, in order.
        ties: the ties between them.
        live: `{id(tensor): index of the call that made it}` for the tensors that exist before the
            first call.
    """
    calls: Calls = []
    live = {tensor: maker for tensor, maker in live.items() if tensor in ties.until}
    for index, node in enumerate(nodes):
        free_before = not ties.hold(live)
        made = {id(tensor): index for tensor in node.outputs}
        live = made | live if node.is_input else live | made
        live = {t: maker for t, maker in live.items() if ties.until.get(t, -1) > index}
        free_after = not ties.hold(live)
        if isinstance(node.operation, keras.layers.Layer):
            inside = _calls(node.operation, node, ties)
            cuts_hold = free_before and free_after  # nothing of its stream bypasses the layer
            calls += inside if cuts_hold else [call for call in inside if call is not CUT]
        calls += [CUT] if free_after else []
    return calls


def _in_order_of_tree(layer: Layer, calls: Calls, begins: bool) -> Calls:
    """Returns the leaves of a layer in the order of its tree, with the cuts that are valid there.

    A layer lists its sublayers in the order in which they were created, not called.
    """
    leaves = LayerTree(layer).leaves
    place = {id(leaf): n for n, leaf in enumerate(leaves)}
    places = [place.get(id(call.leaf), -1) if call else -1 for call in calls]
    weighted = {n for n, leaf in enumerate(leaves) if own_variables(leaf)}
    starts = set()
    for index in (index for index, call in enumerate(calls) if call is CUT):
        before, behind = set(places[:index]), weighted & set(places[index:])
        if behind and before & weighted and max(before & weighted) < min(behind):
            starts.add(1 + max(n for n in before if n < min(behind)))
    found: Calls = []
    for n, leaf in enumerate(leaves):
        found += [CUT, Call(leaf, begins)] if n in starts else [Call(leaf, begins)]
    return found
