"""After `fit`, an interruption or many changes, the optimizer is a plain one."""

from __future__ import annotations

import gc
import re
import sys
import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from keras_freeze import (
    FreezeBase,
    FreezeError,
    GradualUnfreeze,
    RecompileOnTrainableChange,
    Stage,
)
from keras_freeze.keras_internals import optimizer_rebuild, variable_ages
from tests.builders import BACKEND, RATE, changed, compiled, data, layer, nested, weights

optimizers = keras.optimizers
pytestmark = [
    pytest.mark.one_backend(
        but=[
            "Adam-carry",
            "Adam-reset",
            "test_a_saved_model_brings_its_optimizer_back",
            "test_weights_set_between_two_fits_are_not_overwritten_by_old_averages",
            "test_tensorflow_can_write_checkpoints",
            "test_a_stage_that_fails_leaves_a_model_for_a_plain_fit",
            "test_each_change_is_one_rebuild_and_one_trace",
            "test_an_unchanged_set_is_no_change",
            "carry-4-False",
        ]
    ),
    pytest.mark.filterwarnings("ignore:.* is never reached"),
]
SCHEDULE = optimizers.schedules.ExponentialDecay(2.0**-5, 2, 0.5)


def multi(rate: Any) -> keras.optimizers.Optimizer:
    mapped = optimizers.OptimizerMap(optimizers.Adam(rate), {"head/.*": optimizers.Nadam(rate)})
    return optimizers.MultiOptimizer(mapped)


MAKES: dict[str, Callable[[Any], Any]] = {
    "SGD": optimizers.SGD,
    "Adam": optimizers.Adam,
    "Nadam": optimizers.Nadam,
    "Adafactor": optimizers.Adafactor,
    "averages": lambda rate: optimizers.AdamW(rate, use_ema=True),
    "accumulation": lambda rate: optimizers.Adam(rate, gradient_accumulation_steps=2),
    "loss scale": lambda rate: optimizers.LossScaleOptimizer(optimizers.Adam(rate)),
}
if hasattr(optimizers, "MultiOptimizer"):
    MAKES["several"] = multi


def thawing(mode: str = "carry", **rates: Any) -> list[keras.callbacks.Callback]:
    """The base is unfrozen at epoch 1 and partly frozen again at epoch 2."""
    stages = [
        Stage(1, ["b2", "b3"], learning_rate=rates.get("first")),
        Stage(2, "b1", "b3", learning_rate=rates.get("second")),
    ]
    return [FreezeBase(), GradualUnfreeze(stages, optimizer=mode, verbose=0)]


def fit(model: keras.Model, callbacks: Any = (), **kwargs: Any) -> Any:
    return model.fit(*data(8), batch_size=4, callbacks=list(callbacks), verbose=0, **kwargs)


def eager(make: Callable[[Any], Any], rate: Any = RATE) -> keras.Model:
    """Eager steps create the same optimizer without tracing."""
    return compiled(nested(), make(rate), run_eagerly=True)


def described(state: list[Any]) -> list[tuple[Any, ...]]:
    """Names show the order. Nadam's product has no name, so Keras numbers it."""
    names = [re.sub(r"^variable_\d+$", "variable", variable.name) for variable in state]
    return [(n, tuple(v.shape), str(v.dtype)) for n, v in zip(names, state, strict=True)]


def kinds(given: Any) -> dict[str, type]:
    """Returns the attributes' types. Keras' own wrappers use a list or a tuple."""
    held = vars(given).items()
    return {name: list if isinstance(v, (list, tuple)) else type(v) for name, v in held}


def assert_plain(given: Any, expected: Any) -> None:
    """Equal to an optimizer that never used keras_freeze, except for its values."""
    assert described(given.variables) == described(expected.variables)
    assert kinds(given) == kinds(expected)
    for one, other in zip(
        optimizer_rebuild.family(given)[1:], optimizer_rebuild.family(expected)[1:], strict=True
    ):
        assert_plain(one, other)


