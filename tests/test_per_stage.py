"""PerStage: a callback starts over at each stage, and its stop ends the stage."""

import itertools
import random
import threading
import warnings
from typing import ClassVar

import keras
import numpy as np
import pytest

from keras_freeze import (
    BottleneckCache,
    FreezeBase,
    FreezeError,
    GradualUnfreeze,
    PerStage,
    Plateau,
    Stage,
)
from tests.builders import assert_equal, compiled, data, layer, nested, weights

pytestmark = pytest.mark.one_backend

C = keras.callbacks
X, Y = data(16)


def model_for(optimizer=None, seed=0):
    keras.utils.set_random_seed(seed)
    return compiled(nested(), optimizer or keras.optimizers.SGD(0.1))


def ours(schedule=None, **kwargs):
    schedule = {6: "b3", 9: "b2"} if schedule is None else schedule
    return [FreezeBase(), GradualUnfreeze(schedule, **({"verbose": 0} | kwargs))]


def fit(model, callbacks, epochs=12, **kwargs):
    options = {"batch_size": 4, "shuffle": False, "verbose": 0, "validation_split": 0.25}
    return model.fit(X, Y, epochs=epochs, callbacks=callbacks, **(options | kwargs)).history


def patient(patience=1, **kwargs):
    """Its first epoch is always the best: it stops `patience` epochs later."""
    return C.EarlyStopping("loss", patience=patience, min_delta=1e9, **kwargs)


class StopsAt(C.Callback):
    """Requests a stop at the end of one epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.stops_at = epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.stops_at:
            self.model.stop_training = True


class StopsInStep(C.Callback):
    """Requests a stop after the first step of one epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.stops_at = epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == self.stops_at and batch == 0:
            self.model.stop_training = True


def by_hand(model, ends, make, thawed=(), **kwargs):
    """Calls `compile` and `fit` for each stage, up to its epoch in `ends`, with new callbacks."""
    history, begin = {}, 0
    for trainable, end in zip([[], *thawed], ends, strict=True):
        for name in ("b1", "b2", "b3"):
            layer(model, name).trainable = name in trainable
        compiled(model, type(model.optimizer).from_config(model.optimizer.get_config()))
        found = fit(model, make(), initial_epoch=begin, epochs=end, **kwargs)
        begin += len(found["loss"])
        for key, values in found.items():
            history.setdefault(key, []).extend(values)
    return history


# --- a stage's end --------------------------------------------------------------------------------


def test_a_stop_ends_the_stage_and_in_the_last_one_the_run():
    history = fit(model_for(), [*ours(), PerStage(patient())])
    assert history["stage"] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("optimizer", [keras.optimizers.SGD, keras.optimizers.Adam])
def test_the_best_weights_of_each_stage_as_in_fits_by_hand(optimizer):
    """Bitwise equal: the next stage begins with the weights that the last one ends with."""
    callback = patient(2, restore_best_weights=True)
    model, reference = model_for(optimizer(0.125)), model_for(optimizer(0.125))
    history = fit(model, [*ours(optimizer="reset"), PerStage(callback)])
    expected = by_hand(
        reference,
        [12, 12, 12],
        lambda: [patient(2, restore_best_weights=True)],
        [["b3"], ["b3", "b2"]],
    )
    assert history["stage"] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert {key: history[key] for key in expected} == expected
    assert_equal(weights(model), weights(reference))


def test_the_best_weights_by_the_stage_too():
    """If both restore, `restore_best` does so last: the slots must match the weights."""
    stages = [Stage(Plateau("loss", patience=9), "b3", restore_best=True)]
    stops = PerStage(StopsAt(3))
    both = [PerStage(patient(3, restore_best_weights=True)), *ours(stages)]
    model, reference = (model_for(keras.optimizers.Adam(0.125)) for _ in range(2))
    history = fit(model, both, epochs=5)
    expected = fit(reference, [stops, *ours(stages)], epochs=5)
    assert history["stage"] == expected["stage"] == [0, 0, 0, 0, 1]
    assert expected["loss"][3] == min(expected["loss"][:4])  # not the first, as `patient` says
    assert_equal(weights(model), weights(reference))


