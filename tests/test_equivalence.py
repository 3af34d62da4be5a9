"""C1: with optimizer="reset" one `fit` equals `compile` and `fit` for each stage, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_freeze import FreezeBase, GradualUnfreeze, Stage
from tests import builders
from tests.reference.search import examples
from tests.reference.two_fits import Part, fit_by_hand, parts

LAYERS = ["b1", "bn", "drop", "b2", "b3", "head"]
WEIGHTED = {"b1", "bn", "b2", "b3", "head"}
EPOCHS = 4
HALVING = keras.optimizers.schedules.ExponentialDecay(2.0**-5, 2, 0.5)
Result = tuple[dict[str, Any], dict[str, list[float]]]
Make = Callable[[Any], keras.optimizers.Optimizer]

pytestmark = pytest.mark.filterwarnings(
    "ignore:The base is unfrozen",  # a stage at epoch 0
    "ignore:.* changes no layer",  # a stage that names layers already in that state
)


@dataclass(frozen=True)
class Case:
    """A run.

    Attributes:
        stages: their selectors are lists of names, or None.
        batch_norm: the policy.
        kind: the kind of model.
        rows: number of rows; a batch has 4.
        validated: whether there is validation data.
        initial_epoch: as in `fit`.
        eager: whether steps run without tracing, which is faster if there are few.
        extras: whether there are a BatchNormalization and a Dropout.
        make: makes the optimizer, given a rate.
        loss: as in `compile`.
        policy: dtype policy of the layers.
    """

    stages: list[Stage]
    batch_norm: str = "freeze"
    kind: str = "nested"
    rows: int = 8
    validated: bool = False
    initial_epoch: int = 0
    eager: bool = False
    extras: bool = True
    make: Make = keras.optimizers.Adam
    loss: Any = "mse"
    policy: str = "float32"

    def new_model(self) -> keras.Model:
        keras.backend.clear_session()
        keras.config.set_dtype_policy(self.policy)
        keras.utils.set_random_seed(7)
        return builders.KINDS[self.kind](extras=self.extras)

    def compile(self, model: keras.Model, rate: Any = None) -> None:
        """Compiles with a fresh optimizer. None means the rate that a user compiled."""
        optimizer = self.make(builders.RATE if rate is None else rate)
        model.compile(optimizer, self.loss, metrics=["mae"], run_eagerly=self.eager)

    def fit_arguments(self) -> dict[str, Any]:
        validation = builders.data(6, seed=1) if self.validated else None
        return {"batch_size": 4, "shuffle": False, "validation_data": validation}

    def parts(self) -> list[Part]:
        """The base is frozen. The head keeps its flag: trainable."""
        return list(parts(self.stages, {"head"}, EPOCHS))


class Reseed(keras.callbacks.Callback):
    """On PyTorch, Dropout uses the global generator, and so does Keras at the start of a fit."""

    def on_epoch_begin(self, epoch, logs=None):
        keras.utils.set_random_seed(epoch)


def in_one_fit(case: Case) -> Result:
    """Returns the weights and the history of one fit with our callbacks."""
    model = case.new_model()
    case.compile(model)
    thaw = GradualUnfreeze(case.stages, optimizer="reset", batch_norm=case.batch_norm, verbose=0)
    callbacks = [FreezeBase(batch_norm=case.batch_norm), thaw, Reseed()]
    times = {"initial_epoch": case.initial_epoch, "epochs": EPOCHS, "verbose": 0}
    data = builders.data(case.rows)
    history = model.fit(*data, callbacks=callbacks, **times, **case.fit_arguments()).history
    return builders.weights(model), history


def by_hand(case: Case) -> Result:
    """Returns the weights and the history of a separate fit for each stage."""
    model, run = case.new_model(), [part.since(case.initial_epoch) for part in case.parts()]
    data, arguments = builders.data(case.rows), case.fit_arguments()
    history = fit_by_hand(model, LAYERS, run, case.compile, [Reseed()], *data, **arguments)
    return builders.weights(model), history


def check(case: Case) -> None:
    weights, history = in_one_fit(case)
    expected_weights, expected_history = by_hand(case)
    assert history == expected_history
    builders.assert_equal(weights, expected_weights)


@st.composite
def stage_at(draw: st.DrawFn, epoch: int, policy: str) -> Stage:
    names = [name for name in LAYERS if policy == "train" or name != "bn"]
    thawed = draw(st.lists(st.sampled_from(names), unique=True, max_size=3))
    others = [name for name in LAYERS if name not in thawed]
    frozen = draw(st.lists(st.sampled_from(others), unique=True, max_size=3))
    rate = draw(st.none() | st.sampled_from([2.0**-5, 2.0**-8]))
    return Stage(epoch, thawed or None, frozen or None, learning_rate=rate, name="drawn")


@st.composite
def cases(draw: st.DrawFn) -> Case:
    policy = draw(st.sampled_from(["freeze", "train"]))
    epochs = draw(st.lists(st.integers(0, EPOCHS - 1), unique=True, min_size=1, max_size=3))
    return Case(
        [draw(stage_at(epoch, policy)) for epoch in sorted(epochs)],
        policy,
        kind=draw(st.sampled_from(sorted(builders.KINDS))),
        rows=draw(st.sampled_from([8, 10])),
        validated=draw(st.booleans()),
        initial_epoch=draw(st.sampled_from([0, 0, 0, 2])),
        eager=draw(st.sampled_from([True, True, True, False])),
    )


def always_trains(case: Case) -> bool:
    """Whether each stage has trainable weights; without any, a stage is an error."""
    return all(part.trainable & WEIGHTED for part in case.parts())


def test_nothing_need_be_trainable_before_a_stage_at_epoch_0():
    """Stage 0 has no epoch. The head begins frozen, and a stage unfreezes it."""
    check(Case([Stage(0, ["head"]), Stage(2, ["b3"])], eager=True))


@given(case=cases().filter(always_trains))
@examples(5)
def test_one_fit_equals_a_fit_for_each_stage(case):
    check(case)


def loss_scale(rate):
    return keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(rate), initial_scale=8.0, dynamic_growth_steps=3
    )


def multi(rate):
    head = keras.optimizers.SGD(rate, momentum=0.5, name="head")
    rest = keras.optimizers.Adam(rate, name="rest")
    mapped = keras.optimizers.OptimizerMap(rest, {"head/.*": head})
    return keras.optimizers.MultiOptimizer(mapped)


MAKES = {
    "moving averages": lambda rate: keras.optimizers.Adam(rate, use_ema=True, ema_momentum=0.5),
    "schedule": lambda rate: keras.optimizers.Adam(HALVING if rate == builders.RATE else rate),
    "momentum": lambda rate: keras.optimizers.SGD(rate, momentum=0.5, nesterov=True),
    "Nadam": keras.optimizers.Nadam,
    "clipping and decay": lambda rate: keras.optimizers.AdamW(rate, global_clipnorm=2.0**-4),
    "accumulation": lambda rate: keras.optimizers.Adam(rate, gradient_accumulation_steps=3),
    "loss scale": loss_scale,
}


def with_a_schedule(**kwargs) -> Case:
    """Stages with a LearningRateSchedule, a float, and the compiled rate."""
    stages = [
        Stage(1, ["b3"], learning_rate=HALVING),
        Stage(2, ["b2"], learning_rate=2.0**-7),
        Stage(3, ["b1"], ["b3"]),
    ]
    return Case(stages, extras=False, **kwargs)


@pytest.mark.one_backend(but=["moving averages", "loss scale", "Nadam"])
@pytest.mark.parametrize("name", MAKES)
def test_holds_for_optimizers_with_a_state_of_their_own(name):
    check(with_a_schedule(make=MAKES[name], eager=name not in ("accumulation", "loss scale")))


@pytest.mark.one_backend
@pytest.mark.skipif(not hasattr(keras.optimizers, "MultiOptimizer"), reason="Keras >= 3.15")
def test_holds_for_several_optimizers():
    check(with_a_schedule(make=multi))


def test_holds_for_half_precision():
    """`compile` wraps the optimizer in a LossScaleOptimizer."""
    try:
        check(with_a_schedule(policy="mixed_float16"))
    finally:
        keras.config.set_dtype_policy("float32")


def test_keeps_a_loss_that_cannot_be_serialized():
    check(with_a_schedule(loss=lambda y, p: keras.ops.mean((y - p) ** 4, -1), eager=True))


@pytest.mark.one_backend(but=["2-nested-carry", "2-flat-reset"])
@pytest.mark.parametrize("mode", ["reset", "carry"])
@pytest.mark.parametrize("kind", ["nested", "sequential", "flat"])
@pytest.mark.parametrize("saved", [1, 2, 3], ids=["1", "2", "3"])
def test_a_saved_run_goes_on_as_if_it_was_never_interrupted(
    tmp_path: Path, kind: str, mode: str, saved: int
):
    """Saved in the middle of stage 0, at its end, and in the middle of stage 1.

    A plain file doesn't store the ages that "carry" counts; they follow from the schedule.
    """
    run = {"batch_size": 4, "epochs": EPOCHS, "verbose": 0, "shuffle": False}

    def ours() -> list[Any]:
        stages = GradualUnfreeze({2: "b3"}, optimizer=mode, verbose=0)
        return [FreezeBase(["b1", "b2", "b3"]), stages]

    x, y = builders.data(8)
    keras.utils.set_random_seed(0)
    model = builders.compiled(builders.KINDS[kind]())
    keep = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    whole = model.fit(x, y, callbacks=[*ours(), keep], **run).history
    loaded = keras.models.load_model(tmp_path / f"{saved}.keras")
    rest = loaded.fit(x, y, initial_epoch=saved, callbacks=ours(), **run).history
    assert rest["loss"] == whole["loss"][saved:]
    assert rest["trainable_params"] == whole["trainable_params"][saved:]


@pytest.mark.one_backend(but=["Adam-2", "Adam-5"])
@pytest.mark.parametrize("saved", range(1, 8))
@pytest.mark.parametrize("optimizer", ["Adam", "Nadam", "SGD"])
def test_three_stages_go_on_from_any_epoch(tmp_path: Path, optimizer: str, saved: int):
    """The second stage freezes what the first has unfrozen, the third unfreezes it again."""
    stages = [
        Stage(1, "b3"),
        Stage(3, "b2", freeze="b3", learning_rate=0.01),
        Stage(5, ["b2", "b3"], learning_rate=0.002),
    ]
    run = {"batch_size": 4, "epochs": 8, "verbose": 0, "shuffle": False}

    def ours() -> list[Any]:
        return [FreezeBase(["b1", "b2", "b3"]), GradualUnfreeze(stages, verbose=0)]

    x, y = builders.data(12)
    keras.utils.set_random_seed(0)
    model = builders.compiled(builders.nested(), getattr(keras.optimizers, optimizer)(0.01))
    keep = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    whole = model.fit(x, y, callbacks=[*ours(), keep], **run).history
    loaded = keras.models.load_model(tmp_path / f"{saved}.keras")
    rest = loaded.fit(x, y, initial_epoch=saved, callbacks=ours(), **run).history
    assert rest["loss"] == whole["loss"][saved:]
    builders.assert_equal(builders.weights(loaded), builders.weights(model))


@pytest.mark.one_backend
def test_ages_that_cant_be_found_are_told_of(tmp_path: Path):
    x, y = builders.data(12)
    ours = [FreezeBase("base"), GradualUnfreeze({1: "b3"}, verbose=0)]
    model = builders.compiled(builders.nested())
    model.fit(x[:4], y[:4], batch_size=4, epochs=1, verbose=0, callbacks=ours[:1])
    model.fit(x, y, batch_size=4, initial_epoch=1, epochs=3, verbose=0, callbacks=ours)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    with pytest.warns(UserWarning, match="7 updates aren't the same number in each of 3 epochs"):
        loaded.fit(x, y, batch_size=4, initial_epoch=3, epochs=4, verbose=0, callbacks=ours)
