"""C2: with optimizer="carry" each variable is updated by its own age, as in plain NumPy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keras_freeze import FreezeBase, GradualUnfreeze, Stage
from tests.builders import BACKEND, assert_equal, compiled, data, nested
from tests.reference import optimizers as reference
from tests.reference.carried import Run, double_precision, in_keras, in_numpy
from tests.reference.search import examples

BETAS = {"beta_1": 7 / 8, "beta_2": 1 - 2.0**-10, "epsilon": 2.0**-23}
RHO = {"rho": 7 / 8, "epsilon": 2.0**-23}
FTRL = {
    "initial_accumulator_value": 2.0**-3,
    "l1_regularization_strength": 2.0**-7,
    "l2_regularization_strength": 2.0**-6,
    "l2_shrinkage_regularization_strength": 2.0**-5,
    "beta": 2.0**-3,
}
HYPER: dict[str, tuple[str, dict[str, Any]]] = {
    "SGD": ("SGD", {}),
    "momentum": ("SGD", {"momentum": 7 / 8}),
    "Nesterov": ("SGD", {"momentum": 7 / 8, "nesterov": True}),
    "RMSprop": ("RMSprop", RHO),
    "RMSprop with momentum": ("RMSprop", RHO | {"momentum": 0.5}),
    "centered RMSprop": ("RMSprop", RHO | {"momentum": 0.5, "centered": True}),
    "Adam": ("Adam", BETAS),
    "AMSGrad": ("Adam", BETAS | {"amsgrad": True}),
    "AdamW": ("AdamW", BETAS | {"weight_decay": 2.0**-5}),
    "Nadam": ("Nadam", BETAS),
    "Adamax": ("Adamax", BETAS),
    "Adagrad": ("Adagrad", {"initial_accumulator_value": 2.0**-3, "epsilon": 2.0**-23}),
    "Adadelta": ("Adadelta", RHO),
    "Lion": ("Lion", {"beta_1": 7 / 8, "beta_2": 1 - 2.0**-6}),
    "Lamb": ("Lamb", BETAS),
    "Ftrl": ("Ftrl", FTRL),
    "Adafactor": ("Adafactor", {"epsilon_1": 2.0**-100, "epsilon_2": 2.0**-10}),
}
pytestmark = [
    pytest.mark.one_backend(
        but=[
            "test_equals_plain_numpy",
            "Adam",
            "Adafactor",
            "test_equals_plain_numpy_with_a_loss_scale",
            "test_slots_belong_to_a_variable_not_to_a_place_or_a_name",
        ]
    ),
    pytest.mark.filterwarnings(
        "ignore:The base is unfrozen",  # a stage at epoch 0
        "ignore:.* is never reached",  # by the first of two fits
    ),
]


def run_of(name: str, trainable: list[set[str]], **kwargs: Any) -> Run:
    """Returns a run of the optimizer with that name."""
    kind, hyper = HYPER[name]
    rule = getattr(reference, kind)(**hyper)
    return Run(getattr(keras.optimizers, kind), rule, trainable, hyper=hyper, **kwargs)


def check(run: Run) -> None:
    """Equal up to the rounding of float64, after any number of steps.

    Only Nadam has a constant (0.96) that isn't exact in float32, and TensorFlow rounds it to that.
    """
    with double_precision():
        weights = in_keras(run)
    rounding = 2.0**-24 if BACKEND == "tensorflow" and "Nadam" in str(run.rule) else 2.0**-53
    for name, expected in in_numpy(run).items():
        np.testing.assert_allclose(weights[name], expected, 2**12 * rounding, 2**8 * rounding, name)


@st.composite
def commons(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments that all optimizers accept."""
    common: dict[str, Any] = {}
    if clip := draw(st.sampled_from([None, "clipnorm", "global_clipnorm", "clipvalue"])):
        common[clip] = draw(st.sampled_from([2.0**-4, 0.5]))
    if draw(st.booleans()):
        common |= {"use_ema": True, "ema_momentum": 0.75}
    if draw(st.booleans()):
        common["gradient_accumulation_steps"] = draw(st.integers(2, 4))
    if draw(st.booleans()):
        common["weight_decay"] = 2.0**-5
    return common


