"""Every wrong argument is an error before the first step, with a message that says what to do."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
import pytest

from keras_freeze import (
    FreezeBase,
    FreezeError,
    GradualUnfreeze,
    LayerMatchError,
    RecompileOnTrainableChange,
    Schedule,
    ScheduleError,
    Stage,
    freeze,
    select_layers,
    unfreeze,
)
from keras_freeze.graph.find_base import find_base
from tests import builders as B

pytestmark = pytest.mark.one_backend

L = keras.layers

FORMS = ("'block5_*'", "a Layer", "callable")  # the ways to write a selector


def assert_refused(kind: type[Exception], parts: tuple[str, ...], action: Callable[[], Any]):
    with pytest.raises(kind) as error:
        action()
    assert type(error.value) is kind
    missing = [part for part in parts if part not in str(error.value)]
    assert not missing, f"{missing} not in: {error.value}"


BAD_SELECTORS = {
    "typo": ("b_3", ["`selector`", "'b_3'", "Closest names: 'b3'"]),
    "typo in a path": ("base/bx", ["'base/bx'", "Closest names"]),
    "typo in a glob": ("haed*", ["'haed*'", "'head'"]),
    "wrong case": ("HEAD", ["'HEAD'"]),
    "typo in a slice": ("bb2:", ["'bb2'", "'b2'", "'bb2:'"]),
    "typo at the end of a slice": (":haed", ["'haed'", "'head'", "':haed'"]),
    "typo in a list": (["b1", "haed"], ["'haed'", "'head'"]),
    "typo in an inner list": (["b1", ["b2", "haed"]], ["'haed'", "'head'"]),
    "typo behind a !": (["all", "!haed"], ["'haed'", "'head'"]),
    "regular expression": ("re:haed", ["'re:haed'", "'head'"]),
    "regular expression of a part": ("re:b", ["'re:b'"]),
    "broken regular expression": ("re:b[", ["`selector`", "regular expression", "'re:b['"]),
    "callable that wants nothing": (lambda layer: False, ["`selector`", "matches"]),
    "layer of another model": (L.Dense(1, name="foreign"), ["`selector`", "'foreign'"]),
    "-0": ("-0:", ["`selector`", "'-0:'", "'all'", "'-20:'"]),
    "-0 at the end": (":-0", ["':-0'", "'all'"]),
    "0%": ("0%", ["`selector`", "'0%'", "above 0%", "at most 100%"]),
    "0.0%": ("0.0%", ["'0.0%'", "above 0%"]),
    "too much": ("101%", ["'101%'", "at most 100%"]),
    "negative share": ("-20%", ["'-20%'", "above 0%"]),
    "index out of range": ("-99:", ["`selector`", "-99", "8 layers", "'-99:'"]),
    "index far behind": (":99", ["99", "8 layers", "':99'"]),
    "slice without ends": (":", ["`selector`", "':'", "'first:'", "'first:last'"]),
    "slice with a step": ("b1:b3:2", ["'b1:b3:2'", "'first:last'"]),
    "slice in the wrong order": ("b3:b1", ["empty", "'b1' comes before 'b3'", "'b3:b1'"]),
    "indices in the wrong order": ("-1:-2", ["empty", "'-1:-2'"]),
    "only !": ("!b1", ["`selector`", "['all', '!b1']"]),
    "list of only !": (["!b1", "!b2"], ["['all', '!b1']", "['!b1', '!b2']"]),
    "nothing left over": (["b1", "!b1"], ["no layer is left", "['b1', '!b1']"]),
    "empty": ("", ["`selector`", "''", *FORMS]),
    "blank": ("  ", ["`selector`", "'  '", *FORMS]),
    "empty list": ([], ["`selector`", "[]", *FORMS]),
    "empty list in a list": (["b1", []], ["`selector`", "[]", *FORMS]),
    "None": (None, ["`selector`", "None", *FORMS]),
    "None in a list": (["b1", None], ["`selector`", "None", *FORMS]),
    "number": (5, ["`selector`", "5", *FORMS]),
    "bool": (True, ["`selector`", "True", *FORMS]),
    "bytes": (b"b1", ["`selector`", "b'b1'", *FORMS]),
    "set": ({"b1"}, ["`selector`", "{'b1'}", *FORMS]),
    "mapping": ({1: "b1"}, ["`selector`", "{1: 'b1'}", *FORMS]),
    "class of layers": (L.Dense, ["`selector`", "Dense"]),
}


@pytest.fixture(scope="module")
def model() -> keras.Model:
    """For tests that don't change it."""
    return B.nested(extras=True)


