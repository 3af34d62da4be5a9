"""C3 if other code takes a batch while rows are fed by number: it gets rows, and nothing changes.

Keras takes one to build a model symbolically. A custom model or callback may take any.
"""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import numpy as np
import pytest

from keras_freeze import BottleneckCache, FreezeBase
from keras_freeze.feature_cache.serving import get_or_compute_features
from keras_freeze.keras_internals import callbacks_of_fit
from tests import builders
from tests.builders import BACKEND, L
from tests.reference.cached import Run, X, Y, check
from tests.test_cache_aside import check_aside
from tests.test_cache_parity import two_inputs

Batch = tuple[Any, np.ndarray]
VAL = builders.data(16, seed=5)  # full batches: TensorFlow rounds partial ones differently


@pytest.fixture(autouse=True)
def _one_batch_at_once(monkeypatch: pytest.MonkeyPatch):
    """On some CPUs, TensorFlow rounds larger batches of the prefix differently."""
    monkeypatch.setattr(get_or_compute_features, "AT_ONCE", 1)


def over(kind: Any) -> Any:
    """Returns a function that makes a model of this class with a nested base."""

    def make() -> keras.Model:
        inputs = keras.Input((6,))
        return kind(inputs, L.Dense(1, name="head")(builders.functional_base()(inputs)))

    return make


def subclassed(kind: Any) -> Any:
    def make() -> keras.Model:
        model = kind()
        model(np.zeros((1, 6), "float32"))
        return model

    return make


def batch_of(data: Any) -> Batch:
    """Returns the first batch that an epoch iterator passes to a step, as NumPy arrays."""
    batch = data[0] if isinstance(data, (list, tuple)) else next(data)
    return keras.tree.map_structure(lambda leaf: np.array(keras.ops.convert_to_numpy(leaf)), batch)


def first_batch(iterator: Any) -> Batch:
    return next(batch_of(data) for _, _, data in iterator)


def assert_rows(batch: Batch, x: np.ndarray = X, y: np.ndarray = Y) -> None:
    """Each row comes from the arrays, with its own target."""
    places = [np.flatnonzero(y == target).item() for target in batch[1]]
    assert np.array_equal(batch[0], x[places])


def check_twice(run: Run, seen: list[Any], **options: Any) -> None:
    """Like `check`, and what was seen is the same with and without the cache."""
    check(run, **options)
    without, within = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert seen
    assert without == within


# Keras uses a validation batch to build a model with unbuilt losses, metrics or layers


class OwnLoss(keras.Model):
    """Keras' own loss is never built, and the base is called first."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        assert tuple(x.shape[1:]) == (6,)
        return keras.ops.mean(keras.ops.square(y - y_pred)) + 0.1 * keras.ops.mean(x)


class OwnLossOverBase(builders.Subclassed):
    compute_loss = OwnLoss.compute_loss


class Recompile(keras.callbacks.Callback):
    """Compiles new metrics, which are unbuilt when an epoch's validation begins."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            # On TensorFlow, some CPUs round differently in a graph than in eager steps.
            eager = self.model.run_eagerly
            optimizer = keras.optimizers.SGD(0.1)
            self.model.compile(optimizer, "mae", metrics=["mse"], run_eagerly=eager)


BUILT_ON_A_BATCH: dict[str, Run] = {
    "own loss": Run(over(OwnLoss)),
    "own loss, subclassed": Run(subclassed(OwnLossOverBase)),
    "compiled anew": Run(frozen=lambda: [FreezeBase(), Recompile()]),
    "two inputs": Run(
        two_inputs,
        data=lambda: ({"image": X, "numbers": X[:, :3]}, Y),
        frozen=lambda: [FreezeBase(), Recompile()],
        options={"validation_data": ({"image": VAL[0], "numbers": VAL[0][:, :3]}, VAL[1])},
    ),
}


@pytest.mark.parametrize("name", BUILT_ON_A_BATCH)
def test_models_that_keras_builds_at_each_validation(name: str):
    run = BUILT_ON_A_BATCH[name]
    run.options = {"validation_data": VAL} | run.options
    run.traced = name == "own loss"
    check(run)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="there only a strategy makes Keras build")
