"""`BottleneckCache(views=K)` equals training without a cache on the recorded epochs, in turn."""

from __future__ import annotations

import gc
import time
import warnings
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_freeze import (
    BottleneckCache,
    CacheError,
    CacheWarning,
    FreezeBase,
    FreezeError,
    PerStage,
    Plateau,
    RecompileOnTrainableChange,
    Stage,
)
from keras_freeze.feature_cache.recording.view import View
from keras_freeze.feature_cache.storage import row_chunks
from keras_freeze.fit_engine import cache_lines
from tests import builders
from tests.builders import BACKEND
from tests.in_groups import always_in_groups
from tests.reference.recorded import BATCH, ROWS, Augmented, Counter, Run, X, Y, check

L = keras.layers
BATCHES = -(-ROWS // BATCH)


def with_noise(*head: Any, front: tuple[str, ...] = ("noise",)) -> Any:
    """Returns a function that makes a model with random layers in front of its base."""

    def make() -> Any:
        x = inputs = keras.Input((6,))
        for name in front:
            # Without a seed, PyTorch's Dropout draws from the generator of all other layers.
            drop = L.Dropout(0.3, seed=5, name=name)
            x = (drop if name == "drop_in" else L.GaussianNoise(0.3, name=name))(x)
        x = builders.functional_base()(x)
        for layer in head:
            x = layer()(x)
        return keras.Model(inputs, L.Dense(1, name="head")(x))

    return make


def dropout() -> Any:
    return L.Dropout(0.4, name="head_drop")


# The reference


@pytest.mark.parametrize("views", [1, 2, 3])
def test_data_that_differ_in_each_epoch(views: int):
    stats, data = check(Run(), views=views)
    assert (stats.views, stats.replayed, stats.base_passes) == (views, 7 - views, views)
    assert stats.pulled == BATCHES * views
    assert BATCHES * views <= data.asked <= BATCHES * views + 3  # Keras looks at the first ones
    assert stats.hits == ROWS * (7 - views)
    assert stats.misses == ROWS * views


def test_traced_steps():
    check(Run(make=with_noise(dropout), random=("noise",), traced=True), views=2)


def test_random_layers_in_front_of_the_base():
    run = Run(make=with_noise(dropout, front=("noise", "drop_in")), random=("noise", "drop_in"))
    stats, _ = check(run, views=3)
    assert stats.cuts == {0: ["b3"]}, "the head's Dropout stays live"


def test_arrays():
    run = Run(
        make=with_noise(dropout),
        random=("noise",),
        data=lambda _: {"x": X, "y": Y, "batch_size": BATCH},
    )
    assert check(run, views=2)[0].pulled == 2 * BATCHES


@pytest.mark.parametrize("at", [1, 2, 3, 5])
def test_a_cut_that_moves_at_any_epoch(at: int):
    run = Run(make=with_noise(dropout), random=("noise",), stages={at: "b3"})
    stats, _ = check(run, views=3)
    assert stats.cuts == {0: ["b3"], 1: ["b2"]}
    assert stats.base_passes == 3.0


def test_three_stages():
    run = Run(stages={2: "b3", 4: ["b2", "b3"]})
    stats, _ = check(run, views=2)
    assert len(stats.cuts) == 3


def test_a_stage_that_trains_the_whole_base_replays_the_inputs():
    stats, data = check(Run(stages={3: "all"}), views=2)
    assert stats.replayed == 5
    assert data.asked <= 2 * BATCHES + 3


def test_sequential_and_flat_models():
    check(Run(make=lambda: builders.sequential(extras=True)))
    check(Run(make=lambda: builders.flat(extras=True), base=":b3", stages={3: "b3"}))


class Noisy(keras.Model):
    """A subclassed model with random code in front of its base."""

    def __init__(self):
        super().__init__()
        self.noise = L.GaussianNoise(0.3, name="noise")
        self.base = builders.functional_base()
        self.drop = L.Dropout(0.4, name="head_drop")
        self.head = L.Dense(1, name="head")

    def call(self, inputs, training=None):
        features = self.base(self.noise(inputs, training=training), training=training)
        return self.head(self.drop(features, training=training))


@pytest.mark.parametrize("stages", [None, {3: "b3"}])
def test_a_subclassed_model(stages: Any):
    run = Run(make=builders.called_once(Noisy), stages=stages, random=("noise",))
    stats, _ = check(run, views=2)
    assert stats.base_passes == 2.0


def test_a_stage_without_frozen_layers_draws_anew_in_front_of_the_base():
    run = Run(make=builders.called_once(Noisy), stages={3: "all"})
    cache = BottleneckCache(views=1, shuffle=False, verbose=0)
    losses = run.fit(cache, 1)[0]["loss"]
    assert cache.stats.replayed == 6
    assert len(set(losses)) == 7


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.data needs TensorFlow")
def test_a_tf_data_pipeline():
    import tensorflow as tf

    def pipeline(period: int | None) -> Any:
        data = Augmented(period)

        def batches() -> Any:
            for index in range(BATCHES):
                yield data[index]
            data.epoch += 1

        spec = tf.TensorSpec((None, 6), "float32"), tf.TensorSpec((None, 1), "float32")
        return tf.data.Dataset.from_generator(batches, output_signature=spec)

    stats, _ = check(Run(data=pipeline), views=2)
    assert stats.pulled == 2 * BATCHES


@pytest.mark.skipif(BACKEND != "torch", reason="a DataLoader needs PyTorch")
def test_a_data_loader():
    import torch

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return ROWS

        def __getitem__(self, row: int) -> Any:
            return X[row], Y[row]

    loader = lambda _: torch.utils.data.DataLoader(Rows(), batch_size=BATCH)  # noqa: E731
    check(Run(data=loader, make=with_noise(dropout), random=("noise",)), views=2)


def test_a_generator_with_steps_per_epoch():
    taken = []

    def batches(period: int | None) -> Any:
        step = 0
        while True:
            epoch = step // 3 if period is None else step // 3 % period
            noise = np.random.default_rng(10 * epoch + step % 3).normal(size=(BATCH, 6))
            taken.append(step)
            yield (X[:BATCH] + noise).astype("float32"), Y[:BATCH]
            step += 1

    run = Run(data=batches, options={"steps_per_epoch": 3, "epochs": 6})
    stats, _ = check(run, views=2)
    assert (stats.pulled, stats.replayed) == (6, 4)
    last_run = taken[len(taken) - taken[::-1].index(0) - 1 :]
    assert len(last_run) <= 8, "Keras may look one or two batches ahead"


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_of_a_pydataset(workers: int):
    data = lambda _: Augmented(1, workers=workers, use_multiprocessing=False)  # noqa: E731
    stats, given = check(Run(data=data), views=2)
    assert stats.pulled == 2 * BATCHES
    assert given.asked <= 3 * BATCHES


# Batches of all kinds


def weighted(x: Any, y: Any) -> Any:
    return x, y, np.abs(y[:, 0]) + 0.5


def test_sample_weights():
    check(Run(data=lambda period: Augmented(period, batch=weighted)))


def test_class_weights():
    data = lambda _: {"x": X, "y": (Y[:, 0] > 0).astype("int32"), "batch_size": BATCH}  # noqa: E731
    options = {"class_weight": {0: 0.5, 1: 2.0}, "shuffle": False}
    loss = {"loss": "binary_crossentropy", "metrics": ["accuracy"]}
    check(Run(data=data, options=options, compile=loss))


def two_inputs() -> Any:
    """A model with a second input that goes to the head, and two outputs."""
    first, second = keras.Input((6,), name="first"), keras.Input((6,), name="second")
    noise = L.GaussianNoise(0.2, name="noise")(first)
    features = L.Concatenate()([builders.functional_base()(noise), second])
    outputs = {"a": L.Dense(1, name="head")(features), "b": L.Dense(2, name="other")(features)}
    return keras.Model({"first": first, "second": second}, outputs)


def test_dicts_and_several_outputs():
    def batch(x: Any, y: Any) -> Any:
        return {"first": x, "second": 2 * x}, {"a": y, "b": np.repeat(y, 2, axis=1)}

    run = Run(
        make=two_inputs,
        random=("noise",),
        data=lambda period: Augmented(period, batch=batch),
        compile={"loss": {"a": "mse", "b": "mae"}, "metrics": {"a": ["mae"], "b": ["mse"]}},
        stages={3: "b3"},
    )
    check(run)


class ReadsInputs(keras.Model):
    """A custom train step whose loss reads the inputs."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        weight = keras.ops.mean(keras.ops.abs(x), axis=1)
        return keras.ops.mean(weight * keras.ops.square(y - y_pred)[:, 0])


def test_a_loss_that_reads_the_inputs():
    def make() -> Any:
        inputs = keras.Input((6,))
        return ReadsInputs(inputs, L.Dense(1, name="head")(builders.functional_base()(inputs)))

    check(Run(make=make))


def test_mixed_precision():
    def make() -> Any:
        with _policy("mixed_bfloat16"):
            return with_noise(dropout)()

    check(Run(make=make, random=("noise",), traced=True, stages={3: "b3"}))


class _policy:
    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None:
        self.before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(self.name)

    def __exit__(self, *_: Any) -> None:
        keras.config.set_dtype_policy(self.before)


@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch has no steps_per_execution")
def test_several_steps_in_a_call():
    run = Run(compile={"steps_per_execution": 2, "run_eagerly": False}, traced=True)
    check(run, views=2)


def test_validation_is_exact_and_computed_once():
    options = {"validation_data": (X, Y), "validation_batch_size": BATCH}
    run = Run(make=with_noise(dropout), random=("noise",), options=options)
    stats, _ = check(run, views=2)
    assert stats.base_passes == 2.0
    assert stats.misses == ROWS * 3
    check(Run(options=options | {"validation_freq": 3}), views=2)


# Groups of steps


def test_groups_of_steps_change_nothing(monkeypatch: pytest.MonkeyPatch):
    always_in_groups(monkeypatch)
    run = Run(make=with_noise(dropout), random=("noise",), traced=True, stages={4: "b3"})
    run.options = {"epochs": 9}
    stats, _ = check(run, views=2)
    assert stats.grouped or not _replays_steps()


def _replays_steps() -> bool:
    return BACKEND != "torch" or tuple(map(int, keras.__version__.split(".")[:2])) > (3, 12)


def test_groups_of_shuffled_rows(monkeypatch: pytest.MonkeyPatch):
    def losses(in_groups: bool) -> Any:
        if in_groups:
            always_in_groups(monkeypatch)
        cache = BottleneckCache(views=2, verbose=0)
        run = Run(make=with_noise(dropout), traced=True, options={"epochs": 8})
        history, weights, _ = run.fit(cache, None)
        return history, weights

    single, in_groups = losses(False), losses(True)
    assert single[0] == in_groups[0]
    builders.assert_equal(single[1], in_groups[1])


# Shuffling


def test_a_replayed_epoch_has_the_rows_of_its_recording():
    cache = BottleneckCache(views=3, verbose=0)
    zero = {"optimizer": keras.optimizers.SGD(0.0)}
    keras.utils.set_random_seed(1)
    model = builders.compiled(builders.nested(), **zero)
    data = Augmented()
    callbacks = [FreezeBase(), cache, Counter(data)]
    losses = model.fit(data, epochs=8, verbose=0, callbacks=callbacks).history["loss"]
    assert len(set(np.round(losses[:3], 4))) == 3
    for epoch in range(3, 8):
        np.testing.assert_allclose(losses[epoch], losses[epoch % 3], rtol=1e-5)


def test_the_seed_decides_how_rows_are_shuffled():
    def losses(seed: int, shuffle: bool = True) -> Any:
        keras.utils.set_random_seed(3)
        model = builders.compiled(builders.nested())
        cache = BottleneckCache(views=1, shuffle=shuffle, verbose=0)
        keras.utils.set_random_seed(seed)
        history = model.fit(
            Augmented(), epochs=4, verbose=0, shuffle=False, callbacks=[FreezeBase(), cache]
        ).history
        return history["loss"]

    assert losses(1) == losses(1)
    assert losses(1) != losses(2)
    assert losses(1, shuffle=False) == losses(2, shuffle=False)
    assert losses(1)[0] == losses(2)[0]


# Ends and changes


def test_more_views_than_epochs_is_a_plain_run():
    run = Run(make=with_noise(dropout), options={"epochs": 3})
    expected = run.fit(None, None)
    for views in (3, 9):
        cache = BottleneckCache(views=views, verbose=0)
        with warnings.catch_warnings():
            warnings.simplefilter("error", CacheWarning)
            history, weights, _ = run.fit(cache, None)
        assert history == expected[0]
        builders.assert_equal(weights, expected[1])
        assert (cache.stats.views, cache.stats.replayed, cache.stats.bytes) == (0, 0, 0)
        assert cache.stats.pulled == 3 * BATCHES


class Unfreezes(keras.callbacks.Callback):
    """Makes a layer trainable without a word, at the beginning of an epoch or within it."""

    def __init__(self, name: str, epoch: int, batch: int | None = None):
        super().__init__()
        self.name, self.at, self.batch = name, epoch, batch
        self.epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch
        if epoch == self.at and self.batch is None:
            builders.layer(self.model, self.name).trainable = True

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if (self.epoch, batch) == (self.at, self.batch):
            builders.layer(self.model, self.name).trainable = True


def frozen() -> Any:
    model = builders.nested()
    for name in ("b1", "b2", "b3"):
        builders.layer(model, name).trainable = False
    return model


def unannounced(change: Any, views: int | None, period: int | None, epochs: int = 8) -> Any:
    keras.utils.set_random_seed(3)
    model = builders.compiled(frozen(), run_eagerly=BACKEND != "torch")
    data = Augmented(period)
    caches = [BottleneckCache(views=views, shuffle=False, verbose=0)] if views else []
    callbacks = [Counter(data), change, RecompileOnTrainableChange(verbose=0), *caches]
    options = {"epochs": epochs, "verbose": 0, "shuffle": False}
    history = model.fit(data, callbacks=callbacks, **options).history
    return history["loss"], caches[0].stats if caches else None


def test_an_unannounced_change_begins_a_new_recording():
    # Epochs 0 to 3 use views 0, 1, 0, 1; the change at 4 records 4 and 5, then replays them.
    losses, stats = unannounced(Unfreezes("b3", 4), 2, None)
    keras.utils.set_random_seed(3)
    model = builders.compiled(frozen(), run_eagerly=BACKEND != "torch")
    data = Augmented()
    order = [0, 1, 0, 1, 4, 5, 4, 5]
    counter = Counter(data)
    counter.on_epoch_begin = lambda epoch, logs=None: setattr(data, "epoch", order[epoch])
    callbacks = [counter, Unfreezes("b3", 4), RecompileOnTrainableChange(verbose=0)]
    options = {"epochs": 8, "verbose": 0, "shuffle": False}
    expected = model.fit(data, callbacks=callbacks, **options).history["loss"]
    assert losses == expected
    assert (stats.views, stats.replayed) == (2, 4)


def test_a_change_within_a_replayed_epoch_goes_on_with_live_data():
    losses, stats = unannounced(Unfreezes("b3", 3, batch=2), 2, None)
    assert np.isfinite(losses).all()
    assert stats.replayed == 4  # epochs 2 and 3, then 6 and 7
    assert stats.pulled == 4 * BATCHES + 2


def test_a_layer_frozen_earlier_than_planned_keeps_the_recording():
    losses, stats = unannounced(Unfreezes("head", 4), 2, None)
    assert stats.pulled == 2 * BATCHES
    assert np.isfinite(losses).all()


class Overwrites(keras.callbacks.Callback):
    """Changes a frozen weight at the beginning of an epoch."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 4:
            variable = builders.layer(self.model, "b1").kernel
            variable.assign(keras.ops.convert_to_numpy(variable) * 0.5)


def test_changed_weights_begin_a_new_recording():
    run = Run(callbacks=lambda: [Overwrites()], options={"epochs": 8})
    cache = BottleneckCache(views=2, shuffle=False, verbose=0)
    with pytest.warns(CacheWarning, match="begins a new recording: the weights of the frozen part"):
        history, _, _ = run.fit(cache, None)
    assert cache.stats.pulled == 4 * BATCHES
    assert np.isfinite(history["loss"]).all()


def test_stages_that_wait_for_a_plateau():
    stages = [
        Stage(unfreeze="b3", at=Plateau(patience=1, monitor="loss", min_delta=10.0, max_epochs=3))
    ]
    stats, _ = check(Run(stages=stages, options={"epochs": 9}), views=2)
    assert len(stats.cuts) == 2


def test_per_stage_and_best_weights():
    stopping = lambda: [  # noqa: E731
        PerStage(
            keras.callbacks.EarlyStopping(
                "loss", patience=0, min_delta=9, restore_best_weights=True
            )
        )
    ]
    run = Run(stages={5: "b3"}, callbacks=stopping, options={"epochs": 12})
    stats, _ = check(run, views=1)
    assert stats.replayed > 1


def test_layers_that_cannot_be_recorded_train_on_live_data():
    def make() -> Any:
        inputs = keras.Input((6,))
        x = L.BatchNormalization(name="moving")(inputs)
        return keras.Model(inputs, L.Dense(1, name="head")(builders.functional_base()(x)))

    run = Run(make=make)
    expected = run.fit(None, None)
    cache = BottleneckCache(views=2, verbose=0)
    with pytest.warns(CacheWarning, match="stops recording.*'moving'.*statistics"):
        history, weights, _ = run.fit(cache, None)
    assert history == expected[0]
    builders.assert_equal(weights, expected[1])
    assert not cache.stats.enabled
    assert "statistics" in cache.stats.reason


def sequences(pooled: bool) -> Any:
    """Returns a function that makes a model of sequences; pooled features have one shape."""

    def make() -> Any:
        inputs = tokens = keras.Input((None, 6))
        base = keras.Sequential([keras.Input((None, 6)), L.Dense(8, name="b1")], name="base")
        tokens = base(inputs)
        # Trained layers after the base keep the cut in front of the pooling.
        tokens = tokens if pooled else L.Dense(4, name="after")(tokens)
        return keras.Model(inputs, L.Dense(1, name="head")(L.GlobalAveragePooling1D()(tokens)))

    return make


def of_lengths(_: Any) -> Any:
    for length in [2, 3] * 20:
        yield np.ones((4, length, 6), "float32"), np.ones((4, 1), "float32")


def test_shapes_that_differ_between_batches():
    options = {"steps_per_epoch": 2, "epochs": 4}
    cache = BottleneckCache(views=1, shuffle=False, verbose=0)
    pooled = Run(make=sequences(pooled=True), data=of_lengths, options=options)
    assert pooled.fit(cache, None)[0] == pooled.fit(None, None)[0]
    assert cache.stats.replayed == 3
    live = Run(make=sequences(pooled=False), data=of_lengths, options=options)
    with pytest.warns(CacheWarning, match="stops recording.*different shapes"):
        history, _, _ = live.fit(cache, None)
    assert history == live.fit(None, None)[0]


# Memory


def bytes_of_a_view() -> int:
    cache = BottleneckCache(views=1, verbose=0)
    Run(options={"epochs": 2}).fit(cache, None)
    return cache.stats.bytes


def test_memory_for_fewer_views_than_asked_for():
    size = bytes_of_a_view()
    cache = BottleneckCache(views=4, shuffle=False, max_bytes=2 * size, verbose=0)
    with pytest.warns(CacheWarning, match="keeps 2 of 4 views.*, 4 take") as found:
        history, _, data = Run(options={"epochs": 8}).fit(cache, None)
    assert len([w for w in found if issubclass(w.category, CacheWarning)]) == 1
    assert (cache.stats.views, cache.stats.replayed) == (2, 6)
    assert data.asked <= 2 * BATCHES + 3
    expected, _, _ = Run(options={"epochs": 8}).fit(None, 2)
    assert history == expected


def test_memory_for_no_view():
    cache = BottleneckCache(views=2, max_bytes=64, verbose=0)
    with pytest.warns(CacheWarning, match="keeps no view, so each epoch runs in full"):
        history, weights, _ = Run().fit(cache, None)
    expected = Run().fit(None, None)
    assert history == expected[0]
    builders.assert_equal(weights, expected[1])
    assert cache.stats.views == cache.stats.bytes == 0
    assert not cache.stats.enabled


def test_what_is_printed(capsys: pytest.CaptureFixture[str]):
    cache = BottleneckCache(views=2)
    Run(options={"epochs": 4}).fit(cache, None)
    lines = [line for line in capsys.readouterr().out.splitlines() if "BottleneckCache" in line]
    assert len(lines) == 2
    assert lines[0].startswith(
        "BottleneckCache, epoch 1 of 4: view 1 of 2 has 28 rows, 1.0 KB; memory for"
    )
    assert lines[1] == "BottleneckCache, from epoch 3 of 4: trains on 2 recorded views"


# Bad input, interruptions, and what stays


@pytest.mark.parametrize("views", [0, -1, 1.5, "many", True, False, [2]])
def test_bad_numbers_of_views(views: Any):
    with pytest.raises(CacheError, match=r"`views` must be None .* integer of 1 or more") as error:
        BottleneckCache(views=views)
    assert f"views={views!r}" in str(error.value)


def test_bad_shuffle():
    with pytest.raises(CacheError, match=r"`shuffle` must be True .* Received: shuffle='batch'"):
        BottleneckCache(shuffle="batch")


class Raises(keras.callbacks.Callback):
    """Raises in a batch or an epoch."""

    def __init__(self, error: BaseException, epoch: int, batch: int):
        super().__init__()
        self.error, self.at, self.batch, self.epoch = error, epoch, batch, 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if (self.epoch, batch) == (self.at, self.batch):
            raise self.error


@pytest.mark.parametrize("epoch", [0, 3])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("stop")], ids=type)
def test_an_interrupted_fit_leaves_the_model_usable(epoch: int, error: BaseException):
    keras.utils.set_random_seed(3)
    model = builders.compiled(with_noise(dropout)())
    data = Augmented()
    cache = BottleneckCache(views=2, verbose=0)
    with pytest.raises(type(error)):
        model.fit(
            data, epochs=6, verbose=0, callbacks=[FreezeBase(), cache, Raises(error, epoch, 1)]
        )
    before = data.asked
    model.fit(data, epochs=1, verbose=0)
    assert data.asked >= before + BATCHES, "the next fit reads the data"
    history = model.fit(data, epochs=5, verbose=0, callbacks=[FreezeBase(), cache]).history
    assert np.isfinite(history["loss"]).all()
    assert cache.stats.replayed == 3
    model.evaluate(X, Y, verbose=0)


