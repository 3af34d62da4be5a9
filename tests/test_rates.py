"""The learning rate of each stage, and each layer's share of it."""

from __future__ import annotations

import itertools
import re
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_freeze import FreezeBase, GradualUnfreeze, Plateau, Schedule, ScheduleError, Stage
from keras_freeze.fit_engine.learning_rate_multipliers import depths_in
from keras_freeze.graph.find_base import find_base
from keras_freeze.graph.layer_tree import own_variables
from tests import builders
from tests.builders import L

pytestmark = pytest.mark.one_backend(
    but=[
        "test_a_factor_of_the_rate_before",
        "test_layers_far_from_the_head_move_less",
        "test_a_warm_up_of_nothing",
    ]
)

X, Y = builders.data(16)


def fit(stages: Any, epochs: int, *others: Any, **options: Any) -> dict[str, Any]:
    model = options.pop("model", None) or builders.compiled(
        builders.nested(), options.pop("optimizer", None)
    )
    thaw = GradualUnfreeze(stages, optimizer=options.pop("mode", "carry"), verbose=0)
    callbacks = [FreezeBase("base"), thaw, *others]
    options = {"batch_size": 8, "shuffle": False, "verbose": 0, **options}
    history: dict[str, Any] = model.fit(X, Y, epochs=epochs, callbacks=callbacks, **options).history
    return history


RATE = builders.RATE


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("carry", [RATE, RATE / 2, RATE / 8, RATE / 4]),
        ("reset", [RATE, RATE / 2, RATE / 4, RATE / 4]),  # always relative to the compiled rate
    ],
)
def test_a_factor_of_the_rate_before(mode: str, expected: list[float]):
    stages = [
        Stage(1, "b3", learning_rate={"factor": 0.5}),
        Stage(2, "b2", learning_rate={"factor": 0.25}),
        Stage(3, "b1", learning_rate=RATE / 4),
    ]
    assert fit(stages, 4, mode=mode)["learning_rate"] == expected
    # A fit that continues has the same rates.
    model = builders.compiled(builders.nested())
    first = fit(stages, 2, model=model, mode=mode)["learning_rate"]
    assert (
        first + fit(stages, 4, model=model, mode=mode, initial_epoch=2)["learning_rate"]
    ) == expected


def test_a_factor_follows_what_another_callback_made_of_the_rate():
    class Halve(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if epoch == 0:
                self.model.optimizer.learning_rate = RATE / 2

    stages = [Stage(2, "b3", learning_rate={"factor": 0.5})]
    assert fit(stages, 3, Halve())["learning_rate"] == [RATE, RATE / 2, RATE / 4]


def test_a_factor_of_a_schedule_is_refused_before_the_first_step():
    rate = keras.optimizers.schedules.ExponentialDecay(RATE, 3, 0.5)
    model = builders.compiled(builders.nested(), keras.optimizers.Adam(rate))
    before = builders.weights(model)
    with pytest.raises(ScheduleError, match="Pass a float or a LearningRateSchedule to the stage"):
        fit([Stage(5, "b3", learning_rate={"factor": 0.5})], 6, model=model)
    builders.assert_equal(before, builders.weights(model))
    stages = [Stage(1, "b3", learning_rate=RATE), Stage(2, "b2", learning_rate={"factor": 0.5})]
    assert fit(stages, 3, model=model)["learning_rate"][1:] == [RATE, RATE / 2]


def test_the_rate_stays_readable_settable_and_logged():
    """Under layer_decay, ReduceLROnPlateau and LearningRateScheduler act on the base rate."""
    down = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=0, min_delta=9.0)
    stages = [Stage(1, "all", layer_decay=0.5, warmup_steps=3)]
    rates = fit(stages, 4, down)["learning_rate"]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < rates[0]
    scheduled = keras.callbacks.LearningRateScheduler(lambda epoch, rate: RATE / 2**epoch)
    rates = fit(stages, 4, scheduled)["learning_rate"]
    assert rates == [RATE / 2**epoch for epoch in range(4)]


