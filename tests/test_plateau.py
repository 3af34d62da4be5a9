"""Stages that begin by a trigger: when they begin, and from which weights."""

from __future__ import annotations

import re
import warnings
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keras_freeze import (
    BottleneckCache,
    FreezeBase,
    GradualUnfreeze,
    PerStage,
    Plateau,
    Schedule,
    ScheduleError,
    Stage,
)
from keras_freeze.schedule.plateau import Watched
from tests import builders

pytestmark = pytest.mark.one_backend(
    but=[
        "test_back_to_the_best_epoch_with_optimizers_within_one",
    ]
)

X, Y = builders.data(16)
VAL = builders.data(8, seed=1)


class Score(keras.callbacks.Callback):
    """Logs given numbers."""

    def __init__(self, values: list[float], name: str = "val_score"):
        super().__init__()
        self.values = values
        self.name = name

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self.values[epoch] is not None:
            logs[self.name] = self.values[epoch]


def fit(callbacks: list[Any], epochs: int, **options: Any) -> tuple[keras.Model, dict[str, Any]]:
    model = options.pop("model", None)
    if model is None:
        keras.utils.set_random_seed(0)
        model = builders.nested()
        model.compile(options.pop("optimizer", "adam"), "mse")
    options = {"batch_size": 8, "shuffle": False, "verbose": 0, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # stages that are never reached
        history = model.fit(X, Y, epochs=epochs, callbacks=callbacks, **options)
    return model, history.history


def assert_equal(one: keras.Model, other: keras.Model) -> None:
    builders.assert_equal(builders.weights(one), builders.weights(other))


def fires(values: list[float | None], plateau: Plateau) -> int | None:
    """Returns the epoch after which a stage ends: a simple version of the rule."""
    for end in range(1, len(values) + 1):
        if plateau.max_epochs is not None and end >= plateau.max_epochs:
            return end - 1
        best, since = None, 0
        for value in [v for v in values[:end] if v is not None]:
            gain = None if best is None else (value - best) * (1 if plateau.mode == "max" else -1)
            if gain is None or gain > plateau.min_delta:
                best, since = value, 0
            else:
                since += 1
        if since and since >= plateau.patience and end >= plateau.min_epochs:
            return end - 1
    return None


@given(
    st.lists(st.none() | st.integers(0, 6), min_size=1, max_size=12),
    st.integers(0, 4),
    st.sampled_from([0.0, 1.0, 2.5]),
    st.sampled_from(["min", "max"]),
    st.integers(1, 5),
    st.none() | st.integers(5, 9),
)
@example([3, 3, 3], 0, 0.0, "min", 1, None)
def test_a_trigger_fires_when_nothing_improves(
    values: list[float | None],
    patience: int,
    min_delta: float,
    mode: str,
    min_epochs: int,
    max_epochs: int | None,
):
    plateau = Plateau(
        "score",
        patience=patience,
        min_delta=min_delta,
        mode=mode,
        min_epochs=min_epochs,
        max_epochs=max_epochs,
    )
    watched, fired = Watched(plateau), None
    for epoch, value in enumerate(values):
        watched.see(value)
        if fired is None and watched.is_over:
            fired = epoch
    assert fired == fires(values, plateau)


@pytest.mark.parametrize(
    ("monitor", "rising"),
    [
        ("val_loss", False),
        ("loss", False),
        ("val_accuracy", True),
        ("acc", True),
        ("val_sparse_top_k_categorical_accuracy", True),
        ("val_auc_2", True),
        ("val_mean_io_u", False),
        ("mean_absolute_error", False),
        ("val_precision_loss", False),
        ("val_macro_f1", True),
    ],
)
def test_which_way_is_better(monitor: str, rising: bool):
    assert Plateau(monitor).is_rising is rising
    assert Plateau(monitor, mode="max").is_rising
    assert not Plateau(monitor, mode="min").is_rising


SOME = settings(max_examples=max(2, settings().max_examples // 10))


@SOME
@given(
    st.lists(st.integers(0, 3), min_size=7, max_size=7),
    st.integers(1, 2),
    st.sampled_from(["carry", "reset"]),
    st.booleans(),
)
def test_a_run_is_that_of_a_schedule_with_the_epochs_that_were_found(
    values: list[int], patience: int, mode: str, first: bool
):
    """Two triggers, and an epoch between them."""
    stages = [
        Stage(Plateau("val_score", patience=patience), "b3"),
        Stage(5, "b2"),
        Stage(Plateau("val_score", patience=1), "b1"),
    ]
    thaw = GradualUnfreeze(stages, optimizer=mode, verbose=0)
    callbacks = [FreezeBase("base"), thaw, Score(values)]
    model, history = fit(callbacks if first else callbacks[::-1], 7)

    begun = {}
    fired = fires(values[:5], Plateau("val_score", patience=patience, mode="min"))
    if fired is not None:
        begun[1] = fired + 1
    fired = fires(values[5:], Plateau("val_score", patience=1, mode="min"))
    if fired is not None:
        begun[3] = 5 + fired + 1
    assert thaw.begun == begun
    plain = [Stage(at, "b3") for n, at in begun.items() if n == 1 and at < 5]
    plain += [Stage(5, ["b3", "b2"])]
    plain += [Stage(at, "b1") for n, at in begun.items() if n == 3]
    callbacks = [FreezeBase("base"), GradualUnfreeze(plain, optimizer=mode, verbose=0)]
    expected, expected_history = fit(callbacks, 7)
    assert_equal(model, expected)
    assert history["loss"] == expected_history["loss"]
    assert history["trainable_params"] == expected_history["trainable_params"]


def test_a_second_fit_goes_on_where_the_first_ended():
    values = [3, 2, 2, 1, 1, 1, 1, 1]
    stages = [Stage(Plateau("val_score", patience=1), "b3"), Stage(5, "b2")]
    whole, history = fit([FreezeBase("base"), GradualUnfreeze(stages, verbose=0), Score(values)], 8)
    assert history["stage"] == [0, 0, 0, 1, 1, 2, 2, 2]

    thaw = GradualUnfreeze(stages, verbose=0)
    callbacks = [FreezeBase("base"), thaw, Score(values)]
    model, first = fit(callbacks, 4)
    assert thaw.begun == {1: 3}
    _, second = fit(callbacks, 8, model=model, initial_epoch=4)
    assert first["stage"] + second["stage"] == history["stage"]
    assert_equal(model, whole)
    # In a run from the beginning, the record of an earlier run has no effect.
    _, again = fit(callbacks, 8)
    assert again["stage"] == history["stage"]


@pytest.mark.parametrize("at", [Plateau("val_score", patience=2), 4])
def test_back_to_the_best_epoch_with_a_fresh_optimizer(at: Any):
    """Equal to two fits: Keras' EarlyStopping restores, then the model is compiled again."""
    name = "val_score" if isinstance(at, Plateau) else "val_loss"
    values = [3.0, 1.0, 2.0, 2.0, 5.0, 5.0, 5.0]
    stage = Stage(at, "b3", restore_best=True)
    thaw = GradualUnfreeze([stage], optimizer="reset", verbose=0)
    model, history = fit([FreezeBase("base"), thaw, Score(values, name)], 7)
    assert history["stage"] == [0, 0, 0, 0, 1, 1, 1]

    two, _ = fit([FreezeBase("base")], 2)
    builders.layer(two, "base").trainable = True
    for frozen in ("b1", "b2"):
        builders.layer(two, frozen).trainable = False
    two.compile("adam", "mse")
    fit([], 3, model=two)
    assert_equal(model, two)


@pytest.mark.parametrize("optimizer", ["adam", "nadam", "sgd", "rmsprop", "adamw"])
def test_back_to_the_best_epoch_with_its_slots(optimizer: str):
    """Equal to a run whose stage began right after the best epoch."""
    values = [3.0, 1.0, 2.0, 2.0, 5.0, 5.0, 5.0]
    stage = Stage(Plateau("val_score", patience=2), "b3", restore_best=True)
    model, _ = fit(
        [FreezeBase("base"), GradualUnfreeze([stage], verbose=0), Score(values)],
        7,
        optimizer=optimizer,
    )
    early, _ = fit(
        [FreezeBase("base"), GradualUnfreeze({2: "b3"}, verbose=0)], 5, optimizer=optimizer
    )
    assert_equal(model, early)
    pairs = zip(model.optimizer.variables, early.optimizer.variables, strict=True)
    for variable, expected in pairs:
        if variable is not model.optimizer.iterations:
            np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (variable, expected)))


def several() -> keras.Optimizer:
    rest = keras.optimizers.Adam(0.01, name="rest")
    head = keras.optimizers.SGD(0.01, momentum=0.5, name="head")
    return keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(rest, {"head/.*": head}))


