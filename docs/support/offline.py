"""Lets the Quickstart's code run where there is neither a folder of photos nor a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np


def prepare() -> None:
    """Makes a folder `photos` of drawings of two classes, and a MobileNetV2 of random weights."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for label, name in ((0, "zeros"), (1, "ones")):
        folder = Path("photos", name)
        folder.mkdir(parents=True)
        for number, image in enumerate(digits.images[digits.target == label][:60]):
            large = np.kron(255 - image * 15.9, np.ones((8, 8)))[..., None].repeat(3, axis=-1)
            keras.utils.save_img(folder / f"{number}.png", large, scale=False)
    original = keras.applications.MobileNetV2

    def random_weights(**options: Any) -> Any:
        return original(**{**options, "weights": None})

    keras.applications.MobileNetV2 = random_weights
    keras.utils.set_random_seed(0)


def note() -> str:
    """What is said on the page."""
    return (
        "*This page was built without a network: here the weights of MobileNetV2 are random and "
        "the images are 120 drawings of two classes, so the accuracies say nothing. With your "
        "photos and ImageNet's weights the lines look the same.*"
    )
