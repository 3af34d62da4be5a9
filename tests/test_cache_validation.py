"""If a layer before the base is random in training, only validation is cached."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import pytest

from keras_freeze import BottleneckCache, CacheWarning, FreezeBase, PerStage, Schedule, Stage
from tests import builders
from tests.builders import L
from tests.reference.cached import Run, X, Y, compare
from tests.test_cache_aside import (
    Augmented,
    Counting,
    Flipping,
    Trusting,
    behind,
    frozen_by_hand,
    own_front,
)
from tests.test_cache_parity import Opaque

pytestmark = pytest.mark.one_backend(
    but=[
        "nested-stages",
        "subclassed-head",
        "test_dropout_of_a_base_that_was_frozen_by_hand",
        "test_a_test_step_that_calls_the_model_as_in_training",
        "test_a_validation_in_some_epochs_only",
        "test_validation_split",
        "test_validation_by_a_generator",
    ]
)

VAL = builders.data(12, seed=5)
OPTIONS = {"validation_data": VAL, "validation_batch_size": 4}
STAGES = {1: "b3", 3: "b2"}
SAYS = "BottleneckCache serves validation only: "


def check_validation(run: Run, reason: str, rows: int = 12) -> BottleneckCache:
    """The run equals the one without the cache, computes each validation row once, warns once."""
    expected, expected_weights = run.fit(None)
    cache = BottleneckCache(verbose=0)
    told, history, weights = fit(run, cache)
    assert len(told) == 1, told
    assert told[0].startswith(SAYS), told
    assert reason in told[0]
    assert "To cache training too, " in told[0]
    compare(history, expected, exact=True)
    compare(weights, expected_weights, exact=True)
    stats = cache.stats
    validations = len(history["val_loss"])
    assert (stats.enabled, stats.validation_only) == (True, True)
    assert stats.reason in told[0]
    assert (stats.misses, stats.hits) == (rows, (validations - 1) * rows)
    assert stats.base_passes == 1.0
    return cache


def fit(run: Run, cache: BottleneckCache) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history, weights = run.fit(cache)
    texts = [str(each.message) for each in caught if issubclass(each.category, CacheWarning)]
    return texts, history, weights


# Kinds of models


def augmentation() -> keras.Sequential:
    """Several random layers in one."""
    return keras.Sequential([L.GaussianNoise(0.3, name="noise"), L.GaussianDropout(0.2)], name="a")


def nested() -> keras.Model:
    inputs = keras.Input((6,))
    outputs = L.Rescaling(0.5)(augmentation()(inputs))
    base = builders.functional_base(extras=True)
    return keras.Model(inputs, L.Dense(1, name="head")(base(outputs, training=False)))


def flat() -> keras.Model:
    inputs = keras.Input((6,))
    outputs = L.GaussianNoise(0.3, name="noise")(inputs)
    for layer in builders.body(extras=True):
        outputs = layer(outputs)
    return keras.Model(inputs, L.Dense(1, name="head")(L.Dropout(0.3)(outputs)))


def sequential() -> keras.Model:
    base = keras.Sequential([keras.Input((6,)), *builders.body(extras=True)], name="base")
    noise = L.GaussianNoise(0.3, name="noise")
    return keras.Sequential([keras.Input((6,)), noise, base, L.Dense(1, name="head")])


def subclassed() -> keras.Model:
    return own_front(L.GaussianNoise(0.3, name="noise"))


def adapted() -> keras.Model:
    """Statistics adapted before `fit` don't change."""
    norm = L.Normalization(name="norm")
    norm.adapt(X)
    inputs = keras.Input((6,))
    outputs = norm(L.GaussianNoise(0.3, name="noise")(inputs))
    return keras.Model(inputs, L.Dense(1, name="head")(builders.functional_base()(outputs)))


def shared() -> keras.Model:
    """The base is called on the batch, and on the batch with noise."""
    inputs = keras.Input((6,))
    base = builders.functional_base()
    both = L.Concatenate()([base(inputs), base(L.GaussianNoise(0.3, name="noise")(inputs))])
    return keras.Model(inputs, L.Dense(1, name="head")(both))


def subclassed_sequence() -> keras.Model:
    return own_front(augmentation())


KINDS = {
    "nested": nested,
    "flat": flat,
    "sequential": sequential,
    "subclassed": subclassed,
    "subclassed, several layers": subclassed_sequence,
    "adapted": adapted,
    "shared": shared,
}