def of_a_plain_fit(model: keras.Model, make: Callable[[Any], Any], rate: Any = RATE) -> Any:
    """Returns the optimizer of a plain fit of an equal model with equal flags."""
    other = eager(make, rate)
    for name in ("b1", "b2", "b3"):
        layer(other, name).trainable = layer(model, name).trainable
    compiled(other, make(rate), run_eagerly=True)
    fit(other)
    return other.optimizer


@pytest.mark.parametrize("mode", ["carry", "reset"])
@pytest.mark.parametrize("name", MAKES)
def test_is_plain_after_a_fit(name, mode):
    model = eager(MAKES[name])
    fit(model, thawing(mode), epochs=3)
    assert_plain(model.optimizer, of_a_plain_fit(model, MAKES[name]))


def test_is_plain_after_a_schedule_and_a_float():
    model = eager(optimizers.Adam)
    fit(model, thawing(first=SCHEDULE, second=2.0**-7), epochs=3)
    assert_plain(model.optimizer, of_a_plain_fit(model, optimizers.Adam))


def test_is_plain_after_a_float_in_place_of_a_schedule():
    model = eager(optimizers.Adam, SCHEDULE)
    fit(model, thawing(first=2.0**-7), epochs=3)
    assert_plain(model.optimizer, of_a_plain_fit(model, optimizers.Adam))


def test_a_saved_model_brings_its_optimizer_back(tmp_path):
    model = eager(optimizers.Adam)
    fit(model, thawing(), epochs=3)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    values = [keras.ops.convert_to_numpy(v) for v in loaded.optimizer.variables]
    expected = [keras.ops.convert_to_numpy(v) for v in model.optimizer.variables]
    assert len(values) == len(expected)
    assert all(np.array_equal(a, b) for a, b in zip(values, expected, strict=True))
    assert any(values[2].flat)  # not all zero
    fit(loaded)


def test_weights_set_between_two_fits_are_not_overwritten_by_old_averages():
    model = eager(lambda rate: optimizers.SGD(rate, use_ema=True))
    fit(model, thawing(), epochs=3)
    model.set_weights([value + 1 for value in model.get_weights()])
    before = weights(model)
    fit(model, thawing(), epochs=1)
    assert changed(before, weights(model)) == {"head"}


@pytest.mark.parametrize(("start", "expected"), [(0, 2.0**-6), (3, 2.0**-6), (1, 2.0**-8)])
def test_a_reset_forgets_the_rate_of_earlier_stages_also_in_a_later_fit(start, expected):
    stages = [Stage(1, "b3", learning_rate=2.0**-8), Stage(2, "b2"), Stage(3, None, "b3")]
    thaw = [FreezeBase(), GradualUnfreeze(stages, optimizer="reset", verbose=0)]
    model = eager(optimizers.Adam)
    uninterrupted = fit(model, thaw, epochs=4).history["learning_rate"]
    assert uninterrupted == [2.0**-6, 2.0**-8, 2.0**-6, 2.0**-6]
    assert fit(model, thaw, initial_epoch=start, epochs=4).history["learning_rate"][0] == expected


class OwnSlots(optimizers.Optimizer):
    """A custom optimizer with its momenta in a dictionary, or in one variable for all."""

    def __init__(self, rate, in_dictionary):
        super().__init__(learning_rate=rate)
        self.in_dictionary = in_dictionary

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        made = {self._var_key(v): self.add_variable_from_reference(v, name="m") for v in variables}
        self.momenta = made if self.in_dictionary else (tuple(made.values()),)

    def update_step(self, gradient, variable, learning_rate):
        if self.in_dictionary:
            momentum = self.momenta[self._var_key(variable)]
        else:
            momentum = self.momenta[0][self._get_variable_index(variable)]
        self.assign(momentum, momentum * 0.5 + gradient)
        self.assign_sub(variable, keras.ops.cast(learning_rate, variable.dtype) * momentum)


