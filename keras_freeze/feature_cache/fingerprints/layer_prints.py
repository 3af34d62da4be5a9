"""Fingerprints of layers: class, settings, weights."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import xxhash

from keras_freeze.feature_cache.fingerprints.code_prints import (
    attribute_print,
    class_print,
    function_print,
    version_of_package,
)
from keras_freeze.feature_cache.fingerprints.plain_values import (
    Print,
    UnknownContentError,
    is_silent,
    is_tensor,
    plain,
    print_of,
    settings_of,
)
from keras_freeze.graph.layer_tree import FOREIGN, LayerTree, is_seed
from keras_freeze.keras_internals.copy_to_numpy import to_numpy

UNREADABLE = (*FOREIGN, "TFSMLayer")


def print_of_operation(operation: Any) -> Print:
    """Returns the fingerprint of a layer or operation. Names and `trainable` flags don't count.

    Raises:
        UnknownContentError: its code or settings can't be read.
    """
    if not isinstance(operation, keras.layers.Layer):
        return print_of(class_print(type(operation)), plain(settings_of(operation), _other))
    layers = [_print_of_layer(layer) for layer in LayerTree(operation)]
    weights = [variable for variable in operation.variables if not is_seed(variable)]
    return print_of(layers, [print_of_weights(variable) for variable in weights])


def print_of_weights(variable: Any) -> Any:
    """Returns the shape, the dtype and the hash of all bytes of a variable."""
    array = np.ascontiguousarray(to_numpy(variable))
    digest = xxhash.xxh3_128_digest(array.reshape(-1).view(np.uint8).data)
    return (tuple(variable.shape), keras.backend.standardize_dtype(variable.dtype), digest)


def _print_of_layer(layer: Any) -> Any:
    """Returns the fingerprint of a layer without its weights."""
    if type(layer).__name__ in UNREADABLE:
        raise UnknownContentError(f"{layer.name!r}, which runs another library's code")
    precision = layer.compute_dtype, layer.variable_dtype
    if isinstance(layer, keras.layers.Lambda):
        code: Any = function_print(layer.function), plain(layer.arguments, _other)
        return (precision, code, plain(settings_of(layer).get("output_shape"), _other))
    parts = precision, class_print(type(layer)), plain(settings_of(layer), _other)
    if version_of_package(type(layer).__module__) is not None:
        return parts
    return (*parts, _attributes(layer))


def _attributes(layer: Any) -> Any:
    """Returns the attributes of an own layer, which its code may read."""
    usual = vars(keras.Model() if isinstance(layer, keras.Model) else keras.layers.Layer())
    found = []
    for name, value in sorted(vars(layer).items()):
        is_inside = isinstance(value, keras.layers.Layer | keras.Variable) or is_tensor(value)
        if name in usual or name.startswith("_") or is_silent(name) or is_inside:
            continue
        found.append((name, attribute_print(_without_layers(value))))
    return tuple(found)


def _without_layers(value: Any) -> Any:
    """Returns a list or dict of layers without them, since they are read as sublayers."""
    if isinstance(value, dict):
        return {key: _without_layers(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_layers(part) for part in value]
    return "layer" if isinstance(value, keras.layers.Layer | keras.Variable) else value


def _other(value: Any) -> Any:
    """Returns a setting that isn't plain."""
    if isinstance(value, keras.Variable) or keras.ops.is_tensor(value):
        return print_of_weights(value)
    if isinstance(value, keras.layers.Layer):
        return print_of_operation(value)
    return attribute_print(value)