@st.composite
def runs(draw: st.DrawFn) -> Run:
    name, common = draw(st.sampled_from(sorted(HYPER))), draw(commons())
    if name == "AdamW":
        common.pop("weight_decay", None)
    widths = draw(st.lists(st.integers(2, 3), min_size=1, max_size=3))
    names = [*(f"b{i}" for i in range(len(widths))), "head"]
    layers = st.sets(st.sampled_from(names), min_size=1)
    trainable = draw(st.lists(layers, min_size=2, max_size=4))
    trainable[0] |= {"head"}
    later = st.integers(1, len(trainable) - 1)
    return run_of(
        name,
        trainable,
        widths=tuple(widths),
        common=common,
        halving=draw(st.sampled_from([0, 3])),
        rates=draw(st.dictionaries(later, st.sampled_from([2.0**-4, 2.0**-8]), max_size=1)),
        base_rates=draw(st.dictionaries(later, st.sampled_from([2.0**-7, 2.0**-10]), max_size=2)),
        decays=draw(st.dictionaries(later, st.sampled_from([0.5, 1.0, 0.75]), max_size=2)),
        warmups=draw(st.dictionaries(later, st.sampled_from([1, 2, 8]), max_size=2)),
        steps=draw(st.integers(1, 3)),
        cut=draw(st.just(0) | later),
        seed=draw(st.integers(0, 9)),
    )


HEAD, BOTH = {"head"}, {"b0", "head"}


@given(run=runs())
@examples(12)
@example(run=run_of("Nadam", [HEAD, BOTH, HEAD, BOTH]))  # frozen again, unfrozen again
@example(run=run_of("Adam", [HEAD, BOTH, BOTH], cut=2))  # ages survive a fit
@example(run=run_of("Adam", [HEAD, BOTH], common={"gradient_accumulation_steps": 2}))
def test_equals_plain_numpy(run):
    check(run)


@pytest.mark.parametrize("name", HYPER)
def test_equals_plain_numpy_when_compiled(name):
    check(run_of(name, [HEAD, BOTH], widths=(2,), eager=False))


@pytest.mark.parametrize("name", HYPER)
def test_rates_by_layer_and_slow_beginnings_equal_plain_numpy(name):
    """Every optimizer, compiled. The warm-up is longer than the stage."""
    multipliers = {"decays": {1: 0.5, 3: 0.75}, "warmups": {1: 8, 2: 2}, "base_rates": {2: 2.0**-8}}
    common = {} if name == "AdamW" else {"weight_decay": 2.0**-5}
    trainable = [HEAD, {"b1", "head"}, {"b0", "b1", "head"}, {"b0", "b1", "head"}]
    check(run_of(name, trainable, common=common, eager=False, **multipliers))


def test_equals_plain_numpy_with_a_loss_scale():
    def make(rate, **kwargs):
        adam = keras.optimizers.Adam(rate, **kwargs)
        return keras.optimizers.LossScaleOptimizer(adam, initial_scale=8.0)

    check(replace(run_of("Adam", [HEAD, BOTH, BOTH], cut=2), optimizer=make))


@pytest.mark.skipif(not hasattr(keras.optimizers, "MultiOptimizer"), reason="Keras >= 3.15")
def test_equals_plain_numpy_with_an_optimizer_for_each_part():
    def make(rate, **kwargs):
        head, rest = (keras.optimizers.Adam(rate, **kwargs) for _ in range(2))
        mapped = keras.optimizers.OptimizerMap(rest, {"head/.*": head})
        return keras.optimizers.MultiOptimizer(mapped)

    trainable = [HEAD, BOTH, {"b0"}, {"b0", "b1"}, BOTH]
    check(replace(run_of("Adam", trainable, cut=2), optimizer=make))


def test_a_gradient_is_clipped_as_the_mean_of_those_that_a_variable_has_seen():
    """The layer is unfrozen in the second step of a window of two: a single gradient is clipped."""
    common = {"gradient_accumulation_steps": 2, "clipnorm": 2.0**-4}
    check(run_of("SGD", [HEAD, BOTH], common=common, steps=1))


def parallel() -> keras.Model:
    """Two parallel layers: what one learns doesn't depend on the other."""
    inputs = keras.Input((6,))
    both = [keras.layers.Dense(4, activation="tanh", name=name)(inputs) for name in ("a", "b")]
    return keras.Model(inputs, keras.layers.Concatenate()(both))


