"""How the base of a model is found if it isn't named: data flow decides."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from keras_freeze import FreezeBase, LayerMatchError
from keras_freeze.graph.find_base import find_base
from tests import builders as B

pytestmark = pytest.mark.one_backend

L = keras.layers
SHAPE = (8, 8, 3)
Model = keras.Model


def chain(*layers: Any, shape: tuple[int, ...] = SHAPE, name: str | None = None) -> Any:
    return keras.Sequential([keras.Input(shape), *layers], name=name)


def conv(name: str, filters: int = 4, kind: Any = L.Conv2D, **options: Any) -> Any:
    return kind(filters, 3, padding="same", name=name, **options)


def net(name: str = "net", filters: int = 4) -> Any:
    """Two convolutions, named after their model."""
    layers = [conv(f"{name}_1", filters), conv(f"{name}_2", filters)]
    return chain(*layers, name=name)


def dense(name: str, units: int = 3) -> Any:
    return L.Dense(units, name=name)


def images(*names: str) -> list[Any]:
    return [keras.Input(SHAPE, name=name) for name in names or ("image",)]


# Models with one possible base, and the names of its layers that have weights.


def nested_head_larger_than_the_base() -> tuple[Model, set[str]]:
    top = chain(L.Flatten(), dense("h1", 64), dense("h2"), shape=(8, 8, 4), name="top")
    return chain(net(), top), {"net_1", "net_2"}


def nested_head_after_a_flatten() -> tuple[Model, set[str]]:
    top = chain(dense("h1", 64), dense("h2"), shape=(256,), name="top")
    return chain(net(), L.Flatten(), top), {"net_1", "net_2"}


def nested_top_and_then_a_classifier() -> tuple[Model, set[str]]:
    top = chain(L.Flatten(), dense("h1", 64), shape=(8, 8, 4), name="top")
    return chain(net(), top, dense("out")), {"net_1", "net_2"}


def base_that_pools_and_a_large_hidden_layer() -> tuple[Model, set[str]]:
    base = chain(conv("c"), L.GlobalAveragePooling2D(), name="base")
    return chain(base, dense("hidden", 64), dense("out")), {"c"}


def base_of_vectors_and_a_large_hidden_layer() -> tuple[Model, set[str]]:
    base = chain(dense("a"), dense("b"), shape=(6,), name="base")
    return chain(base, dense("hidden", 64), dense("out"), shape=(6,)), {"a", "b"}


def subclassed_with_a_larger_head() -> tuple[Model, set[str]]:
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            layers = [L.Flatten(), dense("h1", 64), dense("h2")]
            self.top = chain(*layers, shape=(8, 8, 4), name="top")  # made first, called last
            self.base = net()

        def call(self, x, training=None):
            return self.top(keras.ops.relu(self.base(x, training=training)))

    return Net(), {"net_1", "net_2"}


def subclassed_of_single_layers() -> tuple[Model, set[str]]:
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.out = dense("out")
            self.first, self.second = conv("c1"), conv("c2")
            self.pool = L.GlobalAveragePooling2D()

        def call(self, x):
            return self.out(self.pool(self.second(self.first(x))))

    return Net(), {"c1", "c2"}


def layer_in_front_of_the_base() -> tuple[Model, set[str]]:
    """Converts gray images to three channels."""
    return chain(L.Conv2D(3, 1), net(filters=8), L.Flatten(), dense("out")), {"net_1", "net_2"}


def base_that_is_frozen_already() -> tuple[Model, set[str]]:
    """As in Keras' guide to transfer learning."""
    base = net()
    base.trainable = False
    return chain(base, L.Flatten(), dense("out")), {"net_1", "net_2"}


def flat_with_a_deep_head() -> tuple[Model, set[str]]:
    head = [dense("h1", 16), L.BatchNormalization(), L.Dropout(0.1), dense("out")]
    return chain(conv("c1"), conv("c2"), L.GlobalMaxPooling2D(), *head), {"c1", "c2"}


def flat_of_nested_blocks() -> tuple[Model, set[str]]:
    """Like ConvNeXt: stem and downsampling are models, the blocks between them are layers."""
    (i,) = images()
    h = chain(conv("s"), L.LayerNormalization(name="sn"), name="stem")(i)
    for n in range(3):
        h = L.Add()([h, conv(f"b{n}")(h)])
    h = chain(conv("d", strides=2), L.LayerNormalization(name="dn"), shape=(8, 8, 4), name="d")(h)
    for n in range(3, 6):
        h = L.Add()([h, conv(f"b{n}")(h)])
    h = L.LayerNormalization(name="last")(L.GlobalAveragePooling2D()(h))
    names = {"s", "sn", "d", "dn", "last", *(f"b{n}" for n in range(6))}
    return Model(i, dense("out")(h)), names


