"""TransferModel: one model whose `fit` runs all phases, even if a tool calls it."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
import warnings
from typing import Any

import keras
import numpy as np
import pytest

from keras_freeze import (
    BottleneckCache,
    CacheError,
    CacheWarning,
    FreezeBase,
    FreezeError,
    GradualUnfreeze,
    LayerMatchError,
    Schedule,
    ScheduleError,
    Stage,
    TransferModel,
)
from keras_freeze.schedule.plateau import Plateau
from tests.builders import BACKEND, RATE, L, assert_equal, data, functional_base, weights
from tests.test_no_trace import summary, traces

pytestmark = pytest.mark.one_backend(
    but=[
        "test_saves_and_loads",
        "test_copies",
        "test_unwrapped_it_needs_no_keras_freeze",
    ]
)

X, _ = data(24)
Y = (np.arange(24) % 3).astype("int32")
VAL = (data(8, seed=5)[0], Y[:8])
STAGES = {1: "b3", 2: Stage(2, "b2", learning_rate=RATE / 4)}
LOSS = "sparse_categorical_crossentropy"


def compiled(model: Any, **options: Any) -> Any:
    options = {"optimizer": keras.optimizers.Adam(RATE), "loss": LOSS} | options
    model.compile(**options)
    return model


def fit(model: Any, **options: Any) -> dict[str, list[float]]:
    keras.utils.set_random_seed(4)
    options = {"batch_size": 8, "epochs": 4, "verbose": 0, "validation_data": VAL} | options
    return model.fit(X, Y, **options).history


def transfer(**options: Any) -> TransferModel:
    keras.utils.set_random_seed(3)
    return compiled(TransferModel(functional_base(), 3, **({"schedule": STAGES} | options)))


def images(shape: tuple[int, ...] = (8, 8, 3), rows: int = 8) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, *shape)).astype("float32")


def convolutional(shape: tuple[int, ...] = (8, 8, 3)) -> keras.Model:
    """A base whose output has spatial axes."""
    convolution = {2: L.Conv1D, 3: L.Conv2D, 4: L.Conv3D}[len(shape)]
    layers = [convolution(4, 3, name="b1"), convolution(4, 3, activation="relu", name="b2")]
    return keras.Sequential([keras.Input(shape), *layers], name="base")


@pytest.mark.parametrize("cache", [None, True], ids=["plain", "cache"])
@pytest.mark.parametrize("schedule", [None, STAGES], ids=["head", "stages"])
def test_equals_the_callbacks_by_hand(schedule: Any, cache: Any):
    """Weights and History are equal, bit for bit."""
    model = transfer(schedule=schedule, cache=cache)
    history = fit(model)
    keras.utils.set_random_seed(3)
    base, inputs = functional_base(), keras.Input((6,))
    outputs = L.Dense(3, activation="softmax", name="predictions")(base(inputs))
    twin = compiled(keras.Model(inputs, outputs))
    callbacks = [FreezeBase(base), *([GradualUnfreeze(schedule, verbose=0)] if schedule else [])]
    callbacks += [BottleneckCache(verbose=0)] if cache else []
    expected = fit(twin, callbacks=callbacks)
    assert list(history) == list(expected)
    assert history == expected
    assert history["stage"] == ([0, 1, 2, 2] if schedule else [0, 0, 0, 0])
    assert_equal(weights(model), weights(twin))


def test_the_cache_is_in_the_run():
    model = transfer(cache=True)
    fit(model)
    assert model.cache.stats.enabled
    assert model.cache.stats.base_passes == 1.0
    assert model.cache.stats.misses == 32


def test_pooled_features_are_cached():
    """The wrapper's graph is read: the cut is after the pooling, not after the base."""
    model = compiled(TransferModel(convolutional(), 3, cache=True))
    model.fit(images(), Y[:8], epochs=2, verbose=0)
    assert model.cache.stats.cuts == {0: ["avg_pool"]}


def test_fit_twice():
    """Stages are absolute: the second run begins with a frozen base again."""
    model = transfer(cache=True)
    stages = [fit(model)["stage"], fit(model)["stage"]]
    assert stages == [[0, 1, 2, 2]] * 2
    assert model.cache.stats.base_passes == 1.0
    assert fit(model, initial_epoch=2)["stage"] == [2, 2]


