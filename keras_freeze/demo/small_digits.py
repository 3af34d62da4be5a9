"""A small pretrained base and 8x8 digits to transfer it to: for the examples of docs and tests.

Everything is made in seconds and offline. The command `keras-freeze demo` has images and a base of
its own, in `few_labels_task.py` and `mnist_base.py`.
"""

import functools
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from keras_freeze.demo.optional_imports import load_extra

Examples: TypeAlias = tuple[NDArray[np.float32], NDArray[np.int32]]
Weights: TypeAlias = list[NDArray[np.float32]]

PRETRAINED_ON = (0, 1, 2, 3, 4)
TRANSFERRED_TO = (5, 6, 7, 8, 9)
LABELLED_OF_EACH = 10
CLASSES = len(TRANSFERRED_TO)
SIZE = 8  # pixels
WIDTHS = (16, 32, 64)


def digits_transfer(seed: int = 0) -> tuple[Any, Examples, Examples]:
    """A small pretrained base and data to transfer it to, for examples: made in seconds, offline.

    Args:
        seed: Makes the base's weights and chooses the labelled images.

    Returns:
        The base, which has learned the digits 0 to 4, a functional model from (8, 8, 1) to
        (4, 4, 64); 50 labelled images of 5 to 9, (50, 8, 8, 1) in 0..1, and their labels from 0;
        and the same of all other images of these digits.

    Examples:
        >>> base, (images, labels), (test_images, test_labels) = digits_transfer()
        >>> base.name, images.shape, len(test_images)
        ('base', (50, 8, 8, 1), 846)
    """
    base = build_base()
    base.set_weights(_pretrained_weights(seed))
    few, test = _split(seed)
    return base, few, test


def build_base() -> Any:
    """Builds the base, blocks `block1` to `block3` of convolution, BatchNorm and ReLU.

    Returns:
        A functional model named `base`, from (8, 8, 1) to (4, 4, 64).
    """
    inputs = x = keras.Input((SIZE, SIZE, 1))
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


def build_model(base: Any, learning_rate: float) -> Any:
    """Puts a classifier on the base.

    Args:
        base: What `build_base` returned.
        learning_rate: Adam's.

    Returns:
        The model, from (8, 8, 1) to the probabilities of 5 classes, compiled with accuracy.
    """
    inputs = keras.Input((SIZE, SIZE, 1))
    x = layers.Flatten(name="flatten")(base(inputs))
    model = keras.Model(inputs, layers.Dense(CLASSES, activation="softmax", name="head")(x))
    adam = keras.optimizers.Adam(learning_rate)
    model.compile(adam, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


@functools.cache
def _pretrained_weights(seed: int) -> Weights:
    images, labels = _load()
    keras.utils.set_random_seed(seed)
    base = build_base()
    model = build_model(base, learning_rate=1e-3)
    rows = np.flatnonzero(np.isin(labels, PRETRAINED_ON))
    # 901 images are 17 batches of 53: JAX would compile again for a smaller last batch.
    model.fit(images[rows], labels[rows], batch_size=53, epochs=8, verbose=0)
    weights: Weights = base.get_weights()
    return weights


def _load() -> Examples:
    bunch: Any = load_extra("sklearn.datasets").load_digits()
    images = (bunch.images / 16.0).astype("float32")[..., None]
    return images, bunch.target.astype("int32")


def _split(seed: int) -> tuple[Examples, Examples]:
    images, labels = _load()
    rng = np.random.default_rng(seed)
    shuffled = [rng.permutation(np.flatnonzero(labels == digit)) for digit in TRANSFERRED_TO]
    few = np.concatenate([rows[:LABELLED_OF_EACH] for rows in shuffled])
    others = np.setdiff1d(np.flatnonzero(np.isin(labels, TRANSFERRED_TO)), few)
    # Labels count from 0: the head has as many classes as there are digits to transfer to.
    first = TRANSFERRED_TO[0]
    return (images[few], labels[few] - first), (images[others], labels[others] - first)