def test_a_second_fit_records_anew():
    keras.utils.set_random_seed(3)
    model = builders.compiled(builders.nested())
    cache = BottleneckCache(views=2, verbose=0)
    for _ in range(2):
        model.fit(Augmented(), epochs=4, verbose=0, callbacks=[FreezeBase(), cache])
        assert (cache.stats.views, cache.stats.replayed) == (2, 2)


def test_initial_epoch():
    options = {"epochs": 9, "initial_epoch": 2}
    cache = BottleneckCache(views=2, verbose=0)
    Run(options=options).fit(cache, None)
    assert (cache.stats.views, cache.stats.replayed) == (2, 5)


@settings(deadline=None, max_examples=12)
@given(
    views=st.integers(1, 4),
    epochs=st.integers(1, 8),
    at=st.one_of(st.none(), st.integers(1, 6)),
    unfreeze=st.sampled_from(["b3", ["b2", "b3"], "all"]),
    noisy=st.booleans(),
)
def test_any_views_epochs_and_stages(views: int, epochs: int, at: Any, unfreeze: Any, noisy: bool):
    stages = {at: unfreeze} if at is not None and at < epochs else None
    # A stage that trains the whole base draws the noise in front of it anew.
    noisy = noisy and unfreeze != "all"
    run = Run(
        make=with_noise(dropout) if noisy else builders.nested,
        random=("noise",) if noisy else (),
        stages=stages,
        options={"epochs": epochs},
    )
    period = views if views < epochs else epochs
    stats, _ = check(run, views=views, period=period)
    assert stats.replayed == max(0, epochs - views)