def test_fit_leaves_nothing_behind():
    """Schedule and cache are attributes of the model; `fit` adds no others."""
    model = transfer(cache=True)
    before, attributes = traces(model), set(vars(model))
    fit(model)
    assert traces(model) == before
    assert {key.lstrip("_") for key in set(vars(model)) - attributes} <= set(vars_of_plain_fit())


def vars_of_plain_fit() -> list[str]:
    plain = compiled(functional_base_and_head())
    plain.fit(X, Y, validation_data=VAL, verbose=0)
    return [key.lstrip("_") for key in vars(plain)]


def functional_base_and_head() -> keras.Model:
    base = functional_base()
    return keras.Model(base.input, L.Dense(3, activation="softmax")(base.output))


@pytest.mark.parametrize("verbose", [0, 2])
def test_prints_as_fit_does(verbose: int, capsys: pytest.CaptureFixture[str]):
    fit(transfer(cache=True), verbose=verbose)
    printed = capsys.readouterr().out
    for line in ("Stage 0 (frozen base)", "Stage 1", "BottleneckCache after"):
        assert (line in printed) == bool(verbose)


def test_a_cache_of_the_users_is_used():
    cache = BottleneckCache(verbose=0)
    model = transfer(cache=cache)
    fit(model)
    assert model.cache is cache
    assert cache.stats.base_passes == 1.0
    assert transfer(cache={"dtype": "float16"}).cache.dtype == "float16"


@pytest.mark.parametrize(
    ("shape", "pooling"),
    [
        ((6, 3), L.GlobalAveragePooling1D),
        ((6, 6, 3), L.GlobalAveragePooling2D),
        ((6, 6, 6, 3), L.GlobalAveragePooling3D),
    ],
    ids=["1d", "2d", "3d"],
)
def test_a_number_of_classes_behind_spatial_axes(shape: tuple[int, ...], pooling: Any):
    model = TransferModel(convolutional(shape), 5)
    pool, classifier = model.head
    assert isinstance(pool, pooling)
    assert model.output_shape == (None, 5)
    np.testing.assert_allclose(
        model.predict(images(shape, 2), verbose=0).sum(axis=1), [1, 1], rtol=1e-5
    )
    assert classifier.activation is keras.activations.softmax


def test_a_number_of_classes_behind_flat_features():
    assert [type(layer) for layer in TransferModel(functional_base(), np.int64(5)).head] == [
        L.Dense
    ]


def test_one_class_is_warned_of():
    with pytest.warns(UserWarning, match="head=1"):
        TransferModel(functional_base(), 1)


@pytest.mark.parametrize("form", ["layer", "list", "model", "sequential"])
def test_heads(form: str):
    def head() -> Any:
        inputs = keras.Input((8,))
        return {
            "layer": lambda: L.Dense(3),
            "list": lambda: [L.Dense(4), L.Dropout(0.5), L.Dense(3)],
            "model": lambda: keras.Model(inputs, L.Dense(3)(L.Dense(4)(inputs))),
            "sequential": lambda: keras.Sequential([L.Dense(40), L.Dense(3)]),
        }[form]()

    model = compiled(TransferModel(functional_base(), head(), schedule={1: "b3"}), loss="mse")
    before = weights(model)
    history = model.fit(X, np.ones((24, 3)), epochs=1, verbose=0).history
    assert history["stage"] == [0]
    base = [layer.name for layer in model.base.layers]
    after = weights(model)
    frozen = {key: value for key, value in before.items() if key.split("/")[0] in base}
    assert_equal(frozen, {key: after[key] for key in frozen})
    assert model.output_shape == (None, 3)


def test_a_head_larger_than_the_base():
    """The base is also known by name: the user's `FreezeBase()` doesn't mistake the head for it."""
    head = keras.Sequential([keras.Input((8,)), L.Dense(400), L.Dense(3)], name="larger")
    model = compiled(TransferModel(functional_base(), head), loss="mse")
    model.fit(X, np.ones((24, 3)), verbose=0, callbacks=[FreezeBase()])
    assert not model.base.trainable_variables
    assert head.trainable_variables