@pytest.mark.parametrize("case", BAD_SELECTORS)
def test_bad_selector(model: keras.Model, case: str):
    selector, parts = BAD_SELECTORS[case]
    assert_refused(LayerMatchError, tuple(parts), lambda: select_layers(model, selector))


def test_an_error_in_a_callable_of_the_user_is_the_users(model: keras.Model):
    with pytest.raises(ZeroDivisionError):
        select_layers(model, lambda layer: 1 / 0)


def unbuilt() -> keras.Model:
    class Unbuilt(keras.Model):
        def build(self, shape):
            self.only = L.Dense(1, name="only")
            self.only.build(shape)
            self.built = True

        def call(self, inputs):
            return self.only(inputs)

    return Unbuilt()


def unbuilt_chain() -> keras.Model:
    inner = keras.Sequential([L.Dense(2, name="a")], name="inner")
    return keras.Sequential([inner, L.Dense(1, name="b")])


def half_built() -> keras.Model:
    model = unbuilt_chain()
    model.layers[1].build((None, 2))
    return model


def weightless() -> keras.Model:
    return keras.Sequential([keras.Input((4,)), L.ReLU(), L.Softmax()], name="weightless")


UNBUILT = {
    "name": (lambda: select_layers(unbuilt(), "only"), ["'only'", "Build it", "model.build"]),
    "all": (lambda: select_layers(unbuilt(), "all"), ["'all'", "Build it", "model.build"]),
    "no layers": (lambda: select_layers(keras.Sequential(), "a"), ["'a'", "Build it"]),
    "share": (lambda: select_layers(unbuilt_chain(), "50%"), ["'50%'", "weights"]),
    "share of half": (lambda: select_layers(half_built(), "50%"), ["'50%'", "isn't built"]),
    "share of no weights": (lambda: select_layers(weightless(), "50%"), ["'50%'", "weights"]),
    "base": (lambda: find_base(unbuilt()), ["`base`", "built", "base=None"]),
    "nested base": (lambda: find_base(unbuilt_chain()), ["`base`", "built", "base=None"]),
    "base without weights": (lambda: find_base(weightless()), ["`base`", "0 layer"]),
}


def test_a_loop_that_never_builds_its_model():
    """`fit` builds a model before its callbacks begin; a custom loop must build it."""
    model = unbuilt_chain()
    model.compile("sgd", "mse")
    callbacks = keras.callbacks.CallbackList([FreezeBase("inner")], model=model)
    assert_refused(
        FreezeError, ("`model`", "must be built", "model.build"), callbacks.on_train_begin
    )


@pytest.mark.parametrize("case", UNBUILT)
def test_a_model_that_has_no_layers_or_weights_yet(case: str):
    action, parts = UNBUILT[case]
    assert_refused(LayerMatchError, tuple(parts), action)


SCHEDULE_FORMS = ("`schedule`", "{epoch: selector or Stage}", "a list of Stage")
KEYS = (
    "at, unfreeze, freeze, learning_rate, base_learning_rate, layer_decay, warmup_steps, "
    "optimizer, restore_best, name",
)