def test_the_best_weights_at_the_schedules_own_epochs():
    """A stage that ends as scheduled also ends for the callback."""
    make = lambda: [patient(99, restore_best_weights=True)]  # noqa: E731
    model, reference = model_for(), model_for()
    fit(model, [*ours({2: "b3"}, optimizer="reset"), PerStage(*make())], epochs=4)
    by_hand(reference, [2, 4], make, [["b3"]])
    assert_equal(weights(model), weights(reference))


def test_later_stages_keep_their_epochs():
    stop = PerStage(StopsAt(1))
    assert (
        fit(model_for(), [*ours({5: "b3", 7: "b2"}), stop], 9)["stage"]
        == [0] * 2 + [1] * 5 + [2] * 2
    )


def test_a_stage_behind_the_last_epoch_is_reached_by_a_stop():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        history = fit(model_for(), [*ours({100: "b3"}), PerStage(StopsAt(1))], epochs=4)
    assert history["stage"] == [0, 0, 1, 1]


def test_a_stop_in_the_epoch_before_a_stage_changes_nothing():
    model, undisturbed = model_for(), model_for()
    history = fit(model, [*ours({2: "b3", 4: "b2"}), PerStage(StopsAt(1))], epochs=6)
    assert history == fit(undisturbed, ours({2: "b3", 4: "b2"}), epochs=6)
    assert_equal(weights(model), weights(undisturbed))


def test_two_that_ask_at_once_end_the_stage_once():
    both = [PerStage(patient()), PerStage(StopsAt(1))]
    assert fit(model_for(), [*ours(), *both], 5)["stage"] == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("order", range(6))
def test_a_bare_stop_ends_the_run(order):
    """Even in the same epoch, in any order."""
    callbacks = [
        *ours(),
        *list(itertools.permutations([PerStage(patient()), StopsAt(1), C.History()]))[order],
    ]
    model = model_for()
    assert fit(model, callbacks)["stage"] == [0, 0]
    assert model.stop_training


def test_a_bare_stop_at_another_epoch():
    assert fit(model_for(), [PerStage(patient()), *ours(), StopsAt(2)])["stage"] == [0, 0, 1]


@pytest.mark.parametrize("validation_split", [0.0, 0.25])
def test_a_stop_after_a_step_ends_the_epoch_too(validation_split):
    steps = []
    count = C.LambdaCallback(on_train_batch_end=lambda batch, logs: steps.append(batch))
    callbacks = [*ours(), PerStage(StopsInStep(1)), count]
    history = fit(model_for(), callbacks, epochs=3, batch_size=6, validation_split=validation_split)
    assert history["stage"] == [0, 0, 1]
    whole = [0, 1, 2] if not validation_split else [0, 1]
    assert steps == [*whole, 0, *whole]


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return X[4 * index : 4 * index + 4], Y[4 * index : 4 * index + 4]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("cache", [None, BottleneckCache(verbose=0)], ids=["plain", "cache"])
def test_a_stop_after_a_step_of_a_pydataset(workers, cache):
    """Keras raises an error if an epoch of a PyDataset begins before the last one has ended."""
    callbacks = [*ours({9: "b3"}), PerStage(StopsInStep(1)), *([cache] if cache else [])]
    model = model_for()
    batches = Batches(workers=workers)
    history = model.fit(batches, epochs=4, verbose=0, shuffle=False, callbacks=callbacks).history
    assert history["stage"] == [0, 0, 1, 1]
    assert model.fit(batches, verbose=0).history["loss"]