def updates(model: keras.Model, callbacks: list[Any], **times: int) -> np.ndarray:
    """Returns the update of layer "b"'s kernel in each of a few one-step epochs."""
    kernels = [model.get_layer("b").get_weights()[0]]
    note = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: kernels.append(model.get_layer("b").get_weights()[0])
    )
    model.fit(*wide(32), batch_size=32, callbacks=[*callbacks, note], verbose=0, **times)
    return np.diff(kernels, axis=0)


def wide(rows: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = data(rows)
    return x, np.tile(y, 8)


WITH_A_START = {
    "Adam": lambda: keras.optimizers.Adam(0.01),
    "AMSGrad": lambda: keras.optimizers.Adam(0.01, amsgrad=True),
    "Nadam": lambda: keras.optimizers.Nadam(0.01),
    "Lamb": lambda: keras.optimizers.Lamb(0.01),
    "Adamax": lambda: keras.optimizers.Adamax(0.01),
    "Adafactor": lambda: keras.optimizers.Adafactor(0.01),
}


@pytest.mark.parametrize("name", WITH_A_START)
def test_no_update_of_a_thawed_layer_exceeds_a_fresh_optimizers(name):
    """After 320 steps, in float32. In stock Keras, Adam's first update is 2.5 times the rate."""
    model, fresh = parallel(), parallel()
    model.compile(WITH_A_START[name](), "mse")
    thaw = [FreezeBase("b"), GradualUnfreeze({1: "b"}, verbose=0)]
    model.fit(*wide(320), batch_size=1, callbacks=thaw, verbose=0)
    fresh.set_weights(model.get_weights())
    thawed = updates(model, thaw, initial_epoch=1, epochs=6)
    fresh.compile(WITH_A_START[name](), "mse")
    ulp = 2.0**-23  # of a weight; an update is a difference of two weights
    np.testing.assert_allclose(thawed, updates(fresh, [], epochs=5), 1e-6, 2 * ulp)
    assert np.abs(thawed).max() > 1e-4


def twins() -> keras.Model:
    """Two containers with layers of the same name and shape, and a head."""
    sides = [
        keras.Sequential([keras.layers.Dense(6, name="same")], name=name)
        for name in ("left", "right")
    ]
    return keras.Sequential([keras.Input((6,)), *sides, keras.layers.Dense(1, name="head")])


class Slots(keras.callbacks.Callback):
    """Records Adam's momenta of the twins' kernels at the start and the end of each epoch."""

    def on_train_begin(self, logs=None):
        self.seen = {}

    def on_epoch_begin(self, epoch, logs=None):
        self.seen[epoch, "begin"] = self._momenta()

    def on_epoch_end(self, epoch, logs=None):
        self.seen[epoch, "end"] = self._momenta()

    def _momenta(self) -> dict[str, np.ndarray]:
        left, right, head = self.model.layers
        kernels = {"left": left.layers[0].kernel, "right": right.layers[0].kernel}
        kernels["head"] = head.kernel
        optimizer = self.model.optimizer
        held = zip(optimizer._trainable_variables, optimizer._momentums, strict=True)
        by_id = {id(variable): keras.ops.convert_to_numpy(slot) for variable, slot in held}
        return {name: by_id[id(k)] for name, k in kernels.items() if id(k) in by_id}


def test_slots_belong_to_a_variable_not_to_a_place_or_a_name():
    """Freezes the left twin and unfreezes the right one: same position, name and shape."""
    model, slots = compiled(twins()), Slots()
    stages = [
        Stage(0, "left/same"),
        Stage(1, "right/same", "left/same"),
        Stage(2, "left/same"),
    ]
    thaw = GradualUnfreeze(stages, base=["left", "right"], verbose=0)
    model.fit(*data(4), epochs=3, callbacks=[thaw, slots], verbose=0)
    seen = slots.seen
    assert set(seen[1, "begin"]) == {"right", "head"}
    assert not seen[1, "begin"]["right"].any()
    assert not seen[2, "begin"]["left"].any()  # its state was dropped
    assert_equal({"head": seen[1, "begin"]["head"]}, {"head": seen[0, "end"]["head"]})
    stayed = {name: seen[2, "begin"][name] for name in ("right", "head")}
    assert_equal(stayed, seen[1, "end"])
    assert all(slot.any() for slot in seen[2, "end"].values())


def test_iterations_go_on():
    model = compiled(nested())
    thaw = GradualUnfreeze({1: "b3", 2: "b2"}, verbose=0)
    model.fit(*data(8), batch_size=4, epochs=3, callbacks=[thaw], verbose=0)
    assert int(model.optimizer.iterations) == 6
