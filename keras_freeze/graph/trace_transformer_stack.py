"""Reads the graph within a stack of transformer layers: runs its `call` on symbolic tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras

from keras_freeze.graph.layer_tree import Layer, children

RANK_OF_SEQUENCES = 3  # batch, length, features; a layer for images always counts as one block


@contextmanager
def traced(layer: Layer, node: Any, read: set[int]) -> Iterator[Any]:
    """Yields the graph within a layer, or None if the layer isn't a stack.

    The sublayers record the calls of the graph; these records are removed at the end.

    Args:
        layer: a layer that isn't a model.
        node: the node of its call; None = its first call.
        read: the ids of the outputs of the call that something reads.
    """
    # `_inbound_nodes`, `_outbound_nodes` and `_flatten_layers` were tried on Keras 3.15.1.
    node = node or next(iter(layer._inbound_nodes), None)
    if node is None or not _is_stack(layer) or len(node.outputs[0].shape) != RANK_OF_SEQUENCES:
        yield None
        return
    below = layer._flatten_layers(include_self=False)
    records = [record for each in below for record in (each._inbound_nodes, each._outbound_nodes)]
    lengths = [len(record) for record in records]
    for each in below:
        vars(each)["compute_output_spec"] = _filled(each.compute_output_spec)
    try:
        yield _graph_of(layer, node, read)
    finally:
        for each in below:
            del vars(each)["compute_output_spec"]
        for record, length in zip(records, lengths, strict=True):
            del record[length:]


def _filled(spec: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `compute_output_spec`: replaces None by a tensor, as a graph can't hold None.

    MultiHeadAttention returns None for attention scores that weren't requested.
    """

    def filled(*args: Any, **kwargs: Any) -> Any:
        given = spec(*args, **kwargs)
        return keras.tree.map_structure(lambda t: keras.KerasTensor(()) if t is None else t, given)

    return filled


def _is_stack(layer: Layer) -> bool:
    """True for a layer that holds several layers of one class, each two or more levels deep.

    A transformer layer is two levels deep, as its attention holds layers. It holds no such layers
    itself, so it is one block.
    """
    deep = [child for child in children(layer) if any(map(children, children(child)))]
    return max(Counter(map(type, deep)).values(), default=0) > 1


def _graph_of(layer: Layer, node: Any, read: set[int]) -> Any:
    """Returns the calls that `layer` makes of its sublayers; None if its code needs real values."""
    inputs = {id(tensor): _symbol_like(tensor) for tensor in node.input_tensors}
    args, kwargs = node.arguments.fill_in(inputs)
    try:
        with keras.StatelessScope():  # discards assignments and added losses
            outputs = keras.tree.flatten(layer.call(*args, **kwargs))
        pairs = zip(outputs, node.outputs, strict=True)
        wanted = [symbol for symbol, tensor in pairs if id(tensor) in read]
        return keras.Function(list(inputs.values()), wanted or outputs[:1])
    except Exception:  # the user's code runs, and may raise anything
        return None


def _symbol_like(tensor: Any) -> Any:
    """Returns a symbolic tensor with a batch size of 1, as code may ask for the batch size."""
    return keras.KerasTensor([length or 1 for length in tensor.shape], dtype=tensor.dtype)