def test_a_bare_stop_in_the_validation_of_an_epoch_that_was_cut_short():
    class Stops(C.Callback):
        def on_test_end(self, logs=None):
            self.model.stop_training = True

    callbacks = [Stops(), *ours(), PerStage(StopsInStep(0))]
    assert fit(model_for(), callbacks)["stage"] == [0]


def test_a_stop_after_a_step_beside_a_bare_one():
    callbacks = [PerStage(StopsInStep(1)), StopsInStep(1), *ours()]
    assert fit(model_for(), callbacks)["stage"] == [0, 0]


def test_what_is_printed(capsys):
    fit(model_for(), [*ours(verbose=1), PerStage(patient())], epochs=4)
    lines = capsys.readouterr().out.splitlines()
    early = [line for line in lines if "early" in line]
    assert early == ["Stage 0 (frozen base) ends early, with epoch 2/4: EarlyStopping"]
    fit(model_for(), [*ours(), PerStage(patient())], epochs=4)
    assert capsys.readouterr().out == ""


# --- a fresh start --------------------------------------------------------------------------------


class Recorder(C.Callback):
    """Records its hooks, and which copy was called."""

    seen: ClassVar[list] = []  # shared by all copies

    def __init__(self):
        super().__init__()
        self.calls = 0


def _recording(hook):
    def record(self, *args, **kwargs):
        self.calls += 1
        keys = [key for arg in (*args, *kwargs.values()) if isinstance(arg, dict) for key in arg]
        ours = {"stage", "trainable_params", "learning_rate"}
        numbers = [arg for arg in args if isinstance(arg, int)]
        Recorder.seen.append((hook, self.calls, numbers, sorted(set(keys) - ours)))

    return record


for _hook in [
    *(f"on_{kind}_{when}" for kind in ("train", "test", "epoch") for when in ("begin", "end")),
    *(f"on_{kind}_batch_{when}" for kind in ("train", "test") for when in ("begin", "end")),
]:
    setattr(Recorder, _hook, _recording(_hook))


def test_hooks_come_as_in_fits_by_hand():
    """A fresh callback gets the same hooks, in the same order, with the same numbers and logs."""
    Recorder.seen = []
    fit(model_for(), [*ours({2: "b3"}), PerStage(Recorder())], epochs=3)
    found, Recorder.seen = Recorder.seen, []
    by_hand(model_for(), [2, 3], lambda: [Recorder()], [["b3"]])
    assert found == Recorder.seen
    assert len(found) == 40


def test_legacy_batch_hooks_are_called_once():
    batches = []

    class Old(C.Callback):
        def on_batch_end(self, batch, logs=None):
            batches.append((batch, logs["stage"]))

    fit(model_for(), [*ours({1: "b3"}), PerStage(Old())], epochs=2, batch_size=6)
    assert batches == [(0, 0), (1, 0), (0, 1), (1, 1)]


def test_reduced_rates_begin_to_wait_anew():
    reduce = C.ReduceLROnPlateau("loss", factor=0.5, patience=2, min_delta=1e9)
    stages = [Stage(2, "b3"), Stage(4, "b2", learning_rate=0.25)]
    rates = fit(model_for(), [*ours(stages), PerStage(reduce)], epochs=8)["learning_rate"]
    # Logs contain the rate that the epoch ended with, before it was reduced.
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.25, 0.25, 0.25, 0.125])


def test_checkpoints_of_each_stage(tmp_path):
    path = str(tmp_path / "best {stage:02d}.weights.h5")
    best = C.ModelCheckpoint(
        path, monitor="rank", save_best_only=True, save_weights_only=True, mode="min"
    )
    ranks = iter([1, 2, 5, 4, 6])
    rank = C.LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(rank=next(ranks)))
    held = []
    model = model_for()
    keep = C.LambdaCallback(on_epoch_end=lambda epoch, logs: held.append(weights(model)))
    fit(model, [rank, keep, *ours({2: "b3"}), PerStage(best)], epochs=5)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "best 00.weights.h5",
        "best 01.weights.h5",
    ]
    for stage, epoch in enumerate([0, 3]):
        model.load_weights(path.format(stage=stage))
        assert_equal(weights(model), held[epoch])


