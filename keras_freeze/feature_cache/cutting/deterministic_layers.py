"""Which layers give the same output for the same input in every step: frozen and deterministic."""

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
    Layer,
    LayerTree,
    draws_random_numbers,
    own_states,
)
from keras_freeze.keras_internals.trainable_flags import is_batch_norm, trained

FOREIGN = ("TorchModuleWrapper", "JaxLayer", "FlaxLayer")


class DeterministicLayers:
    """Judges layers under given flags.

    Args:
        tree: the whole model.
        base: ids of the leaves that run in inference mode while they are frozen.
        flags: of all leaves, as in `trained`.
        training: whether layers are called with `training=True`, as in a train step. In a
            validation what is random in training alone is fixed; what trains or moves in the steps
            in between isn't.
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
        """Returns why the output of a layer changes, "trains" first of all; "" if it doesn't."""
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
        """Judges a layer without those below it; a frozen one gets `training=False` always."""
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
        """A BatchNormalization that isn't frozen moves its statistics, also without weights."""
        return is_batch_norm(layer) and self.flags.get(id(layer), bool(layer.trainable))

    def holds_frozen_weights(self, operation: Any) -> bool:
        """True for a layer with weights, none of which is trained."""
        if not isinstance(operation, keras.layers.Layer) or operation not in self.tree:
            return False
        leaves = [leaf for leaf in self.tree.below(operation) if leaf.weights]
        return bool(leaves) and not any(trained(leaf, self.flags) for leaf in leaves)


def _all_below(layer: Layer) -> list[Layer]:
    return list(LayerTree(layer))


def is_of_keras(layer: Any) -> bool:
    """True for Keras' own layers, but for those that wrap the code of others."""
    own = type(layer).__module__.split(".")[0] == "keras"
    return own and type(layer).__name__ not in FOREIGN
