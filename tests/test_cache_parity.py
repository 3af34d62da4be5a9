"""C3 and C4: with BottleneckCache, History and weights equal the run without it, in one pass."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_freeze import (
    BottleneckCache,
    CacheWarning,
    FreezeBase,
    RecompileOnTrainableChange,
    Stage,
)
from keras_freeze.feature_cache.serving import get_or_compute_features
from tests import builders
from tests.builders import BACKEND, L
from tests.reference.cached import Run, X, Y, check, compare
from tests.reference.search import examples

VAL = builders.data(12, seed=5)
STAGES = {1: "b3", 3: "b2"}


@pytest.mark.one_backend(but=["nested-stages", "subclassed-stages", "shared-stages", "flat-head"])
@pytest.mark.parametrize("stages", [None, STAGES], ids=["head", "stages"])
@pytest.mark.parametrize("kind", builders.KINDS)
def test_every_kind_of_model(kind: str, stages: Any):
    """The validation batches have a different size."""
    options = {"validation_data": VAL, "validation_batch_size": 4}
    run = Run(lambda: builders.KINDS[kind](extras=True), stages=stages, options=options)
    run.traced = kind in ("nested", "subclassed")
    stats = check(run)
    assert stats.misses == 44
    assert stats.hits == 5 * 44 - 44


def two_inputs() -> keras.Model:
    """An image goes through the base, numbers go directly to the head."""
    image, numbers = keras.Input((6,), name="image"), keras.Input((3,), name="numbers")
    both = L.Concatenate()([builders.functional_base()(image), numbers])
    return keras.Model({"image": image, "numbers": numbers}, L.Dense(1, name="head")(both))


def residual(blocks: int = 3) -> keras.Model:
    """A flat residual network. A skip connection crosses every possible cut."""
    first = outputs = keras.Input((6,))
    for block in range(1, blocks + 1):
        inner = L.Dense(6, activation="tanh", name=f"b{block}")(outputs)
        outputs = L.Add()([outputs, inner])
    outputs = L.Concatenate()([outputs, first])
    return keras.Model(first, L.Dense(1, name="head")(outputs))


class Opaque(keras.layers.Layer):
    """A base whose graph can't be read."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.one = L.Dense(8, activation="tanh", name="one")
        self.two = L.Dense(8, activation="tanh", name="two")

    def build(self, shape):
        self.one.build(shape)
        self.two.build((*shape[:-1], 8))

    def call(self, inputs):
        hidden = self.one(inputs)
        return {"last": self.two(hidden), "hidden": hidden}


def opaque() -> keras.Model:
    inputs = keras.Input((6,))
    outputs = Opaque(name="base")(inputs)
    both = L.Concatenate()([outputs["last"], outputs["hidden"]])
    return keras.Model(inputs, L.Dense(1, name="head")(both))


class OpaqueInOpaque(keras.Model):
    """Neither graph can be read, and code that isn't a layer comes before the base."""

    def __init__(self):
        super().__init__()
        self.base = Opaque(name="base")
        self.drop = L.Dropout(0.5)
        self.head = L.Dense(1, name="head")

    def call(self, inputs, training=None):
        return self.head(self.drop(self.base(inputs * 2.0)["last"], training=training))


def opaque_in_opaque() -> keras.Model:
    model = OpaqueInOpaque()
    model(np.zeros((1, 6), "float32"))
    return model


def dict_data() -> Any:
    return {"image": X, "numbers": X[:, :3]}, Y


def two_branches() -> keras.Model:
    """Once "right" is unfrozen, the cached features depend on one input only."""
    left, right = keras.Input((6,), name="left"), keras.Input((6,), name="right")
    branches = [L.Dense(4, name="l")(left), L.Dense(4, name="r")(right)]
    return keras.Model([left, right], L.Dense(1, name="head")(L.Concatenate()(branches)))


def pairs() -> Any:
    while True:
        for start in range(0, 32, 8):
            rows = slice(start, start + 8)
            yield (X[rows], X[::-1][rows]), Y[rows]


