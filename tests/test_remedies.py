"""Each message of a fit names a remedy: it removes the message, and the run is correct.

Other remedies are tested with their messages: which part is the base (`test_guess`), what ended a
run (`test_ending`), the closest name (`test_closest_names`), rates (`test_base_rate`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
    freeze,
)
from tests import builders
from tests.builders import L
from tests.test_cache_aside import (
    Counting,
    Penalised,
    Trusting,
    base_with,
    behind,
    frozen_by_hand,
)

pytestmark = pytest.mark.one_backend

X, Y = builders.data(24)
EPOCHS = 4
BASE = {"b1", "b2", "b3", "bn", "drop"}


@dataclass
class Seen:
    """The results of a run.

    Attributes:
        text: the error or the warnings.
        stages: the stage of each epoch.
        changed: the layers whose weights changed.
        hits: number of rows from the cache.
    """

    text: str
    stages: list[float]
    changed: set[str]
    hits: int


def run(
    *callbacks: Any, model: Any = None, x: Any = X, cached: bool = False, **options: Any
) -> Seen:
    model = model or builders.compiled(builders.nested())
    if getattr(model, "optimizer", None) is None:
        builders.compiled(model)
    cache = BottleneckCache(verbose=0, **options.pop("cache", {}))
    callbacks = (*callbacks, cache) if cached else callbacks
    inputs = (x, Y) if isinstance(x, np.ndarray) else (x,)
    before = builders.weights(model)
    options = {"epochs": EPOCHS, "batch_size": 8, "verbose": 0, **options}
    if not isinstance(x, np.ndarray):
        options.pop("batch_size")
    history: dict[str, Any] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            history = model.fit(*inputs, callbacks=list(callbacks), **options).history
            text = ""
        except FreezeError as error:
            text = str(error)
    ours = [str(each.message) for each in caught if each.category.__module__ != "builtins"]
    ours += [str(each.message) for each in caught if each.category is UserWarning]
    ours = [each for each in ours if "was passed, but will be ignored" not in each]
    changed = builders.changed(before, builders.weights(model))
    return Seen("".join([text, *ours]), history.get("stage", []), changed, cache.stats.hits)


def steps(*stages: Any, **options: Any) -> GradualUnfreeze:
    return GradualUnfreeze(list(stages), verbose=0, **options)


def with_dropout(frozen: bool) -> Any:
    """A base whose weights are frozen by hand, but whose Dropout is on."""
    model = frozen_by_hand({"b1", "bn", "b2", "b3"})
    return run(*([FreezeBase("base")] if frozen else []), model=model, cached=True)


class Moving(keras.callbacks.Callback):
    """Changes the arrays that were passed to `fit`."""

    def __init__(self, x: np.ndarray):
        super().__init__()
        self.x = x

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.x += 1.0


class Batches(keras.utils.PyDataset):
    """Arrays that a function changes in each epoch."""

    def __init__(self, change: Callable[[np.ndarray], np.ndarray]):
        super().__init__()
        self.change = change

    def __len__(self) -> int:
        return 3

    def __getitem__(self, place: int) -> Any:
        rows = slice(8 * place, 8 * place + 8)
        return self.change(X[rows]), Y[rows]


def variants() -> np.ndarray:
    """Returns a few variants of each image, made before `fit`."""
    noise = L.GaussianNoise(0.1)
    made = [keras.ops.convert_to_numpy(noise(X[:12], training=True)) for _ in range(2)]
    return np.concatenate(made)


def noise_after() -> Any:
    inputs = keras.Input((6,))
    outputs = L.GaussianNoise(0.1)(builders.functional_base()(inputs))
    return keras.Model(inputs, L.Dense(1, name="head")(outputs))


class HalfRead(keras.Model):
    """A subclassed model with its own weight, or with a layer that has one."""

    def __init__(self, in_layer: bool):
        super().__init__()
        self.base = builders.functional_base()
        self.head = L.Dense(1, name="head")
        self.scale = L.Dense(6, name="scale") if in_layer else None
        if not in_layer:
            self.own = self.add_weight(shape=(), initializer="ones", name="own")

    def call(self, inputs):
        outputs = self.head(self.base(inputs))
        return outputs if self.scale is not None else outputs * self.own


def half_read(in_layer: bool) -> Any:
    model = HalfRead(in_layer)
    if model.scale is not None:
        model.scale.build((None, 6))
    model(X[:1])
    return model


class OwnFunction(keras.Model):
    """Overrides `make_train_function`."""

    def make_train_function(self, force=False):
        return super().make_train_function(force)


class OwnStep(keras.Model):
    """Overrides `train_step`."""

    def train_step(self, *args):
        return super().train_step(*args)


def graph_of(kind: Any) -> Any:
    model = builders.nested()
    return kind(model.inputs, model.outputs)


def is_cached(seen: Seen) -> bool:
    return seen.hits >= 24 * (EPOCHS - 1) - 8 and not seen.changed & BASE


def reaches_all(seen: Seen) -> bool:
    return bool(seen.stages) and seen.stages[0] == 0 and seen.stages[-1] == 1


def fits(seen: Seen) -> bool:
    return bool(seen.changed)


# {what is wrong: (the run, part of its message, part of the remedy, the run with the remedy, its
# outcome)}
B = FreezeBase
CASES: dict[str, tuple[Any, str, str, list[Any], Callable[[Seen], bool]]] = {
    "a stage after the last epoch": (
        lambda: run(B("base"), steps(Stage(9, "b3"))),
        "never reached",
        "Pass epochs=10 or more to fit, or move the stage",
        [
            lambda: run(B("base"), steps(Stage(9, "b3")), epochs=10),
            lambda: run(B("base"), steps(Stage(2, "b3"))),
        ],
        reaches_all,
    ),
    "a base that is unfrozen before the head has learned": (
        lambda: run(B("base"), steps(Stage(0, "b3"))),
        "while the head is still untrained",
        "begin the schedule at a later epoch",
        [lambda: run(B("base"), steps(Stage(1, "b3")))],
        reaches_all,
    ),
    "a trigger that doesn't fire": (
        lambda: run(B("base"), steps(Stage(Plateau("loss", patience=9), "b3"))),
        "never began",
        "Train for more epochs, lower `patience`, or set `max_epochs`",
        [
            lambda: run(B("base"), steps(Stage(Plateau("loss", patience=9, max_epochs=2), "b3"))),
            lambda: run(B("base"), steps(Stage(Plateau("loss", patience=1, min_delta=9.0), "b3"))),
        ],
        reaches_all,
    ),
    "a monitor that isn't logged": (
        lambda: run(B("base"), steps(Stage(Plateau("val_loss", max_epochs=2), "b3"))),
        "isn't in the logs",
        "validation_data",
        [
            lambda: run(
                B("base"),
                steps(Stage(Plateau("val_loss", max_epochs=2), "b3")),
                validation_data=(X, Y),
            )
        ],
        reaches_all,
    ),
    "a stage without a change": (
        lambda: run(B("base"), steps(Stage(1, "b3"), Stage(2, "b3"))),
        "changes no layer: the layers that it names already have this state",
        "",
        [lambda: run(B("base"), steps(Stage(1, ["b3"])))],
        reaches_all,
    ),
    "a layer both ways": (
        lambda: run(B("base"), steps(Stage(1, "b2:", freeze="b3"))),
        "both unfreezes and freezes",
        "Remove them from one",
        [lambda: run(B("base"), steps(Stage(1, "b2")))],
        reaches_all,
    ),
    "nothing trains": (
        lambda: run(B("base"), steps(Stage(0, freeze="head"), Stage(1, "b3"))),
        "leaves nothing trainable",
        "Leave one of these trainable",
        [lambda: run(B("base"), steps(Stage(1, "b3")))],
        reaches_all,
    ),
    "two who set the rate": (
        lambda: run(
            B("base"),
            steps(Stage(1, "b3", learning_rate=1e-3)),
            keras.callbacks.LearningRateScheduler(lambda epoch: 0.1),
        ),
        "Another callback has set the learning rate",
        "Remove one of the two",
        [
            lambda: run(B("base"), steps(Stage(1, "b3", learning_rate=1e-3))),
            lambda: run(
                B("base"),
                steps(Stage(1, "b3")),
                keras.callbacks.LearningRateScheduler(lambda epoch: 0.1),
            ),
        ],
        reaches_all,
    ),
    "PerStage without stages": (
        lambda: run(B("base"), PerStage(keras.callbacks.EarlyStopping("loss", patience=9))),
        "PerStage needs the stages of a GradualUnfreeze",
        "callbacks=[FreezeBase(), GradualUnfreeze({10: 'block5_*'}), PerStage(...)]",
        [
            lambda: run(
                B("base"),
                steps(Stage(1, "b3")),
                PerStage(keras.callbacks.EarlyStopping("loss", patience=9)),
            )
        ],
        reaches_all,
    ),
    "two schedules": (
        lambda: run(B("base"), steps(Stage(1, "b3")), steps(Stage(2, "b2"))),
        "put their stages into one list",
        "",
        [lambda: run(B("base"), steps(Stage(1, "b3"), Stage(4, "b2")), epochs=4)],
        lambda seen: True,
    ),
    "nothing frozen": (
        lambda: run(cached=True),
        "no frozen layer with weights comes before the trainable layers",
        "add FreezeBase() to the list of callbacks",
        [lambda: run(B(), cached=True)],
        is_cached,
    ),
    "everything unfrozen, though FreezeBase is there": (
        lambda: run(B("base"), steps(Stage(0, "all", name="all")), cached=True, initial_epoch=1),
        "no frozen layer with weights comes before the trainable layers",
        "begin with a stage in which layers of the base are frozen, or remove the callback",
        [
            lambda: run(B("base"), steps(Stage(3, "all")), cached=True, initial_epoch=1),
            lambda: run(B("base"), steps(Stage(0, "all", name="all")), initial_epoch=1),
        ],
        fits,
    ),
    "Dropout of a base that was frozen by hand": (
        lambda: with_dropout(frozen=False),
        "'drop' comes before frozen layers, and it is random",
        "let FreezeBase() freeze it with the base",
        [lambda: with_dropout(frozen=True)],
        is_cached,
    ),
    "BatchNormalization left training": (
        lambda: run(model=frozen_by_hand({"b1", "drop", "b2", "b3"}), cached=True),
        "'bn' comes before frozen layers, and its statistics change in training",
        "let FreezeBase() freeze it with the base",
        [lambda: run(B("base"), model=frozen_by_hand({"b1", "drop", "b2", "b3"}), cached=True)],
        is_cached,
    ),
    "augmentation in the model": (
        lambda: run(B("base"), model=behind(L.GaussianNoise(0.1, name="noise")), cached=True),
        "'noise' comes before frozen layers, and it is random in training",
        "record a few augmented epochs with views=8, or move it after the base",
        [
            lambda: run(
                B("base"),
                model=behind(L.GaussianNoise(0.1, name="noise")),
                cached=True,
                cache={"views": 1},
            ),
            lambda: run(B("base"), x=variants(), cached=True),
            lambda: run(B("base"), model=noise_after(), cached=True),
        ],
        is_cached,
    ),
    "a layer of one's own that is told of training": (
        lambda: run(B("base"), model=behind(Trusting(name="own")), cached=True),
        "'own' comes before frozen layers, and its `call` takes `training`",
        "apply it to the data before `fit`",
        [lambda: run(B("base"), x=2.0 * X, cached=True)],
        is_cached,
    ),
    "a layer of the base that adds to the loss": (
        lambda: run(B("base"), model=base_with(Penalised(name="own")), cached=True),
        "of the frozen part adds to the loss",
        "or remove its loss",
        [lambda: run(B("base"), cached=True)],
        is_cached,
    ),
    "state that moves": (
        lambda: run(B("base"), model=base_with(Counting(name="own")), cached=True),
        "of the frozen part changes",
        "move the layer that changes it out of the base",
        [lambda: run(B("base"), cached=True)],
        is_cached,
    ),
    "arrays that are changed in place": (
        lambda: run(B("base"), Moving(own := X.copy()), x=own, cached=True),
        "were changed in place",
        "pass a generator or a PyDataset that makes the rows of each epoch",
        [lambda: run(B("base"), x=Batches(lambda x: x), cached=True)],
        is_cached,
    ),
    "other inputs in each epoch": (
        lambda: run(
            B("base"),
            x=Batches(lambda x: x + np.random.default_rng().normal(size=x.shape).astype("f")),
            cached=True,
        ),
        "the inputs differ in each epoch",
        "record a few augmented epochs with views=8, or remove the callback",
        [
            lambda: run(
                B("base"),
                x=Batches(lambda x: x + np.random.default_rng().normal(size=x.shape).astype("f")),
                cached=True,
                cache={"views": 1},
            ),
            lambda: run(
                B("base"),
                x=Batches(lambda x: x + np.random.default_rng().normal(size=x.shape).astype("f")),
            ),
        ],
        fits,
    ),
    "a full cache": (
        lambda: run(B("base"), cached=True, cache={"max_bytes": 400}),
        "is full",
        "Raise `max_bytes`, or halve the bytes with dtype='float16'",
        [
            lambda: run(B("base"), cached=True, cache={"max_bytes": 800}),
            lambda: run(B("base"), cached=True, cache={"max_bytes": 400, "dtype": "float16"}),
        ],
        is_cached,
    ),
    "weights of a subclassed model's own": (
        lambda: run(B("base"), model=half_read(in_layer=False), cached=True),
        "has weights of its own, and may use them before its base",
        "put these weights into a layer",
        [lambda: run(B("base"), model=half_read(in_layer=True), cached=True)],
        is_cached,
    ),
    "a train function of one's own": (
        lambda: run(B("base"), model=graph_of(OwnFunction), cached=True),
        "which may read batches, but these hold features",
        "override `train_step` or `test_step` instead",
        [lambda: run(B("base"), model=graph_of(OwnStep), cached=True)],
        is_cached,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_remedy_that_fits(name: str):
    broken, message, remedy, mended, is_right = CASES[name]
    text = broken().text
    assert message in text, text
    assert remedy in text, text
    for run_again in mended:
        seen = run_again()
        assert message not in seen.text, seen.text
        assert is_right(seen), seen


def test_the_first_remedy_for_augmentation_is_not_to_switch_it_off():
    """FreezeBase over augmentation would run it in inference mode: images wouldn't be augmented."""
    seen = run(B("base"), model=behind(L.GaussianNoise(0.1, name="noise")), cached=True)
    assert "FreezeBase" not in seen.text


def test_flags_that_were_set_before_fit_are_enough_for_a_cache():
    model = builders.nested()
    freeze(builders.layer(model, "base"))
    assert is_cached(run(model=builders.compiled(model), cached=True))