@pytest.mark.parametrize("shuffle", [True, False])
def test_models_that_keras_builds_under_a_strategy(shuffle: bool):
    import tensorflow as tf

    options = {"validation_data": VAL, "shuffle": shuffle}
    with tf.distribute.OneDeviceStrategy("/cpu:0").scope():
        check(Run(over(OwnLoss), options=options))


# Models and callbacks that read an iterator


class Reads(keras.Model):
    """Reads the validation batches before it evaluates."""

    seen: list[Any]

    def evaluate(self, *args, **kwargs):
        for _, _, data in self._eval_epoch_iterator:
            batch = batch_of(data)
            assert_rows(batch, *VAL)
            self.seen.append([leaf.tolist() for leaf in batch])
        return super().evaluate(*args, **kwargs)


class ReadsBehindHooks(keras.Model):
    """A custom validation that calls all hooks, but not the test function."""

    seen: list[Any]

    def evaluate(self, *args, callbacks=None, **kwargs):
        callbacks.on_test_begin()
        error = []
        for begin, end, data in self._eval_epoch_iterator:
            callbacks.on_test_batch_begin(begin)
            x, y = batch_of(data)
            error.append(float(np.mean(np.square(self.predict_on_batch(x) - y))))
            callbacks.on_test_batch_end(end)
        callbacks.on_test_end()
        self.seen.append(error)
        return {"loss": float(np.mean(error))}


@pytest.mark.parametrize("kind", [Reads, ReadsBehindHooks])
def test_a_model_that_reads_the_validation(kind: Any, monkeypatch: pytest.MonkeyPatch):
    seen: list[Any] = []
    monkeypatch.setattr(kind, "seen", seen, raising=False)
    options = {"validation_data": VAL, "validation_freq": 2}
    check_twice(Run(over(kind), options=options), seen)


class Reader(keras.callbacks.Callback):
    """Takes a training batch and a validation batch at the end of each epoch."""

    def __init__(self, seen: list[Any]):
        super().__init__()
        self.seen = seen

    def on_train_begin(self, logs=None):
        self.iterator = callbacks_of_fit.epoch_iterator()

    def on_epoch_end(self, epoch, logs=None):
        batch = first_batch(self.iterator)
        assert_rows(batch)
        held = first_batch(callbacks_of_fit.evaluation_iterator(self.model))
        assert_rows(held, *VAL)
        self.seen.append([leaf.tolist() for leaf in (*batch, *held)])

    def on_train_end(self, logs=None):
        assert_rows(first_batch(self.iterator))


@pytest.mark.parametrize("more", [{}, {"steps_per_epoch": 3}], ids=["epochs", "steps"])
@pytest.mark.parametrize("shuffle", [True, False, "batch"])
def test_a_callback_that_reads_both_iterators(shuffle: Any, more: dict[str, Any]):
    """If one iterator spans several epochs, training has one batch less for each one taken."""
    seen: list[Any] = []
    options = {"validation_data": VAL, "validation_batch_size": 4, "shuffle": shuffle} | more
    frozen = lambda: [FreezeBase(), Reader(seen)]  # noqa: E731
    check_twice(Run(frozen=frozen, options=options), seen, passes=None)


class Kinds(Reader):
    """Records the classes and dtypes of a batch's arrays."""

    def on_epoch_end(self, epoch, logs=None):
        data = next(iter(self.iterator))[2]
        batch = data[0] if isinstance(data, (list, tuple)) else next(data)
        self.seen.append([(type(leaf).__name__, str(leaf.dtype)) for leaf in batch])

    def on_train_end(self, logs=None):
        pass


@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_are_of_the_classes_that_keras_hands_out(shuffle: bool):
    """NumPy rounds differently from JAX if a step isn't compiled."""
    seen: list[Any] = []
    frozen = lambda: [FreezeBase(), Kinds(seen)]  # noqa: E731
    check_twice(Run(frozen=frozen, options={"shuffle": shuffle}), seen)