def squeeze_and_excite() -> tuple[Model, set[str]]:
    """Its pooling is on a side branch, so it doesn't end the base."""
    (i,) = images()
    h = conv("c1")(i)
    weights = dense("e2", 4)(dense("e1", 2)(L.GlobalAveragePooling2D(keepdims=True)(h)))
    h = L.GlobalAveragePooling2D()(conv("c2")(L.Multiply()([h, weights])))
    return Model(i, dense("out")(h)), {"c1", "c2", "e1", "e2"}


def two_heads_on_one_graph() -> tuple[Model, set[str]]:
    (i,) = images()
    h = L.GlobalAveragePooling2D()(conv("c2")(conv("c1")(i)))
    hidden = [dense(f"hidden_{name}", 8)(h) for name in ("age", "sex")]
    outputs = [dense("age", 1)(hidden[0]), dense("sex", 1)(hidden[1])]
    return Model(i, outputs), {"c1", "c2"}


def two_heads_that_pool_themselves() -> tuple[Model, set[str]]:
    (i,) = images()
    h = conv("c2")(conv("c1")(i))
    pooled = [L.GlobalAveragePooling2D()(h), L.GlobalMaxPooling2D()(h)]
    return Model(i, [dense("age", 1)(pooled[0]), dense("sex", 1)(pooled[1])]), {"c1", "c2"}


def a_few_numbers_beside_the_images() -> tuple[Model, set[str]]:
    (i,), numbers = images(), keras.Input((4,), name="numbers")
    h = L.GlobalAveragePooling2D()(conv("c2", 16)(conv("c1", 16)(i)))
    h = L.Concatenate()([h, dense("beside", 2)(numbers)])
    return Model([i, numbers], dense("out")(h)), {"c1", "c2"}


def encoder_and_decoder() -> tuple[Model, set[str]]:
    (i,) = images()
    encoder = Model(i, [conv("e1")(i), conv("e2", strides=2)(conv("e3")(i))], name="encoder")
    (j,) = images("j")
    skip, h = encoder(j)
    options = {"kind": L.Conv2DTranspose, "strides": 2}
    up = chain(conv("u", 16, **options), shape=(4, 4, 4), name="up")(h)
    return Model(j, conv("out")(L.Concatenate()([up, skip]))), {"e1", "e2", "e3"}


def siamese() -> tuple[Model, set[str]]:
    """One model contains all weights, including a projection."""
    projection = [L.Flatten(), dense("p1", 8), L.BatchNormalization(), dense("p2", 4)]
    embedding = chain(conv("c1"), conv("c2"), *projection, name="Embedding")
    pair = Model(both := images("anchor", "other"), L.Dot(1)([embedding(one) for one in both]))

    class Siamese(keras.Model):
        def __init__(self):
            super().__init__()
            self.network = pair

        def call(self, inputs):
            return self.network(inputs)

    return Siamese(), {"c1", "c2"}


def _distilled(knows_its_call: bool) -> tuple[Model, set[str]]:
    teacher = chain(net("large", 16), L.GlobalAveragePooling2D(), dense("t_out"), name="teacher")
    teacher.trainable = False
    student = chain(net(), L.GlobalAveragePooling2D(), dense("s_out"), name="student")

    class Distiller(keras.Model):
        def __init__(self):
            super().__init__()
            self.teacher, self.student = teacher, student

        def call(self, x):
            if not knows_its_call:
                x = np.asarray(x) if isinstance(x, np.ndarray) else keras.ops.multiply(x, 1)
                assert not isinstance(x, keras.KerasTensor)
            return self.student(x)

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return keras.ops.mean((y_pred - self.teacher(x, training=False)) ** 2)

    return Distiller(), {"net_1", "net_2"}


def distillation() -> tuple[Model, set[str]]:
    return _distilled(knows_its_call=True)


def distillation_whose_call_takes_no_symbols() -> tuple[Model, set[str]]:
    return _distilled(knows_its_call=False)


def captions() -> tuple[Model, set[str]]:
    """A network that stays frozen, read by a decoder of about the same size."""
    base = net()
    base.trainable = False
    (i,), words = images(), keras.Input((5,), name="words")
    queries, keys = keras.Input((5, 4)), keras.Input((64, 4))
    attended = L.Add()([queries, L.MultiHeadAttention(2, 4, name="mha")(queries, keys)])
    decoder = Model([queries, keys], attended, name="decoder")
    h = decoder([L.Embedding(9, 4, name="words_in")(words), L.Reshape((64, 4))(base(i))])
    return Model([i, words], dense("out", 9)(h)), {"net_1", "net_2"}


