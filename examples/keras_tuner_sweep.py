"""A search with KerasTuner in which the base runs once, not once in each trial.

Each trial builds the model anew and trains another head on the same frozen base. The first trial
computes the features of all images and keeps them in a directory; the others read them there. So
does a second run of this script.

    pip install ".[torch,disk]" keras-tuner scikit-learn
    KERAS_BACKEND=torch python examples/keras_tuner_sweep.py

The script makes its base in a second: a small one, which it pretrains on handwritten digits. With
photos you would write, in place of `load`,

    base = keras.applications.EfficientNetV2B0(include_top=False, weights="imagenet", name="base")
"""

import time
from pathlib import Path

import keras
import keras_tuner

from keras_freeze import BottleneckCache, FreezeBase
from keras_freeze.demo import digits_transfer

HOME = Path("keras_tuner_sweep")
EPOCHS, TRIALS = 15, 8


def load():
    """Saves a base that knows the digits 0 to 4; returns images of 5 to 9: training, validation."""
    base, _, (images, labels) = digits_transfer()
    HOME.mkdir(exist_ok=True)
    if not (HOME / "base.keras").exists():
        base.save(HOME / "base.keras")
    return (images[:600], labels[:600]), (images[600:], labels[600:])


class Head(keras_tuner.HyperModel):
    """The choices for the head. Trials differ in nothing else."""

    def __init__(self):
        super().__init__()
        self.passes = []

    def build(self, hp):
        base = keras.models.load_model(HOME / "base.keras")
        layers = [keras.layers.Flatten()]
        if units := hp.Choice("units", [0, 32, 128]):
            layers.append(keras.layers.Dense(units, activation="relu"))
        layers.append(keras.layers.Dropout(hp.Float("dropout", 0.0, 0.6, step=0.2)))
        layers.append(keras.layers.Dense(5, activation="softmax"))
        model = keras.Sequential([base, *layers])
        rate = hp.Float("rate", 1e-4, 1e-2, sampling="log")
        model.compile(
            keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"]
        )
        return model

    def fit(self, hp, model, *args, callbacks=(), **options):
        cache = BottleneckCache(directory=HOME / "features", verbose=0)
        began = time.perf_counter()
        history = model.fit(*args, callbacks=[*callbacks, FreezeBase("base"), cache], **options)
        self.passes.append(cache.stats.base_passes)
        seconds, best = time.perf_counter() - began, max(history.history["val_accuracy"])
        print(f"{seconds:4.1f} s, base passes {self.passes[-1]}, accuracy {best:.3f}, {hp.values}")
        return history


def main():
    """Runs the search."""
    train, validation = load()
    head = Head()
    tuner = keras_tuner.RandomSearch(
        head, "val_accuracy", max_trials=TRIALS, seed=0, directory=HOME, overwrite=True
    )
    tuner.search(*train, validation_data=validation, epochs=EPOCHS, verbose=0)
    (best,) = tuner.oracle.get_best_trials()
    print(f"best: {best.score:.3f}, {best.hyperparameters.values}")
    assert head.passes[0] <= 1.0, "the base runs in the first trial, if ever"
    assert not any(head.passes[1:]), "and in no other"


if __name__ == "__main__":
    main()