def test_is_a_keras_model(capsys: pytest.CaptureFixture[str]):
    model = transfer(name="mine")
    assert isinstance(model, keras.Model)
    assert model.name == "mine"
    assert model.backbone is model.base
    model.summary()
    assert "predictions" in capsys.readouterr().out
    assert model.evaluate(X, Y, verbose=0) > 0
    assert model.predict(X, verbose=0).shape == (24, 3)


@pytest.mark.parametrize("stop", [1, 4], ids=["frozen", "thawed"])
def test_saves_and_loads(stop: int, tmp_path: Any):
    """Weights, flags, optimizer, schedule and cache."""
    model = transfer(cache={"max_bytes": "1 MB"}, augment=L.Rescaling(0.5))
    fit(model, epochs=stop)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is TransferModel
    assert loaded.schedule == model.schedule
    assert loaded.cache.max_bytes == "1 MB"
    expected, found = summary_of(model), summary_of(loaded)
    assert set(found) == set(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, key)
    # The file doesn't store ages, so each begins with a fresh optimizer.
    assert fit(compiled(loaded)) == fit(compiled(model))
    assert_equal(weights(loaded), weights(model))


def summary_of(model: Any) -> dict[str, np.ndarray]:
    return {key: value for key, value in summary(model).items() if key != "paths"}


@pytest.mark.parametrize(
    "stages",
    [
        [Stage(0, ("b3",), name="third"), Stage(Plateau("loss", patience=1), ["b2", "!b3"])],
        Schedule({1: Stage(1, "b3", learning_rate=0.1, optimizer="reset"), 3: ["b1", "b2"]}),
        {1: {"unfreeze": "all", "freeze": "b1"}},
        [Stage(1, "b3", learning_rate=keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5))],
    ],
    ids=["plateau", "schedule", "mapping", "rate"],
)
def test_schedules_are_plain_data_in_the_config(stages: Any):
    model = transfer(schedule=stages)
    loaded = TransferModel.from_config(model.get_config())
    assert TransferModel.from_config(loaded.get_config()).get_config() == loaded.get_config()
    assert [stage.at for stage in loaded.schedule] == [stage.at for stage in model.schedule]
    for ours, theirs in zip(loaded.schedule, model.schedule, strict=True):
        assert (ours.freeze, ours.name) == (theirs.freeze, theirs.name)
        assert ours.unfreeze == theirs.unfreeze or ours.unfreeze == list(theirs.unfreeze)
        for rate in (ours.learning_rate, theirs.learning_rate):
            assert rate is None or float(rate(0) if callable(rate) else rate) == pytest.approx(0.1)


def test_selectors_that_no_file_holds_are_saved_as_names(tmp_path: Any):
    """Layers and functions, in the base and in the head."""
    base, head = functional_base(), [L.Dense(4, name="b1"), L.Dense(3, activation="softmax")]
    stages = {1: base.get_layer("b3"), 2: [lambda layer: layer.name == "b2"], 3: head[0]}
    model = compiled(TransferModel(base, head, schedule=stages))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    expected = fit(model)["trainable_params"]
    assert fit(compiled(loaded))["trainable_params"] == expected
    assert len(set(expected)) == 3  # the head is trained from the start


LOAD = """
import sys
sys.modules["keras_freeze"] = None
import keras
import numpy as np
model = keras.models.load_model(sys.argv[1])
np.save(sys.argv[2], model.predict(np.ones((4, 6), "float32"), verbose=0))
assert isinstance(model.evaluate(np.ones((4, 6)), np.zeros(4), verbose=0), float)
"""