def frames_of_a_video() -> tuple[Model, set[str]]:
    frame = chain(conv("c"), L.GlobalAveragePooling2D(), name="frame")
    layers = [L.TimeDistributed(frame), L.LSTM(4, name="lstm"), dense("out")]
    return chain(*layers, shape=(2, *SHAPE)), {"c"}


def recurrent_and_a_deep_head() -> tuple[Model, set[str]]:
    words = [L.Embedding(9, 4, name="words"), L.LSTM(4, name="lstm")]
    return chain(*words, dense("hidden"), dense("out"), shape=(5,)), {"words", "lstm_cell"}


def first_token() -> tuple[Model, set[str]]:
    i = keras.Input((5,))
    h = L.Embedding(9, 4, name="words")(i)
    h = L.LayerNormalization(name="norm")(L.Add()([h, dense("mix", 4)(h)]))
    return Model(i, dense("out")(dense("hidden")(h[:, 0]))), {"words", "mix", "norm"}


FOUND: list[Callable[[], tuple[Model, set[str]]]] = [
    nested_head_larger_than_the_base,
    nested_head_after_a_flatten,
    nested_top_and_then_a_classifier,
    base_that_pools_and_a_large_hidden_layer,
    base_of_vectors_and_a_large_hidden_layer,
    subclassed_with_a_larger_head,
    subclassed_of_single_layers,
    layer_in_front_of_the_base,
    base_that_is_frozen_already,
    flat_with_a_deep_head,
    flat_of_nested_blocks,
    squeeze_and_excite,
    two_heads_on_one_graph,
    two_heads_that_pool_themselves,
    a_few_numbers_beside_the_images,
    encoder_and_decoder,
    siamese,
    distillation,
    distillation_whose_call_takes_no_symbols,
    captions,
    frames_of_a_video,
    recurrent_and_a_deep_head,
    first_token,
]

# A model's graph doesn't depend on the backend. The others fit only models with custom code.
CALLED = [subclassed_with_a_larger_head, subclassed_of_single_layers, siamese, distillation]
FITTED = FOUND if B.BACKEND == "torch" else CALLED


def data_for(model: Model, rows: int = 4) -> tuple[Any, Any]:
    """Returns inputs of the model's shape, and targets of its outputs' shape."""
    draw = np.random.default_rng(0)
    whole = model.network if hasattr(model, "network") else model
    inputs = getattr(whole, "inputs", None) or [keras.Input(SHAPE)]
    x = [draw.uniform(size=(rows, *one.shape[1:])).astype("float32") for one in inputs]
    x = x if len(x) > 1 else x[0]
    y = model(x)
    return x, keras.tree.map_structure(lambda one: np.ones(one.shape, "float32"), y)


@pytest.mark.parametrize("make", FOUND, ids=lambda make: make.__name__)
def test_the_base_is_found(make: Any):
    model, base = make()
    data_for(model)
    assert {leaf.name for leaf in find_base(model).leaves if leaf.weights} == base


@pytest.mark.parametrize("make", FITTED, ids=lambda make: make.__name__)
def test_the_base_is_frozen_and_nothing_else(make: Any):
    model, base = make()
    x, y = data_for(model)
    model.compile(keras.optimizers.Adam(), "mse")
    learns = {name for name in _with_weights(model, only_trainable=True) if name not in base}
    before = B.weights(model)
    model.fit(x, y, batch_size=4, epochs=2, verbose=0, callbacks=[FreezeBase()])
    assert B.changed(before, B.weights(model)) == learns


def _with_weights(model: Model, only_trainable: bool = False) -> set[str]:
    """Returns the names of the layers that have their own weights."""
    found = [each for each in model._flatten_layers() if each._trainable_variables]
    return {each.name for each in found if each.trainable or not only_trainable}


@pytest.mark.parametrize("make", CALLED[2:], ids=lambda make: make.__name__)
def test_a_second_fit_finds_the_same_base(make: Any):
    """The first fit has frozen it."""
    model, base = make()
    x, y = data_for(model)
    model.compile(keras.optimizers.Adam(), "mse")
    before = B.weights(model)
    for _ in range(2):
        model.fit(x, y, batch_size=4, verbose=0, callbacks=[FreezeBase()])
    assert B.changed(before, B.weights(model)).isdisjoint(base)


