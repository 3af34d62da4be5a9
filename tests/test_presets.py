"""The presets: what they unfreeze, and that each one trains."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_freeze import (
    BottleneckCache,
    FreezeBase,
    GradualUnfreeze,
    Plateau,
    Schedule,
    ScheduleError,
    select_layers,
)
from keras_freeze.demo import digits_transfer
from keras_freeze.demo.small_digits import build_model
from keras_freeze.graph.layer_tree import count_params
from tests import builders
from tests.builders import L
from tests.reference.search import examples

pytestmark = pytest.mark.one_backend

X, Y = builders.data(16)
VAL = builders.data(8, seed=1)


def sizes(base: keras.Model, schedule: Schedule) -> list[int]:
    """Returns the number of trainable parameters in each stage."""
    return [
        count_params(v for leaf in select_layers(base, stage.unfreeze) for v in leaf.weights)
        for stage in schedule
    ]


def chain(widths: list[int]) -> keras.Model:
    layers = [L.Dense(width, name=f"d{place}") for place, width in enumerate(widths)]
    return keras.Sequential([keras.Input((4,)), *layers], name="base")


@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.data())
@examples(30)
def test_auto_balances_stages(widths: list[int], data: Any):
    """Each boundary is as near to its share as possible. Every stage unfreezes something new."""
    base = chain(widths)
    count = data.draw(st.integers(1, len(widths)))
    schedule = Schedule.auto(base, stages=count, start=3, every=2)
    assert [stage.at for stage in schedule] == [3 + 2 * n for n in range(count)]
    thawed = sizes(base, schedule)
    assert thawed == sorted(set(thawed))
    total = thawed[-1]
    assert total == base.count_params()
    possible = [
        count_params(v for d in base.layers[place:] for v in d.weights)
        for place in range(len(widths))
    ]
    for number, size in enumerate(thawed[:-1], start=1):
        wanted = total * number / count
        below = thawed[number - 2] if number > 1 else 0
        # At least one block is left for each later stage.
        free = [p for p in possible if p > below and sum(q > p for q in possible) >= count - number]
        assert abs(size - wanted) == min(abs(p - wanted) for p in free)


def test_more_stages_than_blocks():
    with pytest.raises(ScheduleError, match="at most 2"):
        Schedule.auto(chain([2, 2]), stages=3)


@pytest.mark.parametrize("preset", ["ulmfit", "auto"])
@pytest.mark.parametrize("base", ["base", None, 3])
def test_a_base_that_cannot_be_read(preset: str, base: Any):
    with pytest.raises(ScheduleError, match="`base` must be the base"):
        getattr(Schedule, preset)(base)


@pytest.mark.parametrize(
    "arguments", [{"every": 0}, {"every": True}, {"stages": 0}, {"stages": 1.5}]
)
def test_bad_arguments(arguments: dict[str, Any]):
    with pytest.raises(ScheduleError, match="must be a whole number"):
        Schedule.auto(chain([2, 2]), **{"stages": 2, **arguments})


def test_chain_thaw_wants_the_whole_model():
    with pytest.raises(ScheduleError, match="the whole model"):
        Schedule.chain_thaw("base")


class Trainable(keras.callbacks.Callback):
    """Records which layers train in each epoch."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.seen: list[set[str]] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        trained = {id(v) for v in self.model.trainable_variables}
        layers = self.model._flatten_layers()
        self.seen.append(
            {e.name for e in layers if any(id(v) in trained for v in e._trainable_variables)}
        )


def learned(schedule: Schedule, epochs: int, model: keras.Model, **options: Any) -> list[set[str]]:
    seen = Trainable()
    callbacks = [FreezeBase("base"), GradualUnfreeze(schedule, verbose=0), seen]
    model.fit(X, Y, epochs=epochs, verbose=0, callbacks=callbacks, **options)
    return seen.seen


def test_chain_thaw_trains_one_block_alone():
    model = builders.compiled(builders.nested())
    schedule = Schedule.chain_thaw(model, start=1, every=1)
    every = {"b1", "b2", "b3", "head"}
    assert learned(schedule, 5, model) == [{"head"}, {"b1"}, {"b2"}, {"b3"}, every]


