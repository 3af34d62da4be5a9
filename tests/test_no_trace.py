"""After `fit`, however it ended, the model is a plain Keras model (C7)."""

import functools
import inspect
import itertools
import pickle
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_freeze import FreezeBase, GradualUnfreeze
from keras_freeze.keras_internals import temporary_attributes
from tests.builders import L, assert_equal, data, layer, nested, weights

X, Y = data(16)
BATCHES = 2
PARTS = ("train", "epoch", "train_batch", "test", "test_batch")
HOOKS = [f"on_{part}_{end}" for part in PARTS for end in ("begin", "end")]


def compiled(model, rate=0.1, **kwargs):
    model.compile(keras.optimizers.SGD(rate), "mse", **kwargs)
    return model


def ours():
    return [FreezeBase(), GradualUnfreeze({1: "b3"}, verbose=0)]


def fit(model, callbacks, x=X, y=Y, epochs=2, **kwargs):
    options = {"batch_size": 8, "shuffle": False, "verbose": 0, "validation_data": (X, Y)}
    return model.fit(x, y, epochs=epochs, callbacks=callbacks, **(options | kwargs)).history


def traces(model):
    """Returns the attributes of the model, its layers and its optimizer that keras_freeze added."""
    owners = [*model._flatten_layers(), model.optimizer]
    found = [f"{owner.name}.call" for owner in owners if "call" in vars(owner)]
    for owner, (name, value) in ((o, item) for o in owners for item in vars(o).items()):
        value = value.func if isinstance(value, functools.partial) else value
        modules = (type(value).__module__, getattr(value, "__module__", None) or "")
        if any(module.split(".")[0] == "keras_freeze" for module in modules):
            found.append(f"{owner.name}.{name}")
    return found


def make_alike(twin, model):
    """Copies the flags, weights and seeds of `model` to a model that never used our callbacks."""
    for mine, other in zip(model._flatten_layers(), twin._flatten_layers(), strict=True):
        other.trainable = mine.trainable  # containers come first
        for seed, other_seed in zip(mine._seed_generators, other._seed_generators, strict=True):
            other_seed.state.assign(keras.ops.convert_to_numpy(seed.state))
    twin.set_weights(model.get_weights())


def train_on_batch(model):
    keras.utils.set_random_seed(1)
    model.reset_metrics()  # Keras 3.12 would continue the averages
    return float(model.train_on_batch(X, Y))


def use(model):
    """Does what a user does next."""
    keras.utils.set_random_seed(1)
    seen = fit(model, [])
    seen["batch"] = [train_on_batch(model), model.evaluate(X, Y, verbose=0)]
    outputs = model.predict(X, verbose=0)
    seen["compiled"] = train_on_batch(compiled(model))
    return seen, weights(model) | {"outputs": outputs}


def raise_in(hook, error, call):
    """Returns a callback that raises in one call of a hook, counted from 1."""
    callback, counter = keras.callbacks.Callback(), itertools.count(1)

    def run(*args, **kwargs):
        if next(counter) == call:
            raise error

    setattr(callback, hook, run)
    return callback


@pytest.mark.parametrize("ending", ["end", "KeyboardInterrupt"])
def test_next_use_is_that_of_a_plain_model(ending):
    """Dropout inside the frozen base is active again, as in stock Keras."""
    model, twin = compiled(nested(extras=True)), nested(extras=True)
    if ending == "end":
        fit(model, ours())
    else:
        with pytest.raises(KeyboardInterrupt):
            fit(model, [*ours(), raise_in("on_train_batch_end", KeyboardInterrupt, BATCHES + 1)])
    assert traces(model) == []
    make_alike(twin, model)
    fit(compiled(twin), [])  # PyTorch draws random numbers to build the model in the first `fit`
    make_alike(twin, model)
    (seen, values), (expected, expected_values) = use(model), use(twin)
    assert seen == expected
    assert_equal(values, expected_values)
    for mine, other in zip(model._flatten_layers(), twin._flatten_layers(), strict=True):
        assert vars(mine).keys() == vars(other).keys(), mine.name
    assert vars(model.optimizer).keys() == vars(twin.optimizer).keys()


class Broken(keras.Model):
    """Its train step can be told to raise."""

    steps_left = None

    def train_step(self, *args):
        if self.steps_left is not None:
            self.steps_left -= 1
            if self.steps_left < 0:
                raise ZeroDivisionError
        return super().train_step(*args)


def broken_model(rate):
    inner = nested(extras=True)
    return compiled(Broken(inner.input, inner.output), rate, run_eagerly=True)


@pytest.fixture(scope="module")
def pair():
    """A model for several broken `fit` calls, and a plain one to compare it with."""
    return broken_model(0.1), nested(extras=True)


def assert_plain(model, twin):
    assert traces(model) == []
    make_alike(twin, model)
    compiled(twin, run_eagerly=True)
    assert train_on_batch(model) == train_on_batch(twin)
    assert_equal(weights(model), weights(twin))


