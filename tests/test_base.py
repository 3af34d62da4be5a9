"""Which part of a model is its base."""

from __future__ import annotations

import keras
import pytest

from keras_freeze import BottleneckCache, FreezeBase, GradualUnfreeze, LayerMatchError, freeze
from keras_freeze.graph.find_base import find_base
from tests import builders as B

pytestmark = pytest.mark.one_backend

L = keras.layers
BASE = ["b1", "bn", "drop", "b2", "b3"]


def found(model: keras.Model, base: object = None) -> list[str]:
    return [leaf.name for leaf in find_base(model, base).leaves]


def dense(*layer_names: str, units: int = 6, name: str | None = None) -> keras.Sequential:
    layers = [L.Dense(units, name=each) for each in layer_names]
    return keras.Sequential([keras.Input((6,)), *layers], name=name)


def chain(*layers: keras.Layer) -> keras.Sequential:
    return keras.Sequential([keras.Input((6,)), *layers])


@pytest.mark.parametrize("kind", B.KINDS)
def test_it_is_found_in_every_kind_of_model(kind: str):
    assert found(B.KINDS[kind](extras=True)) == BASE


def test_the_backbone_goes_before_a_larger_model():
    class Task(keras.Model):
        def __init__(self):
            super().__init__()
            self.large = dense("l1", "l2", "l3", name="large")
            self.backbone = dense("small", name="small")

        def call(self, inputs):
            return self.large(self.backbone(inputs))

    model = Task()
    model(keras.ops.zeros((1, 6)))
    assert found(model) == ["small"]


def test_a_backbone_that_is_no_layer_of_the_model_is_ignored():
    model = B.nested()
    model.backbone = "vgg19"
    assert found(model) == ["b1", "b2", "b3"]


def test_augmentation_has_no_weights_and_is_no_candidate():
    augment = keras.Sequential([keras.Input((6,)), L.GaussianNoise(0.1)], name="augment")
    model = chain(augment, dense("l1", name="base"), L.Dense(1))
    assert found(model) == ["l1"]


def test_two_nested_models_of_about_the_same_size_are_ambiguous():
    model = chain(dense("l1", name="left"), dense("r1", name="right"), L.Dense(1))
    with pytest.raises(LayerMatchError) as error:
        find_base(model)
    for part in ("`base`", "'left' (42 params)", "'right' (42 params)", "base='left'", "base=None"):
        assert part in str(error.value)


@pytest.mark.parametrize("base", ["left", ["left"], ["left", "right"]])
def test_an_ambiguous_base_is_chosen_as_the_error_says(base: object):
    model = chain(dense("l1", name="left"), dense("r1", name="right"), L.Dense(1))
    assert found(model, base) == (["l1", "r1"] if len(base) == 2 else ["l1"])


def test_of_a_flat_model_it_is_all_before_the_last_layer_with_weights():
    model = chain(L.Dense(4, name="a"), L.ReLU(name="r"), L.Dense(4, name="b"), L.Dropout(0.5))
    assert found(model) == ["a"]


@pytest.mark.parametrize("kind", ["nested", "sequential", "subclassed", "shared"])
def test_a_container_given_or_named(kind: str):
    model = B.KINDS[kind](extras=True)
    container = B.layer(model, "base")
    assert found(model, container) == found(model, "base") == found(model, [container]) == BASE


@pytest.mark.parametrize("kind", B.KINDS)
@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("b1", ["b1"]),
        (":b2", ["b1", "bn", "drop", "b2"]),
        (["b1", "b3"], ["b1", "b3"]),
        (["b?", "!bn"], ["b1", "b2", "b3"]),
        (lambda layer: layer.name == "b2", ["b2"]),
    ],
)
def test_selectors_and_lists(kind: str, base: object, expected: list[str]):
    model = B.KINDS[kind](extras=True)
    if kind == "shared" and base == ":b2":
        expected = [model.layers[1].name, *expected]  # the Rescaling is called before the base
    assert found(model, base) == expected


def test_a_layer_of_the_model():
    model = B.nested()
    assert found(model, B.layer(model, "b2")) == ["b2"]
    assert found(model, [B.layer(model, "b3"), B.layer(model, "b1")]) == ["b1", "b3"]


def flat_and_its_base() -> tuple[keras.Model, keras.Model]:
    base = B.functional_base(extras=True)
    x = L.Dense(4, name="hidden")(base.output)
    return keras.Model(base.input, L.Dense(1, name="head")(x)), base


def test_a_base_whose_layers_were_built_into_a_flat_model():
    model, base = flat_and_its_base()
    assert find_base(model, base).leaves == [x for x in base.layers if x.name in BASE]
    assert found(model, [base]) == found(model, base) == BASE


def test_a_base_that_was_built_in_is_frozen_by_fit():
    model, base = flat_and_its_base()
    x, y = B.data()
    before = B.weights(model)
    B.compiled(model).fit(x, y, verbose=0, callbacks=[FreezeBase(base)])
    assert B.changed(before, B.weights(model)) == {"hidden", "head"}


@pytest.mark.parametrize("kind", B.KINDS)
def test_a_base_that_is_not_in_the_model(kind: str):
    model, other = B.KINDS[kind](), B.functional_base()
    for foreign in (other, other.get_layer("b1"), [other]):
        with pytest.raises(LayerMatchError, match=r"`base`") as error:
            find_base(model, foreign)
        assert "Received" in str(error.value)


def test_of_a_base_that_was_built_in_partly_the_layers_in_the_model_count():
    base = B.functional_base()
    model = keras.Model(base.input, L.Dense(1, name="head")(base.get_layer("b2").output))
    assert found(model, base) == found(model, [base]) == found(model, ":b2") == ["b1", "b2"]


def test_a_base_whose_last_blocks_are_not_used_is_frozen_and_unfrozen():
    """A decoder reads the base's intermediate outputs, as in DeepLab and U-Net."""
    base = B.functional_base(extras=True)
    first, second = (base.get_layer(name).output for name in ("b1", "b2"))
    decoded = L.Dense(4, name="decoder")(L.Concatenate()([first, second]))
    model = B.compiled(keras.Model(base.input, L.Dense(1, name="head")(decoded)))
    (x, y), before, cache = B.data(), B.weights(base), BottleneckCache(verbose=0)
    steps = [FreezeBase(base), GradualUnfreeze({2: "b2"}, verbose=0), cache]
    model.fit(x, y, epochs=2, verbose=0, callbacks=steps)
    assert B.changed(before, B.weights(base)) == set()
    assert cache.stats.enabled
    assert cache.stats.base_passes == 1.0
    model.fit(x, y, initial_epoch=2, epochs=3, verbose=0, callbacks=steps)
    assert B.changed(before, B.weights(base)) == {"b2"}


def test_finding_changes_nothing():
    model = B.nested(extras=True)
    freeze(B.layer(model, "b2"))
    before = {leaf.name: leaf.trainable for leaf in B.layer(model, "base").layers}
    find_base(model)
    assert {leaf.name: leaf.trainable for leaf in B.layer(model, "base").layers} == before
