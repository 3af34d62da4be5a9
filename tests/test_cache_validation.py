"""Where something in front of the base is random in training, validation alone is served."""

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
from tests.test_cache_aside import Counting, Flipping, Trusting, behind, frozen_by_hand, own_front
from tests.test_cache_parity import Opaque

VAL = builders.data(12, seed=5)
OPTIONS = {"validation_data": VAL, "validation_batch_size": 4}
STAGES = {1: "b3", 3: "b2"}
SAYS = "BottleneckCache serves validation only: "


def check_validation(run: Run, reason: str, rows: int = 12) -> BottleneckCache:
    """The run is the one without the cache, each validation row is computed once, one warning."""
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
    """Several random layers as one."""
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
    """Statistics that were taken before `fit` stay what they are."""
    norm = L.Normalization(name="norm")
    norm.adapt(X)
    inputs = keras.Input((6,))
    outputs = norm(L.GaussianNoise(0.3, name="noise")(inputs))
    return keras.Model(inputs, L.Dense(1, name="head")(builders.functional_base()(outputs)))


def shared() -> keras.Model:
    """The base sees the batch as it is, and with noise."""
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
    cache = check_validation(run, "'flip' comes before frozen layers, and it stays random")
    assert (
        "so each epoch sees other images. To cache training too, apply it to the data before"
        in (fit(run, cache)[0][0])
    )


def test_dropout_of_a_base_that_was_frozen_by_hand():
    run = Run(lambda: frozen_by_hand({"b1", "bn", "b2", "b3"}), frozen=list, options=OPTIONS)
    cache = check_validation(run, "'drop' comes before frozen layers, and it stays random")
    assert "To cache training too, let FreezeBase() freeze it" in fit(run, cache)[0][0]


class Dropping(Opaque):
    """A base whose graph can't be read, with Dropout in it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.drop = L.Dropout(0.3, name="drop")

    def call(self, inputs, training=None):
        return self.drop(super().call(inputs)["last"], training=training)


def test_a_base_that_cannot_be_read():
    def make() -> keras.Model:
        inputs = keras.Input((6,))
        base = Dropping(name="base")
        model = keras.Model(inputs, L.Dense(1, name="head")(base(inputs)))
        base.one.trainable = base.two.trainable = False
        return model

    run = Run(make, frozen=list, options=OPTIONS)
    check_validation(run, "'base' comes before") if False else None
    expected = run.fit(None)
    told, *got = fit(run, BottleneckCache(verbose=0))
    for one, other in zip(got, expected, strict=True):
        compare(one, other, exact=True)