@pytest.mark.parametrize("wrap", [PerStage, lambda callback: callback])
def test_checkpoints_at_the_ends_of_epochs(wrap, tmp_path):
    saver = C.ModelCheckpoint(str(tmp_path / "{stage} {epoch}.weights.h5"), save_weights_only=True)
    fit(model_for(), [wrap(saver), *ours({1: "b3"})], epochs=3)
    names = sorted(file.name.split(".")[0] for file in tmp_path.iterdir())
    assert names == ["0 1", "1 2", "1 3"]


def test_checkpoints_between_steps(tmp_path):
    path = str(tmp_path / "{stage} {epoch} {batch}.weights.h5")
    saver = C.ModelCheckpoint(path, save_weights_only=True, save_freq=2)
    fit(model_for(), [PerStage(saver), *ours({1: "b3"})], epochs=2)
    names = sorted(file.name.split(".")[0] for file in tmp_path.iterdir())
    # Three steps per epoch. The second stage counts from zero.
    assert names == ["0 1 2", "1 2 2"]


def test_the_copy_that_ran_last_is_there_to_look_at():
    given = patient()
    callback = PerStage(given)
    assert callback.callback is given
    fit(model_for(), [*ours(), callback])
    assert (given.stopped_epoch, callback.callback.stopped_epoch) == (0, 5)


def test_layers_that_a_callback_holds_are_not_copied():
    class Doubles(C.Callback):
        def __init__(self, layers):
            super().__init__()
            self.layers = {"one": layers}
            self.also = layers[0]
            self.kept = list(layers)

        def on_train_begin(self, logs=None):
            self.also.bias.assign(np.ones((1,)))
            self.kept[0].kernel.assign(np.zeros((8, 1)))

    model = model_for(keras.optimizers.SGD(0.0))
    head = model.get_layer("head")
    fit(model, [*ours({1: "b3"}), PerStage(Doubles([head]))], epochs=2)
    assert np.array_equal(keras.ops.convert_to_numpy(head.bias), [1.0])
    assert not keras.ops.convert_to_numpy(head.kernel).any()


def test_a_function_makes_what_cannot_be_copied():
    made = []

    class Locked(C.EarlyStopping):
        def __init__(self):
            super().__init__("loss", patience=1, min_delta=1e9)
            self.lock = threading.Lock()
            made.append(self)

    callback = PerStage(Locked)
    assert callback.callback is made[0]
    assert fit(model_for(), [*ours(), callback])["stage"] == [0, 0, 1, 1, 2, 2]
    assert len(made) == 4
    assert callback.callback is made[3]
    with pytest.raises(FreezeError, match=r"can't be copied .*lock.*PerStage\(lambda: Locked"):
        PerStage(Locked())


# --- with other callbacks, and reused -------------------------------------------------------------


def run(path, seed):
    path.mkdir()
    callbacks = [
        *ours(),
        PerStage(patient(2, restore_best_weights=True)),
        PerStage(StopsInStep(1)),
        PerStage(
            C.ModelCheckpoint(str(path / "{stage} {epoch}.weights.h5"), save_weights_only=True)
        ),
        C.CSVLogger(str(path / "log.csv")),
    ]
    random.Random(seed).shuffle(callbacks)
    model = model_for(keras.optimizers.Adam(0.125))
    history = fit(model, callbacks)
    names = sorted(file.name for file in path.glob("*.h5"))
    return weights(model), history, (path / "log.csv").read_text(), names


def test_order_makes_no_difference(tmp_path):
    expected, *rest = run(tmp_path / "0", 0)
    assert rest[0]["stage"] == [0, 0, 1, 1, 1, 2, 2, 2]
    for seed in range(1, 4):
        found, *others = run(tmp_path / str(seed), seed)
        assert_equal(found, expected)
        assert others == rest


