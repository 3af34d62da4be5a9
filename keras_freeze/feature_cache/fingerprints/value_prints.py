"""Fingerprints of the tensors of a graph: a hash over all that their values depend on."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import Any

import keras

from keras_freeze.feature_cache.fingerprints.layer_prints import (
    print_of_operation,
    print_of_weights,
)
from keras_freeze.feature_cache.fingerprints.plain_values import (
    Print,
    UnknownContentError,
    is_tensor,
    plain,
    print_of,
)
from keras_freeze.graph.layer_calls import LayerCall, Program, Value
from keras_freeze.keras_internals.copy_to_numpy import to_numpy

IDENTITIES = (  # in inference, in which cached layers run
    keras.layers.AlphaDropout,
    keras.layers.Dropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
)
FORMAT = 1  # of the files; another number makes all files unknown


def prints_of_values(
    program: Program,
    calls: Iterable[LayerCall],
    places: Sequence[int],
    *,
    records: bool = False,
) -> dict[Value, Print]:
    """Returns a fingerprint for each tensor that calls compute: a chained hash (a Merkle tree).

    It depends on the input's shape and dtype, on the layers before the tensor, on how they are
    connected, on their settings, on each byte of their weights, on the versions of Keras and of
    the backend, and on Keras' global settings.

    Args:
        program: the graph.
        calls: the calls of frozen layers, in order.
        places: the inputs from which the keys of rows are made.
        records: whether random layers run as in training.

    Raises:
        UnknownContentError: a layer's code or settings can't be read.
    """
    start = print_of(FORMAT, versions(), _global_settings(), tuple(places), records)
    prints: dict[Value, Print] = {}
    for place, value in enumerate(program.inputs):
        prints[value] = print_of(start, "input", place, _spec(program.symbols[value]))
    layers: dict[int, Print] = {}
    for call in calls:
        if (same := _unchanged(call, program, records)) is not None:
            prints[call.writes[0]] = prints[same]
            continue
        if not call.enters and id(call.operation) not in layers:
            layers[id(call.operation)] = print_of_operation(call.operation)
        specs = [_spec(program.symbols[value]) for value in call.writes]
        what = specs if call.enters else layers[id(call.operation)]
        given = _arguments(call, prints)
        for number, value in enumerate(call.writes):
            prints[value] = print_of(what, given, number)
    return prints


def _unchanged(call: LayerCall, program: Program, records: bool) -> Value | None:
    """Returns the tensor that a call passes on unchanged: into a nested model, or in a Dropout."""
    read = list(call.reads.values())
    if len(read) != 1 or len(call.writes) != 1:
        return None
    if call.enters:
        before, after = program.symbols[read[0]], program.symbols[call.writes[0]]
        return read[0] if _spec(before) == _spec(after) else None
    return read[0] if type(call.operation) in IDENTITIES and not records else None


def versions() -> dict[str, str]:
    """Returns the versions on which the rounding of features depends."""
    backend = keras.backend.backend()
    module = importlib.import_module(backend)
    return {"keras": keras.__version__, "backend": f"{backend} {module.__version__}"}


def _global_settings() -> tuple[Any, ...]:
    config = keras.config
    return config.image_data_format(), config.floatx(), config.epsilon()


def _spec(symbol: Any) -> tuple[int, str]:
    """Returns the rank and the dtype. A row's shape is a part of its key."""
    return len(symbol.shape), keras.backend.standardize_dtype(symbol.dtype)


def _arguments(call: LayerCall, prints: dict[Value, Print]) -> Any:
    """Returns the arguments of a call, with fingerprints in place of tensors."""

    def other(value: Any) -> Any:
        if isinstance(value, keras.KerasTensor):
            return ("tensor", prints[call.reads[id(value)]])
        if is_tensor(value):
            return print_of_weights(value) if isinstance(value, keras.Variable) else _array(value)
        if isinstance(value, type) or hasattr(value, "as_numpy_dtype"):
            return str(value)
        raise UnknownContentError(f"an argument of {call.operation.name!r}, of {type(value)}")

    options = {key: value for key, value in call.arguments.kwargs.items() if key != "training"}
    return plain((tuple(call.arguments.args), options), other)


def _array(tensor: Any) -> Any:
    return plain(to_numpy(tensor), repr)
