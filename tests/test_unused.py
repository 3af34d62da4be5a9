"""Layers that a model has but never calls: they have no weights, and cause no error."""

from __future__ import annotations

from typing import Any

import keras
import pytest

from keras_freeze import BottleneckCache, FreezeBase, GradualUnfreeze, Schedule, select_layers
from tests import builders as B

pytestmark = pytest.mark.one_backend(but=["test_they_stop_no_fit"])

L = keras.layers


@keras.saving.register_keras_serializable("tests")
class Block(L.Layer):
    """A dense layer, and one that isn't called, as in KerasHub's EfficientNet."""

    def __init__(self, units: int = 6, name: str | None = None):
        super().__init__(name=name)
        self.units = units
        self.used = L.Dense(units, name=f"{name}_used")
        self.unused = L.Dense(units, name=f"{name}_unused")

    def build(self, shape: Any) -> None:
        self.used.build(shape)

    def call(self, x: Any) -> Any:
        return self.used(x)

    def get_config(self) -> dict[str, Any]:
        return {"units": self.units, "name": self.name}


def base() -> keras.Sequential:
    return keras.Sequential([keras.Input((6,)), Block(name="a"), Block(name="b")], name="base")


class Holder(keras.Model):
    """The base, the head and the model have a part that no step calls."""

    def __init__(self):
        super().__init__()
        self.base = base()
        self.head = L.Dense(1, name="head")
        self.spare = L.Dense(3, name="spare")
        self.spare_model = keras.Sequential([L.Dense(3, name="inner")], name="spare_model")

    def call(self, x: Any) -> Any:
        return self.head(self.base(x))


def nested() -> keras.Model:
    return keras.Sequential([base(), L.Dense(1, name="head")])


def in_the_head() -> keras.Model:
    return keras.Sequential([base(), Block(1, name="head")])


def flat() -> keras.Model:
    return keras.Sequential([keras.Input((6,)), Block(name="a"), Block(name="b"), L.Dense(1)])


@pytest.mark.parametrize("make", [nested, in_the_head, flat, Holder])
def test_they_stop_no_fit(make: Any):
    model, cache = B.compiled(make()), BottleneckCache(verbose=0)
    (x, y), plan = B.data(16), GradualUnfreeze({2: "b"}, verbose=0)
    options = {"batch_size": 8, "epochs": 2, "verbose": 0}
    frozen = ["a", "b"] if make is flat else "base"
    model.fit(x, y, callbacks=[FreezeBase(frozen), plan, cache], **options)
    assert model.trainable_variables
    assert not B.layer(model, "a_used").trainable
    assert cache.stats.enabled, cache.stats.reason
    assert cache.stats.base_passes == 1.0
    before = B.weights(model)
    model.fit(
        x, y, callbacks=[FreezeBase(frozen), plan], **(options | {"epochs": 3, "initial_epoch": 2})
    )
    changed = B.changed(before, B.weights(model))
    assert "b_used" in changed
    assert "a_used" not in changed


@pytest.mark.parametrize("selector", ["a_unused", "b", ["all", "!a_unused"]])
def test_they_may_be_named(selector: Any):
    model = B.compiled(nested())
    steps = [FreezeBase(), GradualUnfreeze({1: selector}, verbose=0)]
    model.fit(*B.data(8), epochs=2, verbose=0, callbacks=steps)


def test_a_share_and_presets_do_not_count_them():
    blocks = B.layer(nested(), "base")
    assert [leaf.name for leaf in select_layers(blocks, "50%") if leaf.weights] == ["b_used"]
    assert len(list(Schedule.ulmfit(blocks, start=1))) == 2


def test_the_model_is_saved_and_loaded(tmp_path: Any):
    model = B.compiled(nested())
    x, y = B.data(8)
    model.fit(x, y, verbose=0, callbacks=[FreezeBase()])
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    B.assert_equal(B.weights(loaded), B.weights(model))
    loaded.fit(x, y, verbose=0, callbacks=[FreezeBase()])
