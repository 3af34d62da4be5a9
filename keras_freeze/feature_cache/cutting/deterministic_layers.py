"""Tells which layers give the same output for the same input in every step, and why not."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import keras

from keras_freeze.feature_cache.not_cacheable import (
    LOSS,
    MOVES,
    RANDOM,
    RANDOM_IN_TRAINING,
    TOLD,
    TRAINS,
)
from keras_freeze.graph.layer_tree import (
    FOREIGN,
    Layer,
    LayerTree,
    draws_random_numbers,
    own_states,
)
from keras_freeze.keras_internals.trainable_flags import is_batch_norm, trained


class DeterministicLayers:
    """Tells which layers are deterministic under given flags.

    A leaf is a layer without sublayers.

    Args:
        tree: the whole model.
        base: ids of the leaves that run in inference mode while they are frozen.
        flags: whether each leaf is trainable, as in `trained`.
        training: whether layers are called with `training=True`, as in a train step. In
            validation, layers that are random in training only are deterministic. Layers that train
            or update statistics aren't, since train steps run in between.
    """

    def __init__(
        self,
        tree: LayerTree,
        base: set[int],
        flags: Mapping[int, bool],
        *,
        training: bool = True,
    ):
        self.tree = tree
        self.base = base
        self.flags = flags
        self.training = training

    def why_not(self, operation: Any) -> str:
        """Returns why the output of a layer changes; "" if it doesn't."""
        if not isinstance(operation, keras.layers.Layer) or operation not in self.tree:
            return ""
        leaves = self.tree.below(operation)
        if any(trained(leaf, self.flags) for leaf in leaves):
            left_training = self._is_moving(operation) and id(operation) not in self.base
            return MOVES if left_training else TRAINS
        return self._why_not_quiet(operation, leaves)

    def _why_not_quiet(self, operation: Layer, leaves: list[Layer]) -> str:
        frozen = all(id(leaf) in self.base and not self.flags[id(leaf)] for leaf in leaves)
        for layer in _all_below(operation):
            if reason := self._why_not_alone(layer, frozen):
                return reason
        return ""

    def _why_not_alone(self, layer: Layer, frozen: bool) -> str:
        """Judges a layer without its sublayers. A frozen one always gets `training=False`."""
        knows_training = "training" in inspect.signature(layer.call).parameters
        if layer.activity_regularizer is not None:
            return LOSS
        if draws_random_numbers(layer) and not knows_training:
            return RANDOM
        if draws_random_numbers(layer) and self.training and not frozen:
            return RANDOM_IN_TRAINING
        if self._is_moving(layer):
            return MOVES
        if not knows_training or frozen or isinstance(layer, keras.Model):
            return ""
        if self.training and not is_of_keras(layer):
            return TOLD
        return MOVES if own_states(layer) and not is_batch_norm(layer) else ""

    def _is_moving(self, layer: Layer) -> bool:
        """Returns True for a BatchNormalization that isn't frozen: it updates its statistics."""
        return is_batch_norm(layer) and self.flags.get(id(layer), bool(layer.trainable))

    def holds_frozen_weights(self, operation: Any) -> bool:
        """Returns True if a layer has weights and none of them is trained."""
        if not isinstance(operation, keras.layers.Layer) or operation not in self.tree:
            return False
        leaves = [leaf for leaf in self.tree.below(operation) if leaf.weights]
        return bool(leaves) and not any(trained(leaf, self.flags) for leaf in leaves)


def _all_below(layer: Layer) -> list[Layer]:
    return list(LayerTree(layer))


def is_row_by_row(operation: Any) -> bool:
    """Returns True for Keras' own layers that process each row independently of the batch.

    False for operations that aren't layers, a Lambda, custom layers, and layers over the batch
    axis.
    """
    axes = keras.tree.flatten(getattr(operation, "axis", None))
    is_plain = is_of_keras(operation) and not isinstance(operation, keras.layers.Lambda)
    return isinstance(operation, keras.layers.Layer) and is_plain and 0 not in axes


def is_of_keras(layer: Any) -> bool:
    """Returns True for Keras' own layers, except those that wrap other code."""
    own = type(layer).__module__.split(".")[0] == "keras"
    return own and type(layer).__name__ not in FOREIGN