def test_unwrapped_it_needs_no_keras_freeze(tmp_path: Any):
    model = transfer(cache=True)
    fit(model)
    plain = model.unwrap()
    assert not isinstance(plain, TransferModel)
    assert type(plain).__module__.startswith("keras.")
    assert [id(variable) for variable in plain.weights] == [id(v) for v in model.weights]
    assert not traces(plain)
    saved, outputs = str(tmp_path / "plain.keras"), str(tmp_path / "outputs.npy")
    plain.save(saved)
    subprocess.run([sys.executable, "-c", LOAD, saved, outputs], check=True)
    expected = model.predict(np.ones((4, 6), "float32"), verbose=0)
    np.testing.assert_allclose(np.load(outputs), expected, rtol=1e-6)
    model.save_weights(tmp_path / "shared.weights.h5")
    plain.load_weights(tmp_path / "shared.weights.h5")  # the same names in the file


def test_unwrapped_with_a_loss_that_has_no_name():
    model = compiled(TransferModel(functional_base(), 3), loss=lambda y, p: keras.ops.mean(p))
    with pytest.warns(UserWarning, match="isn't compiled"):
        assert not model.unwrap().compiled


def test_unwrapped_before_compile():
    plain = TransferModel(functional_base(), 3).unwrap()
    assert not plain.compiled
    assert plain.output_shape == (None, 3)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies(how: Any):
    model = transfer(cache=True)
    fit(model)
    twin = how(model)
    assert_equal(weights(twin), weights(model))
    assert fit(compiled(twin)) == fit(compiled(model))


def test_clones_keep_what_was_pretrained():
    """`clone_model` makes new weights, but freezing a base with random ones would be useless."""
    model = transfer(cache=True, augment=L.Normalization(name="normal"))
    model.augment[0].adapt(X * 3 + 1)
    clone = keras.models.clone_model(model)
    assert type(clone) is TransferModel
    assert clone.base is not model.base
    assert clone.cache is not model.cache
    ours, theirs = weights(clone), weights(model)
    different = {key.split("/")[0] for key in ours if not np.array_equal(ours[key], theirs[key])}
    assert different == {"predictions"}
    history = fit(clone)
    assert history["stage"] == [0, 1, 2, 2]
    assert clone.cache.stats.base_passes == 1.0
    assert_equal(theirs, weights(model))
    assert type(keras.models.clone_model(clone)) is TransferModel


def test_users_see_the_true_signature():
    arguments = list(inspect.signature(TransferModel).parameters)
    assert arguments[:2] == ["base", "head"]
    assert {"augment", "schedule", "cache", "name"} <= set(arguments)


def test_a_clone_that_knows_no_base_says_so():
    """It never trains without the phases."""
    clone = compiled(keras.models.clone_model(TransferModel(functional_base(), 3)))
    with pytest.raises(FreezeError, match="compile the model before it is cloned"):
        clone.fit(X, Y)
    with pytest.raises(FreezeError, match="doesn't know which"):
        clone.get_config()


def one_hot(**options: Any) -> TransferModel:
    model = TransferModel(functional_base(), 3, **options)
    return compiled(model, loss="categorical_crossentropy", metrics=["accuracy"])


def from_data(X: Any, y: Any, thaw: int = 1) -> TransferModel:
    assert X.shape[1:] == (6,)
    assert y.shape[1:] == (3,)
    return one_hot(schedule={thaw: "b3"}, cache=True)


def pipeline(model: Any, **options: Any) -> Any:
    sklearn = pytest.importorskip("sklearn.pipeline")
    from sklearn.preprocessing import StandardScaler

    estimator = keras.wrappers.SKLearnClassifier(model, **options)
    return sklearn.Pipeline([("scale", StandardScaler()), ("net", estimator)])


@pytest.mark.parametrize("form", ["function", "model"])
def test_in_a_pipeline_of_scikit_learn(form: str):
    model = from_data if form == "function" else one_hot(schedule={1: "b3"}, cache=True)
    pipe = pipeline(model).fit(X, Y, net__epochs=3, net__verbose=0)
    fitted = pipe["net"]
    assert fitted.history_.history["stage"] == [0, 1, 1]
    assert fitted.model_.cache.stats.base_passes == 1.0
    assert pipe.predict(X).shape[0] == len(X)
    if form == "model":
        assert_equal(layer_weights(fitted.model_, "b1"), layer_weights(model, "b1"))
        assert not np.array_equal(
            layer_weights(fitted.model_, "b3")["b3/kernel"], layer_weights(model, "b3")["b3/kernel"]
        )


