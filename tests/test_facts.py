"""What stock Keras gets wrong if `trainable` changes during `fit`, and our callbacks get right.

One test for each trap from F1 to F9 of Keras 3.12 and 3.15 that concerns training. Each runs the
code that fails in stock Keras with one of our callbacks added, and asserts the outcome.
"""

import keras
import numpy as np
import pytest

from keras_freeze import FreezeBase, GradualUnfreeze, RecompileOnTrainableChange
from tests.builders import L, assert_equal, changed, compiled, data, layer, nested, weights


def at(epoch, action, hook="on_epoch_begin"):
    """Returns a callback that only calls `action`, once."""
    callback = keras.callbacks.Callback()
    setattr(callback, hook, lambda now, logs=None: action() if now == epoch else None)
    return callback


def fit(model, *callbacks, epochs=2, **kwargs):
    x, y = data()
    options = {"batch_size": 8, "shuffle": False, "verbose": 0}
    return model.fit(x, y, epochs=epochs, callbacks=[*callbacks], **(options | kwargs)).history


def watch():
    return RecompileOnTrainableChange(verbose=0)


def frozen_base(optimizer):
    model = nested()
    model.get_layer("base").trainable = False
    return compiled(model, optimizer)


AFTERWARDS = {
    "nothing": lambda model: None,
    "make_train_function": lambda model: model.make_train_function(force=True),
    "compile": lambda model: model.compile(model.optimizer, "mse"),
    "both": lambda model: (
        model.compile(model.optimizer, "mse"),
        model.make_train_function(force=True),
    ),
}


@pytest.mark.parametrize("afterwards", AFTERWARDS)
def test_f1_f2_unfrozen_layers_move(afterwards):
    """Unfreezing in `on_epoch_begin`, with or without `compile`: the whole base trains."""
    model = frozen_base(keras.optimizers.SGD(0.1))
    before, at_the_time = weights(model), {}

    def thaw():
        at_the_time.update(weights(model))
        model.get_layer("base").trainable = True
        AFTERWARDS[afterwards](model)

    fit(model, at(1, thaw), watch())
    assert changed(before, at_the_time) == {"head"}
    assert changed(at_the_time, weights(model)) == {"b1", "b2", "b3", "head"}


def test_f3_loss_stays_at_a_rate_of_zero():
    """Two layers of the same shape swap flags: their values must not be swapped."""
    x, y = data()
    inputs = keras.Input((6,))
    hidden = L.Dense(6, name="b")(keras.ops.relu(L.Dense(6, name="a")(inputs)))
    model = keras.Model(inputs, L.Dense(1, name="head")(hidden))
    layer(model, "b").trainable = False
    compiled(model, keras.optimizers.SGD(0.0))
    before, loss, output = weights(model), model.evaluate(x, y, verbose=0), model.predict(x)
    losses, outputs = [], []

    def swap():
        layer(model, "a").trainable, layer(model, "b").trainable = False, True
        model.optimizer = keras.optimizers.SGD(0.0)
        model.optimizer.build(model.trainable_variables)

    def look():
        losses.append(model.evaluate(x, y, verbose=0))
        outputs.append(model.predict(x, verbose=0))

    history = fit(model, at(1, swap), watch(), at(1, look, "on_epoch_end"), validation_data=(x, y))
    look()
    assert_equal(before, weights(model))
    for seen in (history["loss"], history["val_loss"], losses):
        assert seen == pytest.approx([loss] * len(seen), rel=1e-5)
    for seen in outputs:
        np.testing.assert_allclose(seen, output, rtol=1e-5)


def with_extras(rate=0.5):
    """The base has a BatchNormalization and a Dropout, and is called with training=False."""
    base = keras.Sequential(
        [
            keras.Input((6,)),
            L.Dense(8, activation="tanh", name="b1"),
            L.BatchNormalization(name="bn"),
            L.Dropout(rate, name="drop"),
            L.Dense(8, activation="tanh", name="b2"),
        ],
        name="base",
    )
    inputs = keras.Input((6,))
    outputs = L.Dense(1, name="head")(base(inputs, training=False))
    return compiled(keras.Model(inputs, outputs), keras.optimizers.SGD(0.1))


