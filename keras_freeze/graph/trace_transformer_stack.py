"""The graph of a layer that stacks transformer layers: its `call`, run on symbolic tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras

from keras_freeze.graph.layer_tree import Layer, children

RANK_OF_SEQUENCES = 3  # batch, length, features: layers for images are one block as they stand


@contextmanager
def traced(layer: Layer, node: Any, read: set[int]) -> Iterator[Any]:
    """Gives the graph within a layer while the context lasts; None for one that is no stack.

    The sublayers remember the calls of a graph, so they are made to forget these in the end.

    Args:
        layer: that is no model.
        node: the call of it; None = the first that there was.
        read: the ids of the tensors that are read of those that the call gives.
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
    """Gives a tensor for None: a graph has no place for attention scores that weren't asked for."""

    def filled(*args: Any, **kwargs: Any) -> Any:
        given = spec(*args, **kwargs)
        return keras.tree.map_structure(lambda t: keras.KerasTensor(()) if t is None else t, given)

    return filled


def _is_stack(layer: Layer) -> bool:
    """True for a layer that holds several of one class, each with layers of layers within.

    So is the attention within a transformer layer. That layer holds no such: it is one block.
    """
    deep = [child for child in children(layer) if any(map(children, children(child)))]
    return max(Counter(map(type, deep)).values(), default=0) > 1


def _graph_of(layer: Layer, node: Any, read: set[int]) -> Any:
    """The calls that `layer` makes of its sublayers; None if its code needs numbers to run."""
    inputs = {id(tensor): _symbol_like(tensor) for tensor in node.input_tensors}
    args, kwargs = node.arguments.fill_in(inputs)
    try:
        with keras.StatelessScope():  # what the code assigns, or adds to the loss, is dropped
            outputs = keras.tree.flatten(layer.call(*args, **kwargs))
        pairs = zip(outputs, node.outputs, strict=True)
        wanted = [symbol for symbol, tensor in pairs if id(tensor) in read]
        return keras.Function(list(inputs.values()), wanted or outputs[:1])
    except Exception:  # any code may run there
        return None


def _symbol_like(tensor: Any) -> Any:
    """A batch of one, as code may ask for the number of rows."""
    return keras.KerasTensor([length or 1 for length in tensor.shape], dtype=tensor.dtype)
