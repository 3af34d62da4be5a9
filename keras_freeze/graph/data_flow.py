"""Reads how data flow through the layers of a model; a nested model counts as one layer.

A functional or Sequential model has a graph. A subclassed model is called on symbolic inputs to
get one. If that fails, its layers are assumed to follow one another in the order in which they
were created.

Private names used here were tried on Keras 3.12.0 and 3.15.1: `_functional` (of Sequential),
`_nodes_by_depth`, `_inbound_nodes`, `_outbound_nodes`, `_keras_history` (of a symbolic tensor).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import keras

from keras_freeze.graph.layer_tree import Layer, LayerTree, children, count_params, own_variables

Node = Any  # Keras' record of one call of an operation


@dataclass(eq=False)
class Unit:
    """A layer with weights and all its calls, or a single call of an operation without weights.

    Attributes:
        operation: the layer or operation.
        leaves: the leaves at or below it (see `layer_tree`).
        rank_in: the maximum rank of its inputs, with the batch axis.
        rank_out: the maximum rank of the outputs that something reads.
        params: the number of scalars that an optimizer could train.
        before: the units whose outputs it reads.
        after: the units that read its outputs.
    """

    operation: Any
    leaves: list[Layer]
    rank_in: int = 0
    rank_out: int = 0
    before: set[Unit] = field(default_factory=set)
    after: set[Unit] = field(default_factory=set)

    @cached_property
    def params(self) -> int:
        variables = {id(v): v for leaf in self.leaves for v in own_variables(leaf)}
        return count_params(variables.values())

    @cached_property
    def weighted(self) -> list[Layer]:
        """The leaves that have weights."""
        return [leaf for leaf in self.leaves if own_variables(leaf)]

    @property
    def is_frozen(self) -> bool:
        """True if none of its weights is trainable now."""
        trained = (v.trainable for leaf in self.weighted if leaf.trainable for v in leaf.weights)
        return not any(trained)

    @property
    def model(self) -> Layer | None:
        """The model that it is or wraps (as `TimeDistributed` does); None for any other layer."""
        inner = getattr(self.operation, "layer", None)
        wraps = isinstance(self.operation, keras.layers.Wrapper) and isinstance(inner, keras.Model)
        if wraps:
            return inner
        return self.operation if isinstance(self.operation, keras.Model) else None

    @cached_property
    def ancestors(self) -> set[Unit]:
        return _reached(self.before, "before")

    @cached_property
    def descendants(self) -> set[Unit]:
        return _reached(self.after, "after")


def _reached(start: Iterable[Unit], side: str, without: Unit | None = None) -> set[Unit]:
    found: set[Unit] = set()
    waiting = [unit for unit in start if unit is not without]
    while waiting:
        unit = waiting.pop()
        if unit not in found:
            found.add(unit)
            waiting += [other for other in getattr(unit, side) if other is not without]
    return found


@dataclass(frozen=True, eq=False)
class Flow:
    """The units of a model in the order of their calls.

    Attributes:
        units: the units that an output depends on.
        ends: the units that return an output of the model.
    """

    units: list[Unit]
    ends: set[Unit]

    @property
    def weighted(self) -> list[Unit]:
        return [unit for unit in self.units if unit.params]

    def passes_by(self, unit: Unit) -> bool:
        """True if a path from weights before `unit` to an output doesn't go through `unit`."""
        sources = [other for other in unit.ancestors if other.params]
        return not self.ends.isdisjoint(_reached(sources, "after", without=unit) - {unit})


def read_flow(tree: LayerTree) -> Flow:
    """Returns the data flow of the model at the root of a tree."""
    model = tree.root
    graph = getattr(model, "_functional", None) or model
    if hasattr(graph, "_nodes_by_depth") and isinstance(graph, keras.Model):
        depths = sorted(graph._nodes_by_depth, reverse=True)
        nodes = [node for depth in depths for node in graph._nodes_by_depth[depth]]
        return _flow_of(tree, nodes, graph.outputs)
    traced = None if isinstance(model, keras.Sequential) else _trace(tree)
    return traced if traced is not None else _in_order(tree)


