"""Steps in groups give what single steps give, and callbacks see the same epochs.

With a group, one call runs several steps. Small models are never worth it, so these tests lower the
thresholds by which that is decided.
"""

from __future__ import annotations

import functools
import gc
import importlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_freeze import BottleneckCache, FreezeBase, GradualUnfreeze, Stage
from keras_freeze.feature_cache.serving import group_sizes
from keras_freeze.feature_cache.serving.group_sizes import GroupSizes, GroupTimer
from tests import builders
from tests.builders import BACKEND
from tests.in_groups import always_in_groups

L = keras.layers
X, Y = builders.data(44)
EPOCHS = 5
IS_SLOWER = group_sizes.is_slower


@pytest.fixture(autouse=True, scope="module")
def _always_worth_it():
    with pytest.MonkeyPatch.context() as patch:
        always_in_groups(patch)
        yield


class ActsOnBatches(keras.callbacks.Callback):
    """Makes the steps run one by one."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None: ...
    def on_test_batch_end(self, batch: int, logs: Any = None) -> None: ...


def with_head(*layers: Callable[[], Any]) -> Callable[[], Any]:
    """Returns a function that makes a model: a base, these layers, and a Dense layer."""

    def make() -> Any:
        inputs = keras.Input((6,))
        x = builders.functional_base()(inputs)
        for layer in layers:
            x = layer()(x)
        return keras.Model(inputs, L.Dense(1, name="head")(x))

    return make


def fitted(
    make: Callable[[], Any] = builders.nested,
    *,
    grouped: bool,
    stages: Any = None,
    callbacks: Callable[[], list[Any]] = list,
    compile: dict[str, Any] | None = None,
    data: Any = (X, Y),
    **options: Any,
) -> tuple[dict[str, Any], Any]:
    """Fits with a cache; returns (History, weights and optimizer state, the cache)."""
    keras.utils.set_random_seed(3)
    model = builders.compiled(make(), **({"metrics": ["mae"]} | (compile or {})))
    cache = BottleneckCache(verbose=0)
    every: list[Any] = [FreezeBase(), cache, *callbacks()]
    every += [] if stages is None else [GradualUnfreeze(stages, verbose=0)]
    every += [] if grouped else [ActsOnBatches()]
    keras.utils.set_random_seed(4)
    options = {"batch_size": 8, "epochs": EPOCHS, "verbose": 0} | options
    history = model.fit(*data, callbacks=every, **options).history
    held = {n: np.asarray(v) for n, v in enumerate(model.optimizer.variables)}
    return history | builders.weights(model) | held, cache


def compare(make: Any = builders.nested, *, runs: bool = True, exact: bool = True, **options: Any):
    """Compares groups with single steps; returns the cache of the fit with groups.

    Args:
        make: makes the model.
        runs: whether steps run in groups.
        exact: whether all bits are equal.
        options: arguments of `fitted`.
    """
    expected, single = fitted(make, grouped=False, **options)
    found, cache = fitted(make, grouped=True, **options)
    assert cache.stats.enabled
    assert not single.stats.grouped
    assert bool(cache.stats.grouped) is runs
    assert cache.stats.hits == single.stats.hits
    assert list(found) == list(expected)
    for name, values in expected.items():
        rtol, atol = (0.0, 0.0) if exact else (1e-5, 1e-6)
        np.testing.assert_allclose(found[name], values, rtol=rtol, atol=atol, err_msg=name)
    return cache


class Clock:
    """A clock that only advances when told to."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


def sizes_after(*steps: float, first: float, known: bool = True) -> GroupSizes:
    """Returns the sizes of groups after an epoch of steps that took so many seconds."""
    clock, sizes = Clock(), GroupSizes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group_sizes, "time", clock)
        sizes.begin_epoch("train", len(steps) + 1)
        for seconds in (first, *steps):
            clock.now += seconds
            sizes.add_single("train", seconds, known=known)
    return sizes


@pytest.mark.one_backend
def test_groups_begin_when_they_save_more_than_they_cost():
    sizes = sizes_after(*[0.01] * 9, first=1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group_sizes, "WORTH", 1.0)
        assert not sizes.is_worth_it("train", steps=10, epochs=10)  # 0.6 s against 1 s
        assert sizes.is_worth_it("train", steps=10, epochs=20)
        assert not sizes.is_worth_it("test", steps=10, epochs=20)  # unknown


