"""A separate learning rate for the base: `base_learning_rate`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_freeze import FreezeBase, GradualUnfreeze, Schedule, ScheduleError, Stage
from tests import builders
from tests.builders import BACKEND
from tests.reference import optimizers as reference
from tests.reference.carried import BATCH, Run, double_precision, in_keras
from tests.reference.optimizers import MLP, Trainer

pytestmark = pytest.mark.one_backend(
    but=["test_equals_two_optimizers_by_hand", "test_several_optimizers"]
)

X, Y = builders.data(16)
RATE = builders.RATE


def fit(stages: Any, epochs: int, *others: Any, **options: Any) -> dict[str, Any]:
    model = options.pop("model", None) or builders.compiled(
        builders.nested(), options.pop("optimizer", None)
    )
    unfreeze = GradualUnfreeze(stages, optimizer=options.pop("mode", "carry"), verbose=0)
    options = {"batch_size": 8, "shuffle": False, "verbose": 0, **options}
    callbacks = [FreezeBase("base"), unfreeze, *others]
    history: dict[str, Any] = model.fit(X, Y, epochs=epochs, callbacks=callbacks, **options).history
    return history


HYPER = {
    "SGD": {"momentum": 7 / 8},
    "Adam": {"beta_1": 7 / 8, "beta_2": 1 - 2.0**-10, "epsilon": 2.0**-23},
    "RMSprop": {"rho": 7 / 8, "epsilon": 2.0**-23},
}


@pytest.mark.parametrize("name", HYPER)
def test_equals_two_optimizers_by_hand(name: str):
    """The head has an optimizer from the start; the base gets another when it is unfrozen."""
    head, base = {"head"}, {"b0", "b1"}
    rule = getattr(reference, name)(**HYPER[name])
    run = Run(
        getattr(keras.optimizers, name),
        rule,
        [head, head | base, head | base],
        hyper=HYPER[name],
        rates={1: 2.0**-5},
        base_rates={1: 2.0**-9},
        eager=False,
    )
    with double_precision():
        found = in_keras(run)
    trainers = {"head": Trainer(rule, run.rate), "base": Trainer(rule, 2.0**-9)}
    network = MLP([("b0", "tanh"), ("b1", "tanh"), ("head", "linear")])
    (x, y), values = run.data(), run.values()
    for epoch in range(run.epochs):
        if epoch:
            trainers["head"].lr = 2.0**-5
        for part, trainer in trainers.items():
            if part == "head" or epoch:
                for key in [k for k in values if k.startswith("head") == (part == "head")]:
                    trainer.thaw(key, values[key])
        for first in range(0, len(x), BATCH):
            rows = slice(first, first + BATCH)
            grads = network.gradients(x[rows], y[rows], values)[1]
            for part, trainer in trainers.items():
                own = {k: g for k, g in grads.items() if k.startswith("head") == (part == "head")}
                values = trainer.step(own, values) if part == "head" or epoch else values
    for key, expected in values.items():
        np.testing.assert_allclose(found[key], expected, 2.0**-41, 2.0**-45, key)


@pytest.mark.filterwarnings("ignore:The base is")
@pytest.mark.parametrize(
    ("arguments", "shares"),
    [
        ({"base_learning_rate": 2.0**-6}, (1, 0.25, 0.25, 0.25)),
        ({"base_learning_rate": {"factor": 0.25}}, (1, 0.25, 0.25, 0.25)),
        ({"base_learning_rate": 2.0**-6, "layer_decay": 0.5}, (1, 0.25, 0.125, 0.0625)),
        ({"base_learning_rate": 2.0**-2}, (1, 4, 4, 4)),  # larger than the head's
        ({"learning_rate": 2.0**-5, "base_learning_rate": 2.0**-6}, (0.5, 0.25, 0.25, 0.25)),
        (
            {"learning_rate": {"factor": 0.5}, "base_learning_rate": {"factor": 0.5}},
            (0.5, 0.25, 0.25, 0.25),
        ),
    ],
)
def test_what_each_layer_gets(arguments: dict[str, Any], shares: tuple[float, ...]):
    def one_step(**given: Any) -> dict[str, np.ndarray]:
        keras.utils.set_random_seed(0)
        model = builders.compiled(builders.nested(), keras.optimizers.SGD(2.0**-4))
        before = builders.weights(model)
        fit([Stage(0, "all", name="x", **given)], 1, model=model, batch_size=16)
        after = builders.weights(model)
        return {key: after[key] - before[key] for key in before}

    plain, found = one_step(), one_step(**arguments)
    for name, share in zip(("head", "b3", "b2", "b1"), shares, strict=True):
        kernel = f"{name}/kernel"
        np.testing.assert_allclose(found[kernel], plain[kernel] * share, rtol=1e-3, atol=1e-7)


EVERY = [
    name
    for name, kind in sorted(vars(keras.optimizers).items())
    if isinstance(kind, type)
    and issubclass(kind, keras.optimizers.Optimizer)
    and name not in ("Optimizer", "LossScaleOptimizer", "MultiOptimizer")
]


@pytest.mark.filterwarnings("ignore:The base is")
@pytest.mark.parametrize("name", EVERY)
def test_every_optimizer_of_keras(name: str):
    """The base trains as if its rate applied to the whole model; the head is unaffected."""
    if name == "Muon" and BACKEND == "tensorflow" and keras.__version__.startswith("3.12."):
        pytest.skip("Keras 3.12 can't use Muon on TensorFlow at all")

    def after_a_step(rate: float, base_rate: float | None) -> dict[str, np.ndarray]:
        keras.utils.set_random_seed(0)
        model = builders.compiled(builders.nested(), getattr(keras.optimizers, name)(rate))
        stages = [Stage(0, "all", base_learning_rate=base_rate, name="x")]
        callbacks = [FreezeBase("base"), GradualUnfreeze(stages, verbose=0)]
        model.fit(X[:8], Y[:8], batch_size=8, epochs=1, verbose=0, callbacks=callbacks)
        return builders.weights(model)

    mixed = after_a_step(RATE, RATE / 8)
    head, base = after_a_step(RATE, None), after_a_step(RATE / 8, None)
    for key, found in mixed.items():
        expected = (head if key.startswith("head") else base)[key]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7, err_msg=key)


def test_the_ratio_stays_whatever_sets_the_rate():
    stages = [
        Stage(1, "b3", learning_rate=RATE / 2, base_learning_rate=RATE / 8),
        Stage(3, "b2", learning_rate=RATE / 4),
        Stage(4, "b1", base_learning_rate=RATE / 4),
    ]
    down = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=0, min_delta=9.0)
    for others in ([], [down]):
        logs = fit(stages, 5, *others)
        ratios = np.divide(logs["base_learning_rate"], logs["learning_rate"])
        assert ratios[:4].tolist() == [1, 0.25, 0.25, 0.25]
    assert fit(stages, 5)["base_learning_rate"] == [RATE, RATE / 8, RATE / 8, RATE / 16, RATE / 4]


def test_a_reset_begins_without_a_rate_of_the_base():
    stages = [Stage(1, "b3", base_learning_rate=RATE / 8), Stage(2, "b2", name="again")]
    logs = fit(stages, 3, mode="reset")
    assert logs["base_learning_rate"] == [RATE, RATE / 8, RATE]


@pytest.mark.filterwarnings("ignore:.* is never reached")
def test_a_fit_that_goes_on_has_the_same_rates():
    stages = [Stage(1, "b3", learning_rate=RATE / 2, base_learning_rate=RATE / 8), Stage(3, "b2")]
    whole = fit(stages, 5)["base_learning_rate"]
    for cut in (1, 2, 4):
        model = builders.compiled(builders.nested())
        first = fit(stages, cut, model=model)["base_learning_rate"]
        rest = fit(stages, 5, model=model, initial_epoch=cut)["base_learning_rate"]
        assert first + rest == whole


def test_logs_are_as_ever_where_no_stage_has_one():
    assert "base_learning_rate" not in fit({1: "b3"}, 2)


def test_beside_a_schedule_of_keras_it_is_a_ratio_to_its_first_value():
    """Equal to two optimizers with two schedules, one at a quarter of the other's rate."""
    decay = keras.optimizers.schedules.ExponentialDecay(RATE, 2, 0.5, staircase=True)
    stages = [Stage(1, "b3", learning_rate=decay, base_learning_rate=RATE / 4)]
    logs = fit(stages, 4)
    assert logs["learning_rate"][1] < RATE, "the schedule has counted on"
    for rate, base in zip(logs["learning_rate"][1:], logs["base_learning_rate"][1:], strict=True):
        assert base == pytest.approx(rate / 4)


