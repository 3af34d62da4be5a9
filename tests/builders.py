"""Small models of every common kind, and data for them."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np

L = keras.layers
BACKEND = keras.backend.backend()
RATE = 2.0**-6  # exact in float32


def backend_of(module: str) -> str:
    """Returns the backend of a module such as `on_jax` or `torch_tape`, or "" if it has none."""
    parts = module.split(".")
    if "torch_tape" in parts:
        return "torch"
    return next((part.removeprefix("on_") for part in parts if part.startswith("on_")), "")


def data(rows: int = 24, features: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns inputs of shape (rows, features) and targets of shape (rows, 1), in float32."""
    x = np.random.default_rng(seed).normal(size=(rows, features)).astype("float32")
    return x, np.tanh(x.sum(axis=1, keepdims=True))


def body(extras: bool = False) -> list[keras.Layer]:
    """Returns three dense blocks. `extras` adds a BatchNormalization and a Dropout."""
    layers: list[keras.Layer] = [L.Dense(8, activation="tanh", name="b1")]
    if extras:
        layers += [L.BatchNormalization(name="bn"), L.Dropout(0.5, name="drop")]
    return [
        *layers,
        L.Dense(8, activation="tanh", name="b2"),
        L.Dense(8, activation="tanh", name="b3"),
    ]


def functional_base(extras: bool = False) -> keras.Model:
    inputs = keras.Input((6,))
    outputs = inputs
    for layer in body(extras):
        outputs = layer(outputs)
    return keras.Model(inputs, outputs, name="base")


def nested(extras: bool = False) -> keras.Model:
    """A functional base called inside a functional model."""
    inputs = keras.Input((6,))
    return keras.Model(inputs, L.Dense(1, name="head")(functional_base(extras)(inputs)))


def flat(extras: bool = False) -> keras.Model:
    """`Model(base.input, head(base.output))`: the base's layers belong to the model itself."""
    base = functional_base(extras)
    return keras.Model(base.input, L.Dense(1, name="head")(base.output))


def sequential(extras: bool = False) -> keras.Model:
    """Sequential in Sequential."""
    base = keras.Sequential([keras.Input((6,)), *body(extras)], name="base")
    return keras.Sequential([base, L.Dense(1, name="head")])


class Subclassed(keras.Model):
    """A subclassed model that holds a base."""

    def __init__(self, extras: bool = False):
        super().__init__()
        self.base = functional_base(extras)
        self.head = L.Dense(1, name="head")

    def call(self, inputs, training=None):
        return self.head(self.base(inputs, training=training))


def subclassed(extras: bool = False) -> keras.Model:
    return called_once(lambda: Subclassed(extras))()


class BaseAndHead(keras.Model):
    """A subclassed model without a `training` argument, for custom steps."""

    def __init__(self):
        super().__init__()
        self.base = functional_base()
        self.head = L.Dense(1, name="head")

    def call(self, inputs):
        return self.head(self.base(inputs))


def called_once(make: Callable[[], keras.Model]) -> Callable[[], keras.Model]:
    """Builds a subclassed model by calling it on one row."""

    def built() -> keras.Model:
        model = make()
        model(np.zeros((1, 6), "float32"))
        return model

    return built


class Block(L.Layer):
    """A layer with its own weight and a sublayer."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")
        self.inner = L.Dense(4, name="inner")
        self.inner.build(shape)

    def call(self, inputs):
        return self.inner(inputs) * self.scale


def shared(extras: bool = False) -> keras.Model:
    """A base that is called twice, on two halves of the same input."""
    inputs = keras.Input((6,))
    base = functional_base(extras)
    both = L.Concatenate()([base(inputs), base(L.Rescaling(-1.0)(inputs))])
    return keras.Model(inputs, L.Dense(1, name="head")(both))


KINDS = {
    "nested": nested,
    "flat": flat,
    "sequential": sequential,
    "subclassed": subclassed,
    "shared": shared,
}


def compiled(model: keras.Model, optimizer: object = None, **kwargs: object) -> keras.Model:
    """Compiles the model with mean squared error and, by default, Adam. Returns it."""
    model.compile(optimizer or keras.optimizers.Adam(RATE), kwargs.pop("loss", "mse"), **kwargs)
    return model


def layer(model: keras.Model, name: str) -> keras.Layer:
    """Returns the layer of that name, at any depth."""
    return next(found for found in model._flatten_layers() if found.name == name)


def weights(model: keras.Model) -> dict[str, np.ndarray]:
    """Copies all weights by "layer/variable". Models of the same kind have the same keys."""
    found = {}
    for each in model._flatten_layers():
        for variable in (*each._trainable_variables, *each._non_trainable_variables):
            value = np.array(keras.ops.convert_to_numpy(variable))
            found[f"{each.name}/{variable.name}"] = value
    return found


def assert_equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    """Asserts bitwise equality."""
    assert a.keys() == b.keys()
    different = [key for key in a if not np.array_equal(a[key], b[key])]
    assert not different, different


def changed(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> set[str]:
    """Returns the names of the layers whose weights differ."""
    return {key.split("/")[0] for key in before if not np.array_equal(before[key], after[key])}
