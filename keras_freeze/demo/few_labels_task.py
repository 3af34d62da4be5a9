"""The task to transfer to: scikit-learn's handwritten digits, with few labelled images.

They are 1,797 images of the digits 0-9, by other writers and another scanner than those of MNIST,
on which the base is pretrained. One image of each digit is labelled. On three seeds that the demo
doesn't use, transfer then reached 76.9 % of the test images and training from scratch 72.7 %. Two
other tasks were dropped, as training from scratch did as well there: three labelled images of each
digit, and the transfer from MNIST's digits 0-4 to its 5-9 with five labelled images of each.

Each labelled image is used in several variants: as it is, and rotated and shifted at random by
Keras' own layers. They are made once, before `fit`, and so are the same in each epoch. The guide
"Augmentation and the cache" says why.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from keras_freeze.demo.optional_imports import load_extra

Images: TypeAlias = NDArray[np.float32]
Examples: TypeAlias = tuple[Images, NDArray[np.int32]]

CLASSES = 10
LABELLED = 1  # images of each digit
VARIANTS = 20  # of each labelled image
WATCHED = 10  # images of each digit
TESTED = 160  # images of each digit, nearly all others: whole batches, for which JAX compiles once


@dataclass(frozen=True)
class Task:
    """One seed's data; every part holds images (n, 28, 28, 1) in 0..1 and labels (n,).

    Attributes:
        train: All variants of the few labelled images, shuffled once.
        watched: Images that validate each epoch, for the plot: nothing is chosen by them.
        test: Other images, for the accuracy at the end.
    """

    train: Examples
    watched: Examples
    test: Examples


def load_task(seed: int) -> Task:
    """Splits the images for one seed.

    Args:
        seed: Chooses which images are labelled, and makes their variants.

    Returns:
        The three parts.
    """
    rng = np.random.default_rng(seed)
    labels = _load()[1]
    shuffled = [rng.permutation(np.flatnonzero(labels == digit)) for digit in range(CLASSES)]
    images, digits = make_variants(_take(rows[:LABELLED] for rows in shuffled), seed)
    order = rng.permutation(len(images))
    return Task(
        train=(images[order], digits[order]),
        watched=_take(rows[LABELLED : LABELLED + WATCHED] for rows in shuffled),
        test=_take(rows[LABELLED + WATCHED :][:TESTED] for rows in shuffled),
    )


def make_variants(examples: Examples, seed: int) -> Examples:
    """Adds augmented variants of images.

    Args:
        examples: Images and labels.
        seed: Makes the variants.

    Returns:
        `VARIANTS` times as many: the images as they are, then their variants.
    """
    images, labels = examples
    keras.utils.set_random_seed(seed)
    many = np.tile(images, (VARIANTS - 1, 1, 1, 1))
    varied = keras.ops.convert_to_numpy(_augmentation()(many, training=True))
    return np.concatenate([images, varied]), np.tile(labels, VARIANTS)


def _augmentation() -> Any:
    return keras.Sequential(
        [
            layers.RandomRotation(0.04, fill_mode="constant"),
            layers.RandomTranslation(0.1, 0.1, fill_mode="constant"),
        ]
    )


@functools.cache
def _load() -> Examples:
    # As MNIST's images were made: 20x20 pixels for the digit, and a border of 4.
    bunch: Any = load_extra("sklearn.datasets").load_digits()
    pixels = (bunch.images / 16).astype("float32")[..., None]
    larger = keras.ops.convert_to_numpy(keras.ops.image.resize(pixels, (20, 20)))
    return np.pad(larger, ((0, 0), (4, 4), (4, 4), (0, 0))), bunch.target.astype("int32")


def _take(rows: Iterable[NDArray[np.intp]]) -> Examples:
    images, labels = _load()
    chosen = np.concatenate(list(rows))
    return images[chosen], labels[chosen]