def test_a_schedule_that_begins_at_0_asks_for_a_factor():
    rising = keras.optimizers.schedules.CosineDecay(0.0, 9, warmup_target=RATE, warmup_steps=3)
    model = builders.compiled(builders.nested())
    before = builders.weights(model)
    stage = Stage(1, "b3", learning_rate=rising, base_learning_rate=RATE / 4)
    with pytest.raises(ScheduleError, match=re.escape("base_learning_rate={'factor': 0.1}")):
        fit([stage], 2, model=model)
    builders.assert_equal(before, builders.weights(model))
    # The remedy from the message.
    stage = Stage(1, "b3", learning_rate=rising, base_learning_rate={"factor": 0.25})
    logs = fit([stage], 3, model=model)
    assert logs["learning_rate"][2] > 0
    assert logs["base_learning_rate"][2] == pytest.approx(logs["learning_rate"][2] / 4)


@pytest.mark.skipif(not hasattr(keras.optimizers, "MultiOptimizer"), reason="Keras >= 3.15")
def test_several_optimizers():
    head, rest = keras.optimizers.SGD(RATE, name="one"), keras.optimizers.SGD(RATE / 2, name="two")
    mapped = keras.optimizers.OptimizerMap(rest, {"head/.*": head})
    stages = [Stage(1, "b3", base_learning_rate=RATE / 4)]
    logs = fit(stages, 2, optimizer=keras.optimizers.MultiOptimizer(mapped))
    rates = {key: value for key, value in logs.items() if "rate" in key}
    assert rates["base_learning_rate_two"] == [RATE / 2, RATE / 4]
    assert rates["learning_rate_two"] == [RATE / 2, RATE / 2]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0, "above 0"),
        (-1e-3, "above 0"),
        ("1e-3", "above 0"),
        (True, "above 0"),
        ({"factor": 0}, "above 0"),
        ({"faktor": 0.1}, "above 0"),
        (keras.optimizers.schedules.CosineDecay(0.1, 9), "Pass a schedule as"),
    ],
)
def test_what_cannot_be_meant(value: Any, told: str):
    with pytest.raises(ScheduleError, match="`base_learning_rate` must be") as caught:
        Stage(1, "b3", base_learning_rate=value)
    assert told in str(caught.value)
    assert "Received: base_learning_rate=" in str(caught.value)