def layer_weights(model: Any, name: str) -> dict[str, np.ndarray]:
    return {key: value for key, value in weights(model).items() if key.startswith(f"{name}/")}


def test_in_a_search_of_scikit_learn():
    selection = pytest.importorskip("sklearn.model_selection")
    pipe = pipeline(from_data, model_kwargs={"thaw": 1})
    grid = {"net__model_kwargs": [{"thaw": 1}, {"thaw": 2}]}
    search = selection.GridSearchCV(pipe, grid, cv=2, scoring=agreement, error_score="raise")
    search.fit(X, Y, net__epochs=3, net__verbose=0)
    best = search.best_estimator_["net"]
    thaw = search.best_params_["net__model_kwargs"]["thaw"]
    assert best.history_.history["stage"] == [int(epoch >= thaw) for epoch in range(3)]
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_a_search_over_a_model():
    """Each fold begins with the same base. The model that was passed isn't trained."""
    selection = pytest.importorskip("sklearn.model_selection")
    model = one_hot(schedule={1: "b3"}, cache=True)
    before = weights(model)
    scores = selection.cross_validate(
        pipeline(model),
        X,
        Y,
        cv=2,
        scoring=agreement,
        params={"net__epochs": 3, "net__verbose": 0},
        return_estimator=True,
        error_score="raise",
    )
    for estimator in scores["estimator"]:
        fitted = estimator["net"]
        assert fitted.history_.history["stage"] == [0, 1, 1]
        assert_equal(layer_weights(fitted.model_, "b1"), layer_weights(model, "b1"))
    assert_equal(weights(model), before)


def agreement(estimator: Any, x: Any, y: Any) -> float:
    return float(np.mean(np.ravel(estimator.predict(x)) == y))


SEEN: list[int] = []


class Seen(keras.callbacks.Callback):
    """KerasTuner copies the callbacks, so they record outside."""

    def on_epoch_end(self, epoch, logs=None):
        SEEN.append(logs["stage"])


def test_in_keras_tuner(tmp_path: Any):
    tuner = pytest.importorskip("keras_tuner")
    if BACKEND == "tensorflow":
        pytest.importorskip("tensorboard", reason="KerasTuner needs it on TensorFlow")
    SEEN.clear()

    def hypermodel(choices: Any) -> TransferModel:
        thaw = choices.Int("thaw", 1, 2)
        return compiled(TransferModel(functional_base(), 3, schedule={thaw: "b3"}, cache=True))

    search = tuner.GridSearch(
        hypermodel, objective="val_loss", directory=str(tmp_path), project_name="search"
    )
    search.search(X, Y, epochs=3, batch_size=8, verbose=0, validation_data=VAL, callbacks=[Seen()])
    thaw = search.get_best_hyperparameters()[0].get("thaw")
    best = search.get_best_models()[0]
    assert type(best) is TransferModel
    assert best.schedule == Schedule({thaw: "b3"})
    assert len(search.oracle.trials) == 2
    assert sorted(SEEN) == [0, 0, 0, 1, 1, 1]


def test_given_callbacks_count():
    """A user's callback replaces ours of the same role, in any position. The others are added."""
    cache = BottleneckCache(verbose=0)
    model = transfer(cache=True)
    given = [cache, keras.callbacks.CallbackList([GradualUnfreeze({3: "b3"}, verbose=0)])]
    kept = list(given)
    assert fit(model, callbacks=given)["stage"] == [0, 0, 0, 1]
    assert given == kept
    assert cache.stats.base_passes == 1.0
    assert model.cache.stats.rows == 0
    model = transfer()
    frozen = FreezeBase(model.base.get_layer("b1"))
    params = fit(model, callbacks=[frozen, GradualUnfreeze({3: "b1"}, verbose=0)])
    assert params["trainable_params"] == [model.count_params() - 56] * 3 + [model.count_params()]