@pytest.mark.one_backend
def test_a_step_that_compiles_or_computes_features_is_not_counted():
    assert sizes_after(*[0.01] * 8, 5.0, first=1.0).times["train"].single == pytest.approx(0.01)
    assert sizes_after(*[0.01] * 8, first=1.0, known=False).times["train"].single is None


@pytest.mark.one_backend
def test_a_group_takes_half_a_second_at_most():
    sizes = sizes_after(*[0.01] * 9, first=1.0)
    assert sizes.size("train") == 2  # of ten steps
    sizes.add_group("train", 2, 3.0)  # compiled
    sizes.add_group("train", 2, 0.02)
    assert sizes.size("train") == 50


@pytest.mark.one_backend
@pytest.mark.parametrize("seconds", [0.005, 0.02])
def test_groups_that_are_slower_end(seconds: float):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group_sizes, "is_slower", IS_SLOWER)
        sizes = sizes_after(*[0.01] * 9, first=1.0)
        for took in (3.0, 4 * seconds, 4 * seconds):
            sizes.add_group("train", 4, took)
        assert sizes.times["train"].is_off is (seconds > 0.01)
        assert sizes.is_worth_it("train", steps=10, epochs=20) is (seconds < 0.01)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("rows", [44, 40], ids=["partial", "full"])
def test_batches_of_every_order(shuffle: bool, rows: int):
    validation = X[:20], Y[:20]
    data = X[:rows], Y[:rows]
    cache = compare(shuffle=shuffle, data=data, validation_data=validation)
    # The first epoch and the first validation run step by step, and are measured.
    assert cache.stats.grouped == 4 * 5 + 4 * 2


@pytest.mark.parametrize(
    "layers",
    [
        [lambda: L.BatchNormalization(name="bn")],
        [lambda: L.Dropout(0.5)],
        [lambda: L.Dense(8, kernel_regularizer="l2", name="d"), lambda: L.Dropout(0.2)],
        [lambda: L.Dropout(0.5, seed=1)],
    ],
    ids=["statistics", "random", "regularized", "own seed"],
)
def test_heads(layers: list[Any]):
    compare(with_head(*layers))


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": keras.optimizers.SGD(0.1)},
        {"optimizer": keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True)},
        {"optimizer": keras.optimizers.AdamW(0.01, clipnorm=1.0)},
        {"optimizer": keras.optimizers.RMSprop(0.01, use_ema=True, ema_overwrite_frequency=3)},
        {"optimizer": keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, 20))},
        {"optimizer": keras.optimizers.Adam(0.01, gradient_accumulation_steps=2)},
    ],
    ids=["sgd", "momentum", "clipped", "ema", "decay", "accumulated"],
)
def test_optimizers(options: dict[str, Any]):
    (optimizer,) = options.values()
    make = functools.partial(type(optimizer).from_config, optimizer.get_config())
    expected, _ = fitted(grouped=False, compile={"optimizer": make()})
    found, cache = fitted(grouped=True, compile={"optimizer": make()})
    assert cache.stats.grouped
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, atol=1e-7, err_msg=name)


def test_weights_of_samples():
    weights = np.linspace(0.0, 2.0, 44, dtype="float32")
    validation = X[:20], Y[:20], weights[:20]
    compare(
        sample_weight=weights, validation_data=validation, compile={"weighted_metrics": ["mse"]}
    )


@pytest.mark.one_backend
def test_weights_of_classes():
    data = X, np.arange(44) % 2
    compare(data=data, class_weight={0: 0.5, 1: 2.0}, compile={"loss": "binary_crossentropy"})


def test_several_inputs_and_outputs():
    def make() -> Any:
        one, other = keras.Input((6,), name="one"), keras.Input((3,), name="other")
        x = L.Concatenate(name="both")([builders.functional_base()(one), other])
        return keras.Model(
            {"one": one, "other": other}, [L.Dense(1, name="p")(x), L.Dense(2, name="q")(x)]
        )

    targets = [Y, np.tile(Y, 2)]
    compile_as = {"loss": ["mse", "mae"], "loss_weights": [1.0, 0.5], "metrics": None}
    compare(make, data=({"one": X, "other": X[:, :3]}, targets), compile=compile_as)