def test_the_lines_and_the_preview_show_both(capsys: pytest.CaptureFixture[str]):
    stages = [Stage(1, "b3", learning_rate=1e-3, base_learning_rate=1e-5, layer_decay=0.5)]
    model = builders.compiled(builders.nested())
    (_, row) = table = Schedule(stages, base="base").preview(model, epochs=2)
    assert (row["learning_rate"], row["base_learning_rate"]) == (1e-3, pytest.approx(1e-5))
    assert row["lowest_rate"] == pytest.approx(1e-5)
    assert "0.001, base 1e-05" in str(table)
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[FreezeBase("base"), GradualUnfreeze(stages)])
    assert "learning rate  0.001, base 1e-05" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["yaml", "json", "toml"])
@pytest.mark.parametrize("rate", [1e-5, {"factor": 0.1}])
def test_files(tmp_path: Path, suffix: str, rate: Any):
    schedule = Schedule([Stage(3, "b3", learning_rate=1e-3, base_learning_rate=rate)])
    schedule.to_file(tmp_path / f"plan.{suffix}")
    assert Schedule.from_file(tmp_path / f"plan.{suffix}") == schedule


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("fast", "`base_learning_rate` must be a number above 0, or {factor: 0.1}"),
        ("-1", "`base_learning_rate` must be a number above 0"),
        ("{faktor: 0.1}", "Did you mean 'factor'?"),
        ("{class_name: CosineDecay, config: {}}", "unknown key 'class_name'"),
    ],
)
def test_what_a_file_cannot_mean(tmp_path: Path, written: str, told: str):
    path = tmp_path / "plan.yaml"
    path.write_text(f"stages:\n  - at: 3\n    unfreeze: b3\n    base_learning_rate: {written}\n")
    with pytest.raises(ScheduleError) as caught:
        Schedule.from_file(path)
    assert told in str(caught.value), caught.value
    assert "line 4" in str(caught.value)


def test_two_phase():
    (stage,) = Schedule.two_phase("all", start=2, learning_rate=1e-3, base_learning_rate=1e-5)
    assert (stage.learning_rate, stage.base_learning_rate) == (1e-3, 1e-5)
    config = Schedule([stage]).get_config()
    assert Schedule.from_config(config) == Schedule([stage])
