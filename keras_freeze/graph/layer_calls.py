"""Reads a functional model as one flat list of layer calls, and runs such calls.

The calls within a nested model are part of the list, in place of the nested model.

Private names of functional models used here were tried on Keras 3.12.0 and 3.15.1:
`_functional` (of Sequential), `_nodes_by_depth`, `_inputs_struct`, `_standardize_inputs`,
`_call_context_args`, `_convert_input_args`, and `get_keras_mask`, `set_keras_mask` of the module
behind `Layer`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import keras

from keras_freeze.graph.layer_tree import Layer

Value = int  # a tensor of the program, by number
Tensor = Any

_layer = sys.modules[keras.layers.Layer.__module__]
_masking = _layer if hasattr(_layer, "get_keras_mask") else _layer.backend  # since 3.16, before it
mask_of: Callable[[Tensor], Any] = _masking.get_keras_mask
set_mask: Callable[[Tensor, Any], None] = _masking.set_keras_mask


@dataclass(frozen=True, eq=False)
class LayerCall:
    """One call of a layer or operation, or the entry into a nested model.

    Attributes:
        operation: the layer or operation; for an entry, the nested model.
        arguments: Keras' template of the arguments.
        reads: the values that fill the template, by the id of the symbolic tensor.
        writes: the values that the call returns.
        enters: True for an entry, which only adapts the dtypes and ranks of the inputs.
    """

    operation: Any
    arguments: Any
    reads: dict[int, Value]
    writes: tuple[Value, ...]
    enters: bool = False


@dataclass(frozen=True, eq=False)
class Program:
    """The calls of a model in the order in which Keras runs them.

    Attributes:
        model: the model that was read.
        calls: the calls, in order.
        inputs: the model's inputs, flat.
        outputs: the model's outputs, flat.
        symbols: the symbolic tensor of each value, with its shape and dtype.
    """

    model: Layer
    calls: tuple[LayerCall, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    symbols: tuple[Tensor, ...]

    def enter(self, inputs: Any) -> dict[Value, Tensor]:
        """Returns the model's inputs as values, converted as Keras converts them."""
        return dict(zip(self.inputs, _graph(self.model)._standardize_inputs(inputs), strict=True))

    def leave(self, values: dict[Value, Tensor]) -> Any:
        """Returns the model's outputs in the structure that `call` returns."""
        flat = [values[number] for number in self.outputs]
        packed = keras.tree.pack_sequence_as(_graph(self.model)._outputs_struct, flat)
        single = isinstance(packed, (list, tuple)) and len(packed) == 1
        return packed[0] if single else packed

    def place_of_inputs(self, inputs: Any) -> list[int] | None:
        """Returns the index in the flat `inputs` for each input of the model; None if unknown."""
        struct, leaves = _graph(self.model)._inputs_struct, keras.tree.flatten(inputs)
        if isinstance(inputs, dict) and not isinstance(struct, dict):
            names = [symbol.name for symbol in keras.tree.flatten(struct)]
            keys = sorted(inputs)
            return [keys.index(name) for name in names] if set(names) <= set(keys) else None
        return list(range(len(leaves))) if len(leaves) == len(self.inputs) else None


def run(calls: Iterable[LayerCall], values: dict[Value, Tensor], training: Any) -> None:
    """Runs calls, and adds their outputs to `values`.

    Args:
        calls: the calls, in order.
        values: the values that the calls read and no earlier call returns.
        training: the `training` argument of the model's `call`. As in a functional model, it takes
            precedence over a layer's recorded argument.
    """
    for call in calls:
        given = {symbol: values[number] for symbol, number in call.reads.items()}
        args, kwargs = call.arguments.fill_in(given)
        if call.enters:
            outputs = _graph(call.operation)._standardize_inputs(args[0])
        else:
            if training is not None and "training" in _context_arguments(call.operation):
                kwargs = {**kwargs, "training": training}
            outputs = call.operation(*args, **kwargs)
        values.update(zip(call.writes, keras.tree.flatten(outputs), strict=False))