@pytest.mark.parametrize("make", FOUND, ids=lambda make: make.__name__)
def test_looking_leaves_no_trace(make: Any):
    model, _ = make()
    data_for(model)
    nodes = [(len(each._inbound_nodes), len(each._outbound_nodes)) for each in _layers(model)]
    losses = [len(each.losses) for each in _layers(model)]
    find_base(model)
    now = [(len(each._inbound_nodes), len(each._outbound_nodes)) for each in _layers(model)]
    assert now == nodes
    assert [len(each.losses) for each in _layers(model)] == losses


def _layers(model: Model) -> list[Any]:
    return list(model._flatten_layers())


# Models in which several parts could be the base


def two_towers() -> Model:
    inputs = images("x", "y")
    parts = [L.Flatten()(net(name)(one)) for name, one in zip("ab", inputs, strict=True)]
    return Model(inputs, dense("out")(L.Concatenate()(parts)))


def two_towers_without_a_head() -> Model:
    inputs = images("x", "y")
    towers = [chain(*net(n).layers, L.Flatten(), dense(f"{n}_p"), name=n) for n in "ab"]
    pair = zip(towers, inputs, strict=True)
    return Model(inputs, L.Dot(1)([tower(one) for tower, one in pair]))


def halves_of_about_the_same_size() -> Model:
    halves = [chain(dense(f"{name}_1", 6), shape=(6,), name=name) for name in "ab"]
    return chain(*halves, dense("out"), shape=(6,))


def flat_encoder_and_decoder() -> Model:
    (i,) = images()
    h = conv("low", 16)(L.MaxPooling2D()(conv("c1")(i)))
    return Model(i, conv("out")(conv("high", 16)(L.UpSampling2D()(h))))


def an_early_exit() -> Model:
    (i,) = images()
    h = conv("c2")(conv("c1")(i))
    early = dense("early")(L.GlobalAveragePooling2D()(h))
    late = dense("late")(L.GlobalAveragePooling2D()(conv("c4", 8)(conv("c3", 8)(h))))
    return Model(i, [early, late])


SEVERAL: dict[Callable[[], Model], dict[str, set[str]]] = {
    two_towers: {
        "'a'": {"a_1", "a_2"},
        "'b'": {"b_1", "b_2"},
        "['b', 'a']": {"a_1", "a_2", "b_1", "b_2"},
    },
    two_towers_without_a_head: {
        "':flatten'": {"a_1", "a_2"},
        "'b_1:flatten_1'": {"b_1", "b_2"},
    },
    halves_of_about_the_same_size: {"'a'": {"a_1"}, "'b'": {"b_1"}, "['a', 'b']": {"a_1", "b_1"}},
    flat_encoder_and_decoder: {"':low'": {"c1", "low"}, "':high'": {"c1", "low", "high"}},
    an_early_exit: {"':c2'": {"c1", "c2"}, "':c4'": {"c1", "c2", "c3", "c4"}},
}


@pytest.mark.parametrize("make", SEVERAL, ids=lambda make: make.__name__)
def test_where_several_parts_could_be_it_an_error_lists_them(make: Any):
    keras.backend.clear_session()  # the names that Keras gives layers are those above
    model = make()
    (x, y), before = data_for(model), B.weights(model)
    model.compile("sgd", "mse")
    with pytest.raises(LayerMatchError) as error:
        model.fit(x, y, verbose=0, callbacks=[FreezeBase()])
    assert B.changed(before, B.weights(model)) == set()
    for line, names in SEVERAL[make].items():
        params = sum(before[key].size for key in before if key.split("/")[0] in names)
        assert f"base={line} ({params:,} params)" in str(error.value)


@pytest.mark.skipif(B.BACKEND != "torch", reason="selectors are read on one backend")
@pytest.mark.parametrize("make", SEVERAL, ids=lambda make: make.__name__)
def test_each_line_of_the_error_chooses_what_it_says(make: Any):
    for line, names in SEVERAL[make].items():
        keras.backend.clear_session()
        model = make()
        (x, y), before = data_for(model), B.weights(model)
        model.compile("sgd", "mse")
        model.fit(x, y, verbose=0, callbacks=[FreezeBase(ast.literal_eval(line))])
        assert B.changed(before, B.weights(model)) == _with_weights(model) - names


def test_a_model_of_one_layer_has_no_base():
    model = B.compiled(chain(dense("only"), shape=(6,)))
    with pytest.raises(LayerMatchError, match="1 layer\\(s\\) with weights"):
        model.fit(*B.data(), verbose=0, callbacks=[FreezeBase()])
