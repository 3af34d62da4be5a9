"""The base is found in any container; the cache serves the smallest one; the preview agrees."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from keras_freeze import BottleneckCache, FreezeBase, GradualUnfreeze, Schedule
from tests import builders as B
from tests.reference.cached import compare

pytestmark = pytest.mark.one_backend

L = keras.layers


class Net(keras.Model):
    """A subclassed model around a part that contains the base, and a head."""

    def __init__(self, part: Any):
        super().__init__()
        self.part, self.head = part, L.Dense(1, name="head")

    def call(self, x: Any, training: Any = None) -> Any:
        return self.head(self.part(x, training=training))


def net() -> Net:
    model = Net(B.functional_base())
    model(np.zeros((1, 6), "float32"))
    return B.compiled(model)


def nested_deeper() -> Net:
    """The base inside a model inside the subclassed model."""
    inputs = keras.Input((6,))
    outer = keras.Model(inputs, L.Dense(8, name="neck")(B.functional_base()(inputs)), name="outer")
    model = Net(outer)
    model(np.zeros((1, 6), "float32"))
    return B.compiled(model)


class Tied(keras.Model):
    """Like a language model: its output reads the first layer of its base again."""

    def __init__(self):
        super().__init__()
        inputs = keras.Input((6,))
        self.first = L.EinsumDense("ab,bc->ac", output_shape=6, name="b1")
        h = inputs
        for layer in (self.first, L.Dense(6, name="b2"), L.Dense(6, name="b3")):
            h = layer(h)
        self.backbone = keras.Model(inputs, h, name="backbone")

    def call(self, x: Any, training: Any = None) -> Any:
        hidden = self.backbone(x, training=training)
        return keras.ops.matmul(hidden, keras.ops.transpose(self.first.kernel))[:, :1]


def tied() -> Tied:
    model = Tied()
    model(np.zeros((1, 6), "float32"))
    return B.compiled(model)


def fit(model: keras.Model, *callbacks: Any, epochs: int = 4) -> dict[str, Any]:
    x, y = B.data(16)
    options = {"batch_size": 8, "epochs": epochs, "verbose": 0}
    return dict(model.fit(x, y, callbacks=list(callbacks), **options).history)


def once(base: Any) -> Any:
    return lambda model: [FreezeBase(base), GradualUnfreeze({2: "b3"}, verbose=0)]


# Several ways to name one base.
NAMED: dict[str, Any] = {
    "twice, the layer": lambda model: [
        FreezeBase(B.layer(model, "base")),
        GradualUnfreeze({2: "b3"}, base=B.layer(model, "base"), verbose=0),
    ],
    "twice, name and layer": lambda model: [
        FreezeBase("base"),
        GradualUnfreeze({2: "b3"}, base=B.layer(model, "base"), verbose=0),
    ],
    "twice, layer and layers": lambda model: [
        FreezeBase(B.layer(model, "base")),
        GradualUnfreeze({2: "b3"}, base=["b1", "b2", "b3"], verbose=0),
    ],
    "two FreezeBase": lambda model: [
        FreezeBase("base"),
        FreezeBase(["base"]),
        GradualUnfreeze({2: "b3"}, verbose=0),
    ],
    "in a list": once(["base"]),
    "by its layers": once(["b1", "b2", "b3"]),
    "its lower part": once(":b2"),
    "one layer of it": once("b1"),
    "not at all": once(None),
}


@pytest.mark.parametrize("make", [net, nested_deeper])
@pytest.mark.parametrize("named", NAMED)
@pytest.mark.filterwarnings("ignore:.* changes no layer")
def test_however_it_is_named_it_is_one_base_and_cached(make: Any, named: str):
    runs = []
    for cached in (True, False):
        keras.utils.set_random_seed(0)
        model, cache = make(), BottleneckCache(verbose=0)
        callbacks = [*NAMED[named](model), *([cache] if cached else [])]
        runs.append((fit(model, *callbacks), B.weights(model)))
        if cached:
            assert cache.stats.enabled, cache.stats.reason
            assert cache.stats.base_passes == 1.0
    compare(runs[0][0], runs[1][0])
    compare(runs[0][1], runs[1][1])


def test_rates_by_layer_count_a_base_that_is_named_twice_once():
    steps = []
    for bases in ([FreezeBase("base")], [FreezeBase("base"), FreezeBase(["base"])]):
        keras.utils.set_random_seed(0)
        model = B.compiled(B.nested(), keras.optimizers.SGD(0.5))
        schedule = Schedule.ulmfit(B.layer(model, "base"), start=0)
        fit(model, *bases, GradualUnfreeze(schedule, verbose=0), epochs=3)
        steps.append(B.weights(model))
    B.assert_equal(*steps)


@pytest.mark.parametrize("lower", [":b1", ":b2", ["b1", "b2"]])
def test_the_lower_part_of_a_model_that_holds_all_weights(lower: Any):
    runs = []
    for cache in (BottleneckCache(verbose=0), None):
        keras.utils.set_random_seed(0)
        model = tied()
        before = B.weights(model)
        history = fit(model, FreezeBase(lower), *([cache] if cache else []))
        runs.append((history, B.weights(model)))
        if cache is not None:
            assert cache.stats.enabled, cache.stats.reason
            assert cache.stats.base_passes == 1.0
    compare(runs[0][0], runs[1][0])
    compare(runs[0][1], runs[1][1])
    assert B.changed(before, runs[0][1]) == {"b1", "b2", "b3"} - set(
        ["b1"] if lower == ":b1" else ["b1", "b2"]
    )


def test_what_the_user_has_frozen_is_served_without_a_base():
    model, cache = net(), BottleneckCache(verbose=0)
    for name in ("b1", "b2"):
        B.layer(model, name).trainable = False
    B.compiled(model)
    fit(model, cache)
    assert cache.stats.enabled, cache.stats.reason
    assert cache.stats.cuts == {0: ["b2"]}


@pytest.mark.parametrize("make", [*B.KINDS.values(), net, nested_deeper, tied])
def test_the_preview_names_the_cuts_of_the_run(make: Any):
    """Even if the model's graph can't be read and only the cut is known."""
    model = make()
    if getattr(model, "optimizer", None) is None:
        B.compiled(model)
    base = ":b2" if make is tied else None
    schedule = Schedule({1: "b2", 2: "b1"})
    rows = schedule.preview(model, epochs=3, data=16, base=base)
    cache = BottleneckCache(verbose=0)
    fit(model, FreezeBase(base), GradualUnfreeze(schedule, verbose=0), cache, epochs=3)
    assert [row["cut"] or [] for row in rows] == [cache.stats.cuts.get(n, []) for n in range(3)]
    assert rows[0]["cache_bytes"] == 16 * rows[0]["row_bytes"]


class OfTask(keras.Model):
    """A functional model with a custom `__call__`, like KerasHub's tasks."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


def test_a_call_of_its_own_around_a_graph_is_no_obstacle():
    inputs = keras.Input((6,))
    h = L.Dense(8, name="pooled")(B.functional_base()(inputs))
    model, cache = B.compiled(OfTask(inputs, L.Dense(1)(h))), BottleneckCache(verbose=0)
    B.layer(model, "pooled").trainable = False
    fit(model, FreezeBase("base"), cache)
    assert cache.stats.cuts == {0: ["pooled"]}
    assert cache.stats.base_passes == 1.0


class Changes(keras.Model):
    """Its `__call__` changes the inputs of its graph."""

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(keras.ops.multiply(x, 2.0), *args, **kwargs)


@pytest.mark.filterwarnings("ignore:BottleneckCache stepped aside")
def test_a_call_of_its_own_that_changes_the_inputs_is_never_served_wrongly():
    runs = []
    for cache in (BottleneckCache(verbose=0), None):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6,))
        output = L.Dense(1, name="head")(B.functional_base()(inputs))
        model = B.compiled(Changes(inputs, output))
        fit(model, FreezeBase("base"), *([cache] if cache else []))
        runs.append(B.weights(model))
    B.assert_equal(*runs)
