"""RecompileOnTrainableChange: changes by other callbacks take effect at the next step (C10)."""

import gc
import itertools
import warnings
import weakref

import keras
import numpy as np
import pytest

from keras_freeze import (
    BottleneckCache,
    CacheWarning,
    FreezeBase,
    GradualUnfreeze,
    RecompileOnTrainableChange,
)
from tests.builders import L, assert_equal, changed, compiled, data, layer, nested, weights

BATCHES = 3
# If no callback has a hook at the end of a batch, Keras may call these in another thread.
ASYNC_HOOKS = ["on_train_batch_begin", "on_epoch_begin", "on_test_batch_begin", "on_epoch_end"]
SYNC_HOOKS = ["on_train_batch_end", "on_test_batch_end", "on_test_begin", "on_test_end"]


def on(hook, action, calls=None):
    """Returns a callback that overrides only one hook: `action(index)`, in some of its calls.

    It doesn't read `self.model`, which on JAX would restore the variables' values.
    """
    callback, counter = keras.callbacks.Callback(), itertools.count()

    def run(*args, **_):
        if calls is None or next(counter) in calls:
            action(*args[:1])

    setattr(callback, hook, run)
    return callback


class Twins(keras.Model):
    """A functional model that counts the train functions it makes, and those it rebuilds."""

    def make_train_function(self, force=False):
        super().make_train_function(force=force)
        vars(self)["rebuilds"] = vars(self).get("rebuilds", 0) + force
        vars(self).setdefault("made", weakref.WeakSet()).add(self.train_function)


def twins(rate):
    """Two layers of the same shape, the second one frozen, and a head."""
    inputs = keras.Input((6,))
    hidden = L.Dense(6, activation="tanh", name="b")(L.Dense(6, name="a")(inputs))
    model = Twins(inputs, L.Dense(1, name="head")(hidden))
    layer(model, "b").trainable = False
    model.compile(keras.optimizers.SGD(rate), "mse")
    return model


def swap(model):
    for name in ("a", "b"):
        layer(model, name).trainable = not layer(model, name).trainable


def fit(model, *callbacks, epochs=3, **kwargs):
    x, y = data(8 * BATCHES)
    options = {"batch_size": 8, "shuffle": False, "verbose": 0}
    return model.fit(x, y, epochs=epochs, callbacks=[*callbacks], **(options | kwargs)).history


def watch(**kwargs):
    return RecompileOnTrainableChange(verbose=0, **kwargs)


@pytest.mark.parametrize("hooks", [ASYNC_HOOKS, SYNC_HOOKS], ids=["async", "sync"])
def test_no_value_is_ever_assigned_to_another_weight(hooks):
    """At a learning rate of 0 no weight may change, whichever variable is at which position (F3).

    Each epoch has a change in a different hook, during the epoch if it is a batch hook. The loss of
    the epoch must include all its steps, also those before the change.
    """
    x, y = data(8 * BATCHES)
    model = twins(rate=0.0)
    before, loss = weights(model), model.evaluate(x, y, batch_size=8, verbose=0)
    changes = [
        on(hook, lambda *_: swap(model), [epoch * BATCHES + 1 if "batch" in hook else epoch])
        for epoch, hook in enumerate(hooks, start=1)
    ]
    callbacks = [*changes[::2], watch(), *changes[1::2]]
    history = fit(model, *callbacks, epochs=len(hooks) + 2, validation_data=(x, y))
    assert_equal(before, weights(model))
    for key in ("loss", "val_loss"):
        seen = dict(zip(["none", *hooks, "none any more"], history[key], strict=True))
        assert seen == {hook: pytest.approx(loss, rel=1e-5) for hook in seen}, key
    assert model.rebuilds == len(hooks)


@pytest.mark.parametrize("hook", ["on_epoch_end", "on_train_end"])
def test_change_behind_the_last_step(hook):
    """No step follows, yet evaluate uses the new flags (F3)."""
    x, y = data(8 * BATCHES)
    model = twins(rate=0.0)
    loss = model.evaluate(x, y, verbose=0)
    fit(model, on(hook, lambda *_: swap(model)), watch(), epochs=1)
    assert model.evaluate(x, y, verbose=0) == pytest.approx(loss, rel=1e-5)


def test_old_functions_may_live_on():
    """JAX reuses the trace of an equal function while that function is alive (F3)."""
    x, y = data(8 * BATCHES)
    model, held = twins(rate=0.0), []
    loss = model.evaluate(x, y, batch_size=8, verbose=0)
    hold = on(
        "on_epoch_end", lambda epoch: held.append((model.train_function, model.test_function))
    )
    change = on("on_epoch_begin", lambda epoch: swap(model))
    history = fit(model, hold, change, watch(), epochs=2, validation_data=(x, y))
    assert history["loss"] == pytest.approx([loss, loss], rel=1e-5)
    assert history["val_loss"] == pytest.approx([loss, loss], rel=1e-5)