def _flow_of(tree: LayerTree, nodes: list[Node], outputs: list[Any]) -> Flow:
    units: dict[int, Unit] = {}
    givers: dict[int, Unit] = {}
    used = {id(tensor) for node in nodes for tensor in node.input_tensors}
    used |= {id(tensor) for tensor in outputs}
    for node in nodes:
        unit = _new_unit(tree, node.operation)
        # Two calls of a shared layer without weights are independent of each other.
        unit = units.setdefault(id(node.operation) if unit.params else id(node), unit)
        for tensor in node.input_tensors:
            unit.rank_in = max(unit.rank_in, len(tensor.shape))
            giver = givers.get(id(tensor))
            if giver is not None:
                unit.before.add(giver)
                giver.after.add(unit)
        for tensor in node.outputs:
            givers[id(tensor)] = unit
            if id(tensor) in used:
                unit.rank_out = max(unit.rank_out, len(tensor.shape))
    ends = {givers[id(tensor)] for tensor in outputs if id(tensor) in givers}
    return Flow(list(units.values()), ends)


def _new_unit(tree: LayerTree, operation: Any) -> Unit:
    return Unit(operation, tree.below(operation) if operation in tree else [])


def _in_order(tree: LayerTree) -> Flow:
    """Returns the layers as a chain; drops frozen nested models if another one is trainable."""
    layers = children(tree.root)
    units = [unit for layer in layers if (unit := _new_unit(tree, layer)).params]
    learning = [unit for unit in units if not unit.is_frozen]
    if any(unit.model is not None for unit in learning):
        units = [unit for unit in units if unit in learning or unit.model is None]
    for unit, following in itertools.pairwise(units):
        unit.after.add(following)
        following.before.add(unit)
    return Flow(units, set(units[-1:]))


def _trace(tree: LayerTree) -> Flow | None:
    """Returns the flow of a subclassed model, called on symbolic inputs; None if that fails."""
    shapes = tree.root.get_build_config()
    if not tree.root.built or not shapes or "input_shape" not in shapes:
        return None
    with _no_trace_left(tree):
        try:
            outputs = tree.root.call(_inputs_like(shapes["input_shape"]))
            ends = [t for t in keras.tree.flatten(outputs) if hasattr(t, "_keras_history")]
            flow = _flow_of(tree, _nodes_behind(ends), ends)
        except Exception:  # the user's code runs, and may raise anything
            return None
    return flow if flow.weighted else None


def _inputs_like(shape: Any) -> Any:
    """Returns symbolic inputs in the structure of `shape`, with an unknown batch size."""
    if isinstance(shape, dict):
        return {name: _inputs_like(part) for name, part in shape.items()}
    if shape and all(length is None or isinstance(length, int) for length in shape):
        return keras.Input(tuple(shape)[1:])
    return type(shape)(_inputs_like(part) for part in shape)


def _nodes_behind(tensors: list[Any]) -> list[Node]:
    """Returns the calls that the tensors depend on, in topological order."""
    found: dict[int, Node] = {}
    waiting: list[tuple[Node, bool]] = [(_maker(tensor), False) for tensor in tensors]
    while waiting:
        node, is_ready = waiting.pop()
        if is_ready:
            found.setdefault(id(node), node)
        elif id(node) not in found:
            waiting += [(node, True), *((parent, False) for parent in node.parent_nodes)]
    return list(found.values())


def _maker(tensor: Any) -> Node:
    history = tensor._keras_history
    return history.operation._inbound_nodes[history.node_index]


@contextmanager
def _no_trace_left(tree: LayerTree) -> Iterator[None]:
    """Removes the calls that the layers record while the context is active."""
    kept = [(layer, list(layer._inbound_nodes), list(layer._outbound_nodes)) for layer in tree]
    try:
        with keras.StatelessScope(collect_losses=True):
            yield
    finally:
        for layer, inbound, outbound in kept:
            layer._inbound_nodes[:] = inbound
            layer._outbound_nodes[:] = outbound
