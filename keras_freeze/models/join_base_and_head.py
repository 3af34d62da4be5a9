"""Joins augmentation, base and head into one functional model, and checks these arguments."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Sequence
from typing import Any

import keras

from keras_freeze.errors import FreezeError, warn
from keras_freeze.graph.layer_tree import Layer

Tensors = Any  # a symbolic tensor, or a structure of them

POOLING = {
    0: None,
    1: keras.layers.GlobalAveragePooling1D,
    2: keras.layers.GlobalAveragePooling2D,
    3: keras.layers.GlobalAveragePooling3D,
}


def check_base(base: Any) -> None:
    """Raises `FreezeError` unless `base` is a model whose inputs are known."""
    if not isinstance(base, keras.Model):
        raise FreezeError(
            "`base` must be a keras.Model, such as keras.applications.MobileNetV2("
            f"include_top=False). Received: base={base!r} (of type {type(base).__name__})"
        )
    if _inputs_of(base) is None:
        raise FreezeError(
            f"`base` must have known inputs, and {base.name!r} has none. Begin a Sequential model "
            "with a keras.Input. Wrap a subclassed model in a functional one: "
            f"keras.Model(inputs, base(inputs)). Received: base={base!r}"
        )


def read_layers(argument: str, given: Any) -> list[Layer]:
    """Returns the layers in the argument `augment` or `head`, as a list.

    Raises:
        FreezeError: an item isn't a layer.
    """
    layers = list(given) if isinstance(given, (list, tuple)) else [given]
    wrong = [layer for layer in layers if not isinstance(layer, keras.layers.Layer)]
    if wrong:
        numbered = " or a number of classes" if argument == "head" else ""
        raise FreezeError(
            f"`{argument}` must be a layer, a model, a list of layers{numbered}. "
            f"Received: {argument}={given!r} (with {wrong[0]!r} of type {type(wrong[0]).__name__})"
        )
    return layers


def join(base: Layer, head: Any, augment: Sequence[Layer]) -> tuple[Tensors, Tensors, list[Layer]]:
    """Calls augmentation, base and head on new inputs.

    Args:
        base: a model that `check_base` accepts.
        head: layers, or a number of classes.
        augment: layers, in order.

    Returns:
        The inputs, the outputs, and the layers of the head.

    Raises:
        FreezeError: `head` is invalid, or a part can't be called on the output of the part before.
    """
    first = augment[0] if augment and _inputs_of(augment[0]) is not None else base
    inputs = _new_inputs(first)
    outputs = _chain("augment", augment, inputs)
    outputs = _chain("base", [base], outputs)
    layers = _read_head(head, outputs)
    return inputs, _chain("head", layers, outputs), layers


def _read_head(head: Any, features: Tensors) -> list[Layer]:
    if isinstance(head, numbers.Integral) and not isinstance(head, bool):
        return _classifier(operator.index(head), features)
    layers = read_layers("head", head)
    if not layers:
        raise FreezeError(
            "`head` must hold at least one layer, so that there is something to train besides the "
            f"base. Received: head={head!r}"
        )
    return layers


def _classifier(classes: int, features: Tensors) -> list[Layer]:
    """Returns a pooling, if there are spatial axes, and a softmax, as keras.applications has."""
    if classes < 1:
        raise FreezeError(
            f"`head` as a number of classes must be 1 or more. Received: head={classes}"
        )
    if classes == 1:
        warn(
            "`head=1` is a softmax over one class, which is always 1: it can't learn. For two "
            "classes use head=keras.layers.Dense(1, activation='sigmoid'); for regression use "
            "head=keras.layers.Dense(1).",
        )
    shape = getattr(features, "shape", None)
    axes = None if shape is None else len(shape) - 2
    if axes not in POOLING:
        raise FreezeError(
            "`head` can be a number of classes only if the base has one output of shape "
            "(batch, ..., channels) with up to three spatial axes. Pass the layers of the head. "
            f"Received: head={classes} for outputs {_shapes(features)}"
        )
    pooling = POOLING[axes]
    pool = [] if pooling is None else [pooling(name="avg_pool")]
    return [*pool, keras.layers.Dense(classes, activation="softmax", name="predictions")]


def _chain(argument: str, layers: Sequence[Layer], tensors: Tensors) -> Tensors:
    for layer in layers:
        shapes = _shapes(tensors)
        try:
            tensors = layer(tensors)
        except Exception as error:  # the layer's own code runs, and may raise anything
            remedy = ""
            if argument == "augment":
                remedy = " To set another input shape, pass a model that begins with a keras.Input."
            raise FreezeError(
                f"`{argument}` doesn't fit what comes before it: {layer.name!r} was called on "
                f"inputs of shape {shapes}.{remedy} Received: {argument}={layer!r}. "
                f"{type(error).__name__}: {error}"
            ) from error
    return tensors


def _shapes(tensors: Tensors) -> Any:
    return keras.tree.map_structure(lambda tensor: tuple(tensor.shape), tensors)


def _inputs_of(layer: Layer) -> Tensors | None:
    """Returns the symbolic inputs of a model in their structure; None if it has none (yet)."""
    if not isinstance(layer, keras.Model):
        return None
    try:
        return layer.inputs[0] if isinstance(layer, keras.Sequential) else layer.input
    except (AttributeError, ValueError):
        return None


def _new_inputs(model: Layer) -> Tensors:
    """Returns new inputs like those of `model`, with the same names, as data may be a dict."""
    layers = [each for each in model.layers if isinstance(each, keras.layers.InputLayer)]
    entries = {layer.name: layer for layer in layers}
    return keras.tree.map_structure(
        lambda symbol: keras.Input(
            batch_shape=symbol.shape,
            dtype=symbol.dtype,
            sparse=symbol.sparse,
            name=symbol.name if symbol.name in entries else None,
            optional=symbol.name in entries and entries[symbol.name].optional,
        ),
        _inputs_of(model),
    )
