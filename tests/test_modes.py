"""All ways to call `compile` and `fit`: one `fit` with two stages equals two fits, bit for bit."""

import importlib.util
import itertools
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import pytest

from keras_freeze import FreezeBase, GradualUnfreeze
from tests.builders import BACKEND, L, assert_equal, changed, layer, weights

IS_TORCH = BACKEND == "torch"
HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None
SLOW = os.environ.get("HYPOTHESIS_PROFILE") == "search"
RNG = np.random.default_rng(0)
X = RNG.normal(size=(22, 6)).astype("float32")  # the last of 6 batches is smaller
Y = (X.sum(axis=1, keepdims=True) > 0).astype("float32")
BATCH = 4


def base():
    return keras.Sequential(
        [keras.Input((6,)), L.Dense(6, "tanh", name="b1"), L.Dense(6, "tanh", name="b2")],
        name="base",
    )


def model():
    inputs = keras.Input((6,))
    return keras.Model(inputs, L.Dense(1, name="head")(base()(inputs)))


@dataclass
class Mode:
    build: Any = model
    optimizer: Any = lambda: keras.optimizers.SGD(0.1, momentum=0.5)
    compile: dict = field(default_factory=dict)
    data: Any = lambda: {"x": X, "y": Y, "batch_size": BATCH}


def one_fit(mode):
    keras.utils.set_random_seed(0)
    model = mode.build()
    model.compile(mode.optimizer(), **{"loss": "mse", **mode.compile})
    stages = GradualUnfreeze({1: "b2"}, optimizer="reset", verbose=0)
    callbacks = [FreezeBase("base"), stages]
    fit(model, mode, epochs=2, callbacks=callbacks)
    return model


def two_fits(mode):
    """Trains as a user would by hand: set flags, `compile` and `fit` for each stage."""
    keras.utils.set_random_seed(0)
    model = mode.build()
    if not model.built:  # on TensorFlow, a layer frozen before it is built never trains
        model(X[:1])
    for name in ("b1", "b2"):
        layer(model, name).trainable = False
    for epoch in (0, 1):
        layer(model, "b2").trainable = epoch == 1
        model.compile(mode.optimizer(), **{"loss": "mse", **mode.compile})
        fit(model, mode, initial_epoch=epoch, epochs=epoch + 1)
    return model