def branches(data: Any, **options: Any) -> Run:
    stages = [Stage(2, "r")]
    return Run(two_branches, data, stages, options, frozen=lambda: [FreezeBase(["l", "r"])])


SHAPES: dict[str, Run] = {
    "two branches": branches(lambda: ([X, X[::-1]], Y)),
    "two branches of a generator": branches(lambda: (pairs(),), batch_size=None, steps_per_epoch=4),
    "dict of inputs": Run(two_inputs, dict_data, STAGES, traced=True),
    "flat residual": Run(residual, stages=STAGES, frozen=lambda: [FreezeBase(":b3")]),
    "opaque base": Run(opaque, frozen=lambda: [FreezeBase("base")]),
    "opaque model": Run(opaque_in_opaque, frozen=lambda: [FreezeBase("base")], traced=True),
    "frozen by hand": Run(
        lambda: frozen(builders.nested()), frozen=list, options={"validation_data": VAL}
    ),
}


def frozen(model: keras.Model) -> keras.Model:
    builders.layer(model, "base").trainable = False
    return model


@pytest.mark.one_backend(but=["dict of inputs", "opaque model"])
@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_of_graph(name: str):
    check(SHAPES[name])


@pytest.mark.one_backend
def test_a_base_that_is_a_layer_is_cached_while_all_of_it_is_frozen():
    stages = [Stage(2, "base/*")]
    stats = check(Run(opaque, stages=stages, frozen=lambda: [FreezeBase("base")]))
    assert list(stats.cuts) == [0]
    stats = check(Run(opaque_in_opaque, stages=stages, frozen=lambda: [FreezeBase("base")]))
    assert list(stats.cuts) == [0]


@pytest.mark.one_backend
def test_a_stage_that_leaves_the_base_alone_needs_no_new_pass():
    stages = [Stage(3, learning_rate=0.01)]
    for make in (opaque, opaque_in_opaque):
        check(Run(make, stages=stages, frozen=lambda: [FreezeBase("base")]))
    check(Run(builders.nested, stages=stages))


class Sequence(keras.utils.PyDataset):
    """Batches in order, as numpy arrays, with sample weights."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        rows = slice(8 * index, 8 * index + 8)
        return X[rows], Y[rows], np.linspace(0.5, 1.5, 8).astype("float32")


def batches(times: int = 100) -> Any:
    for _ in range(times):
        for start in range(0, 32, 8):
            yield X[start : start + 8], Y[start : start + 8]


def tensors() -> Any:
    """Returns the backend's own loader, shuffled."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        dataset = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(32, seed=1)
        return (dataset.batch(8).prefetch(1),)
    import torch

    dataset = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    return (torch.utils.data.DataLoader(dataset, batch_size=8, shuffle=True),)


WEIGHTS = np.linspace(0.1, 2, 32).astype("float32")
REPEATED = np.concatenate([X[:16], X[:16]]), Y
SOURCES: dict[str, tuple[Any, dict[str, Any]]] = {
    "shuffled": (lambda: (X, Y), {"shuffle": True}),
    "in order": (lambda: (X, Y), {"shuffle": False}),
    "shuffled in batches": (lambda: (X, Y), {"shuffle": "batch"}),
    "validation split": (lambda: (X, Y), {"validation_split": 0.25}),
    "sample weights": (lambda: (X, Y, WEIGHTS), {}),
    "validation_freq": (lambda: (X, Y), {"validation_data": VAL, "validation_freq": 2}),
    "repeated rows": (lambda: REPEATED, {}),
    "float64": (lambda: (X.astype("float64"), Y), {"validation_data": VAL}),
    "steps_per_epoch": (lambda: (X, Y), {"steps_per_epoch": 4}),
    "PyDataset": (lambda: (Sequence(),), {}),
    "PyDataset, two workers": (lambda: (Sequence(workers=2, max_queue_size=4),), {}),
    "generator": (lambda: (batches(),), {"steps_per_epoch": 4, "validation_data": VAL}),
}
if BACKEND != "jax":
    SOURCES["tensors"] = (tensors, {"validation_data": VAL})


