"""C5: what can't be cached trains correctly uncached, with one CacheWarning that says why."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import pytest

from keras_freeze import BottleneckCache, CacheError, CacheWarning, FreezeBase, LayerMatchError
from tests import builders
from tests.builders import BACKEND, L
from tests.reference.cached import Run, X, Y, compare
from tests.test_cache_parity import VAL

pytestmark = pytest.mark.one_backend(
    but=[
        "test_inputs_that_differ_in_each_epoch",
        "test_weights_of_the_frozen_part_that_change",
        "test_arrays_that_are_changed_in_place",
        "test_random_functions_that_nothing_tells_of",
        "test_functions_that_change_later",
        "test_features_that_are_not_numbers_are_reported_and_served",
        "test_a_train_step_that_changes_its_inputs",
        "test_what_a_subclassed_model_does_itself",
        "test_a_step_that_never_calls_the_model",
        "test_a_batch_that_is_changed_in_place",
    ]
)


def check_aside(run: Run, reason: str, *, same: bool = True) -> BottleneckCache:
    """The run equals the one without the cache, and warns once."""
    expected, expected_weights = run.fit(None)
    cache = BottleneckCache(verbose=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history, weights = run.fit(cache)
    told = [str(each.message) for each in caught if issubclass(each.category, CacheWarning)]
    assert len(told) == 1, told
    assert reason in told[0]
    assert "To use the cache, " in told[0]
    assert not cache.stats.enabled
    assert cache.stats.reason in told[0]
    assert cache.stats.rows == 0
    if same:
        compare(history, expected, exact=True)
        compare(weights, expected_weights, exact=True)
    return cache


def behind(*layers: keras.layers.Layer) -> keras.Model:
    """Returns a model with layers before the base."""
    inputs = outputs = keras.Input((6,))
    for layer in layers:
        outputs = layer(outputs)
    return keras.Model(inputs, L.Dense(1, name="head")(builders.functional_base()(outputs)))


def frozen_by_hand(names: set[str]) -> keras.Model:
    model = builders.nested(extras=True)
    for name in names:
        builders.layer(model, name).trainable = False
    return model


class Counting(keras.layers.Layer):
    """Its state changes in each call."""

    def build(self, shape):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, name="count")

    def call(self, inputs):
        self.count.assign(self.count + 1.0)
        return inputs


class Penalised(keras.layers.Layer):
    """Adds to the loss."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, inputs):
        self.add_loss(keras.ops.mean(keras.ops.square(inputs)))
        return inputs * self.scale


class Trusting(keras.layers.Layer):
    """Behaves differently in training."""

    def call(self, inputs, training=None):
        return inputs * 2.0 if training else inputs


def base_with(layer: keras.layers.Layer) -> keras.Model:
    inputs = keras.Input((6,))
    outputs = L.Dense(8, name="b2")(layer(L.Dense(8, name="b1")(inputs)))
    base = keras.Model(inputs, outputs, name="base")
    return keras.Model(inputs, L.Dense(1, name="head")(base(inputs)))


CASES: dict[str, tuple[Run, str]] = {
    "dropout left on": (
        Run(lambda: frozen_by_hand({"b1", "bn", "b2", "b3"}), frozen=list),
        "'drop' comes before frozen layers, and it is random",
    ),
    "batch norm left training": (
        Run(lambda: frozen_by_hand({"b1", "drop", "b2", "b3"}), frozen=list),
        "'bn' comes before frozen layers, and its statistics change in training",
    ),
    "noise in front": (
        Run(lambda: behind(L.GaussianNoise(0.1, name="noise"))),
        "'noise' comes before frozen layers, and it is random",
    ),
    "tells training": (
        Run(lambda: behind(Trusting(name="own"))),
        "'own' comes before frozen layers, and its `call` takes `training`",
    ),
    "a trained layer in front": (
        Run(lambda: behind(L.Dense(6, name="stem"))),
        "no frozen layer with weights comes before the trainable layers",
    ),
    "nothing frozen": (Run(frozen=list), "no frozen layer with weights"),
    "state that moves": (
        Run(lambda: base_with(Counting(name="own"))),
        "count' of the frozen part changes",
    ),
    "adds to the loss": (
        Run(lambda: base_with(Penalised(name="own"))),
        "of the frozen part adds to the",
    ),
    "activity regularizer": (
        Run(lambda: base_with(L.Dense(8, activity_regularizer="l2", name="reg"))),
        "'reg' comes before frozen layers, and it adds to the loss",
    ),
}


TRACED = ("state that moves", "adds to the loss", "dropout left on")
# With validation_data, validation would use the cache: see test_cache_validation.py.
IN_TRAINING = ("dropout left on", "noise in front", "tells training")


