"""Frozen means frozen: a layer of the base that isn't trainable runs in inference mode.

Under `fit`, Keras hands `training=True` to every layer, also below `base(x, training=False)` and
also where `trainable` is False (a BatchNormalization alone looks at its flag). So while a step runs
(or is traced), `call` of the frozen layers gets `training=False`.
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
    """Returns a stand-in for `call` of each frozen layer whose `call` knows `training`.

    Args:
        tree: the whole model.
        base: the leaves of the base. A container or custom block counts as frozen if all the
            leaves below it are leaves of the base and none is trainable.
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
    """Keras' own containers do nothing with `training` but hand it to the layers below."""
    return isinstance(layer, keras.Model) and type(layer).__module__.startswith("keras.")


def _position_of_training(layer: Layer) -> int | None:
    """Where `training` stands among the positional arguments of `call`; None if it has none."""
    for position, parameter in enumerate(inspect.signature(layer.call).parameters.values()):
        if parameter.name == "training":
            return sys.maxsize if parameter.kind is parameter.KEYWORD_ONLY else position
    return None


def _call(call: Callable[..., Any], position: int, *args: Any, **kwargs: Any) -> Any:
    """`call` with `training=False`, however `training` was passed."""
    if len(args) > position:
        return call(*args[:position], False, *args[position + 1 :], **kwargs)
    return call(*args, **{**kwargs, "training": False})
