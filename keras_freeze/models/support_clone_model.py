"""How `keras.models.clone_model` makes a TransferModel of a TransferModel.

scikit-learn's wrappers clone the model that they are given. Keras calls the class with the tensors
of the cloned graph, as it does for functional models, and then hands over how the original was
compiled: that is where the clone learns which of its layers are the base. Tried on Keras 3.12.0 and
3.15.1.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import keras

from keras_freeze.callbacks.bottleneck_cache import BottleneckCache
from keras_freeze.graph.layer_tree import Layer
from keras_freeze.keras_internals.variable_values import to_numpy
from keras_freeze.models import serialized_settings
from keras_freeze.schedule.schedule import Schedule


@dataclass(frozen=True)
class Setup:
    """What `fit` has to know beside the graph; the attributes of a TransferModel."""

    base: Layer = None
    head: list[Layer] = field(default_factory=list)
    augment: list[Layer] = field(default_factory=list)
    schedule: Schedule | None = None
    cache: BottleneckCache | None = None
    cache_follows_fit: bool = True


class CompileConfig(dict[str, Any]):
    """What `clone_model` hands from a model to its clone, last of all; in a file a plain dict."""

    def __init__(self, config: Mapping[str, Any], setup: Setup):
        super().__init__(config)
        self.setup = setup


def is_graph(given: Any) -> bool:
    """True for the tensors of a graph, with which `clone_model` calls the class."""
    symbols = keras.tree.flatten(given)
    return bool(symbols) and all(isinstance(each, keras.KerasTensor) for each in symbols)


def setup_of_clone(clone: Any, original: Setup) -> Setup:
    """Returns the setup of a clone, whose layers are clones already; it gets a cache of its own.

    Base and augmentation get the original's weights, the head's stay fresh.
    """

    def mine(layers: list[Layer]) -> list[Layer]:
        return [clone.get_layer(layer.name) for layer in layers]

    cache = serialized_settings.cache_to_plain(original.cache, original.cache_follows_fit)
    own = Setup(
        clone.get_layer(original.base.name),
        mine(original.head),
        mine(original.augment),
        original.schedule,
        serialized_settings.read_cache(cache, original.augment),
        original.cache_follows_fit,
    )
    for layer, pretrained in zip(own.augment, original.augment, strict=True):
        _take_weights(layer, pretrained)
    _take_weights(own.base, original.base)
    return own


def _take_weights(layer: Layer, pretrained: Layer) -> None:
    layer.set_weights([to_numpy(variable) for variable in pretrained.weights])


def keep_class(model_class: Any) -> None:
    """Lets `clone_model` keep a class: it does if the constructor looks like a functional model's.

    Else the clone would be a plain model, trained without the phases. What users ask for, the
    signature of the class, stays the true one.
    """
    model_class.__signature__ = inspect.signature(model_class)
    model_class.__init__.__signature__ = inspect.signature(_like_a_functional_model)


def _like_a_functional_model(self: Any, *args: Any, **kwargs: Any) -> None:
    """The constructor that `clone_model` asks for."""
