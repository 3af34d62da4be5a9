"""Random code that also runs in validation: the cache's own draws must not change the run."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from keras_freeze import FreezeBase
from tests import builders
from tests.builders import BACKEND, L
from tests.reference.cached import Run, X, Y
from tests.test_cache_aside import behind, own_front
from tests.test_cache_validation import OPTIONS, check_aside

# On PyTorch, Dropout uses PyTorch's generator, and the state of Keras' own doesn't change.
CODE = "random code runs before the base or in it: "
SOURCES = {
    "nothing else": {},
    "validation": OPTIONS,
    "rows of training": {"validation_data": (X, Y), "validation_batch_size": 8},
}


class MonteCarlo(L.Dropout):
    """Dropout that is always on."""

    def call(self, inputs, training=False):
        return super().call(inputs, training=True)


def in_the_base() -> keras.Model:
    layers = [L.Dense(8, name="b1"), MonteCarlo(0.3, name="always"), L.Dense(8, name="b3")]
    base = keras.Sequential([keras.Input((6,)), *layers], name="base")
    inputs = keras.Input((6,))
    return keras.Model(inputs, L.Dense(1, name="head")(base(inputs)))


class Drawing(keras.Model):
    """It draws in each call, then calls a layer that is random in validation too."""

    def __init__(self):
        super().__init__()
        self.seeds = keras.random.SeedGenerator(1)
        self.noise = L.GaussianNoise(0.3, name="noise")
        self.base = builders.functional_base()
        self.head = L.Dense(1, name="head")

    def call(self, inputs, training=None):
        noisy = inputs + 0.1 * self.draw(inputs)
        return self.head(self.base(self.noise(noisy, training=True), training=False))

    def draw(self, inputs):
        return keras.random.normal(keras.ops.shape(inputs), seed=self.seeds)


class Dropping(Drawing):
    """It draws with dropout."""

    def __init__(self):
        super().__init__()
        self.seeds = keras.random.SeedGenerator()

    def draw(self, inputs):
        return keras.random.dropout(inputs, 0.3, seed=self.seeds)


def built(kind: Any) -> keras.Model:
    model = kind()
    model(np.zeros((1, 6), "float32"))
    return model


def frozen() -> list[keras.callbacks.Callback]:
    return [FreezeBase("base")]


@pytest.mark.parametrize("traced", [False, True], ids=["eager", "traced"])
@pytest.mark.parametrize(
    "make",
    [lambda: behind(MonteCarlo(0.3, name="always")), lambda: own_front(MonteCarlo(0.3))],
    ids=["nested", "subclassed"],
)
def test_dropout_before_the_base_that_is_always_on(make: Any, traced: bool):
    check_aside(Run(make, options=OPTIONS, frozen=frozen, traced=traced), CODE)


@pytest.mark.parametrize("source", SOURCES)
def test_dropout_of_the_base_that_is_always_on(source: str):
    check_aside(Run(in_the_base, options=SOURCES[source], frozen=frozen), CODE)


@pytest.mark.parametrize("source", ["nothing else", "validation"])
@pytest.mark.parametrize("kind", [Drawing, Dropping])
def test_draws_before_what_is_in_the_way(kind: Any, source: str):
    """The model's own step draws the same numbers again."""
    run = Run(lambda: built(kind), options=SOURCES[source], frozen=frozen)
    check_aside(run, "'noise' is called before 'base'")


@pytest.mark.skipif(BACKEND != "torch", reason="a generator that only PyTorch has")
def test_draws_of_the_framework():
    import torch

    class Rand(keras.layers.Layer):
        def call(self, inputs):
            return inputs + 0.1 * torch.rand_like(inputs)

    check_aside(Run(lambda: behind(Rand(name="rand")), options=OPTIONS, frozen=frozen), CODE)
