"""A search with Optuna in which the base runs once, not once in each trial.

Each trial builds the model anew and trains another head on the same frozen base. The first trial
computes the features of all images and keeps them in a directory; the others read them there. So
does a second run of this script, and so do several processes that share a study.

    pip install ".[torch,disk]" optuna scikit-learn
    KERAS_BACKEND=torch python examples/optuna_sweep.py

The script makes its base in a second: a small one, which it pretrains on handwritten digits. With
photos you would write, in place of `load`,

    base = keras.applications.EfficientNetV2B0(include_top=False, weights="imagenet", name="base")
"""

import time
from pathlib import Path

import keras
import optuna

from keras_freeze import BottleneckCache, FreezeBase
from keras_freeze.demo import digits_transfer

HOME = Path("optuna_sweep")
EPOCHS, TRIALS = 15, 10


def load():
    """Saves a base that knows the digits 0 to 4; returns images of 5 to 9: training, validation."""
    base, _, (images, labels) = digits_transfer()
    HOME.mkdir(exist_ok=True)
    if not (HOME / "base.keras").exists():
        base.save(HOME / "base.keras")
    return (images[:600], labels[:600]), (images[600:], labels[600:])


def build(trial):
    """Returns the model of a trial: the same base with another head."""
    base = keras.models.load_model(HOME / "base.keras")
    layers = [keras.layers.Flatten()]
    if units := trial.suggest_categorical("units", [0, 32, 128]):
        layers.append(keras.layers.Dense(units, activation="relu"))
    layers.append(keras.layers.Dropout(trial.suggest_float("dropout", 0.0, 0.6)))
    layers.append(keras.layers.Dense(5, activation="softmax"))
    model = keras.Sequential([base, *layers])
    rate = trial.suggest_float("rate", 1e-4, 1e-2, log=True)
    model.compile(
        keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    return model


def search(train, validation):
    """Returns the study, and how often the base ran in each trial."""
    passes = []

    def objective(trial):
        model = build(trial)
        cache = BottleneckCache(directory=HOME / "features", verbose=0)
        began = time.perf_counter()
        callbacks = [FreezeBase("base"), cache]
        options = {"validation_data": validation, "epochs": EPOCHS, "verbose": 0}
        history = model.fit(*train, callbacks=callbacks, **options).history
        passes.append(cache.stats.base_passes)
        seconds, best = time.perf_counter() - began, max(history["val_accuracy"])
        print(f"{seconds:4.1f} s, base passes {passes[-1]}, accuracy {best:.3f}, {trial.params}")
        return best

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, n_trials=TRIALS)
    return study, passes


def main():
    """Runs the search."""
    study, passes = search(*load())
    print(f"best: {study.best_value:.3f}, {study.best_params}")
    assert passes[0] <= 1.0, "the base runs in the first trial, if ever"
    assert not any(passes[1:]), "and in no other"


if __name__ == "__main__":
    main()