def version_of(tensor: Tensor) -> Any:
    """Returns PyTorch's counter of in-place changes of a tensor; None on other backends."""
    return getattr(tensor, "_version", None)


def as_called(layer: Layer, inputs: Any) -> Any:
    """Returns inputs as `layer.__call__` passes them to `call`: tensors of the layer's dtype.

    A tensor that already has this dtype is returned itself, not a copy. Functional models don't
    convert their inputs.
    """
    if not layer._convert_input_args:
        return inputs
    return keras.tree.map_structure(
        lambda leaf: layer.dtype_policy.convert_input(leaf, layer.autocast, layer.input_dtype),
        inputs,
    )


def read_program(model: Layer) -> Program | None:
    """Returns the program of a functional or Sequential model; None for any other model.

    The model may override `__call__`, as KerasHub's tasks do: the program replaces `call`, which
    `__call__` still calls.
    """
    if not _runs_its_graph(model):
        return None
    reader = _Reader()
    inputs = [reader.new(symbol) for symbol in _graph(model).inputs]
    outputs = reader.read(model, inputs)
    return Program(model, tuple(reader.calls), tuple(inputs), tuple(outputs), tuple(reader.symbols))


@dataclass
class _Reader:
    calls: list[LayerCall] = field(default_factory=list)
    symbols: list[Tensor] = field(default_factory=list)

    def new(self, symbol: Tensor) -> Value:
        self.symbols.append(symbol)
        return len(self.symbols) - 1

    def read(self, model: Layer, inputs: list[Value]) -> list[Value]:
        graph = _graph(model)
        numbers = {id(symbol): n for symbol, n in zip(graph.inputs, inputs, strict=True)}
        for depth in sorted(graph._nodes_by_depth, reverse=True):
            for node in graph._nodes_by_depth[depth]:
                known = all(id(symbol) in numbers for symbol in node.input_tensors)
                if node.operation and not node.is_input and known:
                    written = self._call(node, {id(s): numbers[id(s)] for s in node.input_tensors})
                    numbers |= {id(s): n for s, n in zip(node.outputs, written, strict=True)}
        return [numbers[id(symbol)] for symbol in graph.outputs]

    def _call(self, node: Any, reads: dict[int, Value]) -> list[Value]:
        operation, nested = node.operation, _is_plain(node.operation) and _has_plain_arguments(node)
        symbols = _graph(operation).inputs if nested else node.outputs
        written = [self.new(symbol) for symbol in symbols]
        self.calls.append(
            LayerCall(operation, node.arguments, reads, tuple(written), enters=nested)
        )
        return self.read(operation, written) if nested else written


def _graph(model: Layer) -> Any:
    """Returns the functional model; a Sequential model wraps one."""
    return model._functional if isinstance(model, keras.Sequential) else model


def _is_plain(layer: Layer) -> bool:
    """True if a call of `layer` only runs its graph."""
    return _runs_its_graph(layer) and is_keras_code(type(layer).__call__)


def _runs_its_graph(layer: Layer) -> bool:
    """True if `call` of `layer` only runs its graph."""
    if not isinstance(layer, keras.Model) or _graph(layer) is None:
        return False
    if not hasattr(_graph(layer), "_nodes_by_depth") or layer.activity_regularizer is not None:
        return False
    return is_keras_code(type(layer).call) and "call" not in vars(layer)


def is_keras_code(method: Any) -> bool:
    """True if the method is defined in Keras."""
    return str(method.__module__).split(".")[0] == "keras"


def _has_plain_arguments(node: Any) -> bool:
    """True if a model is called as `model(inputs)`; `training` is ignored, as `run` replaces it."""
    options = {key: value for key, value in node.arguments.kwargs.items() if key != "training"}
    given = keras.tree.flatten(list(options.values()))  # such as a mask for each input
    return len(node.arguments.args) == 1 and all(value is None for value in given)


def _context_arguments(operation: Any) -> Iterable[str]:
    names: Iterable[str] = getattr(operation, "_call_context_args", ())
    return names
