"""Counts the floating point operations of layers, from the shapes of their inputs and outputs.

A row is one sample of the data, such as an image or a text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import keras

from keras_freeze.graph.layer_calls import LayerCall, Program, Value
from keras_freeze.graph.layer_tree import Layer, LayerTree, own_variables

# Layers that use their kernel once for each position of the input, not of the output.
TRANSPOSED = ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")


def forward_flops(program: Program, call: LayerCall) -> float:
    """Returns the floating point operations of a call for one row; a multiply-add counts as two.

    Weights of rank 2 and more are used once for each position. This is exact for dense and
    convolution layers, and an estimate for attention and recurrent layers (their products of two
    inputs aren't counted). A layer without such weights counts one operation for each number of
    its output.
    """
    if call.enters:
        return 0.0
    given = sum(_size(program.symbols[number]) for number in call.writes)
    operation = call.operation
    if not isinstance(operation, keras.layers.Layer):
        return float(given)
    kernels = [
        variable
        for layer in LayerTree(operation)
        if not isinstance(layer, keras.layers.Embedding)
        for variable in own_variables(layer)
        if len(variable.shape) > 1
    ]
    if not kernels:
        return float(given)
    numbers = call.reads.values() if _is_transposed(operation) else call.writes
    positions = max(_positions(operation, program.symbols[number]) for number in numbers)
    return float(2 * positions * sum(math.prod(kernel.shape) for kernel in kernels))


def backward_flops(program: Program, trains: Callable[[Layer], bool]) -> float:
    """Returns the floating point operations of a backward pass for one row.

    The gradient with respect to a layer's weights costs as much as its forward pass. So does the
    gradient with respect to its input, which is needed if a layer before it is trained.

    Args:
        program: the program of the model.
        trains: returns True if weights of a layer are trained.
    """
    reached: set[Value] = set()
    total = 0.0
    for call in program.calls:
        behind = not reached.isdisjoint(call.reads.values())
        own = isinstance(call.operation, keras.layers.Layer) and not call.enters
        learns = own and trains(call.operation)
        if behind or learns:
            reached.update(call.writes)
        total += forward_flops(program, call) * (behind + learns)
    return total


def total_flops(program: Program, calls: Iterable[LayerCall]) -> float:
    """Returns the floating point operations of the forward passes of calls, for one row."""
    return sum(forward_flops(program, call) for call in calls)


def _is_transposed(layer: Layer) -> bool:
    return type(layer).__name__ in TRANSPOSED


def _positions(layer: Layer, symbol: Any) -> int:
    """Returns how often a kernel is used for one row: all axes but batch and channels."""
    shape = list(symbol.shape[1:])
    if len(shape) < 2:
        return 1
    first = getattr(layer, "data_format", None) == "channels_first"
    inner = shape[1:] if first else shape[:-1]
    return math.prod(length or 1 for length in inner)


def _size(symbol: Any) -> int:
    return math.prod(length or 1 for length in symbol.shape[1:])