WRAPPERS = ("Optimizer", "LossScaleOptimizer", "MultiOptimizer")
ALL = [
    name
    for name, kind in vars(optimizers).items()
    if isinstance(kind, type) and issubclass(kind, optimizers.Optimizer) and name not in WRAPPERS
]


@pytest.mark.parametrize("name", ALL)
def test_every_optimizer_of_keras_can_be_carried(name):
    """Muon of Keras 3.12 keeps its momenta in dictionaries by path."""
    if name == "Muon" and BACKEND == "tensorflow" and keras.__version__.startswith("3.12."):
        with pytest.raises(AttributeError, match="path"):
            fit(eager(optimizers.Muon))
        pytest.skip("Keras 3.12 can't use Muon on TensorFlow at all")
    model = eager(getattr(optimizers, name))
    before = weights(model)
    fit(model, thawing(), epochs=3)
    assert changed(before, weights(model)) == {"b1", "b2", "b3", "head"}


def test_slots_in_a_dictionary_are_carried():
    model = eager(lambda rate: OwnSlots(rate, in_dictionary=True))
    head, seen = layer(model, "head").kernel, []

    def note(epoch, logs=None):
        slot = model.optimizer.momenta[model.optimizer._var_key(head)]
        seen.append(np.array(keras.ops.convert_to_numpy(slot)))

    watch = keras.callbacks.LambdaCallback(on_epoch_begin=note, on_epoch_end=note)
    fit(model, [*thawing(), watch], epochs=3)
    assert np.any(seen[1])
    assert np.array_equal(seen[1], seen[2])
    assert np.array_equal(seen[3], seen[4])


def test_slots_that_cannot_be_carried_are_refused_before_the_first_step():
    model = eager(lambda rate: OwnSlots(rate, in_dictionary=False))
    before = weights(model)
    with pytest.raises(FreezeError, match=r"OwnSlots.*optimizer='reset'"):
        fit(model, thawing(), epochs=3)
    assert not changed(before, weights(model))
    fit(model, thawing("reset"), epochs=3)
    assert changed(before, weights(model)) == {"b1", "b2", "b3", "head"}


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of TensorFlow")
def test_tensorflow_can_write_checkpoints(tmp_path):
    """It refuses if an item was deleted from a list."""
    import tensorflow as tf

    model, other = eager(optimizers.Adam), eager(optimizers.Adam)
    for each in (model, other):
        fit(each, thawing(first=SCHEDULE, second=2.0**-7), epochs=3)
    path = tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(tmp_path / "it")
    tf.train.Checkpoint(model=other, optimizer=other.optimizer).read(path).assert_consumed()
    for mine, restored in zip(model.optimizer.variables, other.optimizer.variables, strict=True):
        assert np.array_equal(mine.numpy(), restored.numpy())
    model.export(tmp_path / "exported", verbose=False)