def test_two_who_set_the_rate_in_one_epoch_are_told_of_once():
    scheduled = keras.callbacks.LearningRateScheduler(lambda epoch, rate: RATE / 8)
    stages = [Stage(1, "b3", learning_rate=RATE / 2), Stage(2, "b2", learning_rate=RATE / 4)]
    with pytest.warns(UserWarning, match="Another callback has set the learning rate") as caught:
        history = fit(stages, 3, scheduled)
    assert len([each for each in caught if "Another callback" in str(each.message)]) == 1
    assert history["learning_rate"] == [RATE / 8] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit(stages, 3)


def test_what_is_saved_is_a_plain_optimizer(tmp_path: Path):
    stages = [Stage(1, "all", layer_decay=0.5, warmup_steps=3)]
    model, plain = (builders.compiled(builders.nested()) for _ in range(2))
    fit(stages, 3, model=model)
    fit({1: "all"}, 3, model=plain)
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.models.load_model(path)
    assert type(loaded.optimizer) is type(plain.optimizer)
    configs = [one.optimizer.get_config() | {"name": ""} for one in (loaded, plain)]
    assert configs[0] == configs[1]
    assert not set(vars(model.optimizer)) - set(vars(plain.optimizer))
    # The next fit, without callbacks, uses the full rate in all layers.
    before = builders.weights(loaded)
    loaded.optimizer.learning_rate = 0.0
    loaded.fit(X, Y, verbose=0)
    builders.assert_equal(before, builders.weights(loaded))