def frozen() -> list[keras.callbacks.Callback]:
    return [FreezeBase(["b1", "bn", "b2", "b3", "drop"])]


def frozen_of(kind: str) -> Any:
    return frozen if kind == "flat" else lambda: [FreezeBase("base")]


@pytest.mark.parametrize("stages", [None, STAGES], ids=["head", "stages"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model(kind: str, stages: Any):
    run = Run(KINDS[kind], stages=stages, options=OPTIONS, frozen=frozen_of(kind))
    run.traced = kind in ("nested", "subclassed")
    cache = check_validation(run, "'noise' ")
    assert list(cache.stats.cuts) == [0, 1, 2][: len(cache.stats.cuts)]
    assert len(cache.stats.cuts) == (1 if stages is None else 3)


def test_random_flips():
    images = np.random.default_rng(0).normal(size=(44, 6, 6, 1)).astype("float32")

    def make() -> keras.Model:
        inputs = keras.Input((6, 6, 1))
        outputs = L.RandomRotation(0.1, name="turn")(L.RandomFlip(name="flip")(inputs))
        layers = [keras.Input((6, 6, 1)), L.Conv2D(2, 3, name="conv"), L.Flatten()]
        outputs = keras.Sequential(layers, name="base")(outputs)
        return keras.Model(inputs, L.Dense(1, name="head")(outputs))

    options = {"validation_data": (images[32:], VAL[1]), "validation_batch_size": 4}
    run = Run(make, lambda: (images[:32], Y), options=options, traced=True)
    cache = check_validation(run, "'flip' comes before frozen layers, and it is random")
    assert (
        "so each epoch has different inputs. To cache training too, record a few augmented"
        in (fit(run, cache)[0][0])
    )


def test_dropout_of_a_base_that_was_frozen_by_hand():
    run = Run(lambda: frozen_by_hand({"b1", "bn", "b2", "b3"}), frozen=list, options=OPTIONS)
    cache = check_validation(run, "'drop' comes before frozen layers, and it is random")
    assert "To cache training too, let FreezeBase() freeze it" in fit(run, cache)[0][0]


class Dropping(Opaque):
    """A base whose graph can't be read, with Dropout in it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.drop = L.Dropout(0.3, name="drop")

    def call(self, inputs, training=None):
        return self.drop(super().call(inputs)["last"], training=training)


class Always(Dropping):
    """Its Dropout is on in validation too."""

    def call(self, inputs, training=None):
        return super().call(inputs, training=True)


def cannot_be_read(kind: Any) -> keras.Model:
    """Its Dropout isn't frozen, because it isn't part of the named base."""
    inputs = keras.Input((6,))
    model = keras.Model(inputs, L.Dense(1, name="head")(kind(name="base")(inputs)))
    base = builders.layer(model, "base")
    base.one.trainable = base.two.trainable = False
    return model


def test_a_base_that_cannot_be_read():
    run = Run(lambda: cannot_be_read(Dropping), frozen=list, options=OPTIONS)
    check_validation(run, "'base' is to be cached, and its `call` takes `training`")


def test_random_code_of_a_subclassed_model():
    def built() -> keras.Model:
        model = Flipping()
        model(np.zeros((1, 6), "float32"))
        return model

    run = Run(built, options=OPTIONS, traced=True)
    check_validation(run, "seed_generator_state' changes in each step")


def test_a_layer_of_ones_own_that_does_something_else_in_training():
    run = Run(lambda: behind(Trusting(name="own")), options=OPTIONS)
    check_validation(run, "'own' comes before frozen layers, and its `call` takes `training`")


# Data sources, other callbacks


def same_batch() -> Any:
    """On TensorFlow, each validation loses the batches that it had prefetched: any number."""
    while True:
        yield VAL


def test_a_validation_in_some_epochs_only():
    run = Run(sequential, options=OPTIONS | {"validation_freq": 2, "epochs": 6})
    check_validation(run, "'noise' ")


def test_validation_split():
    run = Run(sequential, options={"validation_split": 0.25})
    check_validation(run, "'noise' ", rows=8)


def test_validation_by_a_generator():
    run = Run(sequential, frozen=lambda: new_source(run, same_batch()))
    run.options = {"validation_steps": 1}
    check_validation(run, "'noise' ")


def new_source(run: Run, source: Any) -> list[Any]:
    """Each fit gets its own validation data."""
    run.options["validation_data"] = source
    return [FreezeBase("base")]


def test_beside_early_stopping():
    """A stop ends a stage, and the best weights are restored."""

    def callbacks() -> list[keras.callbacks.Callback]:
        stop = keras.callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True)
        return [FreezeBase("base"), PerStage(stop)]

    run = Run(nested, stages={50: "b3", 100: "b2"}, options=OPTIONS | {"epochs": 30})
    run.frozen, run.compile = callbacks, {"loss": "mae"}
    check_validation(run, "'noise' ")


# Stages


def test_a_stage_that_unfreezes_everything():
    run = Run(nested, stages={2: "base/*"}, options=OPTIONS, frozen=lambda: [FreezeBase("base")])
    expected = run.fit(None)
    cache = BottleneckCache(verbose=0)
    told, *got = fit(run, cache)
    for one, other in zip(got, expected, strict=True):
        compare(one, other, exact=True)
    assert len(told) == 1
    assert list(cache.stats.cuts) == [0]
    assert (cache.stats.misses, cache.stats.hits, cache.stats.rows) == (12, 12, 0)


def test_a_stage_in_which_something_becomes_random():
    """Training is cached before and after it."""
    stages = [Stage(2, "drop"), Stage(4, freeze="drop")]
    run = Run(lambda: builders.nested(extras=True), stages=stages, options=OPTIONS | {"epochs": 6})
    expected = run.fit(None)
    cache = BottleneckCache(verbose=0)
    told, *got = fit(run, cache)
    for one, other in zip(got, expected, strict=True):
        compare(one, other, exact=True)
    assert len(told) == 1
    assert told[0].startswith(SAYS)
    assert "'drop' comes before" in told[0]
    assert (cache.stats.misses, cache.stats.hits) == (44, 3 * 32 + 5 * 12)
    assert (cache.stats.validation_only, cache.stats.reason) == (False, "")


# What can't be cached


class Averaging(keras.layers.Layer):
    """Its state changes in training."""

    def build(self, shape):
        shape = shape[-1:]
        self.mean = self.add_weight(shape, "zeros", trainable=False, name="mean")

    def call(self, inputs, training=None):
        if training:
            self.mean.assign(0.9 * self.mean + 0.1 * keras.ops.mean(inputs, axis=0))
        return inputs - self.mean


NOISE = L.GaussianNoise
IN_FRONT = {
    "batch norm": (
        lambda: behind(NOISE(0.3), L.BatchNormalization(name="norm")),
        "'norm' comes before frozen layers, and its statistics change in training",
    ),
    "a trained layer": (
        lambda: behind(NOISE(0.3), L.Dense(6, name="stem")),
        "no frozen layer with weights comes before the trainable layers",
    ),
    "state of training": (
        lambda: behind(NOISE(0.3), Averaging(name="own")),
        "'own' comes before frozen layers, and its statistics change in training",
    ),
    "state of each call": (
        lambda: behind(NOISE(0.3), Counting(name="own")),
        "count' of the frozen part changes",
    ),
    "batch norm of a subclassed model": (
        lambda: own_front(keras.Sequential([NOISE(0.3), L.BatchNormalization(name="norm")])),
        "'norm' is called before 'base', and its statistics change in training",
    ),
    "dropout that is always on": (
        lambda: cannot_be_read(Always),
        "'drop' is called in validation without `training=False`",
    ),
}


def check_aside(run: Run, reason: str) -> list[str]:
    """Asserts that the run equals the one without the cache. Returns its warnings."""
    expected = run.fit(None)
    cache = BottleneckCache(verbose=0)
    told, *got = fit(run, cache)
    assert told[-1].startswith("BottleneckCache stepped aside"), told
    assert reason in told[-1]
    assert (cache.stats.enabled, cache.stats.validation_only) == (False, False)
    assert cache.stats.rows == 0
    for one, other in zip(got, expected, strict=True):
        compare(one, other, exact=True)
    return told


@pytest.mark.parametrize("name", IN_FRONT)
def test_what_is_not_fixed_in_validation_either(name: str):
    make, reason = IN_FRONT[name]
    frozen = list if name.startswith("dropout") else lambda: [FreezeBase("base")]
    run = Run(make, frozen=frozen, options=OPTIONS, traced=name.startswith("state"))
    check_aside(run, reason)


class Silent(keras.Model):
    """It doesn't pass `training` to its random layers, so they are random in validation too."""

    def __init__(self):
        super().__init__()
        self.flip = L.RandomFlip(name="flip")
        self.base = keras.Sequential([L.Conv2D(2, 3, name="conv"), L.Flatten()], name="base")
        self.head = L.Dense(1, name="head")

    def call(self, inputs):
        return self.head(self.base(self.flip(inputs)))


class Loud(Silent):
    """It always passes `training=True`."""

    def call(self, inputs, training=None):
        return self.head(self.base(self.flip(inputs, training=True), training=False))


@pytest.mark.parametrize("kind", [Silent, Loud])
def test_random_layers_that_are_not_told_of_validation(kind: Any):
    images = np.random.default_rng(0).normal(size=(44, 6, 6, 1)).astype("float32")

    def make() -> keras.Model:
        model = kind()
        model(images[:1])
        return model

    options = {"validation_data": (images[32:], VAL[1])}
    run = Run(make, lambda: (images[:32], Y), options=options, frozen=lambda: [FreezeBase("base")])
    check_aside(run, "'flip' is called before 'base' in validation without `training=False`")


class InTraining(keras.Model):
    """Its custom test step calls the model as in training."""

    def test_step(self, *args):
        return self._on_jax(*args) if builders.BACKEND == "jax" else self._elsewhere(*args)

    def _on_jax(self, state, data):
        trainable, others, metrics = state
        x, y = data
        arguments = trainable, others, metrics, x, y, None
        _, (loss, y_pred, others, metrics) = self.compute_loss_and_updates(
            *arguments, training=True, optimizer_variables=[]
        )
        logs, metrics = self._update_metrics_variables(metrics, loss, x, y, y_pred, None)
        return logs, (trainable, others, metrics)

    def _elsewhere(self, data):
        x, y = data
        y_pred = self(x, training=True)
        self._loss_tracker.update_state(self.compute_loss(x, y, y_pred, training=False))
        return self.compute_metrics(x, y, y_pred)


def test_a_test_step_that_calls_the_model_as_in_training():
    def make() -> keras.Model:
        inputs = keras.Input((6,))
        noisy = L.GaussianNoise(0.3, name="noise")(inputs)
        outputs = L.Dense(1, name="head")(builders.functional_base()(noisy))
        return InTraining(inputs, outputs, name="model")

    run = Run(make, options=OPTIONS)
    check_aside(run, "'model' is called in validation without `training=False`")


def test_weights_that_change_in_the_epoch_of_a_validation():
    class Change(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                kernel = builders.layer(self.model, "b1").kernel
                kernel.assign(kernel * 1.5)

    run = Run(nested, frozen=lambda: [FreezeBase("base"), Change()], options=OPTIONS)
    check_aside(run, "weights of the frozen part were changed: ")


def test_validation_data_that_differ_in_each_epoch():
    run = Run(sequential, frozen=lambda: new_source(run, Augmented()))
    told = check_aside(run, "the inputs of validation differ in each epoch")
    assert len(told) == 2


def test_no_validation_data():
    told = check_aside(Run(nested), "'noise' comes before frozen layers, and it is random")
    assert told == [
        "BottleneckCache stepped aside, and the run continues without it: 'noise' comes before "
        "frozen layers, and it is random in training, so each epoch has different inputs. To use "
        "the cache, record a few augmented epochs with views=8, or move it after the base."
    ]


# What it reports


def test_what_it_prints(capsys: Any):
    model = builders.compiled(sequential())
    options = {"epochs": 4, "validation_freq": 2, "verbose": 0} | OPTIONS
    with pytest.warns(CacheWarning, match="serves validation only"):
        model.fit(X, Y, callbacks=[FreezeBase("base"), BottleneckCache()], **options)
    assert capsys.readouterr().out.splitlines() == [
        "BottleneckCache after b3, for validation only: 32 B a row",
        "BottleneckCache, epoch 2 of 4: 12 validation rows, 384 B; the base has run 1.0 times "
        "for them",
    ]


def test_a_preview_shows_what_is_served_of_training():
    (row, *_) = Schedule({2: "b3"}).preview(sequential(), epochs=4, data=32, base="base")
    assert (row["cut"], row["cache_bytes"]) == (None, None)