@pytest.fixture
def quick_collection():
    """Excludes objects of earlier tests from garbage collection."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("quick_collection")
def test_nothing_is_remembered_of_a_model_that_is_gone():
    model = eager(optimizers.Adam)
    fit(model, thawing(), epochs=3)
    assert variable_ages.births_of(model.optimizer)
    gone = weakref.ref(model.optimizer)
    before = len(variable_ages._BIRTHS)
    del model
    gc.collect()
    assert gone() is None
    assert len(variable_ages._BIRTHS) < before


def snapshot(model: keras.Model) -> dict[str, Any]:
    """Returns all that an interrupted change could affect: object identities, and values."""
    found: dict[str, Any] = {"flags": [each.trainable for each in model._flatten_layers()]}
    found |= weights(model)
    for number, member in enumerate(optimizer_rebuild.family(model.optimizer)):
        lists = {k: [*map(id, v)] for k, v in vars(member).items() if isinstance(v, list)}
        others = {k: id(v) for k, v in vars(member).items() if not isinstance(v, (list, dict))}
        state = {
            "lists": lists,
            "others": others,
            "tracked": [*map(id, member.variables)],
            "indices": dict(member._trainable_variables_indices),
            "births": variable_ages.births_of(member),
        }
        values = enumerate(map(keras.ops.convert_to_numpy, member.variables))
        found |= {f"optimizer {number}/{key}": value for key, value in [*state.items(), *values]}
    return found


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    assert before.keys() == after.keys()
    return [key for key in before if not np.array_equal(before[key], after[key])]


def rebuild(model: keras.Model, mode: str, interrupt_at: int = 0) -> int:
    """Rebuilds, with a KeyboardInterrupt at one line of the module. Returns how many lines ran."""
    count, before = 0, sys.gettrace()

    def local(frame, event, arg):
        nonlocal count
        count += event == "line"
        if count == interrupt_at:
            raise KeyboardInterrupt
        return local

    sys.settrace(
        lambda frame, *_: local if frame.f_code.co_filename == optimizer_rebuild.__file__ else None
    )
    try:
        optimizer_rebuild.rebuild(model.optimizer, model.trainable_variables, mode)
    finally:
        sys.settrace(before)
    return count


def before_a_change(make: Callable[[Any], Any]) -> keras.Model:
    """A model some steps after a stage: the flags have changed, the optimizer hasn't."""
    model = eager(make)
    fit(model, thawing(), epochs=2)
    model.train_on_batch(*data(4))  # at the end of a fit, the weights equal their averages
    layer(model, "b1").trainable, layer(model, "b3").trainable = True, False
    return model