def test_f5_statistics_stay_to_the_bit():
    """Both while the base is frozen and after the layers around it are unfrozen."""
    model = with_extras()
    before = weights(model)
    fit(model, FreezeBase("base"), GradualUnfreeze({1: "all"}, verbose=0))
    assert changed(before, weights(model)) == {"b1", "b2", "head"}


def test_f6_dropout_of_a_frozen_base_is_off():
    """It is called with training=False, so its rate makes no difference."""
    rates, seen, losses = (0.1, 0.9), [], []
    for rate in rates:
        keras.utils.set_random_seed(0)
        model = with_extras(rate)
        drop = layer(model, "drop")

        def spy(inputs, training=None, call=drop.call):
            seen.append(training)
            return call(inputs, training=training)

        object.__setattr__(drop, "call", spy)
        losses.append(fit(model, FreezeBase("base"))["loss"])
    assert set(seen) == {False}
    assert losses[0] == losses[1]


class Shift(L.Layer):
    """Adds one weight."""

    def build(self, shape):
        self.shift = self.add_weight(name="shift", shape=(), initializer="ones")

    def call(self, inputs):
        return inputs + self.shift


def shifts(optimizer):
    """A base and a head with one weight each. Each weight's gradient is 1."""
    inputs = keras.Input((1,))
    model = keras.Model(inputs, Shift(name="head")(Shift(name="base")(inputs)))
    return compiled(model, optimizer, loss=lambda y, output: keras.ops.mean(output))


def test_f7_first_steps_of_a_thawed_variable_are_a_fresh_adams():
    """After 300 steps without it, no update exceeds the learning rate, as at the start."""
    rate, steps = 1e-3, 300
    model = shifts(keras.optimizers.Adam(rate))
    shift = layer(model, "base").shift
    values = [1.0]

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if layer(self.model, "base").trainable:
                values.append(float(keras.ops.convert_to_numpy(shift)))
                self.model.stop_training = len(values) > 30

    x = np.zeros((steps, 1), "float32")
    ours = [FreezeBase("base"), GradualUnfreeze({1: "all"}, verbose=0), Look()]
    model.fit(x, x, batch_size=1, epochs=2, verbose=0, callbacks=ours)
    lengths = -np.diff(values)
    assert len(lengths) == 30
    np.testing.assert_allclose(lengths, rate, rtol=2e-4)


def test_f8_average_of_a_thawed_weight_starts_from_its_value():
    """At a rate of 0 the weight is the same after `fit`, no matter when it was unfrozen."""
    model = shifts(keras.optimizers.SGD(0.0, use_ema=True, ema_momentum=0.99))
    ours = [FreezeBase("base"), GradualUnfreeze({1: "all"}, verbose=0)]
    x = np.zeros((20, 1), "float32")
    model.fit(x, x, batch_size=1, epochs=2, verbose=0, callbacks=ours)
    for name in ("base", "head"):
        value = float(keras.ops.convert_to_numpy(layer(model, name).shift))
        assert value == pytest.approx(1.0, rel=1e-6), name


@pytest.mark.parametrize("place", ["before", "after"])
def test_f9_early_stopping_stops(place):
    """Even in the epoch in which another callback changes the trainable layers."""
    model = frozen_base(keras.optimizers.SGD(0.1))
    stop = keras.callbacks.EarlyStopping("loss", patience=0, min_delta=1e9)
    change = at(1, lambda: setattr(model.get_layer("base"), "trainable", True), "on_epoch_end")
    callbacks = [stop, change, watch()] if place == "before" else [watch(), change, stop]
    assert len(fit(model, *callbacks, epochs=4)["loss"]) == 2
    assert model.stop_training


def test_f9_early_stopping_stops_before_a_stage():
    """The stage that would begin in the next epoch never does."""
    model = frozen_base(keras.optimizers.SGD(0.1))
    stop = keras.callbacks.EarlyStopping("loss", patience=0, min_delta=1e9)
    history = fit(model, GradualUnfreeze({2: "b3"}, verbose=0), stop, epochs=4)
    assert history["stage"] == [0, 0]
    assert not layer(model, "b3").trainable