# The line that recommends `views=1`


class Slow(Augmented):
    """Data that take most of an epoch to read."""

    def __getitem__(self, index: int) -> Any:
        time.sleep(0.15)
        return super().__getitem__(index)


@pytest.mark.parametrize("data", [Slow(1), Augmented(1), None], ids=["slow", "fast", "arrays"])
def test_slow_data_are_told_of(
    data: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cache_lines, "LEAST", 0.6)
    model = builders.compiled(builders.nested())
    given = {"x": X, "y": Y} if data is None else {"x": data}
    model.fit(**given, epochs=3, verbose=0, callbacks=[FreezeBase(), BottleneckCache()])
    told = "views=1 reads once" in capsys.readouterr().out
    assert told == isinstance(data, Slow)


@pytest.mark.parametrize("in_groups", [False, True])
def test_the_progress_bar_counts_right(
    in_groups: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    if in_groups:
        always_in_groups(monkeypatch)
    options = {"epochs": 6, "verbose": 1}
    Run(options=options).fit(BottleneckCache(views=2, verbose=0), None)
    shown = capsys.readouterr().out
    assert shown.count(f"{BATCHES}/{BATCHES}") >= 6
    assert f"{BATCHES + 1}/{BATCHES}" not in shown


def test_no_recording_is_kept_after_fit():
    def alive() -> set[int]:
        gc.collect()
        return {id(each) for each in gc.get_objects() if type(each) is View}

    before = alive()  # tests that failed keep theirs
    cache = BottleneckCache(views=2, verbose=0)
    Run(make=with_noise(dropout)).fit(cache, None)
    assert alive() <= before
    assert cache.stats.bytes > 0


def test_rows_that_no_later_stage_needs_are_freed():
    def size(stages: Any, epochs: int) -> int:
        cache = BottleneckCache(views=2, verbose=0)
        Run(stages=stages, options={"epochs": epochs}).fit(cache, None)
        return cache.stats.bytes

    both = size({4: "b3", 9: "all"}, 12)  # the last stage needs the inputs alone
    assert both == 2 * ROWS * 4 * (6 + 1)
    assert size({4: "b3"}, 12) == 2 * ROWS * 4 * (8 + 1)


# Layers that Keras doesn't compile


def rotated(supports_jit: bool = True) -> Any:
    """Returns a model of images with a layer in front for which Keras compiles no step."""
    inputs = keras.Input((8, 8, 3))
    x = L.RandomRotation(0.1, name="noise")(inputs)
    x = L.Rescaling(2.0)(x)
    layers = [L.Conv2D(4, 3, name="b1"), L.BatchNormalization(name="bn"), L.Flatten(name="flat")]
    layers[0].supports_jit = supports_jit
    base = keras.Sequential([keras.Input((8, 8, 3)), *layers, L.Dense(4, name="b2")], name="base")
    return keras.Model(inputs, L.Dense(1, name="head")(L.Dropout(0.2, seed=3)(base(x))))


@pytest.mark.parametrize("supports_jit", [True, False])
def test_layers_that_keras_does_not_compile(supports_jit: bool):
    images = np.random.default_rng(0).normal(size=(ROWS, 8, 8, 3)).astype("float32")
    run = Run(
        make=lambda: rotated(supports_jit),
        random=("noise",),
        data=lambda _: {"x": images, "y": Y, "batch_size": BATCH},
        stages={4: "b2"},
        traced=True,
    )
    expected, expected_weights, _ = run.fit(None, 2)
    cache = BottleneckCache(views=2, shuffle=False, verbose=0)
    history, weights, _ = run.fit(cache, None)
    assert cache.stats.base_passes == 2.0
    for name, values in expected.items():  # JAX compiles what comes after the rotation
        np.testing.assert_allclose(history[name], values, rtol=1e-6, err_msg=name)
    for name, value in expected_weights.items():
        if "seed" not in name:
            np.testing.assert_allclose(weights[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


# Rare cases


@pytest.mark.parametrize("views", [1, 2])
def test_a_view_that_is_larger_than_memory(views: int, monkeypatch: pytest.MonkeyPatch):
    """Nothing of that size may be allocated, not even for a moment."""
    sizes: list[int] = []
    empty = np.empty

    def watched(shape: Any, *rest: Any, **options: Any) -> Any:
        sizes.append(int(np.prod(shape)))
        return empty(shape, *rest, **options)

    monkeypatch.setattr(row_chunks.np, "empty", watched)
    cache = BottleneckCache(views=views, max_bytes=ROWS * 30, verbose=0)
    with pytest.warns(CacheWarning, match="keeps no view"):
        Run(options={"epochs": 4}).fit(cache, None)
    assert max(sizes, default=0) < ROWS * 30
    assert cache.stats.pulled == 4 * BATCHES


class Opaque(keras.Model):
    """A base whose graph can't be read."""

    def __init__(self):
        super().__init__(name="base")
        self.first = L.Dense(8, activation="tanh", name="b1")
        self.second = L.Dense(8, activation="tanh", name="b2")

    def call(self, inputs, training=None):
        return self.second(self.first(inputs))


class OpaqueInside(keras.Model):
    """A model whose graph can't be read either."""

    def __init__(self):
        super().__init__()
        self.base = Opaque()
        self.drop = L.Dropout(0.4, seed=2, name="head_drop")
        self.head = L.Dense(1, name="head")

    def call(self, inputs, training=None):
        return self.head(self.drop(self.base(inputs), training=training))


@pytest.mark.parametrize("stages", [None, {3: "all"}, {1: "all", 3: Stage(3, freeze="all")}])
def test_a_base_whose_graph_cannot_be_read(stages: Any):
    if stages is not None and 1 in stages:
        stages = [Stage(1, "all"), Stage(3, freeze=["b1", "b2"])]
    run = Run(make=builders.called_once(OpaqueInside), stages=stages)
    expected, _, _ = run.fit(None, 2)
    cache = BottleneckCache(views=2, shuffle=False, verbose=0)
    history, _, _ = run.fit(cache, None)
    if isinstance(stages, dict) or stages is None:
        assert history == expected
        assert cache.stats.base_passes == 2.0
    else:  # a new recording begins when the base is frozen again
        assert history["loss"][:2] == expected["loss"][:2]
        assert len(history["loss"]) == 7
        assert cache.stats.replayed > 0
        assert cache.stats.pulled == 4 * BATCHES


class StopsWithinAnEpoch(keras.callbacks.EarlyStopping):
    """Asks to stop after the second batch of the first epoch."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if (self.epoch, batch) == (0, 1):
            self.model.stop_training = True


def test_an_epoch_that_ends_early_is_recorded_again():
    cache = BottleneckCache(views=1, verbose=0)
    run = Run(
        stages=[Stage(4, "b3")],
        callbacks=lambda: [PerStage(StopsWithinAnEpoch("loss", patience=9))],
        options={"epochs": 5},
    )
    run.fit(cache, None)
    assert cache.stats.rows == ROWS
    assert cache.stats.pulled == 2 + BATCHES
    assert cache.stats.replayed == 3


class Overwritten(keras.callbacks.Callback):
    """Changes a frozen weight at the end of an epoch."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if epoch == 3:
            variable = builders.layer(self.model, "b1").kernel
            variable.assign(keras.ops.convert_to_numpy(variable) * 0.5)


def test_weights_that_change_when_a_stage_begins():
    run = Run(callbacks=lambda: [Overwritten()], stages={4: "b3"}, options={"epochs": 8})
    cache = BottleneckCache(views=2, shuffle=False, verbose=0)
    with pytest.warns(CacheWarning, match="begins a new recording"):
        run.fit(cache, None)
    assert cache.stats.pulled == 4 * BATCHES


def test_a_change_within_a_replayed_epoch_with_workers():
    keras.utils.set_random_seed(3)
    model = builders.compiled(frozen(), run_eagerly=BACKEND != "torch")
    cache = BottleneckCache(views=1, verbose=0)
    data = Augmented(1, workers=2, use_multiprocessing=False)
    callbacks = [Unfreezes("b3", 2, batch=1), RecompileOnTrainableChange(verbose=0), cache]
    losses = model.fit(data, epochs=6, verbose=0, callbacks=callbacks).history["loss"]
    assert len(losses) == 6
    assert cache.stats.replayed == 4  # epochs 1, 2, 4 and 5


def test_data_that_end_when_a_replay_cannot_go_on():
    def batches() -> Any:
        for index in range(BATCHES):
            yield Augmented()[index]

    model = builders.compiled(frozen(), run_eagerly=BACKEND != "torch")
    cache = BottleneckCache(views=1, verbose=0)
    callbacks = [Unfreezes("b3", 1, batch=1), RecompileOnTrainableChange(verbose=0), cache]
    options = {"epochs": 3, "steps_per_epoch": BATCHES, "verbose": 0}
    with pytest.raises(FreezeError, match="the data have ended"):
        model.fit(batches(), callbacks=callbacks, **options)


class Compiles(keras.callbacks.Callback):
    """Compiles the model at the beginning of an epoch."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 4:
            self.model.compile(self.model.optimizer, "mae", metrics=["mae"])


def test_a_callback_that_compiles_in_a_grouped_replay(monkeypatch: pytest.MonkeyPatch):
    always_in_groups(monkeypatch)
    run = Run(callbacks=lambda: [Compiles()], traced=True, options={"epochs": 8})
    check(run, views=2)


def test_targets_as_arrays_in_groups(monkeypatch: pytest.MonkeyPatch):
    always_in_groups(monkeypatch)
    run = Run(traced=True, options={"epochs": 8})
    run.data = lambda period: Augmented(period, batch=lambda x, y: (x, np.asarray(y)))
    check(run, views=2)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow has such tensors")
@pytest.mark.parametrize("kind", ["ragged", "string"])
def test_inputs_that_cannot_be_recorded(kind: str):
    import tensorflow as tf

    words = tf.constant([["a"], ["b"], ["a"], ["c"]])
    inputs = keras.Input((1,), dtype="string" if kind == "string" else "int64")
    numbers = L.StringLookup(vocabulary=["a", "b", "c"])(inputs) if kind == "string" else inputs
    base = keras.Sequential([keras.Input((1,)), L.Embedding(4, 3), L.Flatten()], name="base")
    model = builders.compiled(keras.Model(inputs, L.Dense(1)(base(numbers))))
    x = words if kind == "string" else tf.ragged.constant([[1], [2], [1], [0]], dtype=tf.int64)
    data = tf.data.Dataset.from_tensors((x, tf.ones((4, 1))))
    cache = BottleneckCache(views=1, verbose=0)
    try:
        model.fit(data, epochs=3, verbose=0)
    except Exception:
        pytest.skip("Keras itself can't train on these")
    with pytest.warns(CacheWarning, match="stops recording.*an input of a batch"):
        model.fit(data, epochs=3, verbose=0, callbacks=[FreezeBase("base"), cache])


def test_validation_gets_the_memory_that_views_leave():
    size = bytes_of_a_view()
    cache = BottleneckCache(views=1, max_bytes=size + 8 * 32, verbose=0)
    options = {"epochs": 3, "validation_data": (X, Y), "validation_batch_size": BATCH}
    with pytest.warns(CacheWarning, match="is full"):
        Run(options=options).fit(cache, None)
    assert cache.stats.bytes <= size + 8 * 32
    assert cache.stats.replayed == 2


def test_noise_in_front_of_layers_that_train_stays_live():
    inputs = keras.Input((6,))
    x = L.GaussianNoise(0.3, name="noise")(inputs)
    for name in ("b1", "b2", "b3"):
        x = L.Dense(8, activation="tanh", name=name)(x)
    model = builders.compiled(keras.Model(inputs, L.Dense(1, name="head")(x)))
    for name in ("b2", "b3"):
        builders.layer(model, name).trainable = False
    cache = BottleneckCache(views=1, shuffle=False, verbose=0)
    with pytest.warns(CacheWarning, match="no frozen layer with weights comes before"):
        model.fit(Augmented(1), epochs=3, verbose=0, callbacks=[cache])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_features_in_half_precision(dtype: str):
    def losses(cache: Any) -> Any:
        return Run(options={"epochs": 5}).fit(cache, None if cache else 2)[0]["loss"]

    cache = BottleneckCache(views=2, shuffle=False, dtype=dtype, verbose=0)
    np.testing.assert_allclose(losses(cache), losses(None), rtol=2e-2)
    assert cache.stats.bytes == 2 * ROWS * (8 * 2 + 4)


@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch has no steps_per_execution")
def test_batches_that_do_not_fill_the_last_call():
    run = Run(compile={"steps_per_execution": 3, "run_eagerly": False}, traced=True)
    check(run, views=2)