@pytest.mark.parametrize("form", ["one", "tuple", "ready", "by place"])
def test_every_way_to_give_callbacks(form: str):
    model, log = transfer(), keras.callbacks.LambdaCallback(on_epoch_end=lambda e, logs: seen(logs))
    stages: list[int] = []

    def seen(logs: dict[str, float]) -> None:
        stages.append(logs["stage"])

    if form == "by place":
        model.fit(X, Y, 8, 4, 0, [log], 0.0)
    else:
        given = {"one": log, "tuple": (log,), "ready": None}[form]
        if form == "ready":
            given = keras.callbacks.CallbackList([log], add_history=True, model=model, epochs=4)
        fit(model, callbacks=given)
    assert stages == [0, 1, 2, 2]
    assert model.history.history["stage"] == stages


def flips() -> list[Any]:
    return [L.RandomFlip("horizontal", seed=1, name="flip")]


def test_views_of_random_augmentation(tmp_path: Any):
    x = np.random.default_rng(0).normal(size=(20, 8, 8, 3)).astype("float32")
    y = np.arange(20) % 3
    model = compiled(TransferModel(convolutional(), 3, augment=flips(), cache={"views": 2}))
    model.fit(x, y, batch_size=8, epochs=5, verbose=0)
    assert (model.cache.stats.views, model.cache.stats.replayed) == (2, 3)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert (loaded.cache.views, loaded.cache.shuffle) == (2, True)


@pytest.mark.parametrize("cache", [None, "auto", True])
def test_random_augmentation(cache: Any):
    """Before the base. It changes in each step, so nothing can be cached."""
    x = images(rows=16)
    keras.utils.set_random_seed(3)
    model = TransferModel(convolutional(), 3, augment=flips(), schedule={1: "b2"}, cache=cache)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = compiled(model).fit(x, Y[:16], epochs=3, batch_size=8, verbose=0, shuffle=False)
    told = [str(each.message) for each in caught if each.category is CacheWarning]
    assert len(told) == (cache is True)
    assert all("flip" in each for each in told)
    keras.utils.set_random_seed(3)
    base, inputs = convolutional(), keras.Input((8, 8, 3))
    outputs = L.GlobalAveragePooling2D()(base(flips()[0](inputs)))
    outputs = L.Dense(3, activation="softmax", name="predictions")(outputs)
    twin = compiled(keras.Model(inputs, outputs))
    callbacks = [FreezeBase(base), GradualUnfreeze({1: "b2"}, verbose=0)]
    options = {"epochs": 3, "batch_size": 8, "verbose": 0, "shuffle": False}
    expected = twin.fit(x, Y[:16], callbacks=callbacks, **options)
    assert history.history == expected.history
    first = model.predict(x, verbose=0)
    np.testing.assert_array_equal(first, model.predict(x, verbose=0))


def test_what_isnt_random_in_front_is_cached():
    inputs = keras.Input((8 * 8 * 3,), name="rows")
    augment = keras.Model(inputs, L.Rescaling(0.5)(L.Reshape((8, 8, 3))(inputs)))
    model = compiled(TransferModel(convolutional(), 3, augment=augment, cache="auto"))
    assert model.input_shape == (None, 192)
    x = images().reshape(8, 192)
    model.fit(x, Y[:8], epochs=2, verbose=0)
    assert model.cache.stats.base_passes == 1.0
    assert [layer.name for layer in model.augment] == [augment.name]


def test_several_inputs_by_name():
    entries = {"b": keras.Input((6,), name="b"), "a": keras.Input((3,), name="a")}
    both = L.Concatenate()([entries["a"], entries["b"]])
    base = keras.Model(entries, L.Dense(8, activation="tanh", name="b3")(both), name="base")
    model = compiled(TransferModel(base, 3, schedule={2: "b3"}, cache=True))
    x = {"a": X[:, :3], "b": X}
    history = model.fit(x, Y, epochs=3, batch_size=8, verbose=0).history
    assert history["stage"] == [0, 0, 1]
    assert model.cache.stats.base_passes == 1.0
    expected = model.unwrap().predict({"b": X, "a": X[:, :3]}, verbose=0)
    np.testing.assert_array_equal(model.predict(x, verbose=0), expected)
    loaded = TransferModel.from_config(model.get_config())
    assert set(loaded.input) == {"a", "b"}