@pytest.mark.parametrize("optimizer", ["carry", "reset"])
def test_stages(optimizer: str):
    warm = Stage(4, "b3", warmup_steps=8, learning_rate=0.01, optimizer=optimizer)
    stages = [warm, Stage(8, "b2:", layer_decay=0.5, base_learning_rate=0.02)]
    cache = compare(stages=stages, epochs=12, validation_data=(X[:16], Y[:16]))
    assert cache.stats.base_passes == 1.0


def test_callbacks_of_epochs(tmp_path: Any):
    def callbacks() -> list[Any]:
        return [
            keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.1 / (1 + epoch)),
            keras.callbacks.ReduceLROnPlateau("loss", patience=1, min_delta=10.0),
            keras.callbacks.EarlyStopping("loss", patience=6, min_delta=10.0),
            keras.callbacks.ModelCheckpoint(
                tmp_path / "{epoch}.weights.h5", save_weights_only=True
            ),
        ]

    compare(callbacks=callbacks, compile={"optimizer": "sgd"}, epochs=12)


def test_a_setting_that_a_callback_changes():
    """PyTorch's steps read the setting each time. JAX and TensorFlow read it once, when tracing."""

    class LessDropout(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.model.get_layer("drop").rate = 0.5 / (1 + epoch)

    make = with_head(lambda: L.Dropout(0.5, name="drop"))
    compare(make, callbacks=lambda: [LessDropout()], epochs=7)


@pytest.mark.parametrize(
    "callback",
    [
        keras.callbacks.TerminateOnNaN,
        lambda: keras.callbacks.LambdaCallback(on_train_batch_begin=lambda batch, logs: None),
        lambda: keras.callbacks.ModelCheckpoint("/nowhere/x.keras", save_freq=10**6),
    ],
    ids=["nan", "lambda", "checkpoint"],
)
@pytest.mark.one_backend
def test_callbacks_that_act_on_batches_see_each(callback: Callable[[], Any]):
    compare(callbacks=lambda: [callback()], runs=False)


@pytest.mark.parametrize("options", [{"run_eagerly": True}, {"steps_per_execution": 2}])
def test_what_runs_step_by_step(options: dict[str, Any]):
    if BACKEND == "torch" and "steps_per_execution" in options:
        pytest.skip("Keras has no steps_per_execution on PyTorch")
    compare(runs=False, compile=options, exact=False)


@pytest.mark.one_backend
def test_the_order_within_batches_alone_is_random():
    compare(runs=False, shuffle="batch")


def test_low_precision():
    def make() -> Any:
        keras.config.set_dtype_policy("mixed_bfloat16")
        try:
            return builders.nested()
        finally:
            keras.config.set_dtype_policy("float32")

    compare(make)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="JAX always compiles; PyTorch doesn't here")
def test_compiled_steps():
    compare(compile={"jit_compile": True}, exact=False)


@pytest.mark.one_backend
def test_the_progress_bar_counts_true_steps(capsys: pytest.CaptureFixture[str]):
    fitted(grouped=True, verbose=1)
    shown = capsys.readouterr().out
    assert "Epoch 5/5" in shown
    assert "6/6" in shown.split("Epoch 5/5")[1]
    assert "7/6" not in shown


@pytest.mark.parametrize("views", [None, 1])
def test_ctrl_c_between_two_groups_leaves_the_model_its_values(
    monkeypatch: pytest.MonkeyPatch, views: int | None
):
    """On JAX, `fit` holds the values, and a group takes over the arrays of the group before."""
    measure, calls = GroupTimer.begin_group, []

    def interrupted(*args: Any) -> None:
        measure(*args)
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(GroupTimer, "begin_group", interrupted)
    model = builders.compiled(builders.nested())
    before = builders.weights(model)
    options = {"batch_size": 8, "verbose": 0}
    callbacks = [FreezeBase(), BottleneckCache(views=views, verbose=0)]
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, epochs=9, callbacks=callbacks, **options)
    after = builders.weights(model)
    assert not np.array_equal(after["head/kernel"], before["head/kernel"])
    np.testing.assert_array_equal(after["b1/kernel"], before["b1/kernel"])
    assert np.isfinite(model.fit(X, Y, epochs=1, **options).history["loss"]).all()