def test_with_the_cache():
    """Restored weights and a shortened epoch don't affect it."""
    results = []
    for cache in ([], [BottleneckCache(verbose=0)]):
        model = model_for()
        stops = [PerStage(patient(2, restore_best_weights=True)), PerStage(StopsInStep(0))]
        history = fit(model, [*ours({100: "b3", 101: "b2"}), *stops, *cache], epochs=8)
        results.append((weights(model), history))
    assert results[0][1] == results[1][1]
    assert_equal(results[0][0], results[1][0])
    assert cache[0].stats.enabled


def test_instances_serve_a_second_fit():
    callbacks = [*ours(), PerStage(patient(restore_best_weights=True))]
    first, second = model_for(), model_for()
    history = fit(first, callbacks)
    assert fit(second, callbacks) == history
    assert_equal(weights(first), weights(second))
    assert fit(second, callbacks)["stage"] == history["stage"]


def test_initial_epoch_lands_in_its_stage():
    """A later run only knows the schedule."""
    callbacks = [*ours({3: "b3", 6: "b2"}), PerStage(patient())]
    assert fit(model_for(), callbacks, initial_epoch=4)["stage"] == [1, 1, 2, 2]
    assert fit(model_for(), callbacks, initial_epoch=12) == {}


class Fails(C.Callback):
    """Raises in one epoch while it is armed."""

    armed = True

    def __init__(self, epoch):
        super().__init__()
        self.fails_at = epoch

    def on_epoch_end(self, epoch, logs=None):
        if Fails.armed and epoch == self.fails_at:
            raise ZeroDivisionError


@pytest.mark.parametrize("wrap", [PerStage, lambda callback: callback])
def test_after_a_fit_that_raised(wrap):
    model, callbacks = model_for(), [*ours(), wrap(Fails(3)), PerStage(patient())]
    Fails.armed = True
    with pytest.raises(ZeroDivisionError):
        fit(model, callbacks)
    assert not model.stop_training
    Fails.armed = False
    assert fit(model, callbacks)["stage"] == [0, 0, 1, 1, 2, 2]
    assert len(fit(model, [], epochs=2)["loss"]) == 2


@pytest.mark.parametrize("make", [patient, lambda: C.ModelCheckpoint("a.keras"), C.Callback])
def test_asynchronous_calls_are_as_with_the_callback_alone(make):
    wrapped, bare = C.CallbackList([PerStage(make())]), C.CallbackList([make()])
    for kind in ("_async_train", "_async_test", "_async_predict"):
        assert getattr(wrapped, kind) == getattr(bare, kind)


def test_in_a_callback_list_of_the_users():
    model = model_for()
    inner = C.CallbackList([*ours(), PerStage(patient())], add_history=True, model=model, epochs=9)
    assert fit(model, inner, epochs=9)["stage"] == [0, 0, 1, 1, 2, 2]


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "received"),
    [
        (None, r"Received: None \(of type NoneType\)"),
        ("early", "Received: 'early'"),
        (lambda: 3, "Received: 3 "),
        (FreezeBase, "Callbacks of keras_freeze follow the stages themselves"),
        (lambda: PerStage(patient()), "Callbacks of keras_freeze"),
        (GradualUnfreeze({1: "b3"}), "Callbacks of keras_freeze"),
        (C.CallbackList(), "of type CallbackList"),
    ],
)
def test_what_cannot_be_wrapped(given, received):
    with pytest.raises(FreezeError, match=received) as caught:
        PerStage(given)
    assert "`callback` of PerStage must be one Keras callback" in str(caught.value)


@pytest.mark.parametrize("others", [[], [FreezeBase()]])
def test_without_stages(others):
    model = model_for()
    before = weights(model)
    with pytest.raises(FreezeError, match=r"GradualUnfreeze .*Received: PerStage\(EarlyStopping\)"):
        fit(model, [PerStage(patient()), *others])
    assert_equal(weights(model), before)
