"""Lets the Quickstart's code run without a folder of photos and without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np


def prepare() -> None:
    """Makes a folder `photos` of two classes, and replaces MobileNetV2 with a small base."""
    for label, name in ((0, "zeros"), (1, "ones")):
        folder = Path("photos", name)
        folder.mkdir(parents=True)
        for number, image in enumerate(_drawings([label])[0][:60]):
            keras.utils.save_img(folder / f"{number}.png", image, scale=False)
    keras.utils.set_random_seed(0)
    keras.applications.MobileNetV2 = lambda **options: _pretrained()
    keras.utils.set_random_seed(0)


def _drawings(labels: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns handwritten digits as photos of 96x96 with three channels, and their labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    chosen = np.isin(digits.target, labels)
    large = np.kron(255 - digits.images[chosen] * 15.9, np.ones((12, 12)))
    return large[..., None].repeat(3, axis=-1).astype("float32"), digits.target[chosen]


def _pretrained() -> Any:
    """Returns a base that was trained on the digits 2 to 9."""
    layers: list[Any] = [keras.Input((96, 96, 3))]
    for number, width in enumerate((8, 16, 24, 32, 48), start=1):
        layers.append(
            keras.layers.Conv2D(width, 3, strides=2, padding="same", name=f"conv{number}")
        )
        layers.append(keras.layers.BatchNormalization(momentum=0.8, name=f"bn{number}"))
        layers.append(keras.layers.ReLU(name=f"relu{number}"))
    base = keras.Sequential([*layers, keras.layers.GlobalAveragePooling2D()], name="small_base")
    images, labels = _drawings(list(range(2, 10)))
    model = keras.Sequential([base, keras.layers.Dense(10, activation="softmax")])
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    model.fit(images[:640] / 127.5 - 1, labels[:640], epochs=6, verbose=0)
    return base


def note() -> str:
    """Returns the note on the page."""
    return (
        "*This page was built offline. The run shown here uses a small base in place of "
        "MobileNetV2. It learned the handwritten digits 2 to 9 when the page was built. The images "
        "are 120 drawings of 0 and 1.*"
    )