AROUND = {"loss scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01))}
if hasattr(keras.optimizers, "MultiOptimizer"):  # Keras >= 3.15
    AROUND["several"] = several


@pytest.mark.parametrize("name", AROUND)
def test_back_to_the_best_epoch_with_optimizers_within_one(name: str):
    """Equal to a run whose stage began right after the best epoch."""
    stage = Stage(Plateau("val_score", patience=2), "b3", restore_best=True)
    thaw = GradualUnfreeze([stage], verbose=0)
    score = Score([3.0, 1.0, 2.0, 2.0, 5.0, 5.0, 5.0])
    model, _ = fit([FreezeBase("base"), thaw, score], 7, optimizer=AROUND[name]())
    thaw = GradualUnfreeze({2: "b3"}, verbose=0)
    early, _ = fit([FreezeBase("base"), thaw], 5, optimizer=AROUND[name]())
    assert_equal(model, early)


def test_a_cache_makes_one_pass():
    values = [3, 2, 2, 1, 1, 1, 1, 1]
    stages = [
        Stage(Plateau("val_score", patience=1), "b3"),
        Stage(Plateau("val_score", patience=1), "b2"),
    ]
    plain = [FreezeBase("base"), GradualUnfreeze(stages, verbose=0), Score(values)]
    expected, expected_history = fit(plain, 8, validation_data=VAL)
    cache = BottleneckCache(verbose=0)
    model, history = fit([*plain, cache], 8, validation_data=VAL)
    assert history == expected_history
    assert history["stage"] == [0, 0, 0, 1, 1, 2, 2, 2]
    assert_equal(model, expected)
    assert cache.stats.base_passes == 1.0
    assert cache.stats.enabled


def test_a_stop_ends_the_run_even_where_a_stage_would_begin():
    values = [1.0, 2.0, 3.0, 4.0]
    stop = keras.callbacks.EarlyStopping("val_score", patience=1, mode="min")
    thaw = GradualUnfreeze([Stage(Plateau("val_score", patience=1), "b3")], verbose=0)
    for order in ([thaw, stop], [stop, thaw]):
        _, history = fit([Score(values), FreezeBase("base"), *order], 4)
        assert history["stage"] == [0, 0]


def test_a_stage_line_says_why(capsys: Any):
    thaw = GradualUnfreeze([Stage(Plateau("val_score", patience=1), "b3")])
    fit([FreezeBase("base"), thaw, Score([2.0, 1.0, 1.5, 1.0])], 4)
    said = capsys.readouterr().out
    assert "Stage 0 ends after epoch 3: val_score has not improved for 1 epoch" in said
    assert "Best: 1 in epoch 2." in said


def test_a_trigger_that_never_fires_is_told():
    stages = [
        Stage(Plateau("val_score"), "b3"),
        Stage(2, "b2"),
        Stage(Plateau("val_score", patience=9), "b1"),
        Stage(Plateau("val_score"), name="last"),
    ]
    model = builders.nested()
    model.compile("adam", "mse")
    callbacks = [FreezeBase("base"), GradualUnfreeze(stages, verbose=0), Score([1.0] * 4)]
    with pytest.warns(UserWarning, match="never began") as caught:
        model.fit(X, Y, epochs=4, verbose=0, callbacks=callbacks)
    told = [str(each.message) for each in caught if "never began" in str(each.message)]
    assert len(told) == 3
    assert re.match(r"Stage 1 .*Stage 2 began first, at its epoch 2", told[0])
    assert re.match(r"Stage 3 .*the fit ended while val_score .*\(best: 1\)", told[1])
    assert re.match(r"Stage 4 .*the stage before it was never reached", told[2])


@pytest.mark.parametrize(
    ("stage", "options", "message"),
    [
        (Stage(Plateau("val_los"), "b3"), {}, "'val_los'.*Did you mean 'val_loss'"),
        (Stage(Plateau("val_mae"), "b3"), {}, "isn't in the logs"),
        (Stage(Plateau(), "b3"), {"validation_data": None}, "Pass `validation_data`"),
        (Stage(3, "b3", restore_best=True), {"validation_data": None}, "Pass `validation_data`"),
    ],
)
def test_a_monitor_that_is_not_in_the_logs(stage: Stage, options: Any, message: str):
    model = builders.nested()
    model.compile("adam", "mse", metrics=["accuracy"])
    before = model.get_weights()
    thaw = GradualUnfreeze([stage], verbose=0)
    with pytest.raises(ScheduleError, match=message):
        model.fit(
            X,
            Y,
            epochs=4,
            verbose=0,
            callbacks=[FreezeBase("base"), thaw],
            **{"validation_data": VAL, **options},
        )
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patience": -1}, "patience=-1"),
        ({"patience": 1.5}, "`patience`"),
        ({"patience": True}, "`patience`"),
        ({"min_delta": -1e-3}, "`min_delta`"),
        ({"min_delta": float("nan")}, "`min_delta`"),
        ({"mode": "up"}, "`mode` must be"),
        ({"min_epochs": 0}, "`min_epochs`"),
        ({"min_epochs": 5, "max_epochs": 4}, "`max_epochs` of Plateau must be at least"),
        ({"monitor": ""}, "`monitor`"),
        ({"monitor": None}, "`monitor`"),
        ({"pateince": 2}, "Did you mean 'patience'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str):
    with pytest.raises(ScheduleError, match=re.escape(message)):
        Plateau(**arguments)


def test_epochs_out_of_order_beside_a_trigger():
    with pytest.raises(ScheduleError, match="epoch 3 comes after 7"):
        Schedule([Stage(7, "a"), Stage(Plateau(), "b"), Stage(3, "c")])
    with pytest.raises(ScheduleError, match="two stages at epoch 7"):
        Schedule([Stage(7, "a"), Stage(Plateau(), "b"), Stage(7, "c")])


@given(st.data())
def test_the_stage_is_a_function_of_schedule_epoch_and_transitions(data: Any):
    """By definition: the last stage that has begun, in schedule order."""
    kinds = data.draw(st.lists(st.booleans(), min_size=1, max_size=6))
    epochs = sorted(data.draw(st.sets(st.integers(0, 40), min_size=6, max_size=6)))
    stages = [
        Stage(Plateau(), str(n)) if kind else Stage(epochs[n], str(n))
        for n, kind in enumerate(kinds)
    ]
    waiting = [n for n, kind in enumerate(kinds, start=1) if kind]
    begun = {n: data.draw(st.integers(1, 50)) for n in waiting if data.draw(st.booleans())}
    schedule = Schedule(stages)
    starts = {n: at for n, at in enumerate((s.at for s in stages), 1) if isinstance(at, int)}
    starts |= begun
    for epoch in data.draw(st.permutations(range(0, 52, 3))):
        expected = max([0, *[n for n, at in starts.items() if at <= epoch]])
        assert schedule.number_at(epoch, begun) == expected


def test_it_reads_back():
    plateau = Plateau("val_accuracy", patience=0, min_delta=0.5, max_epochs=9)
    assert eval(repr(plateau)) == plateau
    assert Plateau.from_config(plateau.get_config()) == plateau
    assert repr(Plateau()) == "Plateau(monitor='val_loss')"


def test_a_monitor_that_a_function_of_the_user_logs():
    values = [3.0, 2.0, 2.0, 1.0]
    log = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: logs.update(val_score=values[epoch])
    )
    for note in (log, PerStage(Score(values))):
        model = builders.compiled(builders.nested())
        thaw = GradualUnfreeze([Stage(Plateau("val_score", patience=1), "b3")], verbose=0)
        _, history = fit([FreezeBase("base"), thaw, note], 4, model=model)
        assert history["stage"] == [0, 0, 0, 1]


def test_a_fit_of_no_epochs():
    model = builders.compiled(builders.nested())
    for stages in ([Stage(Plateau(), "b3")], [Stage(1, "b3"), Stage(Plateau(), "b2")]):
        thaw = GradualUnfreeze(stages, verbose=0)
        callbacks = [FreezeBase("base"), thaw]
        history = model.fit(
            X, Y, validation_data=VAL, initial_epoch=3, epochs=3, verbose=0, callbacks=callbacks
        )
        assert history.history == {}


@pytest.mark.parametrize("steps", [3, 1])
@pytest.mark.parametrize("best", [0, 1])
def test_accumulated_gradients_stay_in_their_window(steps: int, best: int):
    """The gradient is constant, so each update must be. Epochs end in the middle of windows."""
    keras.utils.set_random_seed(0)
    base = keras.Sequential([keras.Input((6,)), builders.L.Dense(4, name="b")], name="base")
    model = keras.Sequential([base, builders.L.Dense(1, use_bias=False, name="head")])
    base.trainable = False
    optimizer = keras.optimizers.SGD(2.0**-4, gradient_accumulation_steps=2)
    model.compile(optimizer, lambda y, p: keras.ops.mean(p))
    kernels: list[np.ndarray] = []
    head = builders.layer(model, "head")
    note = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: kernels.append(np.array(head.get_weights()[0]))
    )
    x = np.tile(X[:8], (steps, 1))
    score = Score([2.0 * (epoch != best) for epoch in range(8)])
    stage = Stage(Plateau("val_score", patience=1), name="again", restore_best=True)
    begins = builders.weights(model)["head/kernel"]
    model.fit(
        x,
        np.ones((len(x), 1)),
        batch_size=8,
        epochs=8,
        shuffle=False,
        verbose=0,
        callbacks=[FreezeBase("base"), GradualUnfreeze([stage], verbose=0), score, note],
    )
    # Training continues from the best epoch, and the windows keep their alignment with the steps.
    after = best + 2
    pairs = [(begins, kernels[1], 0, 2), (kernels[best], kernels[after], after, after + 1)]
    pairs += [(kernels[e - 1], kernels[e], e, e + 1) for e in range(after + 1, 8)]
    moved = [np.abs(b - a).max() for a, b, *_ in pairs]
    expected = [last * steps // 2 - first * steps // 2 for *_, first, last in pairs]
    one = moved[0] / expected[0]
    np.testing.assert_allclose(moved, np.multiply(one, expected), rtol=1e-3, atol=1e-7)


def test_the_best_epoch_also_where_a_trigger_was_skipped():
    """Either the stage that begins asks for it, or the skipped one does."""
    for first, second in ((False, True), (True, False)):
        values = [3.0, 1.0, 2.0, 2.0]
        stages = [
            Stage(Plateau("val_score", patience=9), "b2", restore_best=first),
            Stage(3, "b3", restore_best=second),
        ]
        thaw = GradualUnfreeze(stages, optimizer="reset", verbose=0)
        model, history = fit([FreezeBase("base"), thaw, Score(values)], 4)
        assert history["stage"] == [0, 0, 0, 2]
        two, _ = fit([FreezeBase("base")], 2)
        builders.layer(two, "base").trainable = True
        builders.layer(two, "b1").trainable = False
        two.compile("adam", "mse")
        fit([], 1, model=two)
        assert_equal(model, two)


def test_a_stage_that_is_skipped_resets_the_optimizer_too():
    stages = [Stage(Plateau("val_score", patience=9), "b2", optimizer="reset"), Stage(2, "b3")]
    model, _ = fit([FreezeBase("base"), GradualUnfreeze(stages, verbose=0), Score([1.0] * 3)], 3)
    assert int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == 2  # from the last epoch


def test_a_trigger_that_fires_in_the_last_epoch_is_told():
    values = [2.0, 1.0, 2.0, 2.0]
    stage = Stage(Plateau("val_score", patience=1), "b3", restore_best=True)
    thaw = GradualUnfreeze([stage], verbose=0)
    model = builders.compiled(builders.nested())
    callbacks = [FreezeBase("base"), thaw, Score(values)]
    with pytest.warns(UserWarning, match="its trigger fired in the last epoch"):
        model.fit(X, Y, epochs=3, verbose=0, callbacks=callbacks)
    with pytest.warns(UserWarning, match="in an earlier fit: nothing is restored"):
        history = model.fit(X, Y, initial_epoch=3, epochs=4, verbose=0, callbacks=callbacks)
    assert history.history["stage"] == [1]


def test_a_compile_within_a_stage_keeps_the_slots_that_it_made():
    class Compile(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 2:
                self.model.compile("sgd", "mse")

    stage = Stage(Plateau("val_score", patience=2), "b3", restore_best=True)
    thaw = GradualUnfreeze([stage], verbose=0)
    callbacks = [FreezeBase("base"), thaw, Compile(), Score([2.0, 1.0, 3.0, 3.0, 3.0])]
    _, history = fit(callbacks, 5)
    assert history["stage"] == [0, 0, 0, 0, 1]


def test_what_was_recorded_may_come_from_a_file():
    thaw = GradualUnfreeze([Stage(Plateau("loss"), "b3")], verbose=0)
    thaw.begun = {"1": 2}  # JSON turns the key into a string
    model = builders.compiled(builders.nested())
    _, history = fit([FreezeBase("base"), thaw], 4, model=model, initial_epoch=3)
    assert history["stage"] == [1]
    thaw.begun = {5: 2}
    with pytest.raises(ScheduleError, match="`begun` of GradualUnfreeze has stage 5"):
        fit([FreezeBase("base"), thaw], 4, model=model, initial_epoch=3)