def fit_arguments(options: dict[str, Any]) -> dict[str, Any]:
    return {"batch_size": 8} | options


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_of_data(name: str):
    data, options = SOURCES[name]
    if not isinstance(data()[0], np.ndarray):
        options = {"batch_size": None} | options
        if "validation_data" in options:
            options["validation_batch_size"] = 4
    run = Run(builders.nested, lambda: data()[:2], STAGES, fit_arguments(options))
    if len(data()) == 3:
        run.options["sample_weight"] = data()[2]
        run.compile["weighted_metrics"] = ["mae"]
        run.compile["metrics"] = []
    if name == "validation_freq":
        run.options["epochs"] = 6
    check(run)


@pytest.mark.one_backend
def test_class_weights():
    labels = (Y > 0).astype("int32")
    options = {"class_weight": {0: 0.5, 1: 2.0}}
    run = Run(data=lambda: (X, labels), options=options, compile={"loss": "binary_crossentropy"})
    check(run)


def test_a_last_partial_batch_is_right_within_rounding():
    """A row may be computed in a batch of a different size than without the cache."""
    run = Run(data=lambda: builders.data(30), stages=STAGES, traced=True)
    check(run, exact=False)


def many_outputs() -> keras.Model:
    inputs = keras.Input((6,), name="image")
    features = builders.functional_base()(inputs)
    outputs = {"number": L.Dense(1, name="number")(features)}
    outputs["kind"] = L.Dense(3, activation="softmax", name="kind")(features)
    return keras.Model({"image": inputs}, outputs)


