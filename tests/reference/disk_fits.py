"""Fits in processes of their own on one directory, which may be killed.

python -m tests.reference.disk_fits DIRECTORY OUTPUT        one fit; saves History and weights
python -m tests.reference.disk_fits "" OUTPUT               the same fit without a cache
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import keras
import numpy as np

from keras_freeze import BottleneckCache, FreezeBase, GradualUnfreeze

L = keras.layers
ROWS, BATCH = 96, 8


class Slowly(keras.callbacks.Callback):
    """Leaves time to kill the process within an epoch."""

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds = seconds

    def on_train_batch_end(self, batch, logs=None):
        time.sleep(self.seconds)


def model() -> keras.Model:
    base = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            L.Conv2D(4, 3, activation="relu", name="one"),
            L.Conv2D(4, 3, activation="relu", name="two"),
            L.BatchNormalization(name="norm"),
            L.GlobalAveragePooling2D(),
        ],
        name="base",
    )
    return keras.Sequential([base, L.Dropout(0.2, seed=1), L.Dense(3, name="head")])


def fit(directory: str, seconds: float = 0.0) -> tuple[dict[str, list[float]], list[np.ndarray]]:
    """Runs the fit; returns History and weights."""
    keras.utils.set_random_seed(1)
    made = model()
    made.compile("adam", "mse")
    random = np.random.default_rng(0)
    x = random.normal(size=(ROWS, 8, 8, 3)).astype("float32")
    y = random.normal(size=(ROWS, 3)).astype("float32")
    callbacks = [FreezeBase("base"), GradualUnfreeze({2: "two:"}, verbose=0)]
    if directory:
        callbacks.append(BottleneckCache(directory=directory, verbose=0))
    if seconds:
        callbacks.append(Slowly(seconds))
    options = {"epochs": 3, "batch_size": BATCH, "verbose": 0, "validation_data": (x[:16], y[:16])}
    history = made.fit(x, y, callbacks=callbacks, **options).history
    return history, made.get_weights()


def arrays(history: dict[str, list[float]], weights: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Returns History and weights as arrays by name."""
    named = {f"weight {number}": array for number, array in enumerate(weights)}
    return {name: np.array(values) for name, values in history.items()} | named


def fit_and_save(directory: Path | str, output: Path | str, seconds: float = 0.0) -> None:
    """Runs the fit and saves what it gives."""
    given = arrays(*fit(str(directory), seconds))
    new = Path(output).with_suffix(".new.npz")
    np.savez(new, **given)
    new.replace(output)


if __name__ == "__main__":
    fit_and_save(*sys.argv[1:])