class Asks(keras.callbacks.Callback):
    """Uses the arrays being fed, and Keras' iterator over them."""

    def __init__(self, seen: list[Any]):
        super().__init__()
        self.seen = seen

    def on_epoch_end(self, epoch, logs=None):
        kept = {"_use_cached_eval_dataset": True}
        self.seen.append(self.model.predict(X, verbose=0).tolist())
        self.seen += [self.model.evaluate(*data, verbose=0) for data in ((X, Y), VAL)]
        self.seen.append(self.model.evaluate(verbose=0, **kept))


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_callback_that_evaluates_on_the_same_arrays(shuffle: bool):
    seen: list[Any] = []
    options = {"validation_data": VAL, "shuffle": shuffle}
    frozen = lambda: [FreezeBase(), Asks(seen)]  # noqa: E731
    check_twice(Run(frozen=frozen, options=options), seen)


class Breaks(keras.callbacks.Callback):
    """Raises KeyboardInterrupt in the middle of an epoch that is fed by number."""

    def __init__(self, hook: str):
        super().__init__()
        setattr(self, hook, self.act)
        self.iterators: list[Any] = []
        self.calls = 0

    def act(self, batch, logs=None):
        self.calls += 1
        if self.calls == 6:
            held = callbacks_of_fit.evaluation_iterator(self.model)
            self.iterators = [callbacks_of_fit.epoch_iterator(), *([] if held is None else [held])]
            raise KeyboardInterrupt


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("hook", ["on_train_batch_begin", "on_train_batch_end"])
def test_what_an_interrupted_fit_leaves(hook: str, shuffle: bool):
    """Iterators kept by other code yield rows, and the next fit works as usual."""
    model, breaks = builders.compiled(builders.nested()), Breaks(hook)
    ours: list[Any] = [FreezeBase(), BottleneckCache(verbose=0)]
    options: dict[str, Any] = {"batch_size": 8, "verbose": 0, "shuffle": shuffle}
    with contextlib.suppress(KeyboardInterrupt):
        model.fit(X, Y, epochs=3, validation_data=VAL, callbacks=[*ours, breaks], **options)
    train, test = breaks.iterators
    assert_rows(first_batch(train))
    assert_rows(first_batch(test), *VAL)
    before = model.evaluate(X, Y, verbose=0)
    model.fit(X, Y, epochs=3, callbacks=ours, **options)
    assert ours[1].stats.base_passes == 1.0
    assert model.evaluate(X, Y, verbose=0) < before


class OwnFunction(keras.Model):
    """Reads the batches before the step."""

    def make_train_function(self, force=False):
        super().make_train_function(force)
        made = self.train_function

        def function(*arguments):
            *state, data = arguments
            batches = list(data)
            assert all(len(batch) == 2 and batch[0].shape[1:] == (6,) for batch in batches)
            return made(*state, batches if BACKEND == "torch" else iter(batches))

        object.__setattr__(self, "train_function", function)


def test_a_train_function_that_reads_the_batches():
    """Cached batches contain features, which the function must not get."""
    options = {"batch_size": len(Y), "epochs": 3}
    run = Run(over(OwnFunction), options=options)
    check_aside(run, "the model overrides `make_train_function`, which may read batches")


def test_a_step_that_no_hook_announces(monkeypatch: pytest.MonkeyPatch):
    """The callback list omits batch hooks: the plain step gets rows."""

    class Silent(keras.callbacks.CallbackList):
        def on_train_batch_begin(self, batch, logs=None):
            self.model.make_train_function()

    def run(*ours: Any) -> Any:
        keras.utils.set_random_seed(3)
        model = builders.compiled(builders.nested())
        callbacks = Silent([FreezeBase(), *ours], add_history=True, model=model, epochs=3)
        model.fit(X, Y, batch_size=8, epochs=3, verbose=0, callbacks=callbacks)
        return builders.weights(model)

    builders.assert_equal(run(BottleneckCache(verbose=0)), run())