def test_layers_far_from_the_head_move_less():
    """With SGD an update is the gradient times the rate, which gives the share."""
    moved = []
    for decay in (None, 0.25):
        keras.utils.set_random_seed(0)
        model = builders.compiled(builders.nested(), keras.optimizers.SGD(2.0**-4))
        builders.layer(model, "base").trainable = True
        before = builders.weights(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit([Stage(0, "all", layer_decay=decay, name="x")], 1, model=model, batch_size=16)
        after = builders.weights(model)
        moved.append({key: after[key] - before[key] for key in before})
    for name, depth in (("head", 0), ("b3", 1), ("b2", 2), ("b1", 3)):
        full, less = (each[f"{name}/kernel"] for each in moved)
        np.testing.assert_allclose(less, full * 0.25**depth, rtol=1e-3, atol=1e-7)


def residual() -> keras.Model:
    inputs = keras.Input((6,))
    x = L.Dense(8, name="stem")(inputs)
    for block in range(2):
        y = L.Dense(8, name=f"r{block}_a")(x)
        y = L.BatchNormalization(name=f"r{block}_bn")(y)
        y = L.Dense(8, name=f"r{block}_b")(y)
        x = L.Add(name=f"r{block}_add")([x, y])
    x = L.BatchNormalization(name="top_bn")(x)
    base = keras.Model(inputs, x, name="base")
    outer = keras.Input((6,))
    return keras.Model(outer, L.Dense(1, name="head")(base(outer)))


def test_a_residual_block_is_one_step_away():
    model = residual()
    base = find_base(model, "base")
    depths = depths_in(base)
    found = {
        leaf.name: {depths[id(v)] for v in own_variables(leaf)}
        for leaf in base.leaves
        if own_variables(leaf)
    }
    assert found == {
        "stem": {3},
        "r0_a": {2},
        "r0_bn": {2},
        "r0_b": {2},
        "r1_a": {1},
        "r1_bn": {1},
        "r1_b": {1},
        "top_bn": {1},
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": {"factor": 0}}, "{'factor': 0}"),
        ({"learning_rate": {"factor": float("nan")}}, "`learning_rate`"),
        ({"learning_rate": {"fcator": 0.5}}, "`learning_rate`"),
        ({"learning_rate": {"factor": 0.5, "by": 2}}, "`learning_rate`"),
        ({"learning_rate": 10**400}, "`learning_rate`"),
        ({"layer_decay": 0}, "`layer_decay`"),
        ({"layer_decay": 1.5}, "`layer_decay`"),
        ({"layer_decay": True}, "`layer_decay`"),
        ({"layer_decay": float("nan")}, "`layer_decay`"),
        ({"warmup_steps": -1}, "`warmup_steps`"),
        ({"warmup_steps": 2.0}, "`warmup_steps`"),
        ({"warmup_steps": True}, "`warmup_steps`"),
        ({"warmup_steps": 10**30}, "`warmup_steps`"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str):
    with pytest.raises(ScheduleError, match=re.escape(message)):
        Stage(3, "b3", **arguments)


def test_a_warm_up_of_nothing():
    with pytest.raises(ScheduleError, match="Give it `unfreeze`"):
        Stage(3, warmup_steps=5, name="x")


def test_a_warm_up_behind_a_trigger_counts_from_where_the_stage_begins():
    """Equal to the same stage at the epoch where the trigger fired."""
    runs = []
    for at in (Plateau("loss", patience=1, max_epochs=2), 2):
        keras.utils.set_random_seed(0)
        model = builders.compiled(builders.nested())
        fit([Stage(at, "all", warmup_steps=5)], 5, model=model)
        runs.append(builders.weights(model))
    builders.assert_equal(*runs)


class Steps(keras.callbacks.Callback):
    """Records how far a layer's kernel moves in each epoch."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def on_train_begin(self, logs: Any = None) -> None:
        self.seen = [self._kernel()]

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seen.append(self._kernel())

    def _kernel(self) -> np.ndarray:
        return np.array(builders.layer(self.model, self.name).get_weights()[0])

    @property
    def moved(self) -> np.ndarray:
        return np.array([np.abs(b - a).max() for a, b in itertools.pairwise(self.seen)])


def constant() -> keras.Model:
    """Lion changes each weight by the rate, for any gradient."""
    return builders.compiled(builders.nested(), keras.optimizers.Lion(2.0**-6))


class CompileAgain(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 6:
            self.model.compile(keras.optimizers.Lion(2.0**-6), "mse")


def test_a_warm_up_that_is_over_stays_over_when_the_optimizer_begins_anew():
    steps = Steps("b3")
    fit(
        [Stage(2, "b3", warmup_steps=2)], 10, steps, CompileAgain(), model=constant(), batch_size=16
    )
    assert steps.moved[:2].max() == 0
    assert steps.moved[2] == pytest.approx(2.0**-7, rel=1e-3)
    np.testing.assert_allclose(steps.moved[3:], 2.0**-6, rtol=1e-3)


def test_a_stage_that_is_skipped_warms_up_too():
    steps = Steps("b2")
    stages = [Stage(Plateau("loss", patience=99), "b2", warmup_steps=4), Stage(1, "b3")]
    with pytest.warns(UserWarning, match="never began"):
        fit(stages, 6, steps, model=constant(), batch_size=16)
    expected = [0, 2.0**-8, 2.0**-7, 3 * 2.0**-8, 2.0**-6, 2.0**-6]
    np.testing.assert_allclose(steps.moved, expected, rtol=1e-3)


@pytest.mark.parametrize("mode", ["carry", "reset"])
def test_ulmfit_keeps_its_rate_in_all_stages(mode: str):
    model = builders.compiled(builders.nested())
    schedule = Schedule.ulmfit(builders.layer(model, "base"), learning_rate=RATE / 4)
    rates = fit(schedule, 4, model=model, mode=mode)["learning_rate"]
    assert rates == [RATE, RATE / 4, RATE / 4, RATE / 4]
    assert {stage.layer_decay for stage in schedule} == {1 / 2.6}


@pytest.mark.parametrize("start", ["3", -1, Plateau(), True, None])
def test_a_preset_that_cannot_begin_there(start: Any):
    model = builders.nested()
    base = builders.layer(model, "base")
    for make in (
        lambda: Schedule.ulmfit(base, start=start),
        lambda: Schedule.auto(base, stages=2, start=start),
        lambda: Schedule.chain_thaw(model, start=start),
    ):
        with pytest.raises(ScheduleError, match=r"`at` must be|`start` must be"):
            make()