def fit(model, mode, **kwargs):
    return model.fit(**mode.data(), shuffle=False, verbose=0, **kwargs)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return -(-len(X) // BATCH)

    def __getitem__(self, index):
        rows = slice(index * BATCH, (index + 1) * BATCH)
        return X[rows], Y[rows]


def generator():
    steps = 5
    batches = (Batches()[step % steps] for step in itertools.count())
    return {"x": batches, "steps_per_epoch": steps}


def tf_dataset():
    import tensorflow as tf

    return {"x": tf.data.Dataset.from_tensor_slices((X, Y)).batch(BATCH)}


def torch_loader():
    from torch import as_tensor
    from torch.utils.data import DataLoader, TensorDataset

    return {"x": DataLoader(TensorDataset(as_tensor(X), as_tensor(Y)), batch_size=BATCH)}


class OwnStep(keras.Model):
    """A functional model with the train step of Keras' guide, for each backend."""

    def tensorflow_step(self, data):
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=data[1], y_pred=self(data[0], training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"own": loss}

    def jax_step(self, state, data):
        import jax

        def loss_and_rest(trainable, rest):
            output, rest = self.stateless_call(trainable, rest, data[0], training=True)
            return self.compute_loss(y=data[1], y_pred=output), rest

        trainable, rest, slots, metrics = state
        gradient = jax.value_and_grad(loss_and_rest, has_aux=True)
        (loss, rest), gradients = gradient(trainable, rest)
        trainable, slots = self.optimizer.stateless_apply(slots, gradients, trainable)
        return {"own": loss}, (trainable, rest, slots, metrics)

    def torch_step(self, data):
        import torch

        self.zero_grad()
        loss = self.compute_loss(y=data[1], y_pred=self(data[0], training=True))
        loss.backward()
        with torch.no_grad():
            variables = list(self.trainable_weights)
            self.optimizer.apply([variable.value.grad for variable in variables], variables)
        return {"own": loss}

    train_step = {"tensorflow": tensorflow_step, "jax": jax_step, "torch": torch_step}[BACKEND]


def own_step():
    plain = model()
    return OwnStep(plain.input, plain.output)


def unbuilt_base():
    layers = [L.Dense(6, activation="tanh", name="b1"), L.Dense(6, activation="tanh", name="b2")]
    return keras.Sequential(layers, name="base")


def unbuilt_sequential():
    return keras.Sequential([unbuilt_base(), L.Dense(1, name="head")])


class Unbuilt(keras.Model):
    def __init__(self):
        super().__init__()
        self.base = unbuilt_base()
        self.head = L.Dense(1, name="head")

    def call(self, inputs):
        return self.head(self.base(inputs))


def two_inputs():
    left, right = keras.Input((6,), name="left"), keras.Input((6,), name="right")
    shared = base()
    both = L.Concatenate()([shared(left), shared(right)])
    outputs = {"one": L.Dense(1, name="head")(both), "two": L.Dense(2, name="head2")(both)}
    return keras.Model({"left": left, "right": right}, outputs)


def two_inputs_data():
    targets = {"one": Y, "two": np.concatenate([Y, 1 - Y], axis=1)}
    importance = {"one": np.linspace(0, 1, len(X)), "two": np.ones(len(X))}
    inputs = {"left": X, "right": -X}
    return {"x": inputs, "y": targets, "sample_weight": importance, "batch_size": BATCH}


def arrays(**kwargs):
    return lambda: {"x": X, "y": Y, "batch_size": BATCH, **kwargs}


def sgd(**kwargs):
    return lambda: keras.optimizers.SGD(0.1, **kwargs)


# Only TensorFlow and JAX have steps_per_execution. torch.compile takes a minute.
STEPS = {} if IS_TORCH else {"steps_per_execution": 4}
JIT = {} if IS_TORCH and not SLOW else {"jit_compile": True}
MODES = {
    "run_eagerly, PyDataset": Mode(compile={"run_eagerly": True}, data=lambda: {"x": Batches()}),
    "jit_compile, tf.data": Mode(compile=JIT, data=tf_dataset if HAS_TENSORFLOW else arrays()),
    "steps_per_execution, use_ema": Mode(
        optimizer=sgd(use_ema=True, ema_momentum=0.5), compile=STEPS
    ),
    "mixed_float16, class_weight, validation_split and _freq": Mode(
        compile={"metrics": ["mae"], "weighted_metrics": ["mse"]},
        data=arrays(class_weight={0: 1, 1: 3}, validation_split=0.3, validation_freq=2),
    ),
    "two inputs and outputs, sample_weight, gradient_accumulation_steps": Mode(
        build=two_inputs, data=two_inputs_data, optimizer=sgd(gradient_accumulation_steps=4)
    ),
    "train_step of the user's own, generator": Mode(build=own_step, data=generator),
    "unbuilt Sequential": Mode(build=unbuilt_sequential),
    "unbuilt subclassed, generator": Mode(build=Unbuilt, data=generator),
}
if IS_TORCH:
    MODES["torch DataLoader"] = Mode(data=torch_loader)


@pytest.fixture
def policy():
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("name", MODES)
def test_equals_two_fits(name, policy):
    if name.startswith("mixed"):
        policy("mixed_float16")
    mode = MODES[name]
    ours, by_hand = one_fit(mode), two_fits(mode)
    biases = {key: np.any(value) for key, value in weights(ours).items() if key.endswith("bias")}
    assert (biases["b1/bias"], biases["b2/bias"]) == (False, True)  # they began as zeros
    assert_equal(weights(ours), weights(by_hand))
    seen, expected = ours.history.history, by_hand.history.history
    for key in expected:
        assert seen[key][-1] == expected[key][-1], key
    assert set(seen) - set(expected) == {"stage", "trainable_params", "learning_rate"}


class TwoInputs(L.Layer):
    """Its `call` takes any number of inputs, so only the keyword identifies `training`."""

    def call(self, *inputs, training=None):
        return inputs[0] + 10 * inputs[1]


def test_a_second_input_is_not_taken_for_training():
    losses = []
    for callbacks in ([], [FreezeBase("sum")]):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6,))
        summed = TwoInputs(name="sum")(inputs, inputs)
        whole = keras.Model(inputs, L.Dense(1, name="head")(summed))
        whole.compile(keras.optimizers.SGD(0.0), "mse")
        losses.append(fit(whole, Mode(), epochs=1, callbacks=callbacks).history["loss"])
    assert losses[0] == losses[1]


