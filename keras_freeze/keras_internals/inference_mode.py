"""Runs the frozen layers of the base in inference mode during `fit`.

In `fit`, Keras passes `training=True` to every layer, even if `trainable` is False (only
BatchNormalization looks at its own flag), and even below `base(x, training=False)`. So while a
training step runs or is traced, `call` of the frozen layers gets `training=False`.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

import keras

from keras_freeze.graph.layer_tree import Layer, LayerTree
from keras_freeze.keras_internals.temporary_attributes import Patch
from keras_freeze.keras_internals.trainable_flags import is_batch_norm


def frozen_calls(tree: LayerTree, base: list[Layer]) -> list[Patch]:
    """Returns a replacement for `call` of each frozen layer whose `call` has `training`.

    Args:
        tree: the whole model.
        base: the leaves of the base (see `graph.layer_tree`). A layer that holds layers counts as
            frozen if all leaves below it belong to the base and none is trainable.
    """
    inside = {id(leaf) for leaf in base}
    calls: list[Patch] = []
    for layer in tree:
        below = tree.below(layer)
        frozen = all(id(leaf) in inside and not leaf.trainable for leaf in below)
        if below and frozen and not is_batch_norm(layer) and not _only_hands_on(layer):
            position = _position_of_training(layer)
            if position is not None:
                calls.append((layer, "call", functools.partial(_call, layer.call, position)))
    return calls


def _only_hands_on(layer: Layer) -> bool:
    """True for Keras' own model classes, which only pass `training` on to their layers."""
    return isinstance(layer, keras.Model) and type(layer).__module__.startswith("keras.")


def _position_of_training(layer: Layer) -> int | None:
    """Returns the position of `training` among the arguments of `call`; None if it has none."""
    for position, parameter in enumerate(inspect.signature(layer.call).parameters.values()):
        if parameter.name == "training":
            return sys.maxsize if parameter.kind is parameter.KEYWORD_ONLY else position
    return None


def _call(call: Callable[..., Any], position: int, *args: Any, **kwargs: Any) -> Any:
    """Calls `call` with `training=False`, whether `training` was passed by position or name."""
    if len(args) > position:
        return call(*args[:position], False, *args[position + 1 :], **kwargs)
    return call(*args, **{**kwargs, "training": False})