@pytest.mark.parametrize("name", CASES)
def test_what_is_in_the_model(name: str):
    run, reason = CASES[name]
    run.options = {"epochs": 4, "validation_data": None if name in IN_TRAINING else VAL}
    run.traced = name in TRACED
    check_aside(run, reason)


class OwnFront(keras.Model):
    """A subclassed model that calls a layer before its base."""

    def __init__(self, front: keras.layers.Layer):
        super().__init__()
        self.front = front
        self.base = builders.functional_base()
        self.head = L.Dense(1, name="head")

    def call(self, inputs, training=None):
        return self.head(self.base(self.front(inputs, training=training)))


def own_front(front: keras.layers.Layer) -> keras.Model:
    model = OwnFront(front)
    model(np.zeros((1, 6), "float32"))
    return model


def test_what_is_in_a_subclassed_model():
    run = Run(lambda: own_front(L.GaussianNoise(0.1, name="noise")))
    check_aside(run, "'noise' is called before 'base', and it is random")


class Loose(keras.Model):
    """Its base is two layers that only the model holds."""

    def __init__(self):
        super().__init__()
        self.a, self.b = L.Dense(8, name="a"), L.Dense(8, name="b")
        self.head = L.Dense(1, name="head")

    def call(self, inputs):
        return self.head(self.b(self.a(inputs)))


def loose() -> keras.Model:
    model = Loose()
    model(np.zeros((1, 6), "float32"))
    return model


def test_a_subclassed_model_no_layer_of_which_holds_the_base():
    check_aside(Run(loose, frozen=lambda: [FreezeBase(["a", "b"])]), "none of its layers holds")


def augmented() -> Any:
    draw = np.random.default_rng(0)
    while True:
        for start in range(0, 32, 8):
            noise = draw.normal(size=(8, 6)).astype("float32")
            yield X[start : start + 8] + noise, Y[start : start + 8]


class Augmented(keras.utils.PyDataset):
    """Different rows in each epoch."""

    def __init__(self):
        super().__init__()
        self.draw = np.random.default_rng(0)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        noise = self.draw.normal(size=(8, 6)).astype("float32")
        return X[8 * index :][:8] + noise, Y[8 * index :][:8]


def test_inputs_that_differ_in_each_epoch():
    options = {"batch_size": None, "epochs": 6}
    run = Run(data=lambda: (Augmented(),), options=options)
    cache = check_aside(run, "inputs differ in each epoch")
    assert cache.stats.misses == 32 + 24  # noticed in the middle of the second epoch
    options |= {"steps_per_epoch": 4, "epochs": 8}
    check_aside(Run(data=lambda: (augmented(),), options=options), "inputs differ in each epoch")


class Touch(keras.callbacks.Callback):
    """Calls a function when epoch 2 begins."""

    def __init__(self, action: Any):
        super().__init__()
        self.action = action

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            self.action(self.model)


def test_weights_of_the_frozen_part_that_change():
    def change(model: keras.Model) -> None:
        kernel = builders.layer(model, "b1").kernel
        kernel.assign(kernel * 1.5)

    run = Run(frozen=lambda: [FreezeBase(), Touch(change)], options={"validation_data": VAL})
    check_aside(run, "weights of the frozen part were changed: ")


