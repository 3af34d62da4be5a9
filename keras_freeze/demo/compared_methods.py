"""The four ways to train that the demo compares, each as a user would write it.

They get the same data, epochs, rates and seeds. Keras would shuffle one `fit` and two in another
order, so that their losses couldn't be compared: the images are shuffled once, before.

The rates were chosen on another task: MNIST's digits 0-4, five labelled images of each, with a base
of four blocks pretrained on 5-9, and four other seeds. Of three pairs of rates for the transfer
this one did best, and of 1e-3 and 3e-3 for training from scratch 3e-3. The demo's test images had
no part in the choice.
"""

from typing import Any, NamedTuple, TypeAlias

import keras
from keras import layers

from keras_freeze import BottleneckCache, FreezeBase, GradualUnfreeze, Schedule, Stage
from keras_freeze.demo.few_labels_task import CLASSES, Examples

History: TypeAlias = dict[str, list[float]]

EPOCHS = 12
FINE_TUNE_AT = 8
HEAD_RATE = 3e-3
FINE_TUNE_RATE = 3e-4
LOSS = "sparse_categorical_crossentropy"
BATCH_SIZE = 25
OPTIONS: dict[str, Any] = {"batch_size": BATCH_SIZE, "shuffle": False, "verbose": 0}


class Trained(NamedTuple):
    """What a method made.

    Attributes:
        model: As it is after the last epoch.
        histories: Of its calls of `fit`.
        base_passes: What its cache counted, if it has one.
    """

    model: Any
    histories: list[History]
    base_passes: float | None = None


def from_scratch(base: Any, train: Examples, watched: Examples) -> Trained:
    """Trains the same model on the few labelled images alone; its base is not pretrained."""
    model = keras.Sequential([base, layers.Flatten(), layers.Dense(CLASSES, "softmax")])
    model.compile(keras.optimizers.Adam(HEAD_RATE), LOSS, metrics=["accuracy"])
    run = model.fit(*train, epochs=EPOCHS, validation_data=watched, **OPTIONS)
    return Trained(model, [run.history])


def two_fits(base: Any, train: Examples, watched: Examples) -> Trained:
    """Follows Keras' guide to transfer learning: freeze, compile, fit; unfreeze, compile, fit."""
    base.trainable = False
    model = keras.Sequential([base, layers.Flatten(), layers.Dense(CLASSES, "softmax")])
    model.compile(keras.optimizers.Adam(HEAD_RATE), LOSS, metrics=["accuracy"])
    first = model.fit(*train, epochs=FINE_TUNE_AT, validation_data=watched, **OPTIONS)
    base.trainable = True
    for layer in base.layers:  # BatchNorm stays frozen, as the guide says
        layer.trainable = layer.name == "block3_conv"
    model.compile(keras.optimizers.Adam(FINE_TUNE_RATE), LOSS, metrics=["accuracy"])
    epochs = {"initial_epoch": FINE_TUNE_AT, "epochs": EPOCHS}
    second = model.fit(*train, validation_data=watched, **epochs, **OPTIONS)
    return Trained(model, [first.history, second.history])


def features_by_hand(base: Any, train: Examples, watched: Examples) -> Trained:
    """Follows Keras' blog of 2016: a head on bottleneck features, then fine-tuning of the whole."""
    features = base.predict(train[0], batch_size=BATCH_SIZE, verbose=0)
    watched_features = base.predict(watched[0], batch_size=BATCH_SIZE, verbose=0)
    head = keras.Sequential([layers.Flatten(), layers.Dense(CLASSES, "softmax")])
    head.compile(keras.optimizers.Adam(HEAD_RATE), LOSS, metrics=["accuracy"])
    validation = {"validation_data": (watched_features, watched[1])}
    first = head.fit(features, train[1], epochs=FINE_TUNE_AT, **validation, **OPTIONS)
    for layer in base.layers:
        layer.trainable = layer.name == "block3_conv"
    model = keras.Sequential([base, head])
    model.compile(keras.optimizers.Adam(FINE_TUNE_RATE), LOSS, metrics=["accuracy"])
    epochs = {"initial_epoch": FINE_TUNE_AT, "epochs": EPOCHS}
    second = model.fit(*train, validation_data=watched, **epochs, **OPTIONS)
    return Trained(model, [first.history, second.history])


def one_fit(
    base: Any, train: Examples, watched: Examples, schedule: Schedule | None = None
) -> Trained:
    """Freezes, caches and unfreezes in a single `fit`."""
    model = keras.Sequential([base, layers.Flatten(), layers.Dense(CLASSES, "softmax")])
    model.compile(keras.optimizers.Adam(HEAD_RATE), LOSS, metrics=["accuracy"])
    cache = BottleneckCache()
    callbacks = [FreezeBase(base), GradualUnfreeze(schedule or own_schedule()), cache]
    options = {"validation_data": watched, "callbacks": callbacks, **OPTIONS}
    run = model.fit(*train, epochs=EPOCHS, **options)
    return Trained(model, [run.history], cache.stats.base_passes)


def own_schedule() -> Schedule:
    """Returns the schedule of `one_fit`: a fresh optimizer at the second stage, as in two fits."""
    stage = Stage(FINE_TUNE_AT, "block3_conv", learning_rate=FINE_TUNE_RATE)
    return Schedule([stage], optimizer="reset")