def test_ulmfit_thaws_from_the_head_down():
    model = builders.compiled(builders.nested())
    schedule = Schedule.ulmfit(builders.layer(model, "base"))
    assert learned(schedule, 4, model) == [
        {"head"},
        {"head", "b3"},
        {"head", "b3", "b2"},
        {"head", "b3", "b2", "b1"},
    ]


def test_lp_ft_waits_for_the_head():
    model = builders.compiled(builders.nested(), keras.optimizers.SGD(0.25))
    schedule = Schedule.lp_ft(start=Plateau(patience=1, max_epochs=3))
    seen = learned(schedule, 4, model, validation_data=VAL)
    assert seen[0] == {"head"}
    assert seen[-1] == {"b1", "b2", "b3", "head"}


PRESETS = {
    "two_phase": lambda model, base: Schedule.two_phase("20%", start=1),
    "lp_ft": lambda model, base: Schedule.lp_ft(start=Plateau(patience=0, max_epochs=1)),
    "ulmfit": lambda model, base: Schedule.ulmfit(base),
    "chain_thaw": lambda model, base: Schedule.chain_thaw(model, start=1, every=1),
    "auto": lambda model, base: Schedule.auto(base, stages=3, start=1, every=1),
}


@pytest.fixture(scope="module")
def mobilenet() -> keras.Model:
    base = keras.applications.MobileNetV2(
        (32, 32, 3), alpha=0.35, include_top=False, weights=None, pooling="avg", name="base"
    )
    return keras.Sequential([base, L.Dense(1, name="head")])


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_is_right_for_a_large_network(mobilenet: keras.Model, name: str):
    """Each stage follows the plan. Two stages are trained, with the cache."""
    for layer in mobilenet._flatten_layers():
        layer.trainable = True
    base = mobilenet.get_layer("base")
    schedule = PRESETS[name](mobilenet, base)
    if name in ("ulmfit", "auto"):
        thawed = sizes(base, schedule)
        assert thawed == sorted(set(thawed))
        assert thawed[-1] == base.count_params()
    cache = BottleneckCache(verbose=0)
    builders.compiled(mobilenet)
    images = np.random.default_rng(0).random((8, 32, 32, 3), "float32")
    short = Schedule(list(schedule)[:2])
    thaw = GradualUnfreeze(short, verbose=0)
    history = mobilenet.fit(
        images,
        Y[:8],
        batch_size=4,
        epochs=2,
        validation_data=(images[:4], Y[:4]),
        verbose=0,
        callbacks=[FreezeBase("base"), thaw, cache],
    ).history
    assert history["stage"] == [0, 1]
    assert np.isfinite(history["loss"]).all()


DIGITS = {
    "two_phase": lambda model, base: Schedule.two_phase("block3_*", start=9, learning_rate=3e-4),
    "lp_ft": lambda model, base: Schedule.lp_ft(start=Plateau("loss", patience=2, max_epochs=9)),
    "ulmfit": lambda model, base: Schedule.ulmfit(base, start=6, every=3),
    "chain_thaw": lambda model, base: Schedule.chain_thaw(model, start=6, every=3),
    "auto": lambda model, base: Schedule.auto(base, stages=3, start=6, every=4, learning_rate=3e-4),
}


@pytest.mark.parametrize("name", DIGITS)
def test_each_preset_learns_the_demos_digits(name: str, tmp_path: pathlib.Path):
    """It trains all stages of a schedule read from a file. Chance gives an accuracy of 20 %."""
    base, few, test = digits_transfer()
    keras.utils.set_random_seed(0)
    model = build_model(base, learning_rate=3e-3)
    schedule = DIGITS[name](model, base)
    schedule.to_file(tmp_path / "plan.yaml")
    thaw = GradualUnfreeze(tmp_path / "plan.yaml", verbose=0)
    epochs = 18
    options = {"batch_size": 10, "epochs": epochs, "verbose": 0}
    history = model.fit(*few, callbacks=[FreezeBase("base"), thaw], **options).history
    begun = thaw.begun
    assert history["stage"] == [schedule.number_at(e, begun) for e in range(epochs)]
    assert set(history["stage"]) == set(range(len(schedule) + 1))
    _, accuracy = model.evaluate(*test, batch_size=len(test[0]), verbose=0)
    assert accuracy > 0.7