class Moves(keras.callbacks.Callback):
    """Records which layers each step changed."""

    def on_train_begin(self, logs=None):
        self.steps = []
        self.last = weights(self.model)

    def on_train_batch_end(self, batch, logs=None):
        now = weights(self.model)  # on JAX, `self.model` restores the variables' values
        self.steps.append("".join(sorted(changed(self.last, now) - {"head"})))
        self.last = now


@pytest.mark.parametrize(("place", "via"), [("before", "self.model"), ("after", "closure")])
def test_takes_effect_at_the_next_step(place, via):
    model, moves, ours = twins(rate=0.1), Moves(), watch()
    action = lambda *_: swap(moves.model if via == "self.model" else model)  # noqa: E731
    changes = [
        on("on_train_batch_begin", action, calls=[1]),  # epoch 0: before its second step
        on("on_train_batch_end", action, calls=[1]),  # and after it
        on("on_epoch_begin", action, calls=[1]),
        on("on_epoch_end", action, calls=[1]),
    ]
    callbacks = [*changes, ours, moves] if place == "before" else [ours, *changes, moves]
    fit(model, *callbacks)
    assert moves.steps == ["a", "b", "a", *"bbb", *"aaa"]
    assert model.rebuilds == len(changes)


def test_no_change_is_no_rebuild():
    """A flag that is changed back, or set to its current value, causes no rebuild."""
    model = twins(rate=0.1)

    def touch(epoch):
        layer(model, "b").trainable = epoch == 1
        layer(model, "b").trainable = False

    fit(model, watch(), on("on_epoch_begin", touch))
    assert len(model.made) == 1
    assert model.rebuilds == 0


def test_each_toggle_is_one_rebuild_and_leaves_nothing_behind():
    model = twins(rate=0.1)
    sizes = []
    toggle = on("on_epoch_begin", lambda *_: swap(model))
    look = on("on_epoch_end", lambda *_: sizes.append(len(model.optimizer.variables)))
    fit(model, toggle, watch(), look, epochs=5)
    assert model.rebuilds == 5
    assert len(set(sizes)) == 1
    gc.collect()
    assert len(model.made) <= 2


def test_stop_training_survives():
    model, moves = twins(rate=0.1), Moves()

    def stop_and_swap(batch):
        model.stop_training = True
        swap(model)

    history = fit(model, watch(), on("on_train_batch_end", stop_and_swap, calls=[1]), moves)
    assert moves.steps == ["a", "a"]
    assert len(history["loss"]) == 1


def test_child_of_a_frozen_parent(tmp_path):
    """Only the unfrozen leaf trains, and saving keeps its flag."""
    model = nested()
    model.get_layer("base").trainable = False
    compiled(model, keras.optimizers.SGD(0.1))
    before = weights(model)
    thaw = on("on_epoch_begin", lambda *_: setattr(layer(model, "b3"), "trainable", True))
    fit(model, thaw, watch(), epochs=2)
    assert changed(before, weights(model)) == {"b3", "head"}
    assert len(model.trainable_variables) == 4
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    paths = [variable.path for variable in model.trainable_variables]
    assert [variable.path for variable in loaded.trainable_variables] == paths


def test_everything_frozen_is_a_warning():
    model, moves = twins(rate=0.1), Moves()
    freeze = on("on_epoch_begin", lambda epoch: setattr(model, "trainable", epoch > 1), [1, 2])
    with pytest.warns(UserWarning, match="nothing trainable"):
        fit(model, freeze, watch(), moves)
    assert moves.steps == [*["a"] * BATCHES, *[""] * BATCHES, *["ab"] * BATCHES]


@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights")
def test_a_model_with_nothing_trainable_is_fitted():
    """As in stock Keras: the next callback may unfreeze it."""
    model = twins(rate=0.1)
    model.trainable = False
    model.compile(keras.optimizers.SGD(0.1), "mse")
    before = weights(model)
    fit(model, watch(), epochs=1)
    assert changed(before, weights(model)) == set()
    thaw = on("on_epoch_begin", lambda epoch: setattr(layer(model, "b"), "trainable", True), [1])
    fit(model, thaw, watch(), BottleneckCache(verbose=0), epochs=2)
    assert changed(before, weights(model)) == {"b"}


TRAINER = next(base for base in keras.Model.__mro__ if base.__name__.endswith("Trainer"))


