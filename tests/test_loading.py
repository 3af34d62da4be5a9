"""A run that is saved, loaded and continued equals the uninterrupted run, bit for bit."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
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
    RecompileOnTrainableChange,
    Stage,
)
from keras_freeze.keras_internals.learning_rates import before_factors, stored
from tests import builders

O = keras.optimizers  # noqa: E741
EPOCHS = 7
STEPS = 3
X, Y = builders.data(4 * STEPS)
BASE = ["b1", "b2", "b3"]
TENTH = {"factor": 0.1}

# The second stage freezes what the first has unfrozen, the third unfreezes it again.
CHANGES: list[dict[str, Any]] = [
    {"at": 1, "unfreeze": "b3"},
    {"at": 3, "unfreeze": "b2", "freeze": "b3"},
    {"at": 5, "unfreeze": ["b2", "b3"]},
]


def stages(first: Any = None, second: Any = None, third: Any = None) -> list[Stage]:
    """Returns three stages with these further arguments."""
    more = [given or {} for given in (first, second, third)]
    return [Stage(**change, **given) for change, given in zip(CHANGES, more, strict=True)]


@dataclass(frozen=True)
class Case:
    """A run of three stages.

    Attributes:
        make: makes the optimizer.
        stages: the stages.
        mode: as `optimizer` of GradualUnfreeze.
        eager: whether steps run without tracing, which is faster if there are few.
    """

    make: Callable[[], keras.optimizers.Optimizer] = lambda: O.Adam(0.01)
    stages: Any = ()
    mode: str = "carry"
    eager: bool = True

    def ours(self) -> list[Any]:
        return [FreezeBase(BASE), GradualUnfreeze(self.stages, optimizer=self.mode, verbose=0)]

    def new_model(self) -> keras.Model:
        keras.utils.set_random_seed(0)
        return builders.compiled(builders.nested(), self.make(), run_eagerly=self.eager)


def fit(model: keras.Model, callbacks: list[Any], begin: int = 0, end: int = EPOCHS) -> Any:
    run = {"batch_size": 4, "shuffle": False, "verbose": 0}
    fitted = model.fit(X, Y, initial_epoch=begin, epochs=end, callbacks=callbacks, **run)
    return fitted.history


def loss_scale() -> keras.optimizers.Optimizer:
    return O.LossScaleOptimizer(O.Adam(0.01), initial_scale=8.0, dynamic_growth_steps=4)


def multi() -> keras.optimizers.Optimizer:
    head, rest = O.SGD(0.02, momentum=0.5, name="head"), O.Adam(0.01, name="rest")
    return O.MultiOptimizer(O.OptimizerMap(rest, {"head/.*": head}))


HALVING = O.schedules.ExponentialDecay(0.01, 2, 0.5)
RATES = stages({"learning_rate": TENTH}, {"learning_rate": {"factor": 0.7}}, {})
FIXED = stages({"learning_rate": 0.003}, {}, {"learning_rate": 0.002})
WARM = stages(
    {"warmup_steps": 5}, {"warmup_steps": 49, "learning_rate": TENTH}, {"warmup_steps": 4}
)
MIXED = stages(
    {"learning_rate": TENTH, "optimizer": "carry"},
    {"learning_rate": {"factor": 0.3}},
    {"optimizer": "carry", "learning_rate": TENTH},
)
BASE_RATES = stages(
    {"base_learning_rate": 0.001, "learning_rate": {"factor": 0.3}},
    {"learning_rate": TENTH},
    {"base_learning_rate": {"factor": 0.5}},
)
CASES = {
    "factors": Case(stages=RATES, eager=False),
    "momentum": Case(partial(O.SGD, 0.01, momentum=0.9, nesterov=True), RATES),
    "Nadam": Case(partial(O.Nadam, 0.01), RATES),
    "fixed": Case(stages=FIXED),
    "base rates": Case(stages=BASE_RATES),
    "warm-up": Case(stages=WARM),
    "warm-up, accumulation": Case(partial(O.Adam, 0.01, gradient_accumulation_steps=2), WARM),
    "warm-up, reset": Case(stages=WARM, mode="reset"),
    "reset": Case(stages=RATES, mode="reset", eager=False),
    "reset sometimes": Case(stages=MIXED, mode="reset"),
    "reset, rates alone": Case(
        stages=[Stage(2, "b3"), Stage(4, learning_rate=TENTH)], mode="reset"
    ),
    "reset, momentum": Case(partial(O.SGD, 0.01, momentum=0.9), stages(), mode="reset"),
    "averages": Case(partial(O.Adam, 0.01, use_ema=True, ema_momentum=0.5), stages()),
    "averages, reset": Case(
        partial(O.SGD, 0.01, use_ema=True, ema_momentum=0.5), stages(), mode="reset"
    ),
    "accumulation": Case(partial(O.Adam, 0.01, gradient_accumulation_steps=2), RATES),
    "accumulation, reset": Case(
        partial(O.Adam, 0.01, gradient_accumulation_steps=2), RATES, mode="reset"
    ),
    "layer decay": Case(partial(O.AdamW, 0.01), stages({"layer_decay": 0.7}, {}, {})),
    "clipping": Case(partial(O.AdamW, 0.01, global_clipnorm=0.1), RATES),
    "schedule": Case(partial(O.Adam, HALVING), stages({}, {"learning_rate": 0.001}, {})),
    "schedule of a stage": Case(stages=stages(None, {"learning_rate": HALVING}, {})),
    "schedule after a factor": Case(
        stages=stages({"learning_rate": TENTH}, {"learning_rate": HALVING}, {})
    ),
    "loss scale": Case(loss_scale, RATES, eager=False),
}
if hasattr(O, "MultiOptimizer"):
    CASES["several optimizers"] = Case(multi, RATES)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Returns a function: for a name in CASES, the uninterrupted run, with a file each epoch."""
    done: dict[str, Any] = {}

    def run(name: str) -> Any:
        if name not in done:
            folder, case = tmp_path_factory.mktemp("run"), CASES[name]
            model = case.new_model()
            keep = keras.callbacks.ModelCheckpoint(folder / "{epoch}.keras")
            history = fit(model, [*case.ours(), keep])
            done[name] = folder, history, builders.weights(model)
        return done[name]

    return run


