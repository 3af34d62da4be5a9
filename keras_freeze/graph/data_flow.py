"""How data flow through the top level of a model: what reads what, nested models as one unit each.

A functional or Sequential model has a graph. A subclassed model gets one here by a call on symbolic
inputs; where its code can't be called on these, its layers are taken to follow one another in the
order in which they were made.

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

Node = Any  # of Keras: one call of an operation


@dataclass(eq=False)
class Unit:
    """One layer with weights, however often it is called, or one call without weights.

    Attributes:
        operation: the layer or operation.
        leaves: the leaf layers at or below it.
        rank_in: the most axes that one of its inputs has, the batch among them.
        rank_out: the most axes of an output that something reads.
        params: the number of its weights that an optimizer could train.
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
        """The leaf layers that have weights."""
        return [leaf for leaf in self.leaves if own_variables(leaf)]

    @property
    def is_frozen(self) -> bool:
        """True if none of its weights is trained now."""
        trained = (v.trainable for leaf in self.weighted if leaf.trainable for v in leaf.weights)
        return not any(trained)

    @property
    def model(self) -> Layer | None:
        """The model that it is, or that it wraps (`TimeDistributed`); None of any other layer."""
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
        units: those that an output depends on.
        ends: those that give an output of the model.
    """

    units: list[Unit]
    ends: set[Unit]

    @property
    def weighted(self) -> list[Unit]:
        return [unit for unit in self.units if unit.params]

    def passes_by(self, unit: Unit) -> bool:
        """True if something that was computed with weights reaches an output, but not `unit`."""
        sources = [other for other in unit.ancestors if other.params]
        return not self.ends.isdisjoint(_reached(sources, "after", without=unit) - {unit})


def read_flow(tree: LayerTree) -> Flow:
    """Returns how data flow through the model at the root of a tree."""
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
        # A layer without weights that is called at two places ties nothing together.
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
    """The layers as a chain, those that nothing trains left out where others stay."""
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
    """The flow of a subclassed model, called on symbolic inputs; None if it can't be."""
    shapes = tree.root.get_build_config()
    if not tree.root.built or not shapes or "input_shape" not in shapes:
        return None
    with _no_trace_left(tree):
        try:
            outputs = tree.root.call(_inputs_like(shapes["input_shape"]))
            ends = [t for t in keras.tree.flatten(outputs) if hasattr(t, "_keras_history")]
            flow = _flow_of(tree, _nodes_behind(ends), ends)
        except Exception:  # of any type: the user's code runs
            return None
    return flow if flow.weighted else None


def _inputs_like(shape: Any) -> Any:
    """Symbolic inputs in the structure of `shape`, the batch axis first and left open."""
    if isinstance(shape, dict):
        return {name: _inputs_like(part) for name, part in shape.items()}
    if shape and all(length is None or isinstance(length, int) for length in shape):
        return keras.Input(tuple(shape)[1:])
    return type(shape)(_inputs_like(part) for part in shape)


def _nodes_behind(tensors: list[Any]) -> list[Node]:
    """The calls that tensors depend on, each after those that it depends on."""
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
    """Takes the calls that were recorded meanwhile out of the layers again."""
    kept = [(layer, list(layer._inbound_nodes), list(layer._outbound_nodes)) for layer in tree]
    try:
        with keras.StatelessScope(collect_losses=True):
            yield
    finally:
        for layer, inbound, outbound in kept:
            layer._inbound_nodes[:] = inbound
            layer._outbound_nodes[:] = outbound
