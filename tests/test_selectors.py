"""Which layers a selector selects."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_freeze import select_layers
from tests import builders as B

pytestmark = pytest.mark.one_backend

L = keras.layers
NAMES = ["b1", "bn", "drop", "b2", "b3", "head"]


def names(layers: list[keras.Layer]) -> list[str]:
    return [layer.name for layer in layers]


def chosen(model: keras.Model, selector: object) -> list[str]:
    return names(select_layers(model, selector))


def dense(*layer_names: str, name: str | None = None) -> keras.Sequential:
    """Returns a chain of small dense layers."""
    layers = [L.Dense(4, name=each) for each in layer_names]
    return keras.Sequential([keras.Input((4,)), *layers], name=name)


def deep() -> keras.Model:
    """outer > base > block > c1, c2."""
    inputs = keras.Input((4,))
    features = dense("c1", "c2", name="block")(L.Dense(4, name="b1")(inputs))
    base = keras.Model(inputs, L.Dense(4, name="b2")(features), name="base")
    inputs = keras.Input((4,))
    return keras.Model(inputs, L.Dense(1, name="head")(base(inputs)), name="outer")


# In every kind of model, NAMES are the layers in execution order. Five of them have weights.
FORMS = {
    "name": ("b2", ["b2"]),
    "glob": ("b?", ["b1", "bn", "b2", "b3"]),
    "glob of a set": ("b[12]", ["b1", "b2"]),
    "glob of everything": ("*", NAMES),
    "slice from": ("b2:", ["b2", "b3", "head"]),
    "slice to": (":b2", ["b1", "bn", "drop", "b2"]),
    "slice from to": ("bn:b2", ["bn", "drop", "b2"]),
    "slice of one": ("b2:b2", ["b2"]),
    "slice with spaces": ("bn : b2", ["bn", "drop", "b2"]),
    "last by index": ("-2:", ["b3", "head"]),
    "indices from the end": ("-4:-1", ["drop", "b2", "b3"]),
    "name to index": ("b1:-2", ["b1", "bn", "drop", "b2"]),
    "index to name": ("-5:b2", ["bn", "drop", "b2"]),
    "share": ("40%", ["b3", "head"]),
    "share of all": ("100%", NAMES),
    "tiny share": ("1%", ["head"]),
    "regular expression": ("re:(.*/)?b[12]", ["b1", "b2"]),
    "all": ("all", NAMES),
    "callable": (lambda layer: isinstance(layer, L.Dense), ["b1", "b2", "b3", "head"]),
    "list": (["head", "b1"], ["b1", "head"]),
    "tuple": (("head", "b1"), ["b1", "head"]),
    "nested lists": ([["head", ["b1"]], "b1", "b1:bn"], ["b1", "bn", "head"]),
    "without, last": (["all", "!b?"], ["drop", "head"]),
    "without, first": (["!b?", "all"], ["drop", "head"]),
    "without a slice": (["all", "!b2:"], ["b1", "bn", "drop"]),
    "without in an inner list": ([["all", "!b?"], "b1"], ["b1", "drop", "head"]),
    "taken away twice": (["all", "!b?", "!b1", "b1"], ["drop", "head"]),
}


@pytest.fixture(scope="module")
def kinds() -> dict[str, keras.Model]:
    return {
        kind: B.KINDS[kind](extras=True) for kind in ("nested", "flat", "sequential", "subclassed")
    }


@pytest.mark.parametrize("form", FORMS)
def test_every_form_in_every_kind_of_model(kinds: dict[str, keras.Model], form: str):
    selector, expected = FORMS[form]
    found = {kind: chosen(model, selector) for kind, model in kinds.items()}
    assert found == dict.fromkeys(kinds, expected)


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("c2", ["c2"]),
        ("block", ["c1", "c2"]),
        ("base", ["b1", "c1", "c2", "b2"]),
        ("outer", ["b1", "c1", "c2", "b2", "head"]),
        ("base/block/c1", ["c1"]),
        ("outer/base/block/c1", ["c1"]),
        ("base/block", ["c1", "c2"]),
        ("base/*", ["b1", "c1", "c2", "b2"]),
        ("outer/base/b?", ["b1", "b2"]),
        ("*/c2", ["c2"]),
        ("bl*", ["c1", "c2"]),
        ("block:", ["c1", "c2", "b2", "head"]),
        (":block", ["b1", "c1", "c2"]),
        ("b1:block", ["b1", "c1", "c2"]),
        ("base/block/c2:base/b2", ["c2", "b2"]),
        ("re:base/block/.*", ["c1", "c2"]),
        ("re:outer/base/b[0-9]", ["b1", "b2"]),
        (["base", "!block"], ["b1", "b2"]),
    ],
)
def test_names_and_paths_at_any_depth(selector: object, expected: list[str]):
    assert chosen(deep(), selector) == expected


@pytest.mark.parametrize("selector", ["re:c", "re:c1", "re:block/c1", "re:base/block/c"])
def test_a_regular_expression_matches_a_whole_path(selector: str):
    with pytest.raises(ValueError, match="matches"):
        select_layers(deep(), selector)


def test_paths_begin_at_the_model_that_is_asked():
    base = deep().get_layer("base")
    assert chosen(base, "block/c1") == chosen(base, "re:block/c1") == ["c1"]


def test_a_layer_means_itself_and_a_container_all_below():
    model = deep()
    base = model.get_layer("base")
    assert chosen(model, base.get_layer("b2")) == ["b2"]
    assert chosen(model, base.get_layer("block")) == ["c1", "c2"]
    assert chosen(model, [model.get_layer("head"), base.get_layer("block")]) == ["c1", "c2", "head"]


def test_the_layers_themselves_are_returned():
    model = deep()
    base = model.get_layer("base")
    found = select_layers(model, ["base/b2", "c1"])
    assert found[0] is base.get_layer("block").get_layer("c1")
    assert found[1] is base.get_layer("b2")


@pytest.mark.parametrize("kind", ["nested", "sequential"])
def test_indices_are_those_of_keras_layers(kinds: dict[str, keras.Model], kind: str):
    base = kinds[kind].get_layer("base")
    count = len(base.layers)
    for first in range(-count, count):
        for last in range(-count, count + 1):
            expected = names(without_inputs(base.layers[first:last]))
            if expected:
                assert chosen(base, f"{first}:{last}") == expected
        assert chosen(base, f"{first}:") == names(without_inputs(base.layers[first:]))


def without_inputs(layers: list[keras.Layer]) -> list[keras.Layer]:
    return [layer for layer in layers if not isinstance(layer, L.InputLayer)]


def test_a_shared_layer_is_found_once_and_in_execution_order():
    expected = ["rescaling", "b1", "b2", "b3", "concatenate", "head"]
    model = B.shared()
    assert [name.split("_")[0] for name in chosen(model, "all")] == expected
    assert chosen(model, "b2") == ["b2"]
    assert chosen(model, ["base", "b2:b3", "b?"]) == ["b1", "b2", "b3"]


def test_a_layer_under_two_paths_is_found_by_both_and_once():
    tied = L.Dense(4, name="tied")
    inputs = keras.Input((4,))
    encoder = keras.Model(inputs, tied(inputs), name="encoder")
    inputs = keras.Input((4,))
    decoder = keras.Model(inputs, L.Dense(4, name="own")(tied(inputs)), name="decoder")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, decoder(encoder(inputs)))
    assert chosen(model, "encoder/tied") == chosen(model, "decoder/tied") == ["tied"]
    assert chosen(model, "decoder") == ["tied", "own"]
    assert chosen(model, "all") == ["tied", "own"]


def test_one_name_in_two_containers_means_both():
    model = keras.Sequential([keras.Input((4,)), dense("d", name="a"), dense("d", name="b")])
    found = select_layers(model, "d")
    assert found == [model.get_layer("a").get_layer("d"), model.get_layer("b").get_layer("d")]
    assert select_layers(model, "b/d") == found[1:]


def test_a_slice_between_names_that_occur_twice_takes_the_widest():
    model = keras.Sequential([keras.Input((4,)), dense("d", "x", name="a"), dense("d", name="b")])
    assert chosen(model, "d:") == chosen(model, ":d") == ["d", "x", "d"]


@pytest.mark.parametrize(
    "name", ["a:b", "50%", "-1", "3", "conv[1]", "x*", "what?", "re:x", "a b", "größe", "("]
)
def test_a_name_with_odd_characters_means_that_layer(name: str):
    model = dense("first", name, "x1", "conv1", "last")
    assert chosen(model, name) == [name]
    assert chosen(model, ["all", f"!{name}"]) == ["first", "x1", "conv1", "last"]
    if ":" not in name:
        assert chosen(model, f"{name}:") == [name, "x1", "conv1", "last"]
        assert chosen(model, f":{name}") == ["first", name]


def test_case_matters():
    assert chosen(dense("conv", "Conv"), "c*") == ["conv"]


@pytest.mark.parametrize(
    "layer",
    [
        lambda: L.MultiHeadAttention(2, 3, name="x"),
        lambda: L.TimeDistributed(L.Dense(3), name="x"),
    ],
)
def test_a_layer_made_of_layers_is_reached_whole(layer):
    inputs = keras.Input((5, 4))
    made = layer()
    outputs = made(inputs, inputs) if isinstance(made, L.MultiHeadAttention) else made(inputs)
    model = keras.Model(inputs, L.Dense(1, name="head")(outputs))
    reached = {id(weight) for found in select_layers(model, "x") for weight in found.weights}
    assert reached == {id(weight) for weight in made.weights}


def test_a_block_with_weights_of_its_own_comes_before_its_layers():
    model = keras.Sequential([keras.Input((4,)), B.Block(name="block"), L.Dense(1, name="head")])
    assert chosen(model, "block") == ["block", "inner"]
    assert chosen(model, "inner:") == ["inner", "head"]


def test_a_selector_is_not_changed():
    selector = ["!b2", ["b?", "!b1"], "head"]
    select_layers(B.nested(), selector)
    assert selector == ["!b2", ["b?", "!b1"], "head"]


@pytest.fixture(scope="module")
def applications() -> dict[str, keras.Model]:
    def zeros(self, shape, dtype=None, **kwargs):
        return np.zeros(shape, dtype)

    shape = {"weights": None, "include_top": False, "input_shape": (32, 32, 3)}
    with pytest.MonkeyPatch.context() as patch:  # many shapes: random weights take seconds on JAX
        patch.setattr(keras.initializers.GlorotUniform, "__call__", zeros)
        return {
            "vgg19": keras.applications.VGG19(**shape),
            "mobilenet": keras.applications.MobileNetV2(**shape, alpha=0.35),
        }


@pytest.mark.parametrize(
    ("selector", "first", "count"),
    [
        ("block5_conv1:", "block5_conv1", 5),
        ("block5_*", "block5_conv1", 5),
        ("block5_conv?", "block5_conv1", 4),
        ("vgg19/block5_*", "block5_conv1", 5),
        ("re:block[45]_conv[12]", "block4_conv1", 4),
        ("block4_conv1:block4_pool", "block4_conv1", 5),
        (":block3_pool", "block1_conv1", 11),
        ("-5:", "block5_conv1", 5),
        ("20%", "block5_conv2", 4),  # 3 of 16 convolutions, and the pooling after them
        ("50%", "block4_conv1", 10),
        ("all", "block1_conv1", 21),
    ],
)
def test_vgg19(applications: dict[str, keras.Model], selector: str, first: str, count: int):
    found = chosen(applications["vgg19"], selector)
    assert (found[0], len(found)) == (first, count)


@pytest.mark.parametrize("share", range(5, 101, 5))
def test_no_residual_block_of_mobilenet_is_split(applications: dict[str, keras.Model], share: int):
    mobilenet = applications["mobilenet"]
    found = set(chosen(mobilenet, f"{share}%"))
    every = names(mobilenet.layers)
    for block in [name.removesuffix("add") for name in every if name.endswith("_add")]:
        inside = {name for name in every if name.startswith(block)}
        assert inside <= found or not inside & found, block


@pytest.mark.parametrize(
    ("share", "first"), [("20%", "block_13_project_BN"), ("30%", "block_12_expand")]
)
def test_where_mobilenet_is_cut(applications: dict[str, keras.Model], share: str, first: str):
    assert chosen(applications["mobilenet"], share)[0] == first