class NoInputs(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = L.Dense(3)

    def call(self, inputs):
        return self.dense(inputs)


def two_outputs() -> keras.Model:
    inputs = keras.Input((6,))
    return keras.Model(inputs, [L.Dense(3)(inputs), L.Dense(4)(inputs)])


WRONG = {
    "base is a layer": (lambda: (L.Dense(3), 3), {}, "`base` must be a keras.Model"),
    "base is a name": (lambda: ("vgg19", 3), {}, "Received: base='vgg19'"),
    "base unbuilt": (lambda: (keras.Sequential([L.Dense(3)]), 3), {}, "keras.Input"),
    "base subclassed": (lambda: (NoInputs(), 3), {}, "Wrap a subclassed model"),
    "no class": (lambda: (functional_base(), 0), {}, "Received: head=0"),
    "negative": (lambda: (functional_base(), -2), {}, "1 or more"),
    "bool": (lambda: (functional_base(), True), {}, "Received: head=True"),
    "a float": (lambda: (functional_base(), 3.0), {}, "number of classes"),
    "a class": (lambda: (functional_base(), L.Dense), {}, "`head` must be a layer"),
    "none": (lambda: (functional_base(), None), {}, "Received: head=None"),
    "empty": (lambda: (functional_base(), []), {}, "`head` must hold at least one layer"),
    "in a list": (lambda: (functional_base(), [L.Dense(3), "relu"]), {}, "'relu' of type str"),
    "misfit": (lambda: (functional_base(), L.Conv2D(3, 3)), {}, "`head` doesn't fit"),
    "two outputs": (lambda: (two_outputs(), 3), {}, "one output"),
    "augment": (lambda: (functional_base(), 3), {"augment": "flip"}, "`augment` must be"),
    "augment misfit": (
        lambda: (convolutional(), 3),
        {"augment": keras.Sequential([keras.Input((8, 8, 2)), L.Rescaling(1.0)])},
        "`base` doesn't fit",
    ),
    "augment misfit itself": (
        lambda: (functional_base(), 3),
        {"augment": L.Conv2D(3, 3)},
        "`augment` doesn't fit",
    ),
    "unknown": (lambda: (functional_base(), 3), {"shedule": {}}, "Did you mean 'schedule'"),
    "by place": (lambda: (functional_base(), 3, L.Rescaling(1.0)), {}, "keywords `augment`"),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors(case: str):
    make, options, message = WRONG[case]
    with pytest.raises(FreezeError) as raised:
        TransferModel(*make(), **options)
    assert message in str(raised.value)


@pytest.mark.parametrize("schedule", [{}, {-1: "b3"}, 3, {1: 2.5}, [Stage(1, "b3"), "b2"]])
def test_errors_of_the_schedule(schedule: Any):
    with pytest.raises((ScheduleError, LayerMatchError)):
        TransferModel(functional_base(), 3, schedule=schedule)


@pytest.mark.parametrize("cache", ["always", 3, 0, {"dtyp": "float16"}, {"max_bytes": -1}])
def test_errors_of_the_cache(cache: Any):
    with pytest.raises(CacheError):
        TransferModel(functional_base(), 3, cache=cache)


def test_a_selector_that_matches_nothing_raises_before_the_first_step():
    with pytest.raises(LayerMatchError, match="b33"):
        fit(transfer(schedule={1: "b33"}))


def test_a_second_fit_knows_what_a_trigger_has_begun():
    class Score(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["score"] = [2.0, 2.0, 2.0, 2.0, 1.0, 1.0][epoch]

    schedule = [Stage(Plateau("score", patience=1, mode="min"), "b3")]
    model = TransferModel(functional_base(), L.Dense(1), schedule=schedule)
    model.compile("adam", "mse")
    x, y = data(16)
    first = model.fit(x, y, epochs=4, verbose=0, callbacks=[Score()]).history["stage"]
    assert first == [0, 0, 1, 1]
    options = {"epochs": 6, "initial_epoch": 4, "verbose": 0, "callbacks": [Score()]}
    assert model.fit(x, y, **options).history["stage"] == [1, 1]
    assert model.begun == {1: 2}