@pytest.mark.skipif(BACKEND != "jax", reason="only JAX lists its live arrays")
def test_no_array_stays_after_fit(monkeypatch: pytest.MonkeyPatch):
    import jax

    from keras_freeze.feature_cache.backends import on_jax

    monkeypatch.setattr(on_jax, "free_device_memory", lambda: 10**9)
    model = builders.compiled(builders.nested())
    options = {"batch_size": 8, "verbose": 0, "epochs": 5, "validation_data": (X[:16], Y[:16])}

    def arrays_after(*callbacks: Any) -> int:
        model.fit(X, Y, callbacks=[FreezeBase(), *callbacks], **options)
        gc.collect()
        return len(jax.live_arrays())

    arrays_after()
    alone, cache = arrays_after(), BottleneckCache(verbose=0)
    assert arrays_after(cache) <= alone
    assert cache.stats.grouped


def test_an_interrupted_epoch_leaves_nothing_behind():
    class Interrupts(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if epoch == 3:
                raise KeyboardInterrupt

    keras.utils.set_random_seed(3)
    model = builders.compiled(builders.nested())
    options = {"batch_size": 8, "verbose": 0}
    cache = BottleneckCache(verbose=0)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, epochs=9, callbacks=[FreezeBase(), cache, Interrupts()], **options)
    assert cache.stats.grouped
    keras.utils.set_random_seed(5)
    after = model.fit(X, Y, epochs=2, **options).history
    keras.utils.set_random_seed(3)
    other = builders.compiled(builders.nested())
    other.fit(X, Y, epochs=4, callbacks=[FreezeBase(), ActsOnBatches()], **options)
    keras.utils.set_random_seed(5)
    assert other.fit(X, Y, epochs=2, **options).history == after


def test_a_train_function_that_a_callback_makes_is_refused_in_the_epoch():
    class Makes(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.model.make_train_function(force=True)

    compare(callbacks=lambda: [Makes()])


def test_steps_that_cannot_be_traced_in_a_loop_run_one_by_one(monkeypatch: pytest.MonkeyPatch):
    loops = {"jax": "jax.lax.fori_loop", "tensorflow": "tensorflow.while_loop"}
    if BACKEND not in loops:
        pytest.skip("PyTorch records a single step")

    def refused(*_: Any, **__: Any) -> Any:
        raise TypeError("a value has another dtype after a step")

    monkeypatch.setattr(loops[BACKEND], refused)
    compare(runs=False)


def test_features_on_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch):
    """A table of the device is used for single steps too. Here the "device" is the CPU."""
    backend = importlib.import_module(f"keras_freeze.feature_cache.backends.on_{BACKEND}")
    taken = []

    def take(table: Any, rows: Any) -> Any:
        taken.append(len(rows))
        return original(table, rows)

    original = backend.take
    monkeypatch.setattr(backend, "take", take)
    expected, _ = fitted(grouped=False, stages={3: "b3"})
    assert not taken
    monkeypatch.setattr(backend, "free_device_memory", lambda: 10**9)
    found, cache = fitted(grouped=False, stages={3: "b3"})
    assert taken
    assert cache.stats.base_passes == 1.0
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=str(name))
    taken.clear()
    monkeypatch.setattr(backend, "free_device_memory", lambda: 8)  # bytes: no table fits
    assert fitted(grouped=False)[0]["loss"][:3] == expected["loss"][:3]
    compare(runs=False)
    assert not taken


@settings(max_examples=25 if BACKEND == "torch" else 5)
@given(
    full=st.integers(3, 6),
    batch=st.integers(1, 6),
    rest=st.integers(0, 5),
    shuffle=st.booleans(),
    validation=st.integers(0, 12),
    seed=st.integers(0, 99),
)
def test_any_shape_of_an_epoch(
    full: int, batch: int, rest: int, shuffle: bool, validation: int, seed: int
):
    data = builders.data(full * batch + min(rest, batch - 1), seed=seed)
    held_out = builders.data(validation, seed=seed + 1) if validation else None
    options = {"data": data, "batch_size": batch, "shuffle": shuffle, "epochs": 4}
    compare(validation_data=held_out, **options)