class Line(TRAINER, L.Dense):
    """A layer that inherits from Keras' trainer, but isn't a `keras.Model`."""

    def __init__(self):
        L.Dense.__init__(self, 1, kernel_initializer="ones")
        TRAINER.__init__(self)


@pytest.mark.parametrize("built", [False, True])
def test_a_layer_that_is_trained_alone(built):
    """On TensorFlow, Keras builds it in the first step."""
    x, y = data()
    histories = []
    for ours in ([], [watch(), BottleneckCache(verbose=0)]):
        model = Line()
        if built:
            model(x)
        model.compile(keras.optimizers.SGD(0.1), "mse")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CacheWarning)  # nothing is frozen
            options = {"validation_data": (x, y), "shuffle": False, "verbose": 0, "epochs": 2}
            histories.append(model.fit(x, y, callbacks=list(ours), **options).history)
    assert histories[0] == histories[1]
    assert set(histories[0]) == {"loss", "val_loss"}


def test_logs_without_stages_are_those_of_keras():
    assert set(fit(twins(rate=0.1), watch(), BottleneckCache(verbose=0))) == {"loss"}


@pytest.mark.parametrize("hook", ["on_train_batch_begin", "on_train_batch_end"])
@pytest.mark.parametrize(("failing", "when"), [(KeyboardInterrupt, 0), (RuntimeError, 1)])
def test_a_change_and_an_exception_in_one_hook(hook, failing, when):
    """Keras restores the values of the epoch, each to its own variable."""
    model = twins(rate=0.0)
    before = weights(model)

    def swap_and_fail(_):
        swap(model)
        raise failing

    with pytest.raises(failing):
        fit(model, watch(), on(hook, swap_and_fail, calls=[when]))
    assert_equal(before, weights(model))
    assert "jax_state_sync" not in vars(model)


def test_looking_on_at_batches_leaves_the_values_where_they_are():
    """On JAX the variables have no values during an epoch, as in stock Keras."""
    kept = {}
    for name, ours in (("stock", []), ("ours", [watch(), BottleneckCache(verbose=0)])):
        model = twins(rate=0.1)
        held = kept.setdefault(name, [])
        look = on(
            "on_train_batch_end",
            lambda batch, model=model, held=held: held.append(
                [variable._value is None for variable in model.variables]
            ),
        )
        fit(model, look, *ours)
    assert kept["stock"] == kept["ours"]


def test_beside_a_schedule():
    """Changes outside the base count, and the stages keep their numbers."""
    model = compiled(nested(), keras.optimizers.SGD(0.1))
    head = model.get_layer("head")
    others = on("on_epoch_begin", lambda epoch: setattr(head, "trainable", epoch != 2))
    snapshots = [weights(model)]
    keep = on("on_epoch_end", lambda epoch: snapshots.append(weights(model)))
    stages = GradualUnfreeze({1: "b3"}, verbose=0)
    history = fit(model, others, watch(), stages, FreezeBase(), keep, epochs=4)
    moved = [changed(a, b) for a, b in itertools.pairwise(snapshots)]
    assert moved == [{"head"}, {"b3", "head"}, {"b3"}, {"b3", "head"}]
    assert history["stage"] == [0, 1, 1, 1]
    assert history["trainable_params"] == [9, 81, 72, 81]


def with_momentum(model):
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    return model


def test_reset_equals_two_fits():
    """Bitwise equal to `compile` with a fresh optimizer and `fit`."""
    model, by_hand = with_momentum(twins(rate=0.1)), with_momentum(twins(rate=0.1))
    by_hand.set_weights(model.get_weights())
    change = on("on_epoch_begin", lambda epoch: swap(model), calls=[1])
    ours = fit(model, change, watch(optimizer="reset"), epochs=2)
    losses = fit(by_hand, epochs=1)["loss"]
    swap(by_hand)
    losses += fit(with_momentum(by_hand), epochs=1)["loss"]
    assert ours["loss"] == losses
    assert_equal(weights(model), weights(by_hand))


def test_carry_keeps_the_slots_of_what_stays():
    """A change of the body doesn't reset the head's moments."""
    model, moments = with_momentum(twins(rate=0.1)), []

    def look(index):
        paths = [variable.path for variable in model.trainable_variables]
        moment = model.optimizer.momentums[paths.index("head/kernel")]
        moments.append(np.array(keras.ops.convert_to_numpy(moment)))

    fit(model, on("on_epoch_end", look), epochs=1)
    change = on("on_epoch_begin", lambda epoch: swap(model))
    fit(model, change, watch(), on("on_train_batch_begin", look, calls=[0]), epochs=1)
    np.testing.assert_array_equal(*moments)
    assert np.any(moments[0])
