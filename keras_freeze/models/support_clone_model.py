"""Makes `keras.models.clone_model` return a TransferModel for a TransferModel.

scikit-learn's wrappers clone the model that they receive. As for any functional model, Keras calls
the class with the tensors of the cloned graph, and then passes the compile config of the original.
That config also tells the clone which of its layers are the base. Tried on Keras 3.12.0 and 3.15.1.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import keras

from keras_freeze.callbacks.bottleneck_cache import BottleneckCache
from keras_freeze.graph.layer_tree import Layer
from keras_freeze.keras_internals.copy_to_numpy import to_numpy
from keras_freeze.models import serialized_settings
from keras_freeze.schedule.schedule import Schedule


@dataclass(frozen=True)
class Setup:
    """What `fit` needs besides the graph: the attributes of a TransferModel."""

    base: Layer = None
    head: list[Layer] = field(default_factory=list)
    augment: list[Layer] = field(default_factory=list)
    schedule: Schedule | None = None
    cache: BottleneckCache | None = None
    cache_follows_fit: bool = True


class CompileConfig(dict[str, Any]):
    """The compile config, which `clone_model` passes to the clone; saved as a plain dict."""

    def __init__(self, config: Mapping[str, Any], setup: Setup):
        super().__init__(config)
        self.setup = setup


def is_graph(given: Any) -> bool:
    """True for symbolic tensors, with which `clone_model` calls the class."""
    symbols = keras.tree.flatten(given)
    return bool(symbols) and all(isinstance(each, keras.KerasTensor) for each in symbols)


def setup_of_clone(clone: Any, original: Setup) -> Setup:
    """Returns the setup of a clone, with the cloned layers and a new cache.

    Base and augmentation get the weights of the original; the head keeps its fresh weights.
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
    """Makes `clone_model` keep the class of a model.

    Keras does so if the signature of the constructor looks like that of a functional model; else
    the clone would be a plain model. The signature of the class, which users see, doesn't change.
    """
    model_class.__signature__ = inspect.signature(model_class)
    model_class.__init__.__signature__ = inspect.signature(_like_a_functional_model)


def _like_a_functional_model(self: Any, *args: Any, **kwargs: Any) -> None:
    """Has the signature that `clone_model` expects of a constructor."""
