"""Turns arguments and settings into bytes that are the same in each process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import xxhash

Print = bytes
# Settings that don't change what a layer computes in inference, or only name it.
SILENT = ("trainable", "seed")
SILENT_ENDINGS = ("_initializer", "_regularizer", "_constraint")


class UnknownContentError(Exception):
    """Something whose content can't be read, so that two of them can't be told apart.

    Args:
        what: names it, as "an object of type Logger".
    """

    def __init__(self, what: str):
        super().__init__(what)
        self.what = what


def print_of(*parts: Any) -> Print:
    """Returns the hash (xxh3_128) of plain values: numbers, text, bytes, tuples, lists, dicts."""
    return xxhash.xxh3_128_digest(repr(parts).encode())


def plain(value: Any, other: Callable[[Any], Any]) -> Any:
    """Returns a value as plain values, whose `repr` is the same in each process.

    Args:
        value: a setting or an argument, such as the config of a layer.
        other: converts what isn't plain.

    Raises:
        UnknownContentError: raised by `other`.
    """
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return value
    if isinstance(value, np.generic | np.ndarray):
        return _plain_array(np.asarray(value))
    if isinstance(value, np.dtype) or value is Ellipsis:
        return str(value)
    if isinstance(value, slice):
        return ("slice", *(plain(part, other) for part in (value.start, value.stop, value.step)))
    if isinstance(value, Mapping):
        return _plain_dict(value, other)
    if isinstance(value, list | tuple):
        return tuple(plain(part, other) for part in value)
    if isinstance(value, set | frozenset):
        return ("set", sorted(repr(plain(part, other)) for part in value))
    return other(value)


def _plain_array(array: np.ndarray[Any, Any]) -> Any:
    if array.dtype.hasobject:
        raise UnknownContentError("an array of Python objects")
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return (str(array.dtype), array.shape, xxhash.xxh3_128_digest(raw.data))


def _plain_dict(given: Mapping[Any, Any], other: Callable[[Any], Any]) -> Any:
    """Returns a dict as sorted pairs, without what names a layer or trains it."""
    is_layer = bool({"trainable", "batch_shape", "layers"} & set(given))
    kept = {
        str(key): value
        for key, value in given.items()
        if not (is_layer and key == "name") and not is_silent(str(key))
    }
    if is_graph(given):
        kept = renamed(kept, {layer["name"]: i for i, layer in enumerate(given["layers"])})
    return tuple((key, plain(kept[key], other)) for key in sorted(kept))


def is_silent(key: str) -> bool:
    """Returns True for a setting that doesn't change what a layer computes in inference."""
    return key in SILENT or key.endswith(SILENT_ENDINGS)


def is_graph(config: Mapping[Any, Any]) -> bool:
    """Returns True for the config of a functional model, which refers to its layers by name."""
    layers = config.get("layers")
    named = isinstance(layers, list | tuple) and "input_layers" in config
    return named and all(isinstance(layer, dict) and "name" in layer for layer in layers or ())


def renamed(value: Any, numbers: dict[str, int]) -> Any:
    """Returns a config in which references `[name, i, j]` hold the number of the layer."""
    if isinstance(value, Mapping):
        kept = {
            key: part
            for key, part in value.items()
            if not ("inbound_nodes" in value and key == "name")
        }
        return {key: renamed(part, numbers) for key, part in kept.items()}
    if not isinstance(value, list | tuple):
        return value
    is_reference = len(value) == 3 and isinstance(value[0], str) and isinstance(value[1], int)
    if is_reference and value[0] in numbers:
        return ["layer", numbers[value[0]], *value[1:]]
    return [renamed(part, numbers) for part in value]


def settings_of(owner: Any) -> Mapping[str, Any]:
    """Returns the config of a layer or operation, without its name.

    Raises:
        UnknownContentError: it has none.
    """
    try:
        config: dict[str, Any] = dict(owner.get_config())
    except (NotImplementedError, AttributeError, TypeError, ValueError) as error:
        raise UnknownContentError(f"{owner.name!r}, whose `get_config` fails") from error
    config.pop("name", None)
    return config


def is_tensor(value: Any) -> bool:
    """Returns True for a tensor or a variable with values."""
    return isinstance(value, keras.Variable) or keras.ops.is_tensor(value)