def test_weights_that_change_right_before_a_stage():
    class Change(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                kernel = builders.layer(self.model, "b1").kernel
                kernel.assign(kernel * 1.5)

    run = Run(frozen=lambda: [FreezeBase(), Change()], stages={2: "b3"})
    check_aside(run, "weights of the frozen part were changed: ")


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow copies arrays when fit begins")
def test_arrays_that_are_changed_in_place():
    arrays: list[Any] = []

    def data() -> Any:
        arrays[:] = [X.copy()]
        return arrays[0], Y

    def change(model: keras.Model) -> None:
        arrays[0] *= 0.5

    run = Run(data=data, frozen=lambda: [FreezeBase(), Touch(change)])
    check_aside(run, "changed in place")


def mixes(x: Any) -> Any:
    """Each row depends on the batch."""
    return x - keras.ops.mean(x, axis=0, keepdims=True)


def test_features_that_depend_on_the_batch():
    """Shuffled, so the second epoch has different batches."""
    run = Run(lambda: base_with(L.Lambda(mixes, output_shape=(8,), name="own")))
    check_aside(run, "depend on the other rows of the batch")


def test_random_functions_that_nothing_tells_of():
    """Random numbers are drawn once more, so the run differs; but none is used twice."""
    calls: list[int] = []

    def noisy(x: Any) -> Any:
        calls.append(1)
        return x + keras.random.normal(keras.ops.shape(x), seed=len(calls))

    run = Run(lambda: base_with(L.Lambda(noisy, output_shape=(8,), name="own")))
    check_aside(run, "they are random", same=False)


def test_functions_that_change_later():
    """Code that isn't known to be deterministic is checked in each epoch."""
    scale = [1.0]

    def callbacks() -> list[Any]:
        scale[0] = 1.0
        return [FreezeBase(), Touch(lambda model: scale.__setitem__(0, 0.5))]

    drifting = L.Lambda(lambda x: x * scale[0], output_shape=(8,), name="own")
    run = Run(lambda: base_with(drifting), frozen=callbacks, options={"validation_data": VAL})
    check_aside(run, "different features for the same row")


def test_inputs_that_are_strings():
    if BACKEND != "tensorflow":
        pytest.skip("only TensorFlow has tensors of strings")
    import tensorflow as tf

    words = np.array([["a b"], ["b c"], ["c a"], ["b b"]] * 4)
    look = L.StringLookup(vocabulary=["a b", "b c", "c a"], output_mode="multi_hot")

    def make() -> keras.Model:
        inputs = keras.Input((1,), dtype="string")
        outputs = builders.functional_base()(L.Dense(6, name="stem")(look(inputs)))
        return keras.Model(inputs, L.Dense(1, name="head")(outputs))

    data = tf.data.Dataset.from_tensor_slices((words, Y[:16])).batch(8)
    frozen = [FreezeBase(["stem", "base"])]
    check_aside(
        Run(make, lambda: (data,), options={"batch_size": None}, frozen=lambda: frozen),
        "the inputs can't be hashed",
    )


def lengths() -> Any:
    while True:
        for length in (3, 5):
            rows = np.resize(X, (8, length, 6)).astype("float32")
            yield rows, np.resize(Y, (8, length, 1)).astype("float32")


def test_features_of_varying_shape():
    def make() -> keras.Model:
        inputs = keras.Input((None, 6))
        base = keras.Model(inputs, L.Dense(4, name="b1")(inputs), name="base")
        return keras.Model(inputs, L.Dense(1, name="head")(base(inputs)))

    options = {"batch_size": None, "steps_per_epoch": 4}
    run = Run(make, lambda: (lengths(),), options=options)
    check_aside(run, "features of different batches have different shapes")


def test_features_that_are_not_numbers_are_reported_and_served():
    x = X.copy()
    x[3] = np.nan
    run = Run(data=lambda: (x, Y), options={"epochs": 2})
    expected, expected_weights = run.fit(None)
    cache = BottleneckCache(verbose=0)
    with pytest.warns(CacheWarning, match="NaN or infinite features in 1 of [0-9]+ rows"):
        history, weights = run.fit(cache)
    assert cache.stats.enabled
    for key in expected_weights:
        assert np.array_equal(weights[key], expected_weights[key], equal_nan=True)
    assert np.array_equal(history["loss"], expected["loss"], equal_nan=True)


class OtherInputs(keras.Model):
    """A train step that calls the model on inputs other than the batch."""

    def train_step(self, *arguments):
        *state, (x, y) = arguments
        return super().train_step(*state, (x * 0.5, y))


def test_a_train_step_that_changes_its_inputs():
    def make() -> keras.Model:
        inputs = keras.Input((6,))
        return OtherInputs(inputs, L.Dense(1, name="head")(builders.functional_base()(inputs)))

    check_aside(Run(make, traced=True), "calls the model on other inputs than those of the batch")


def flipped() -> keras.Model:
    inputs = keras.Input((6, 6, 1))
    layers = [keras.Input((6, 6, 1)), L.Conv2D(2, 3, name="conv"), L.Flatten()]
    base = keras.Sequential(layers, name="base")
    outputs = base(L.RandomFlip("horizontal", name="flip")(inputs))
    return keras.Model(inputs, L.Dense(1, name="head")(outputs))


class Prompted(keras.Model):
    """It has its own weight, which is trained before the frozen base."""

    def __init__(self):
        super().__init__(name="prompted")
        self.base = builders.functional_base()
        self.head = L.Dense(1, name="head")
        self.prompt = self.add_weight(shape=(6,), initializer="zeros", name="prompt")

    def call(self, inputs):
        return self.head(self.base(inputs + self.prompt))


class Flipping(keras.Model):
    """It runs random code before the base, which rarely changes the inputs."""

    def __init__(self):
        super().__init__()
        self.base = builders.functional_base()
        self.head = L.Dense(1, name="head")
        self.random = keras.random.SeedGenerator(7)

    def call(self, inputs, training=None):
        if training:
            draw = keras.random.uniform((keras.ops.shape(inputs)[0], 1), seed=self.random)
            inputs = keras.ops.where(draw < 0.9, inputs, -inputs)
        return self.head(self.base(inputs))


@pytest.mark.parametrize(
    ("make", "reason"), [(Prompted, "weights of its own"), (Flipping, "changes in each step")]
)
def test_what_a_subclassed_model_does_itself(make: Any, reason: str):
    check_aside(Run(builders.called_once(make), traced=True), reason)


class BaseAlone(builders.BaseAndHead):
    """A train step that calls only the model's layers, on other inputs."""

    def train_step(self, *arguments):
        *state, (x, y) = arguments
        return getattr(self, f"_train_on_{BACKEND}")(*state, x, y)

    def _loss(self, x, y):
        return self.compute_loss(x, y, self.head(self.base(x * 0.5)))

    def _train_on_torch(self, x, y):
        self.zero_grad()
        loss = self._loss(x, y)
        loss.backward()
        trained = list(self.trainable_weights)
        self.optimizer.apply([v.value.grad for v in trained], trained)
        return {"loss": loss}

    def _train_on_tensorflow(self, x, y):
        import tensorflow as tf

        with tf.GradientTape() as tape:
            outputs = self.head(self.base(x * 0.5))
            loss = self.compute_loss(x, y, outputs)
        trained = self.trainable_weights
        self.optimizer.apply(tape.gradient(loss, trained), trained)
        self._loss_tracker.update_state(loss)
        return self.compute_metrics(x, y, outputs)

    def _train_on_jax(self, state, x, y):
        import jax

        trained, others, slots, metrics = state

        def loss(values):
            mapping = list(zip(self.trainable_variables, values, strict=True))
            mapping += zip(self.non_trainable_variables, others, strict=True)
            with keras.StatelessScope(state_mapping=mapping):
                return self._loss(x, y)

        value, gradients = jax.value_and_grad(loss)(trained)
        trained, slots = self.optimizer.stateless_apply(slots, gradients, trained)
        logs, metrics = self._update_metrics_variables(metrics, value, x, y, y, None)
        return logs, (trained, others, slots, metrics)


class InPlace(BaseAlone):
    """A train step that changes its batch in place."""

    def train_step(self, data):
        data[0].add_(0.5)
        return keras.Model.train_step(self, data)


def test_a_step_that_never_calls_the_model():
    check_aside(Run(builders.called_once(BaseAlone), options={"shuffle": False}), "doesn't call")


@pytest.mark.skipif(BACKEND != "torch", reason="only PyTorch's tensors can be changed in place")
@pytest.mark.parametrize("source", ["arrays", "batches"])
def test_a_batch_that_is_changed_in_place(source: str):
    """In the step where the cache steps aside, the model gets the original batch."""

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return X[8 * index :][:8].copy(), Y[8 * index :][:8]

    def built() -> keras.Model:
        model = InPlace()
        model(np.zeros((1, 6), "float32"))
        return model

    run = Run(built, options={"shuffle": False})
    if source == "batches":
        run = Run(built, data=lambda: (Batches(),), options={"batch_size": None})
    check_aside(run, "on other inputs")


def test_layers_along_the_batch():
    run = Run(lambda: base_with(L.Softmax(axis=0)))
    check_aside(run, "depend on the other rows of the batch")


def test_random_flips_in_the_model():
    images = np.random.default_rng(0).normal(size=(32, 6, 6, 1)).astype("float32")
    check_aside(
        Run(flipped, lambda: (images, Y)), "'flip' comes before frozen layers, and it is random"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"dtype": "float8"},
            r"`dtype` must be None .*Did you mean 'float32'\? Received: dtype='f",
        ),
        ({"dtype": 16}, "Received: dtype=16"),
        ({"max_bytes": "2 GX"}, r"`max_bytes` must be .* Did you mean 'GB'\? Received: .*'2 GX'"),
        ({"max_bytes": "atuo"}, r"Did you mean 'auto'\?"),
        ({"max_bytes": 0}, "Received: max_bytes=0"),
        ({"max_bytes": -5}, "Received: max_bytes=-5"),
        ({"max_bytes": float("nan")}, "Received: max_bytes=nan"),
        ({"max_bytes": True}, "Received: max_bytes=True"),
        ({"maxbytes": 5}, r"no argument 'maxbytes'.*`max_bytes`.*Received: maxbytes=5"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str):
    with pytest.raises(CacheError, match=message):
        BottleneckCache(**arguments)


def test_a_base_that_is_not_in_the_model():
    other = builders.functional_base()
    model = builders.compiled(builders.nested())
    before = builders.weights(model)
    for base in (other, "bsae"):
        with pytest.raises(LayerMatchError, match="base"):
            model.fit(X, Y, verbose=0, callbacks=[FreezeBase(), BottleneckCache(base)])
    builders.assert_equal(builders.weights(model), before)


def test_two_caches_are_an_error():
    model = builders.compiled(builders.nested())
    with pytest.raises(ValueError, match="holds 2 BottleneckCache"):
        model.fit(X, Y, verbose=0, callbacks=[BottleneckCache(), BottleneckCache()])