@pytest.mark.parametrize("hook", HOOKS)
def test_after_an_error_in_a_hook(pair, hook):
    """In the second epoch, in callbacks before and after ours."""
    call = BATCHES + 2 if "batch" in hook else 2 - hook.startswith("on_train")
    for error, place in ((KeyboardInterrupt, 0), (ZeroDivisionError, 2)):
        callbacks = ours()
        callbacks.insert(place, raise_in(hook, error, call))
        with pytest.raises(error):
            fit(pair[0], callbacks)
        assert_plain(*pair)


@pytest.mark.parametrize("steps", [BATCHES, BATCHES + 1])
def test_after_an_error_in_the_train_step(steps):
    """In the first and the second step of stage 1. At a rate of 0 no weight may change."""
    model = broken_model(rate=0.0)
    model.steps_left = steps
    before = weights(model)
    with pytest.raises(ZeroDivisionError):
        fit(model, ours(), validation_data=None)
    assert traces(model) == []
    assert_equal(weights(model), before)


def test_ctrl_c_while_the_step_is_tidied_up():
    """At each of its lines."""
    patched = [L.Dense(1) for _ in range(3)]
    put_back = temporary_attributes._put_back.__code__

    def interrupted(line):
        seen = itertools.count(1)

        def local(frame, event, arg):
            if event == "line" and next(seen) == line:
                raise KeyboardInterrupt
            return local

        before = sys.gettrace()
        sys.settrace(lambda frame, *_: local if frame.f_code is put_back else None)
        try:
            with temporary_attributes.attributes([(each, "call", None) for each in patched]):
                pass
        finally:
            sys.settrace(before)

    for line in range(5, 15):  # the first four lines are before the loop
        with pytest.raises(KeyboardInterrupt):
            interrupted(line)
        assert not any("call" in vars(each) for each in patched)


def batches(count):
    for _ in range(count):
        yield X[:8], Y[:8]
    raise ValueError("broken data")


@pytest.mark.parametrize("count", [BATCHES, BATCHES + 1])
def test_after_an_error_in_the_data(count):
    """Data for the first and the second step of stage 1."""
    model = broken_model(rate=0.0)
    before = weights(model)
    options = {"y": None, "steps_per_epoch": BATCHES, "batch_size": None, "validation_data": None}
    with pytest.raises(Exception, match="broken data"):  # TensorFlow wraps the error
        fit(model, ours(), batches(count), epochs=3, **options)
    assert traces(model) == []
    assert_equal(weights(model), before)


def summary(model):
    """Returns what loading must restore."""
    found = {f"weight {i}": value for i, value in enumerate(model.get_weights())}
    for i, variable in enumerate(model.optimizer.variables):
        found[f"optimizer {i}"] = np.array(keras.ops.convert_to_numpy(variable))
    found["outputs"] = model.predict(np.ones((4, 6), "float32"), verbose=0)
    found["flags"] = np.array([each.trainable for each in model._flatten_layers()])
    found["paths"] = np.array([variable.path for variable in model.trainable_variables])
    return found


LOAD = f"""
import sys
sys.modules["keras_freeze"] = None
import keras
import numpy as np
{inspect.getsource(summary)}
for path in sys.argv[1:]:
    np.savez(path + ".npz", **summary(keras.models.load_model(path)))
"""


def test_saved_models_load_without_us(tmp_path):
    """Saved after `fit` and during it, also by ModelCheckpoint."""
    model = nested(extras=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    saved = {}

    class Save(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.save(f"batch {batch}")

        def on_epoch_end(self, epoch, logs=None):
            saved[str(tmp_path / f"checkpoint {epoch}.keras")] = summary(self.model)

        def save(self, name):
            self.model.save(tmp_path / f"{name}.keras")
            saved[str(tmp_path / f"{name}.keras")] = summary(self.model)

    save = Save()
    path = str(tmp_path / "checkpoint {stage}.keras")
    fit(model, [save, keras.callbacks.ModelCheckpoint(path), *ours()])
    save.save("end")
    subprocess.run([sys.executable, "-c", LOAD, *saved], check=True)
    assert len(saved) == BATCHES + 2 + 1
    for path, expected in saved.items():
        loaded = np.load(f"{path}.npz")
        assert set(loaded) == set(expected)
        for key, value in expected.items():
            if value.dtype.kind == "f":
                np.testing.assert_allclose(loaded[key], value, rtol=1e-6, err_msg=f"{path}: {key}")
            else:
                np.testing.assert_array_equal(loaded[key], value, f"{path}: {key}")


def test_copies():
    """Pickled and cloned during `fit` and after it: the flags are the same."""
    model = compiled(nested(extras=True), run_eagerly=True)
    pickles = []

    class Copy(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            pickles.append(pickle.dumps(self.model))

        on_train_batch_end = on_epoch_end

    fit(model, [Copy(), *ours()], batch_size=16)
    pickles.append(pickle.dumps(model))
    copies = [pickle.loads(each) for each in pickles]
    assert [layer(copy, "b3").trainable for copy in copies] == [False, False, True, True, True]
    assert_equal(weights(copies[-1]), weights(model))
    for copy in (copies[-1], keras.models.clone_model(model)):
        for mine, other in zip(model._flatten_layers(), copy._flatten_layers(), strict=True):
            assert other.trainable == mine.trainable, mine.name