def assert_rest(history: Any, whole: Any, cut: int) -> None:
    assert history.keys() == whole.keys()
    for key, values in history.items():
        np.testing.assert_array_equal(values, whole[key][cut:], key)


@pytest.mark.one_backend(
    but=["factors-4", "reset-3", "averages-5", "warm-up, accumulation-4", "loss scale-4"]
)
@pytest.mark.parametrize("cut", range(1, EPOCHS))
@pytest.mark.parametrize("name", CASES)
def test_a_loaded_run_goes_on_from_any_epoch(name: str, cut: int, whole_run: Any):
    folder, whole, weights = whole_run(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = keras.models.load_model(folder / f"{cut}.keras")
        history = fit(loaded, CASES[name].ours(), cut)
    assert_rest(history, whole, cut)
    builders.assert_equal(builders.weights(loaded), weights)


SCRIPT = """
import sys
import keras
import numpy as np
from tests import builders
from tests.test_loading import CASES, fit

folder, name, cut = sys.argv[1], sys.argv[2], int(sys.argv[3])
loaded = keras.models.load_model(f"{folder}/{cut}.keras")
history = fit(loaded, CASES[name].ours(), cut)
np.savez(f"{folder}/rest.npz", loss=history["loss"], **builders.weights(loaded))
"""


def test_a_new_process_goes_on(whole_run: Any):
    folder, whole, weights = whole_run("factors")
    subprocess.run([sys.executable, "-c", SCRIPT, str(folder), "factors", "4"], check=True)
    rest = dict(np.load(folder / "rest.npz"))
    np.testing.assert_array_equal(rest.pop("loss"), whole["loss"][4:])
    builders.assert_equal(rest, weights)


def test_a_loaded_run_may_be_cut_into_more_fits(whole_run: Any):
    """The second fit of a process knows the ages and rates that the first one has found."""
    folder, whole, weights = whole_run("reset sometimes")
    ours = CASES["reset sometimes"].ours()
    loaded = keras.models.load_model(folder / "2.keras")
    for begin, end in ((2, 3), (3, 5), (5, EPOCHS)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # stages that this fit doesn't reach
            history = fit(loaded, ours, begin, end)
        np.testing.assert_array_equal(history["loss"], whole["loss"][begin:end])
    builders.assert_equal(builders.weights(loaded), weights)


# Stages without an epoch: `begun` tells when they began


def plateau(number: int = 1, **more: Any) -> Stage:
    """A stage that begins after two epochs of the one before."""
    at = Plateau("loss", patience=1, max_epochs=2)
    return Stage(at, ["b3", "b2", "b1"][number - 1], **more)


def of_stages(given: list[Stage], begun: Any = None, mode: str = "carry") -> list[Any]:
    thaw = GradualUnfreeze(given, optimizer=mode, verbose=0)
    if begun is not None:
        thaw.begun = dict(begun)
    return [FreezeBase(BASE), thaw]


def saved(folder: Path, callbacks: list[Any]) -> tuple[keras.Model, Any]:
    """Returns a model after a run, with a file of each epoch, and the history."""
    model = builders.compiled(builders.nested(), O.Adam(0.01), run_eagerly=True)
    keep = keras.callbacks.ModelCheckpoint(folder / "{epoch}.keras")
    return model, fit(model, [*callbacks, keep])


FIRED = [plateau(1, learning_rate=TENTH), Stage(3, "b2", warmup_steps=4), plateau(3)]
SKIPPED = [
    Stage(Plateau("loss", patience=99), "b3", freeze="head", warmup_steps=3),
    Stage(2, ["head", "b2"], learning_rate=TENTH),
]


@pytest.mark.one_backend
@pytest.mark.parametrize("mode", ["carry", "reset"])
@pytest.mark.parametrize(("given", "cuts"), [(FIRED, [2, 3, 5, 6]), (SKIPPED, [2, 3, 6])])
def test_a_trigger_that_fired_is_recorded(tmp_path: Path, given: Any, cuts: Any, mode: str):
    """Not cut where a trigger counts: it would begin to count anew.

    In SKIPPED, a stage never begins: it freezes and unfreezes nothing, and warms nothing up.
    """
    ours = of_stages(given, mode=mode)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # stages that never begin
        model, whole = saved(tmp_path, ours)
        for cut in cuts:
            loaded = keras.models.load_model(tmp_path / f"{cut}.keras")
            rest = fit(loaded, of_stages(given, ours[1].begun, mode), cut)
            assert_rest(rest, whole, cut)
            builders.assert_equal(builders.weights(loaded), builders.weights(model))


def messages(call: Callable[[], Any]) -> list[str]:
    """Returns the warnings of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(each.message) for each in caught if each.category is UserWarning]


def warned_after(folder: Path, cut: int, callbacks: list[Any]) -> list[str]:
    """Returns the warnings of a fit that continues from a file, without the last epochs."""
    loaded = keras.models.load_model(folder / f"{cut}.keras")
    found = messages(lambda: fit(loaded, callbacks, cut, cut + 1))
    return [text for text in found if "never" not in text]


@pytest.mark.one_backend
def test_a_trigger_that_may_have_fired_is_told_of(tmp_path: Path):
    given = [plateau(1), plateau(2, learning_rate=TENTH)]
    ours = of_stages(given)
    saved(tmp_path, ours)
    assert ours[1].begun == {1: 2, 2: 4}
    assert not warned_after(tmp_path, 2, of_stages(given))  # the optimizer has no slots of b3
    assert not warned_after(tmp_path, 3, of_stages(given, {1: 2}))
    for cut, begun, names in [(3, {}, "Stage 1"), (6, {}, "Stage 2"), (5, {1: 2}, "Stage 2")]:
        (text,) = warned_after(tmp_path, cut, of_stages(given, begun))
        assert text.startswith(f"{names} (at=Plateau(")
        assert f"seems to have begun before epoch {cut}" in text
        assert "Assign `begun`" in text
        assert "keras_freeze.BackupAndRestore" in text


@pytest.mark.one_backend
def test_a_trigger_of_a_rate_cannot_be_told_from_none(tmp_path: Path):
    given = [Stage(Plateau("loss", max_epochs=2), learning_rate=TENTH)]
    saved(tmp_path, of_stages(given))
    for cut in (1, 4):
        (text,) = warned_after(tmp_path, cut, of_stages(given))
        assert f"may have begun before epoch {cut}" in text
        assert "continues with Stage 0" in text
    assert not warned_after(tmp_path, 4, of_stages(given, {1: 2}))


class EndStage(keras.callbacks.Callback):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.stop_training = epoch == 1


@pytest.mark.one_backend
def test_a_stage_that_per_stage_began(tmp_path: Path):
    given = [Stage(4, "b3", learning_rate=TENTH, warmup_steps=5), Stage(6, "b2")]
    ours = [*of_stages(given), PerStage(EndStage())]
    model, whole = saved(tmp_path, ours)
    assert ours[1].begun == {1: 2}
    (text,) = warned_after(tmp_path, 3, [*of_stages(given), PerStage(EndStage())])
    assert "Stage 1 (at=4) seems to have begun before epoch 3" in text
    for cut in (3, 5):
        loaded = keras.models.load_model(tmp_path / f"{cut}.keras")
        rest = fit(loaded, [*of_stages(given, {1: 2}), PerStage(EndStage())], cut)
        assert_rest(rest, whole, cut)
        builders.assert_equal(builders.weights(loaded), builders.weights(model))


# What a file doesn't tell


@pytest.mark.one_backend
def test_a_compiled_rate_that_no_file_has_is_told_of(tmp_path: Path):
    given = [Stage(1, "b3", learning_rate=0.003), Stage(3, "b2", optimizer="reset")]
    saved(tmp_path, of_stages(given))
    (text,) = warned_after(tmp_path, 2, of_stages(given))
    assert "Stage 2 resets the optimizer" in text
    assert "Give the stage a `learning_rate`" in text
    assert not warned_after(tmp_path, 4, of_stages(given)), "stage 2 has begun: nothing is missing"
    own = [given[0], Stage(3, "b2", optimizer="reset", learning_rate=0.001)]
    assert not warned_after(tmp_path, 2, of_stages(own))


@pytest.mark.one_backend
def test_a_rate_of_the_base_that_no_file_has_is_told_of(tmp_path: Path):
    given = [Stage(1, "b3", base_learning_rate=0.001), Stage(3, "b2", learning_rate=0.005)]
    saved(tmp_path, of_stages(given))
    assert not warned_after(tmp_path, 2, of_stages(given))
    (text,) = warned_after(tmp_path, 4, of_stages(given))
    assert "Stage 1 sets the base's learning rate" in text
    assert "base_learning_rate={'factor': 0.1}" in text


@pytest.mark.one_backend
def test_a_best_epoch_of_the_saved_run_is_told_of(tmp_path: Path):
    given = [plateau(1), plateau(2, restore_best=True), Stage(6, "b1", optimizer="reset")]
    saved(tmp_path, of_stages(given))
    begun = {1: 2, 2: 4}
    (text,) = warned_after(tmp_path, 5, of_stages(given, begun))
    assert "Stage 2 restored the best epoch" in text
    assert not warned_after(tmp_path, 3, of_stages(given, begun))


@pytest.mark.one_backend
def test_a_rate_that_another_callback_set_stays(tmp_path: Path):
    """ReduceLROnPlateau has reduced the rate of the stage; the file has the reduced one."""
    given = [Stage(1, "b3", learning_rate=0.008), Stage(4, "b2", learning_rate={"factor": 0.5})]
    down = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=0, min_delta=9.0)
    _, whole = saved(tmp_path, [*of_stages(given), down])
    loaded = keras.models.load_model(tmp_path / "3.keras")
    rest = fit(loaded, of_stages(given), 3)
    rate = whole["learning_rate"][3]
    assert rest["learning_rate"][0] == rate < 0.008
    assert rest["learning_rate"][1:] == [pytest.approx(rate / 2)] * 3


@pytest.mark.one_backend
def test_an_optimizer_from_elsewhere_isnt_taken_for_one_of_the_run(tmp_path: Path):
    """The head was trained without our callbacks; the stage that "ran" sets its rate now."""
    given = [Stage(1, "b3", learning_rate=TENTH)]
    model = builders.compiled(builders.nested(), O.Adam(2.0**-6), run_eagerly=True)
    fit(model, [FreezeBase(BASE)], 0, 3)
    model.save(tmp_path / "3.keras")
    (text,) = warned_after(tmp_path, 3, of_stages(given))
    assert "no slots for ['b3']" in text
    loaded = keras.models.load_model(tmp_path / "3.keras")
    with pytest.warns(UserWarning, match="trained on other layers than those of Stage 1"):
        rates = fit(loaded, of_stages(given), 3)["learning_rate"]
    assert rates == [stored(2.0**-6 * 0.1)] * 4


@pytest.mark.one_backend
@pytest.mark.parametrize("rate", [0.01, 3e-4, 2.0**-20, 0.1234567, 1.0])
@pytest.mark.parametrize("factors", [[], [0.1], [0.1, 0.3], [0.7] * 5])
def test_the_compiled_rate_is_found_again(rate: float, factors: list[float]):
    product = stored(rate)
    for factor in factors:
        product = stored(product * factor)
    assert before_factors(product, factors) == stored(rate)


def test_a_compiled_rate_with_many_digits_is_found_within_rounding():
    generator = np.random.default_rng(0)
    for rate in generator.uniform(1e-6, 1, 100):
        product = stored(stored(float(rate)) * 0.1)
        found = before_factors(product, [0.1])
        assert stored(found * 0.1) == product
        assert found == pytest.approx(rate, rel=2e-7)


# Keras' callbacks that save


def test_weights_alone_continue_in_the_right_stage(tmp_path: Path):
    """The layers follow from the schedule. Keras says that the optimizer's state is skipped."""
    case = Case(stages=RATES)
    keep = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True)
    whole = fit(case.new_model(), [*case.ours(), keep])
    for cut in (2, 4):
        model = case.new_model()
        with pytest.warns(UserWarning, match="Skipping variable loading for optimizer"):
            model.load_weights(tmp_path / f"{cut}.weights.h5")
        rest = fit(model, case.ours(), cut)
        for key in ("stage", "trainable_params", "learning_rate"):
            np.testing.assert_array_equal(rest[key], whole[key][cut:])


@pytest.mark.one_backend
@pytest.mark.parametrize(("name", "is_right"), [("b3", True), ("b2", False)])
def test_weights_files_know_no_names_of_slots(tmp_path: Path, name: str, is_right: bool):
    """Keras loads slots by index, also those of another layer if there are as many."""
    case = Case(stages=stages())
    keep = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True)
    whole = fit(case.new_model(), [*case.ours(), keep])
    model = case.new_model()
    for each in BASE:
        builders.layer(model, each).trainable = each == name
    model.optimizer.build(model.trainable_variables)
    model.load_weights(tmp_path / "2.weights.h5")
    rest: dict[str, Any] = {}
    found = messages(lambda: rest.update(fit(model, case.ours(), 2)))
    np.testing.assert_array_equal(rest["trainable_params"], whole["trainable_params"][2:])
    if is_right:
        assert not found
        assert_rest(rest, whole, 2)
    else:
        assert "it has no slots for ['b3']" in found[0]