class WithSpare(keras.Model):
    """Has a layer that it never calls, and so never builds."""

    def __init__(self):
        super().__init__()
        self.base, self.head, self.spare = base(), L.Dense(1, name="head"), L.Dense(3, name="spare")

    def call(self, inputs):
        return self.head(self.base(inputs))


def test_a_layer_that_is_never_called_is_no_hindrance():
    whole = WithSpare()
    whole(X[:1])
    whole.compile(keras.optimizers.SGD(0.1), "mse")
    before = weights(whole)
    fit(whole, Mode(), epochs=2, callbacks=[FreezeBase("base"), GradualUnfreeze({1: "b2"})])
    assert changed(before, weights(whole)) == {"b2", "head"}


def test_what_was_frozen_before_it_was_built_trains_once_it_is_thawed():
    """In stock Keras on TensorFlow it doesn't, even after `compile`."""
    keras.utils.set_random_seed(0)
    whole = Unbuilt()
    for each in (whole.base, *whole.base.layers):
        each.trainable = False
    whole.compile(keras.optimizers.SGD(0.1), "mse")
    fit(whole, Mode(), epochs=1)
    before = weights(whole)
    fit(whole, Mode(), epochs=2, callbacks=[FreezeBase(), GradualUnfreeze({1: "b2"}, verbose=0)])
    assert changed(before, weights(whole)) == {"b2", "head"}


def test_frozen_layers_run_in_inference_mode():
    """LSTM's dropout is off, and SpectralNormalization doesn't update its kernel and vector."""
    losses = []
    for rate in (0.1, 0.9):
        keras.utils.set_random_seed(0)
        layers = [
            keras.Input((2, 3)),
            L.SpectralNormalization(L.Dense(4), name="spectral"),
            L.LSTM(3, dropout=rate, recurrent_dropout=rate, name="lstm"),
        ]
        frozen = keras.Sequential(layers, name="base")
        whole = keras.Sequential([frozen, L.Dense(1, name="head")])
        whole.compile(keras.optimizers.SGD(0.1), "mse")
        before = weights(whole)
        x = X.reshape(len(X), 2, 3)
        losses.append(whole.fit(x, Y, verbose=0, shuffle=False, callbacks=[FreezeBase("base")]))
        assert changed(before, weights(whole)) == {"head"}
    assert losses[0].history == losses[1].history


MIRRORED = """
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from tests import test_modes as modes
alone = modes.one_fit(modes.Mode(compile={"run_eagerly": True}))
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    mirrored = modes.one_fit(modes.Mode())
assert strategy.num_replicas_in_sync == 2
expected = modes.weights(alone)
assert np.any(expected["b2/bias"])
for key, value in modes.weights(mirrored).items():
    np.testing.assert_allclose(value, expected[key], rtol=1e-4, atol=1e-6, err_msg=key)
"""


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of TensorFlow")
def test_mirrored_strategy():
    """Equals a run on one device. Has its own process: devices are set before TensorFlow starts."""
    root = os.path.dirname(os.path.dirname(__file__))
    paths = [root, os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    subprocess.run([sys.executable, "-c", MIRRORED], check=True, env=env)