BAD_SCHEDULES = {
    "string": ("block5_*", ScheduleError, [*SCHEDULE_FORMS, "'block5_*'", "str"]),
    "number": (10, ScheduleError, [*SCHEDULE_FORMS, "10", "int"]),
    "None": (None, ScheduleError, [*SCHEDULE_FORMS, "None"]),
    "empty mapping": ({}, ScheduleError, ["`schedule`", "{}", "{10: 'block5_*'}"]),
    "empty list": ([], ScheduleError, ["`schedule`", "[]", "{10: 'block5_*'}"]),
    "negative epoch": ({-1: "b"}, ScheduleError, ["`at`", "at=-1", ">= 0"]),
    "float epoch": ({2.0: "b"}, ScheduleError, ["`at`", "at=2.0", "float", "whole number"]),
    "bool epoch": ({True: "b"}, ScheduleError, ["`at`", "at=True", "bool"]),
    "string epoch": ({"2": "b"}, ScheduleError, ["`at`", "at='2'", "str"]),
    "None epoch": ({None: "b"}, ScheduleError, ["`at`", "at=None"]),
    "two at one epoch": (
        [Stage(5, "b1"), Stage(3, "b2"), Stage(5, "b3")],
        ScheduleError,
        ["`schedule`", "epoch 5", "Stage(at=5, unfreeze='b1')", "'b3'", "Join them"],
    ),
    "unknown key": (
        {5: {"unfreze": "b"}},
        ScheduleError,
        ["epoch 5", "'unfreze'", "Did you mean 'unfreeze'?", "unfreze='b'", *KEYS],
    ),
    "unknown key in a list": (
        [{"at": 5, "learning_rat": 0.1}],
        ScheduleError,
        ["epoch 5", "'learning_rat'", "Did you mean 'learning_rate'?", *KEYS],
    ),
    "unknown key like nothing": ({5: {"xyz": 1}}, ScheduleError, ["epoch 5", "'xyz'", *KEYS]),
    "key that is no string": ({5: {7: 1}}, ScheduleError, ["epoch 5", "7", *KEYS]),
    "no selector": ({5: None}, ScheduleError, ["`schedule`", "epoch 5", "{5: 'block5_*'}"]),
    "empty stage": ({5: {}}, ScheduleError, ["at=5", "changes nothing", "`unfreeze`"]),
    "another epoch in the stage": (
        {5: Stage(6, "b")},
        ScheduleError,
        ["`schedule`", "Stage(at=6)", "epoch 5", "same epoch"],
    ),
    "another epoch in the mapping": (
        {5: {"at": 6, "unfreeze": "b"}},
        ScheduleError,
        ["`schedule`", "Stage(at=6)", "epoch 5"],
    ),
    "selectors without epochs": (["b1"], ScheduleError, ["`schedule`", "'b1'", "Stage", *KEYS]),
    "stage without an epoch": (
        [{"unfreeze": "b"}],
        ScheduleError,
        ["`schedule`", "`at` is required", "{'unfreeze': 'b'}"],
    ),
    "selector": ({5: 3}, LayerMatchError, ["`schedule`", "`unfreeze`", "at=5", "3", *FORMS]),
    "share": ({5: "0%"}, LayerMatchError, ["`unfreeze`", "at=5", "'0%'", "above 0%"]),
    "selector in a list": ({5: ["a", ""]}, LayerMatchError, ["`unfreeze`", "at=5", *FORMS]),
    "frozen selector": (
        [Stage(1, "a"), {"at": 5, "freeze": "-0:"}],
        LayerMatchError,
        ["`freeze`", "at=5", "'-0:'"],
    ),
}


@pytest.mark.parametrize("take", [Schedule, GradualUnfreeze])
@pytest.mark.parametrize("case", BAD_SCHEDULES)
def test_bad_schedule(case: str, take: Callable[[Any], Any]):
    schedule, kind, parts = BAD_SCHEDULES[case]
    assert_refused(kind, tuple(parts), lambda: take(schedule))


