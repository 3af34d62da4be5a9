"""The models: a small convolutional base with BatchNorm, and a head on top of it."""

from typing import Any

import keras
from keras import layers

CLASSES = 5
WIDTHS = (16, 32, 64)


def build_base() -> Any:
    """Builds the base, blocks `block1` to `block3` of convolution, BatchNorm and ReLU.

    Returns:
        A functional model named `base`, from (8, 8, 1) to (4, 4, 64).
    """
    inputs = x = keras.Input((8, 8, 1))
    for number, width in enumerate(WIDTHS, start=1):
        x = _block(x, f"block{number}", width)
        if number == 1:
            x = layers.MaxPooling2D(name="block1_pool")(x)
    return keras.Model(inputs, x, name="base")


def _block(x: Any, name: str, width: int) -> Any:
    x = layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"{name}_conv")(x)
    # Keras' 0.99 would still remember its start after the 90 steps from scratch.
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def build_model(base: Any, training: bool | None = None) -> Any:
    """Puts a classifier on the base.

    Args:
        base: What `build_base` returned.
        training: Passed to the base's call; Keras' transfer-learning guide passes False.

    Returns:
        The uncompiled model, from (8, 8, 1) to the probabilities of 5 classes.
    """
    inputs = keras.Input((8, 8, 1))
    x = layers.Flatten(name="flatten")(base(inputs, training=training))
    return keras.Model(inputs, layers.Dense(CLASSES, activation="softmax", name="head")(x))


def compile_model(model: Any, learning_rate: float) -> None:
    """Compiles with Adam, cross-entropy and accuracy: what all methods share."""
    model.compile(
        keras.optimizers.Adam(learning_rate),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