@pytest.mark.parametrize("mode", ["carry", "reset"])
@pytest.mark.parametrize("name", MAKES)
def test_an_interrupted_rebuild_leaves_everything_as_it_was(name, mode):
    lines = rebuild(before_a_change(MAKES[name]), mode)
    model = before_a_change(MAKES[name])
    before = snapshot(model)
    for line in [*range(1, lines, lines // 9), *range(lines - 6, lines + 1)]:
        with pytest.raises(KeyboardInterrupt):
            rebuild(model, mode, interrupt_at=line)
        assert not differences(before, snapshot(model)), f"interrupted at line {line} of {lines}"
    layer(model, "b1").trainable, layer(model, "b3").trainable = False, True
    fit(model)


BREAKS = [(optimizers.Adam, "build"), (keras.Model, "make_train_function")]


@pytest.mark.parametrize("rate", [None, 2.0**-7])
@pytest.mark.parametrize(("owner", "name"), BREAKS, ids=["build", "make_train_function"])
def test_a_stage_that_fails_leaves_a_model_for_a_plain_fit(owner, name, rate, monkeypatch):
    model, seen = eager(optimizers.Adam), {}

    def fail(*args, **kwargs):
        raise MemoryError("no room")

    def break_it(epoch, logs):
        seen.update(snapshot(model))
        monkeypatch.setattr(owner, name, fail)

    breaking = keras.callbacks.LambdaCallback(on_epoch_end=break_it)
    with pytest.raises(MemoryError, match="no room"):
        fit(model, [*thawing(first=rate), breaking], epochs=3)
    monkeypatch.undo()
    assert not differences(seen, snapshot(model))
    fit(model)  # trains only the head
    assert changed(seen, snapshot(model)) >= {"head"}
    assert not {"b1", "b2", "b3"} & changed(seen, snapshot(model))


class Counted(keras.Model):
    """Counts how often it is traced. On PyTorch, which doesn't trace, counts its steps.

    Keeps a weak reference to each step function.
    """

    traces = 0

    def train_step(self, *args):
        self.traces += 1
        return super().train_step(*args)

    def make_train_function(self, force=False):
        super().make_train_function(force)
        self.made = getattr(self, "made", {})
        self.made[id(self.train_function)] = weakref.ref(self.train_function)


def new_counted(**kwargs: Any) -> Counted:
    inner = nested()
    model = compiled(Counted(inner.inputs, inner.outputs), **kwargs)
    model.optimizer.build(model.trainable_variables)  # else TensorFlow traces the first step twice
    return model


def counted(monkeypatch: pytest.MonkeyPatch) -> tuple[Counted, list[Any]]:
    """A compiled model, and a list that gets an item for each rebuild of its optimizer."""
    model, rebuilds = new_counted(), []
    plain = optimizer_rebuild.rebuild
    monkeypatch.setattr(
        optimizer_rebuild,
        "rebuild",
        lambda *args, **kw: rebuilds.append(args) or plain(*args, **kw),
    )
    return model, rebuilds


def traces_of_a_plain_fit() -> int:
    model = new_counted()
    fit(model)
    return model.traces


def test_each_change_is_one_rebuild_and_one_trace(monkeypatch):
    model, rebuilds = counted(monkeypatch)
    stages = [Stage(0, name="all frozen"), Stage(1, "b3"), Stage(2, "b2"), Stage(3, None, "b3")]
    fit(model, [FreezeBase(), GradualUnfreeze(stages, verbose=0)], epochs=4)
    assert len(rebuilds) == 4  # the first freezes the base
    assert model.traces == 4 * traces_of_a_plain_fit()


@pytest.mark.filterwarnings("ignore:.* changes no layer")
@pytest.mark.parametrize("mode", ["carry", "reset"])
def test_an_unchanged_set_is_no_change(monkeypatch, mode):
    model, rebuilds = counted(monkeypatch)
    stages = [
        Stage(1, "b3", optimizer=mode),
        Stage(2, "b3"),
        Stage(3, learning_rate=2.0**-8),
        Stage(4, name="by name alone"),
    ]
    fit(model, [FreezeBase(), GradualUnfreeze(stages, verbose=0)], epochs=5)
    assert len(rebuilds) == 2
    assert model.traces == {"torch": 10}.get(BACKEND, 2 * traces_of_a_plain_fit())


def test_a_flag_set_to_what_it_is_is_no_change(monkeypatch):
    model, rebuilds = counted(monkeypatch)

    def touch(epoch, logs):
        layer(model, "b1").trainable = True

    touching = keras.callbacks.LambdaCallback(on_epoch_begin=touch)
    fit(model, [RecompileOnTrainableChange(verbose=0), touching], epochs=3)
    assert not rebuilds
    assert model.traces == {"torch": 6}.get(BACKEND, traces_of_a_plain_fit())


class References(keras.callbacks.Callback):
    """Keeps weak references to all optimizer variables."""

    def on_train_begin(self, logs=None):
        self.seen = {}

    def on_epoch_end(self, epoch, logs=None):
        self.seen |= {(epoch, id(v)): weakref.ref(v) for v in self.model.optimizer.variables}


def alive(references: dict[Any, weakref.ref]) -> set[int]:
    gc.collect()
    return {id(reference()) for reference in references.values() if reference() is not None}


@pytest.mark.usefixtures("quick_collection")
@pytest.mark.parametrize(("toggles", "run_eagerly"), [(30, True), (4, False)])
@pytest.mark.parametrize("mode", ["carry", "reset"])
def test_memory_stays_bounded(toggles, run_eagerly, mode):
    model, references = new_counted(run_eagerly=run_eagerly), References()
    change = ("freeze", "unfreeze")
    stages = [Stage(e, **{change[e % 2]: "b3"}) for e in range(1, toggles + 1)]
    thaw = GradualUnfreeze(stages, optimizer=mode, verbose=0)
    fit(model, [thaw, references], epochs=toggles + 1)
    assert len(references.seen) > 8 * toggles
    assert len(model.made) > 1
    assert alive(references.seen) <= {*map(id, model.optimizer.variables)}
    assert len(alive(model.made)) <= 1