def backup(folder: Path) -> keras.callbacks.Callback:
    return keras.callbacks.BackupAndRestore(folder / "backup", delete_checkpoint=False)


@pytest.mark.parametrize("first", [True, False], ids=["before ours", "after ours"])
@pytest.mark.parametrize(
    "ours",
    [
        lambda: [FreezeBase(BASE)],
        lambda: [GradualUnfreeze({1: "b3"}, base=BASE)],
        lambda: [FreezeBase(BASE), GradualUnfreeze({1: "b3"})],
    ],
)
def test_the_backups_of_keras_are_refused(tmp_path: Path, ours: Any, first: bool):
    model = builders.compiled(builders.nested(), run_eagerly=True)
    fit(model, [backup(tmp_path)], 0, 3)  # leaves a backup
    model = builders.compiled(builders.nested(), run_eagerly=True)
    theirs = [backup(tmp_path)]
    before = builders.weights(model)
    with pytest.raises(FreezeError, match=r"Use keras_freeze\.BackupAndRestore") as error:
        fit(model, theirs + ours() if first else ours() + theirs)
    assert "which takes the same arguments" in str(error.value)
    assert (tmp_path / "backup").exists()
    if not first:
        builders.assert_equal(builders.weights(model), before)
    assert len(fit(model, ours(), 0, 2)["loss"]) == 2, "the epoch of the backup is forgotten"


@pytest.mark.one_backend
def test_the_backups_of_keras_are_refused_inside_per_stage(tmp_path: Path):
    model = builders.compiled(builders.nested(), run_eagerly=True)
    with pytest.raises(FreezeError, match=r"Use keras_freeze\.BackupAndRestore"):
        fit(model, [*of_stages([Stage(1, "b3")]), PerStage(backup(tmp_path))])


def test_the_backups_of_keras_are_fine_without_stages(tmp_path: Path):
    model = builders.compiled(builders.nested(), run_eagerly=True)
    builders.layer(model, "base").trainable = False
    ours = [RecompileOnTrainableChange(verbose=0), BottleneckCache("base", verbose=0)]
    assert len(fit(model, [backup(tmp_path), *ours], 0, 2)["loss"]) == 2
