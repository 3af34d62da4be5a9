"""Finds the tensors, such as skip connections, that a block boundary must not cross.

A tensor ties the call that makes it to the calls that read it: a skip connection holds its block
together. Two kinds of tensors don't tie:

- A tensor without gradient to weights: integers, booleans, and what is computed from the model's
  inputs without weights, such as masks and positions. Exception: it ties until the last layer with
  weights that reads nothing else, as at the beginning of two towers.
- A context: a tensor that several layers with weights read as a second input, each beside another
  tensor that it transforms. The layers of a decoder read the encoder's output so, and the layers
  of DeBERTa the relative positions. A skip connection is no context: its branch begins by
  transforming the tensor.

The calls that lead only to a context are a stream of their own: an encoder and the embedding of
its decoder run side by side, and share no block.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import keras

from keras_freeze.graph.layer_tree import Layer, LayerTree, own_variables

Node = Any  # a call in a functional graph
Tensor = Any
END = 0  # stands for the outputs of the graph among the ids of contexts


@dataclass(frozen=True)
class Ties:
    """The tensors that tie the calls of a graph, all given by their ids.

    Attributes:
        until: the index of the last call that each tensor ties; other tensors tie nothing.
        beside: the tensors that layers with weights only read as a second input.
        streams: the contexts that each tying tensor leads to; only END if it leads to the outputs.
        free: the tensors without gradient to weights.
        read: the tensors that a call reads, and the outputs.
    """

    until: dict[int, int]
    beside: set[int]
    streams: dict[int, frozenset[int]]
    free: set[int]
    read: set[int]

    def is_free(self, node: Node) -> bool:
        """True if no tensor that the call reads has a gradient to weights."""
        return all(id(tensor) in self.free for tensor in node.input_tensors)

    def hold(self, live: dict[int, int]) -> bool:
        """True if the graph can't be cut here: more than one tensor of a stream crosses the cut.

        A further output of the same call may cross too: each layer of T5 passes the relative
        positions to the next one.

        Args:
            live: `{id(tensor): index of the call that made it}` of the tensors that still tie.
        """
        main = {(self.streams[t], t) for t in live if t not in self.beside}
        makers = {(self.streams[t], live[t]) for t in live}
        streams = {stream for stream, _ in makers}
        return len(main) > len({stream for stream, _ in main}) or len(makers) > len(streams)


NOTHING = Ties({}, set(), {}, set(), set())


def read_ties(nodes: list[Node], outputs: list[Tensor], free: set[int]) -> Ties:
    """Returns the ties between the calls of a graph.

    Args:
        nodes: the calls in order, including those of the `InputLayer`s.
        outputs: the outputs of the graph; they tie beyond the last call.
        free: the ids of the inputs without gradient to weights.
    """
    free = _without_gradient(nodes, free)
    readings = _readings(nodes, free)
    beside, contexts = set(readings), {t for t, firsts in readings.items() if len(firsts) > 1}
    ends = {id(tensor) for tensor in outputs}
    until = dict.fromkeys((ends - free or ends) - contexts, len(nodes))
    leads = {tensor: {END} for tensor in until} | {tensor: {tensor} for tensor in contexts}
    for index, node in reversed(list(enumerate(nodes))):
        made = [id(tensor) for tensor in node.outputs]
        read = {id(tensor) for tensor in node.input_tensors}
        begins = has_weights(node.operation) or any(tensor in until for tensor in made)
        onward: set[int] = set().union(*(leads.get(tensor, ()) for tensor in made)) or {END}
        joined = (read - free - contexts) | _begin_within(node, free)
        for tensor in joined if read - free else read if begins else ():
            until.setdefault(tensor, index)
            leads.setdefault(tensor, set()).update(onward)
    streams = {t: frozenset({END} if END in leads[t] else leads[t]) for t in until}
    read_at_all = ends | {id(tensor) for node in nodes for tensor in node.input_tensors}
    return Ties(until, beside, streams, free, read_at_all)


def has_graph(layer: Any) -> bool:
    """True for a functional model; a `Sequential` is read as a list of layers."""
    # Subclassed models have no `_nodes_by_depth`. Tried on Keras 3.12.0 and 3.15.1.
    functional = isinstance(layer, keras.Model) and not isinstance(layer, keras.Sequential)
    return functional and hasattr(layer, "_nodes_by_depth")


def in_order(graph: Any) -> list[Node]:
    """Returns the calls of a functional model in the order of `model.layers`."""
    place = {id(operation): index for index, operation in enumerate(graph.operations)}
    nodes_by_depth = graph._nodes_by_depth
    return [
        node
        for depth in sorted(nodes_by_depth, reverse=True)
        for node in sorted(nodes_by_depth[depth], key=lambda node: place[id(node.operation)])
    ]


def has_weights(operation: Any) -> bool:
    """True for a layer with variables that an optimizer could update, at any depth."""
    if not isinstance(operation, keras.layers.Layer):
        return False
    return any(own_variables(leaf) for leaf in LayerTree(operation).leaves)


def inputs_without_gradient(model: Layer, node: Node, free: set[int]) -> set[int]:
    """Returns the ids of the inputs of a nested model that receive tensors without gradient.

    Args:
        model: a functional model.
        node: the node of its call.
        free: the ids of the tensors without gradient in the graph around it.
    """
    if len(node.input_tensors) != len(model.inputs):
        return set()
    pairs = zip(model.inputs, node.input_tensors, strict=True)
    return {id(symbol) for symbol, tensor in pairs if id(tensor) in free}


def _begin_within(node: Node, free: set[int]) -> set[int]:
    """Returns the tensors without gradient that are the only input of a layer in a nested model."""
    model = node.operation
    if not has_graph(model) or len(node.input_tensors) != len(model.inputs):
        return set()
    given = inputs_without_gradient(model, node, free)
    tied = given & read_ties(in_order(model), model.outputs, given).until.keys()
    pairs = zip(model.inputs, node.input_tensors, strict=True)
    return {id(tensor) for symbol, tensor in pairs if id(symbol) in tied}


def _without_gradient(nodes: list[Node], free: set[int]) -> set[int]:
    found = set(free)
    for node in nodes:
        read_free = all(id(tensor) in found for tensor in node.input_tensors)
        from_inputs = bool(node.input_tensors) and read_free and not has_weights(node.operation)
        found |= {id(made) for made in node.outputs if from_inputs or not _is_real(made)}
    return found


def _is_real(tensor: Tensor) -> bool:
    """False for booleans, integers and text."""
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    return not (dtype in ("bool", "string") or keras.backend.is_int_dtype(dtype))


def _readings(nodes: list[Node], free: set[int]) -> dict[int, set[int]]:
    """Maps each tensor that is only read as a second input to the first inputs of those calls."""
    transformed: set[int] = set()
    beside: defaultdict[int, set[int]] = defaultdict(set)
    for node in nodes:
        read = [id(tensor) for tensor in _in_order_of_call(node) if id(tensor) not in free]
        if has_graph(node.operation) or not has_weights(node.operation):
            transformed.update(read)
        elif read:
            transformed.add(read[0])
            for tensor in read[1:]:
                beside[tensor].add(read[0])
    return {tensor: firsts for tensor, firsts in beside.items() if tensor not in transformed}


def _in_order_of_call(node: Node) -> list[Tensor]:
    """Returns the tensors that a call reads, in the order of the layer's arguments."""
    names = list(inspect.signature(node.operation.call).parameters)
    given = sorted(
        node.arguments.kwargs.items(),
        key=lambda item: names.index(item[0]) if item[0] in names else len(names),
    )
    values = keras.tree.flatten([*node.arguments.args, *(value for _, value in given)])
    return [value for value in values if isinstance(value, keras.KerasTensor)]