KINDS_OF_Y = np.arange(30) % 3
ONE = builders.data(30)
PLAIN = {"batch_size": 8, "shuffle": False}
IN_ORDER: dict[str, Run] = {
    "partial last batch": Run(data=lambda: ONE, stages=STAGES),
    "sample weights": Run(data=lambda: ONE, options={"sample_weight": np.arange(30.0)}),
    "whole numbers": Run(
        data=lambda: (ONE[0], KINDS_OF_Y % 2),
        options={"class_weight": {0: 0.5, 1: 2.0}},
        compile={"loss": "binary_crossentropy"},
    ),
    "several outputs": Run(
        many_outputs,
        data=lambda: ({"image": ONE[0]}, {"number": ONE[1], "kind": KINDS_OF_Y.astype("uint8")}),
        compile={"loss": {"number": "mse", "kind": "sparse_categorical_crossentropy"}}
        | {"metrics": {"number": ["mae"], "kind": ["accuracy"]}},
    ),
    "float64": Run(data=lambda: (ONE[0].astype("float64"), ONE[1].astype("float64"))),
    "validation_split": Run(data=lambda: ONE, options={"validation_split": 0.3}),
    "steps_per_epoch": Run(data=lambda: ONE, options={"steps_per_epoch": 4}),
    "rows twice": Run(data=lambda: (ONE[0][np.arange(30) // 2], ONE[1])),
}


@pytest.mark.parametrize("name", IN_ORDER)
def test_rows_in_plain_order(name: str, monkeypatch: Any):
    """Keras' loader isn't used, and several batches of the prefix run together."""
    monkeypatch.setattr(get_or_compute_features, "AT_ONCE", 3)
    run = IN_ORDER[name]
    run.options = PLAIN | run.options
    run.traced = name in ("partial last batch", "several outputs", "rows twice")
    stats = check(run)
    assert stats.hits + stats.misses == 5 * 30
    assert stats.misses == stats.rows == (15 if name == "rows twice" else 30)


@pytest.mark.one_backend(but=["2"])
@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_batches_of_the_prefix_that_run_at_once(at_once: int, monkeypatch: Any):
    """Shuffled: rows computed ahead may appear in any later batch."""
    monkeypatch.setattr(get_or_compute_features, "AT_ONCE", at_once)
    stats = check(Run(stages=STAGES, options={"validation_data": VAL}, traced=True))
    assert stats.hits + stats.misses == 5 * 44
    assert stats.misses == 44


def words() -> keras.Model:
    """The features of the frozen part have masks."""
    inputs = keras.Input((5,), dtype="int32")
    embedding = L.Embedding(7, 4, mask_zero=True, name="embedding")
    base = keras.Model(inputs, L.Dense(4, name="b1")(embedding(inputs)), name="base")
    outer = keras.Input((5,), dtype="int32")
    return keras.Model(outer, L.Dense(1, name="head")(L.GRU(4, name="gru")(base(outer))))


@pytest.mark.one_backend
def test_features_with_masks():
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 7, (32, 5)).astype("int32")
    rows[:, 3:] = 0
    stats = check(Run(words, data=lambda: (rows, Y), traced=True))
    assert stats.bytes == stats.rows * (5 * 4 * 4 + 5)  # one byte of mask for each word


@pytest.mark.one_backend
def test_a_run_that_begins_late():
    check(Run(stages=STAGES, options={"initial_epoch": 2, "epochs": 6}))


@pytest.mark.one_backend(but=["20"])
@pytest.mark.parametrize("rows", [17, 20, 31])
def test_a_last_batch_of_the_prefix_that_is_not_full(rows: int, monkeypatch: Any):
    """Shuffled: the rows computed ahead run out before the epoch ends."""
    monkeypatch.setattr(get_or_compute_features, "AT_ONCE", 2)
    data = builders.data(rows)
    check(Run(data=lambda: data, traced=True), exact=False)


class Recompile(keras.callbacks.Callback):
    """Compiles the model during `fit`, with another loss."""

    def __init__(self, hook: str):
        super().__init__()
        setattr(self, hook, self.act)

    def act(self, epoch, logs=None):
        if epoch == 2:
            optimizer = keras.optimizers.SGD(0.1)
            self.model.compile(optimizer, "mae", metrics=["mae"])


@pytest.mark.one_backend(but=["on_epoch_begin"])
@pytest.mark.parametrize("hook", ["on_epoch_begin", "on_epoch_end"])
def test_a_callback_that_compiles(hook: str):
    run = Run(frozen=lambda: [FreezeBase(), Recompile(hook)], options={"validation_data": VAL})
    run.traced = True
    check(run)


@pytest.mark.one_backend
def test_a_loss_that_calls_the_base():
    """As a perceptual loss does. Then no layer of the base is hidden from Keras."""
    made: list[keras.Model] = []

    def make() -> keras.Model:
        made[:] = [builders.nested()]
        return made[0]

    def perceptual(y: Any, outputs: Any) -> Any:
        features = builders.layer(made[0], "base")(keras.ops.tile(outputs, (1, 6)))
        return keras.ops.mean(keras.ops.square(y - outputs)) + keras.ops.mean(features)

    check(Run(make, compile={"loss": perceptual, "metrics": []}, traced=True))


def sequences() -> keras.Model:
    """On PyTorch the features aren't contiguous, and masks are drawn in memory order."""
    base = keras.Sequential([keras.Input((6, 1)), L.LSTM(5, return_sequences=True)], name="base")
    tail = [L.Reshape((6, 1)), base, L.Dropout(0.3), L.Flatten(), L.Dense(1, name="head")]
    return keras.Sequential([keras.Input((6,)), *tail])


def test_random_masks_behind_the_cut():
    check(Run(sequences, traced=True))


class OwnBaseCall(builders.BaseAndHead):
    """A train step that calls the base directly, on other inputs, before the model."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        again = keras.ops.mean(self.base(x * 0.5))
        return super().compute_loss(x, y, y_pred + again, sample_weight, training=training)


@pytest.mark.one_backend
def test_a_step_that_calls_the_base_itself():
    check(Run(builders.called_once(OwnBaseCall), traced=True))


@pytest.mark.skipif(BACKEND == "torch", reason="Keras has no steps_per_execution on PyTorch")
def test_several_steps_in_one_execution():
    """The last execution has fewer steps."""
    data = X[:24], Y[:24]
    check(Run(data=lambda: data, stages=STAGES, compile={"steps_per_execution": 2}, traced=True))


class OwnStep(keras.Model):
    """A train step that reads its inputs: it adds an autoencoder's loss to the model's loss."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training=training)
        return loss + keras.ops.mean(keras.ops.square(x)) * keras.ops.mean(y_pred)


def own_step() -> keras.Model:
    inputs = keras.Input((6,))
    outputs = L.Dense(1, name="head")(builders.functional_base()(inputs))
    return OwnStep(inputs, outputs)


def test_a_loss_that_reads_the_inputs():
    check(Run(own_step, stages=STAGES, options={"validation_data": VAL}, traced=True))


class Twice(keras.Model):
    """A custom step that calls the model a second time, on other inputs."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        again = self(x * 0.5, training=training)
        return super().compute_loss(x, y, y_pred + again, sample_weight, training=training)


def twice() -> keras.Model:
    inputs = keras.Input((6,))
    return Twice(inputs, L.Dense(1, name="head")(builders.functional_base()(inputs)))


class Siamese(builders.BaseAndHead):
    """Code that calls its base twice. The cache can serve only the first call."""

    def call(self, inputs):
        return self.head(self.base(inputs) - self.base(-inputs))


@pytest.mark.one_backend
@pytest.mark.parametrize("make", [twice, builders.called_once(Siamese)], ids=["graph", "code"])
def test_what_is_called_twice_in_a_step(make: Any):
    """Full batches only: TensorFlow's graph optimizer rounds differently if the batch size is open.

    With its rewriting disabled (`disable_meta_optimizer`), partial batches are equal too.
    """
    options = {"validation_data": builders.data(16, seed=5)}
    check(Run(make, stages=STAGES, options=options, traced=True))


def test_mixed_precision():
    def make() -> keras.Model:
        keras.config.set_dtype_policy("mixed_bfloat16")
        try:
            return builders.nested(extras=True)
        finally:
            keras.config.set_dtype_policy("float32")

    check(Run(make, stages=STAGES, traced=True))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_reduced_precision(dtype: str, tolerance: float):
    run = Run(options={"validation_data": VAL})
    expected, _ = run.fit(None)
    cache = BottleneckCache(verbose=0, dtype=dtype)
    history, _ = run.fit(cache)
    assert cache.stats.bytes == cache.stats.rows * 8 * 2
    for key in expected:
        np.testing.assert_allclose(history[key], expected[key], rtol=tolerance, atol=tolerance)
    assert history != expected


def test_a_change_that_nobody_announced():
    """Correct, with one new pass. Freezing again costs at most one more."""

    class Thaw(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            builders.layer(self.model, "b3").trainable = epoch >= 2

    def callbacks() -> list[Any]:
        return [FreezeBase(), RecompileOnTrainableChange(verbose=0), Thaw()]

    check(Run(frozen=callbacks, options={"validation_data": VAL}), passes=2.0)


@pytest.mark.one_backend
def test_layers_that_are_frozen_again():
    stages = [Stage(1, "b3"), Stage(3, freeze="b3")]
    check(Run(stages=stages, options={"epochs": 6}), passes=2.0)


def test_a_callback_may_predict_and_evaluate_on_other_data():
    other = builders.data(7, seed=9)
    seen: list[Any] = []

    class Ask(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(self.model.predict(other[0], verbose=0).tolist())
            seen.append(self.model.evaluate(*other, verbose=0))

    run = Run(frozen=lambda: [FreezeBase(), Ask()], stages=STAGES, traced=True)
    run.options["validation_data"] = VAL
    check(run)
    flat = [np.ravel(one) for one in seen]
    plain, cached = (
        np.concatenate(half) for half in (flat[: len(flat) // 2], flat[len(flat) // 2 :])
    )
    compare({"seen": cached}, {"seen": plain})


@pytest.mark.one_backend
def test_over_the_budget_it_goes_on_with_what_it_has():
    expected, expected_weights = Run().fit(None)
    cache = BottleneckCache(verbose=0, max_bytes=20 * 32)
    with pytest.warns(CacheWarning, match=r"is full: `max_bytes`.*20 rows.*need"):
        history, weights = Run().fit(cache)
    assert cache.stats.rows == 20
    assert cache.stats.misses == 32 + 4 * 12
    compare(history, expected, exact=True)
    compare(weights, expected_weights, exact=True)


@dataclass(frozen=True)
class Graph:
    """A random graph of layers.

    Attributes:
        calls: for each call, its layer (a repeated number is a shared layer) and the earlier
            tensors it reads.
        kinds: the kind of each layer: "dense", "norm" or "drop".
        inputs: number of inputs.
        thawed: the dense layers that the stage at epoch 1 unfreezes.
        rows: number of rows; a batch has 4.
        picks: which of 8 different rows each row is.
        traced: whether steps are traced.
    """

    calls: list[tuple[int, list[int]]]
    kinds: list[str]
    inputs: int
    thawed: list[int]
    picks: list[int]
    traced: bool

    def make(self) -> keras.Model:
        layers = [self._layer(number, kind) for number, kind in enumerate(self.kinds)]
        inputs = [keras.Input((4,), name=f"in{number}") for number in range(self.inputs)]
        tensors = list(inputs)
        for number, reads in self.calls:
            read = [tensors[place % len(tensors)] for place in reads]
            merged = read[0] if len(read) == 1 else L.Add()(read)
            tensors.append(layers[number % len(layers)](merged))
        last = L.Add()([tensors[-1], tensors[len(inputs)], *inputs])
        base = keras.Model(inputs, last, name="base")
        outside = [keras.Input((4,), name=f"x{number}") for number in range(self.inputs)]
        return keras.Model(outside, L.Dense(1, name="head")(base(outside)))

    def _layer(self, number: int, kind: str) -> keras.layers.Layer:
        if kind == "dense":
            return L.Dense(4, activation="tanh", name=f"l{number}")
        return L.BatchNormalization(name=f"l{number}") if kind == "norm" else L.Dropout(0.5)

    def data(self) -> Any:
        different, targets = builders.data(8, 4 * self.inputs)
        rows = different[self.picks]
        return np.split(rows, self.inputs, axis=1), targets[self.picks]

    def run(self) -> Run:
        names = {f"l{n}" for n in self.thawed if self.kinds[n % len(self.kinds)] == "dense"}
        model = self.make()
        known = {layer.name for layer in model._flatten_layers()}
        names = sorted(names & known)
        stages = [Stage(1, names)] if names else None
        options = {"batch_size": 4, "epochs": 3, "shuffle": False}
        return Run(self.make, self.data, stages, options, traced=self.traced)


@st.composite
def graphs(draw: Any) -> Graph:
    kinds = draw(st.lists(st.sampled_from(["dense", "norm", "drop"]), min_size=2, max_size=5))
    reads = st.lists(st.integers(0, 6), min_size=1, max_size=2, unique=True)
    call = st.tuples(st.integers(0, len(kinds) - 1), reads)
    return Graph(
        calls=[(0, [0]), *draw(st.lists(call, min_size=1, max_size=6))],
        kinds=["dense", *kinds],
        inputs=draw(st.integers(1, 2)),
        thawed=draw(st.lists(st.integers(0, len(kinds)), max_size=3)),
        picks=draw(
            st.lists(st.integers(0, 7), min_size=8, max_size=16).filter(lambda p: len(p) % 4 == 0)
        ),
        traced=draw(st.integers(0, 3)) == 0,
    )


@pytest.mark.one_backend
@given(graphs())
@examples(8)
def test_random_graphs(graph: Graph):
    """Branches, skip connections, shared layers, several inputs, repeated rows."""
    run = graph.run()
    expected, expected_weights = run.fit(None)
    cache = BottleneckCache(verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheWarning)  # no weights before the head
        history, weights = run.fit(cache)
    compare(history, expected, exact=True)
    compare(weights, expected_weights, exact=True)
    if cache.stats.enabled:
        assert cache.stats.base_passes == 1.0
        assert cache.stats.misses == len(set(graph.picks))
