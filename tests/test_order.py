"""The callbacks work in any order, with Keras' own, and more than once (C6)."""

import csv
import importlib.util
import random

import keras
import pytest

from keras_freeze import FreezeBase, GradualUnfreeze, RecompileOnTrainableChange, Stage
from tests.builders import BACKEND, assert_equal, changed, compiled, data, nested, weights

pytestmark = pytest.mark.one_backend(
    but=[
        "test_order_makes_no_difference",
        "test_compile_in_the_middle_takes_effect",
        "test_instances_serve_a_second_fit",
    ]
)

C = keras.callbacks
X, Y = data(16)
ORDERS = 3
HAS_TENSORBOARD = BACKEND == "tensorflow" and importlib.util.find_spec("tensorboard") is not None


def model_for(extras=False):
    keras.utils.set_random_seed(0)
    return compiled(nested(extras), keras.optimizers.SGD(0.1))


def ours(thawed="b3"):
    return [FreezeBase(), GradualUnfreeze({1: thawed}, verbose=0)]


def fit(model, callbacks, epochs=2, **kwargs):
    options = {"batch_size": 8, "shuffle": False, "verbose": 0, "callbacks": callbacks}
    return model.fit(X, Y, epochs=epochs, **(options | kwargs)).history


class Busy(C.Callback):
    """Uses the model during `fit`."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def on_epoch_begin(self, epoch, logs=None):
        self.model.predict(X, verbose=0)
        self.model.summary(print_fn=lambda *_, **__: None)

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 1:
            self.model.predict(X, verbose=0)
            self.model.save(self.path / "step.keras")

    def on_train_batch_end(self, batch, logs=None):
        if batch == 0:
            self.model.evaluate(X, Y, verbose=0)  # resets the metrics of the epoch

    def on_epoch_end(self, epoch, logs=None):
        self.model.evaluate(X, Y, verbose=0)
        self.model.save(self.path / "epoch.keras")


def scheduler():
    return C.LearningRateScheduler(lambda epoch, rate: 0.1 / (epoch + 1))


def busy(path):
    return [scheduler(), RecompileOnTrainableChange(verbose=0), Busy(path)]


def stopping(path):
    return [
        C.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1e9),
        C.EarlyStopping("val_loss", patience=2, min_delta=1e9, restore_best_weights=True),
        *([C.TensorBoard(str(path / "board"))] if HAS_TENSORBOARD else []),
    ]


def run(others, path, seed):
    """Returns weights, History, CSVLogger's file and ModelCheckpoint's file names for an order."""
    path.mkdir()
    saver = C.ModelCheckpoint(str(path / "stage {stage} {learning_rate:.3f}.keras"))
    callbacks = [*ours(["b3", "drop"]), *others(path), saver, C.CSVLogger(str(path / "log.csv"))]
    random.Random(seed).shuffle(callbacks)
    model = model_for(extras=True)
    history = fit(model, callbacks, epochs=4 if others is stopping else 2, validation_split=0.25)
    names = sorted(file.name for file in path.glob("stage*.keras"))
    return weights(model), history, (path / "log.csv").read_text(), names


@pytest.mark.parametrize(
    ("others", "stages", "rates"),
    [(busy, [0, 1], [0.1, 0.05]), (stopping, [0, 1, 1], [0.1, 0.1, 0.05])],
)
def test_order_makes_no_difference(others, stages, rates, tmp_path):
    expected, history, log, names = run(others, tmp_path / "0", seed=0)
    assert history["stage"] == stages
    assert history["trainable_params"] == [81 if stage else 9 for stage in stages]
    assert history["learning_rate"] == pytest.approx(rates)
    assert all(isinstance(number, (int, float)) for row in history.values() for number in row)
    rows = list(csv.DictReader(log.splitlines()))
    for key, numbers in history.items():
        assert [float(row[key]) for row in rows] == pytest.approx(numbers), key
    for seed in range(1, ORDERS):
        found = run(others, tmp_path / str(seed), seed)
        assert_equal(found[0], expected)
        assert found[1:] == (history, log, names)


def test_a_rate_set_when_the_run_begins_holds_in_any_order():
    class Sets(C.Callback):
        def on_train_begin(self, logs=None):
            self.model.optimizer.learning_rate = 0.5

    for callbacks in ([Sets(), *ours()], [*ours(), Sets()]):
        assert fit(model_for(), callbacks)["learning_rate"] == [0.5, 0.5]


def test_a_change_of_rate_does_not_outlive_an_interrupted_fit():
    class Sets(C.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.optimizer.learning_rate = 0.125
            if epoch == 2:
                raise KeyboardInterrupt

    model = model_for()
    stages = GradualUnfreeze([Stage(1, "b3", learning_rate=0.25)], verbose=0)
    with pytest.raises(KeyboardInterrupt):
        fit(model, [FreezeBase(), stages, Sets()], epochs=4)
    rates = fit(model, [FreezeBase(), stages])["learning_rate"]
    assert rates == pytest.approx([0.1, 0.25])


def test_a_stage_holds_though_another_callback_set_its_flags_before():
    model, before = model_for(), {}
    base = model.get_layer("base")

    def thaw(epoch, logs):
        before.update(weights(model))
        base.trainable = True

    leftover = C.LambdaCallback(on_epoch_end=lambda epoch, logs: epoch or thaw(epoch, logs))
    fit(model, [FreezeBase(), GradualUnfreeze({1: "all"}, verbose=0), leftover])
    assert changed(before, weights(model)) == {"b1", "b2", "b3", "head"}


def test_compile_in_the_middle_takes_effect():
    """Stock Keras fails with an error about a train function that is None."""

    class Compiles(C.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.compile(keras.optimizers.SGD(0.25), "mae")

    model = model_for()
    stages = GradualUnfreeze({2: "b3"}, optimizer="reset", verbose=0)
    history = fit(model, [FreezeBase(), stages, Compiles()], epochs=4)
    assert history["stage"] == [0, 0, 1, 1]
    assert history["learning_rate"] == pytest.approx([0.1, 0.25, 0.25, 0.25])


def test_looking_on_makes_no_difference(tmp_path):
    """The weights equal those of a `fit` without callbacks that use the model."""
    model, undisturbed = model_for(), model_for()
    fit(model, [*busy(tmp_path), *ours()])
    fit(undisturbed, [scheduler(), *ours()])
    assert_equal(weights(model), weights(undisturbed))


def test_instances_serve_a_second_fit():
    """A fresh model gives equal results. The same model gives equal stages."""
    callbacks = ours()
    first, second = model_for(), model_for()
    history = fit(first, callbacks)
    assert fit(second, callbacks) == history
    assert_equal(weights(first), weights(second))
    again = fit(second, callbacks)
    assert history.pop("loss") != again.pop("loss")
    assert again == history


def test_initial_epoch_lands_in_its_stage():
    model, callbacks = model_for(), [FreezeBase(), GradualUnfreeze({1: "b3", 2: "b2"}, verbose=0)]
    before = weights(model)
    history = fit(model, callbacks, initial_epoch=1, epochs=3)
    assert (history["stage"], history["trainable_params"]) == ([1, 2], [81, 153])
    assert changed(before, weights(model)) == {"b2", "b3", "head"}


class Fails(C.Callback):
    armed = False

    def on_epoch_begin(self, epoch, logs=None):
        if self.armed and epoch == 1:
            raise ZeroDivisionError


def test_users_callback_list():
    """It works, is restored afterwards, and works again after a `fit` that raised."""
    model, fails = model_for(), Fails()
    callback_list = C.CallbackList([*ours(), fails], add_history=True, model=model, epochs=2)
    held = list(callback_list.callbacks)
    assert fit(model, callback_list)["stage"] == [0, 1]
    assert callback_list.callbacks == held
    fails.armed = True
    with pytest.raises(ZeroDivisionError):
        fit(model, callback_list)
    fails.armed = False
    # Keras' History starts over only with a new list.
    assert fit(model, callback_list)["stage"] == [0, 1, 0, 0, 1]
    assert callback_list.callbacks == held


@pytest.mark.parametrize("kind", [list, C.CallbackList])
def test_callbacks_in_an_inner_list(kind):
    """Their logs reach the outer callbacks, and changes by outer callbacks are detected."""
    if kind is list and BACKEND != "tensorflow":
        pytest.skip("Keras accepts a list in a list of callbacks on TensorFlow alone")
    model = model_for()
    head = model.get_layer("head")
    freeze = C.LambdaCallback(on_epoch_begin=lambda e, logs: setattr(head, "trainable", e == 0))
    before = {}
    keep = C.LambdaCallback(on_epoch_end=lambda e, logs: e or before.update(weights(model)))
    history = fit(model, [kind([*ours(), RecompileOnTrainableChange(verbose=0)]), freeze, keep])
    assert history["stage"] == [0, 1]
    assert changed(before, weights(model)) == {"b3"}


def test_users_history():
    """A user's History before our callbacks gets every key."""
    mine = C.History()
    assert fit(model_for(), [mine, *ours()], epochs=2) is mine.history
    assert set(mine.history) == {"loss", "stage", "trainable_params", "learning_rate"}