BAD_ARGUMENTS = {
    "stage, negative epoch": (lambda: Stage(-1, "b"), ScheduleError, ["`at`", "at=-1", ">= 0"]),
    "stage, float epoch": (lambda: Stage(1.5, "b"), ScheduleError, ["`at`", "at=1.5", "float"]),
    "stage, bool epoch": (lambda: Stage(False, "b"), ScheduleError, ["`at`", "at=False"]),
    "stage, string epoch": (lambda: Stage("1", "b"), ScheduleError, ["`at`", "at='1'", "str"]),
    "stage, nothing": (
        lambda: Stage(3),
        ScheduleError,
        ["at=3", "changes nothing", "`unfreeze`", "`freeze`", "`learning_rate`"],
    ),
    "stage, selector": (lambda: Stage(3, 5), LayerMatchError, ["`unfreeze`", "at=3", "5"]),
    "stage, freeze": (lambda: Stage(3, freeze=""), LayerMatchError, ["`freeze`", "at=3", "''"]),
    "stage, key": (
        lambda: Stage(3, "b", learningrate=0.1),
        ScheduleError,
        ["at=3", "'learningrate'", "Did you mean 'learning_rate'?", "learningrate=0.1", *KEYS],
    ),
    "stage, optimizer": (
        lambda: Stage(3, "b", optimizer="cary"),
        ScheduleError,
        ["`optimizer`", "at=3", "'cary'", "Did you mean 'carry'?", "'reset'"],
    ),
    "stage, optimizer object": (
        lambda: Stage(3, "b", optimizer=True),
        ScheduleError,
        ["`optimizer`", "optimizer=True", "'carry' or 'reset'"],
    ),
    "stage, name": (
        lambda: Stage(3, "b", name=7),
        ScheduleError,
        ["`name`", "at=3", "name=7", "string"],
    ),
    "optimizer": (
        lambda: GradualUnfreeze({1: "b"}, optimizer="rest"),
        FreezeError,
        ["`optimizer`", "optimizer='rest'", "Did you mean 'reset'?", "'carry'"],
    ),
    "optimizer, None": (
        lambda: GradualUnfreeze({1: "b"}, optimizer=None),
        FreezeError,
        ["`optimizer`", "optimizer=None", "'carry' or 'reset'"],
    ),
    "optimizer of recompile": (
        lambda: RecompileOnTrainableChange(optimizer="keep"),
        FreezeError,
        ["`optimizer`", "optimizer='keep'", "'carry' or 'reset'"],
    ),
    "batch_norm": (
        lambda: FreezeBase(batch_norm="frezze"),
        FreezeError,
        ["`batch_norm`", "batch_norm='frezze'", "Did you mean 'freeze'?", "'train'"],
    ),
    "batch_norm, bool": (
        lambda: FreezeBase(batch_norm=True),
        FreezeError,
        ["`batch_norm`", "batch_norm=True", "'freeze' or 'train'"],
    ),
    "batch_norm of the schedule": (
        lambda: GradualUnfreeze({1: "b"}, batch_norm="trian"),
        FreezeError,
        ["`batch_norm`", "batch_norm='trian'", "Did you mean 'train'?"],
    ),
    "batch_norm of freeze": (
        lambda: freeze(L.Dense(1), batch_norm="x"),
        FreezeError,
        ["`batch_norm`", "batch_norm='x'", "'freeze' or 'train'"],
    ),
    "batch_norm of unfreeze": (
        lambda: unfreeze(L.Dense(1), batch_norm=None),
        FreezeError,
        ["`batch_norm`", "batch_norm=None", "'freeze' or 'train'"],
    ),
    "layers, name": (
        lambda: freeze("b1"),
        LayerMatchError,
        ["`layers`", "'b1'", "select_layers"],
    ),
    "layers, none": (lambda: unfreeze([]), LayerMatchError, ["`layers`", "empty", "[]"]),
    "layers, only batch norm": (
        lambda: unfreeze(L.BatchNormalization(name="bn")),
        LayerMatchError,
        ["`layers`", "['bn']", "batch_norm='train'"],
    ),
    "model to select from": (
        lambda: select_layers("vgg19", "b1"),
        LayerMatchError,
        ["`model_or_base`", "'vgg19'", "Keras model or layer"],
    ),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_argument(case: str):
    action, kind, parts = BAD_ARGUMENTS[case]
    assert_refused(kind, tuple(parts), action)


@pytest.mark.parametrize("rate", [0, 0.0, -1e-3, float("nan"), float("inf"), True, "slow", [0.1]])
def test_bad_learning_rate(rate: Any):
    parts = ("`learning_rate`", f"learning_rate={rate!r}", "above 0", "LearningRateSchedule")
    assert_refused(ScheduleError, parts, lambda: Stage(3, learning_rate=rate))


def test_a_stage_needs_an_epoch():
    with pytest.raises(TypeError, match="'at'"):
        Stage(unfreeze="b")


@pytest.mark.parametrize(
    "callback", [FreezeBase(), GradualUnfreeze({1: "b"}), RecompileOnTrainableChange()]
)
def test_a_callback_outside_fit(callback: keras.callbacks.Callback):
    parts = (type(callback).__name__, "model.fit(..., callbacks=[...])", "CallbackList")
    assert_refused(FreezeError, parts, callback.on_train_begin)


def thaw(schedule: Any, **kwargs: Any) -> GradualUnfreeze:
    return GradualUnfreeze(schedule, verbose=0, **kwargs)


# In `fit`, on a model with the layers b1, bn, drop, b2, b3 in "base", and "head".
BAD_FITS = {
    "base, typo": (lambda: [FreezeBase("bsae")], LayerMatchError, ["`base`", "'bsae'", "'base'"]),
    "base, number": (lambda: [FreezeBase(5)], LayerMatchError, ["`base`", "5", *FORMS]),
    "base, empty list": (lambda: [FreezeBase([])], LayerMatchError, ["`base`", "[]", *FORMS]),
    "base, share": (lambda: [FreezeBase("0%")], LayerMatchError, ["`base`", "'0%'"]),
    "base, another model": (
        lambda: [FreezeBase(B.functional_base())],
        LayerMatchError,
        ["`base`", "part of the model", "base='base'", "'head'"],
    ),
    "base of the schedule": (
        lambda: [thaw({1: "b3"}, base="bsae")],
        LayerMatchError,
        ["`base`", "'bsae'", "'base'"],
    ),
    "stage, typo": (
        lambda: [FreezeBase(), thaw({1: "b_3"})],
        LayerMatchError,
        ["`unfreeze`", "Stage 1 (at=1)", "'b_3'", "Closest names: 'b3'"],
    ),
    "later stage, typo": (
        lambda: [FreezeBase(), thaw([Stage(1, "b3"), Stage(2, freeze="haed", name="last")])],
        LayerMatchError,
        ["`freeze`", "Stage 2 'last' (at=2)", "'haed'", "'head'"],
    ),
    "stage without FreezeBase": (
        lambda: [thaw({2: "block5_*"})],
        LayerMatchError,
        ["`unfreeze`", "Stage 1 (at=2)", "'block5_*'"],
    ),
    "stage, index": (
        lambda: [FreezeBase(), thaw({1: "-99:"})],
        LayerMatchError,
        ["`unfreeze`", "Stage 1 (at=1)", "'base' has 6 layers", "-99"],
    ),
    "stage, wrong order": (
        lambda: [FreezeBase(), thaw({1: "b3:b1"})],
        LayerMatchError,
        ["`unfreeze`", "Stage 1 (at=1)", "empty", "'b3:b1'"],
    ),
    "only batch norm": (
        lambda: [FreezeBase(), thaw({1: "bn"})],
        LayerMatchError,
        ["`unfreeze`", "Stage 1 (at=1)", "['bn']", "batch_norm='train'"],
    ),
    "freeze and unfreeze": (
        lambda: [FreezeBase(), thaw([Stage(1, "b2:", freeze="b3", name="both")])],
        ScheduleError,
        ["Stage 1 'both' (at=1)", "['b3']", "unfreeze='b2:'", "freeze='b3'", "Remove them"],
    ),
    "nothing is trainable": (
        lambda: [FreezeBase("all")],
        ScheduleError,
        ["Stage 0", "nothing trainable", "'all'", "holds all weights", "Add a head", "':base'"],
    ),
    "the model as its base": (
        lambda: [FreezeBase(), FreezeBase("head")],
        ScheduleError,
        ["Stage 0", "nothing trainable", "'base'", "'head'", "smaller base"],
    ),
    "nothing stays trainable": (
        lambda: [FreezeBase(), thaw([Stage(1, "b3"), Stage(2, freeze=["b3", "head"])])],
        ScheduleError,
        [
            "Stage 2",
            "nothing trainable",
            "so is the rest: 'head' by Stage(at=2, freeze=['b3', 'head'])",
            "Leave one of these trainable",
        ],
    ),
    "two schedules": (
        lambda: [FreezeBase(), thaw({1: "b3"}), thaw({2: "b2"})],
        ScheduleError,
        ["`callbacks`", "2 GradualUnfreeze", "one list"],
    ),
    "two of recompile": (
        lambda: [RecompileOnTrainableChange(verbose=0), RecompileOnTrainableChange(verbose=0)],
        ScheduleError,
        ["`callbacks`", "2 RecompileOnTrainableChange", "Use one"],
    ),
}


def flags(model: keras.Model) -> list[bool]:
    return [layer.trainable for layer in B.layer(model, "base").layers]


def steps(model: keras.Model) -> int:
    return int(keras.ops.convert_to_numpy(model.optimizer.iterations))


@pytest.mark.parametrize("case", BAD_FITS)
def test_a_fit_that_is_refused_makes_no_step(case: str):
    make, kind, parts = BAD_FITS[case]
    model = B.compiled(B.nested(extras=True))
    x, y = B.data()
    before, weights = flags(model), B.weights(model)

    assert_refused(
        kind, tuple(parts), lambda: model.fit(x, y, epochs=3, verbose=0, callbacks=make())
    )

    assert steps(model) == 0
    assert flags(model) == before
    B.assert_equal(weights, B.weights(model))


def test_a_model_that_was_refused_can_be_fitted():
    model = B.compiled(B.nested(extras=True))
    x, y = B.data()
    with pytest.raises(LayerMatchError):
        model.fit(x, y, verbose=0, callbacks=[FreezeBase("bsae")])
    before = B.weights(model)
    model.fit(x, y, verbose=0, callbacks=[FreezeBase("base")])
    assert B.changed(before, B.weights(model)) == {"head"}


def test_a_refused_second_fit_leaves_the_first_ones_state():
    model = B.compiled(B.nested())
    x, y = B.data()
    model.fit(x, y, verbose=0, callbacks=[FreezeBase(), thaw({0: Stage(0, learning_rate=0.1)})])
    made, weights = steps(model), B.weights(model)
    with pytest.raises(LayerMatchError):
        model.fit(x, y, verbose=0, callbacks=[FreezeBase(), thaw({0: "b_3"})])
    assert steps(model) == made > 0
    B.assert_equal(weights, B.weights(model))


class Stop(keras.callbacks.Callback):
    """Ends a fit before its first step."""

    def on_train_batch_begin(self, batch, logs=None):
        raise KeyboardInterrupt


def warned_of(callbacks: list[Any], model: keras.Model | None = None, first: int = 0) -> list[str]:
    """Returns the warnings of a fit from epoch `first` to 3 before its first step."""
    model = model or B.compiled(B.nested(extras=True))
    x, y = B.data()
    run = {"epochs": 3, "initial_epoch": first, "verbose": 0, "callbacks": [Stop(), *callbacks]}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(KeyboardInterrupt):
            model.fit(x, y, **run)
    return [str(warning.message) for warning in caught if warning.category is UserWarning]


WARNINGS = {
    "never reached": (
        lambda: [FreezeBase(), thaw([Stage(1, "b3"), Stage(3, "b2", name="late")])],
        ["Stage 2 'late' (at=3)", "never reached", "after 3 epochs", "epochs=4"],
    ),
    "untrained head": (
        lambda: [FreezeBase(), thaw({0: "b3"})],
        ["epoch 0", "untrained", "random head", "pretrained", "later epoch", "unfreeze='b3'"],
    ),
    "nothing changes": (
        lambda: [FreezeBase(), thaw({0: Stage(0, learning_rate=0.1), 1: Stage(1, freeze="b2")})],
        ["Stage 2 (at=1)", "changes no layer", "freeze='b2'"],
    ),
    "thawed twice": (
        lambda: [FreezeBase(), thaw([Stage(1, "b3"), Stage(2, "b3")])],
        ["Stage 2 (at=2)", "changes no layer", "unfreeze='b3'"],
    ),
}


@pytest.mark.parametrize("case", WARNINGS)
def test_what_is_probably_not_meant_is_warned_of(case: str):
    make, parts = WARNINGS[case]
    [message] = [text for text in warned_of(make()) if parts[1] in text]
    for part in parts:
        assert part in message


QUIET = {
    "a schedule": lambda: [FreezeBase(), thaw({1: "b3"})],
    "a rate alone": lambda: [FreezeBase(), thaw([Stage(1, learning_rate=0.1)])],
    "a rate from the first epoch": lambda: [FreezeBase(), thaw([Stage(0, learning_rate=0.1)])],
    "a name alone": lambda: [FreezeBase(), thaw([Stage(1, name="here")])],
    "no schedule": lambda: [FreezeBase()],
    "only watching": lambda: [RecompileOnTrainableChange(verbose=0)],
}


@pytest.mark.parametrize("case", QUIET)
def test_what_is_meant_is_not_warned_of(case: str):
    assert warned_of(QUIET[case]()) == []


def test_a_run_that_is_resumed_is_not_warned_of():
    assert warned_of([FreezeBase(), thaw({1: "b3"})], first=1) == []


def test_a_trained_head_is_not_warned_of():
    model = B.compiled(B.nested())
    x, y = B.data()
    model.fit(x, y, verbose=0, callbacks=[FreezeBase()])
    assert warned_of([FreezeBase(), thaw({0: "b3"})], model) == []


def test_everything_that_is_raised_is_a_value_error():
    assert issubclass(FreezeError, ValueError)
    assert issubclass(ScheduleError, FreezeError)
    assert issubclass(LayerMatchError, FreezeError)
    assert not issubclass(ScheduleError, LayerMatchError)


def test_a_message_of_many_layers_stays_short():
    many = [keras.Input((2,)), *(L.Dense(2, name=f"layer_{n}") for n in range(40))]
    model = keras.Sequential(many)
    with pytest.raises(LayerMatchError) as error:
        select_layers(model, "layer_x")
    assert len(str(error.value)) < 300
    with pytest.raises(LayerMatchError) as error:
        find_base(model, L.Dense(1, name="other"))
    assert len(str(error.value)) < 400
