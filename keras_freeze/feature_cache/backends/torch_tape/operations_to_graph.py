"""Turns recorded PyTorch operations into a `torch.fx` graph, whose code calls them in order."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.fx

from keras_freeze.feature_cache.backends.torch_tape.tape import Number, Operation, Slot


def to_graph(
    operations: Sequence[Operation], inputs: Sequence[Number], outputs: Any
) -> Callable[..., Any]:
    """Returns a function of a batch's tensors that runs the operations.

    Args:
        operations: the operations in order.
        inputs: the numbers of the function's arguments.
        outputs: the function's result, with slots for tensors.
    """
    given = [(one.args, one.kwargs) for one in operations]
    held = list({id(tensor): tensor for tensor in _outside(given)}.values())
    builder = _Builder(inputs, held)
    for one in operations:
        builder.call(one)
    builder.graph.output(builder.filled(outputs))
    run = torch.fx.GraphModule(torch.nn.Module(), builder.graph).forward
    return lambda *tensors: run(*tensors, *held)


class _Builder:
    """A graph, and the tensors from outside that its operations use.

    Args:
        inputs: the numbers of the function's arguments.
        held: these tensors, further arguments of the graph's code. As local variables, they are
            found faster than as attributes.
    """

    def __init__(self, inputs: Sequence[Number], held: Sequence[Any]):
        self.graph = torch.fx.Graph()
        self.nodes = {number: self.graph.placeholder(f"input_{number}") for number in inputs}
        places = enumerate(held)
        self.held = {id(tensor): self.graph.placeholder(f"held_{n}") for n, tensor in places}

    def call(self, one: Operation) -> None:
        """Adds a call of an operation."""
        args, kwargs = self.filled(one.args), self.filled(one.kwargs)
        node = self.graph.call_function(one.function, tuple(args), kwargs)
        if not one.gives_many:
            self.nodes |= {number: node for number in one.gives if number is not None}
            return
        for place, number in enumerate(one.gives):
            if number is not None:
                self.nodes[number] = self.graph.call_function(operator.getitem, (node, place))

    def filled(self, structure: Any) -> Any:
        """Returns a structure with nodes in place of slots and of tensors from outside."""
        if isinstance(structure, Slot):
            return self.nodes[structure.number]
        if isinstance(structure, torch.Tensor):
            return self.held[id(structure)]
        if isinstance(structure, (tuple, list)):
            return [self.filled(part) for part in structure]
        if isinstance(structure, dict):
            return {key: self.filled(part) for key, part in structure.items()}
        return structure


def _outside(structure: Any) -> Iterator[Any]:
    """Yields the tensors in a structure."""
    if isinstance(structure, torch.Tensor):
        yield structure
    parts = structure.values() if isinstance(structure, dict) else structure
    if isinstance(structure, (tuple, list, dict)):
        for part in parts:
            yield from _outside(part)
