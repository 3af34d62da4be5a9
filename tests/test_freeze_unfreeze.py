"""`freeze` and `unfreeze` without `fit`: flags of leaves, variables and containers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_freeze import LayerMatchError, freeze, select_layers, unfreeze
from tests import builders as B

pytestmark = pytest.mark.one_backend(
    but=[
        "test_saving_and_loading_every_kind_of_model",
        "test_a_frozen_batch_norm_runs_in_inference_mode",
    ]
)

L = keras.layers
FEW = settings(max_examples=max(1, settings().max_examples // 4))
FEWER = settings(max_examples=max(1, settings().max_examples // 12))

# The leaves in each part of `deep()`: b1, c1 and so on.
PARTS = {
    "outer": ["b1", "c1", "bn", "b2", "head"],
    "base": ["b1", "c1", "bn", "b2"],
    "block": ["c1", "bn"],
    "b1": ["b1"],
    "c1": ["c1"],
    "bn": ["bn"],
    "b2": ["b2"],
    "head": ["head"],
}
LEAVES = PARTS["outer"]


def deep() -> keras.Model:
    """outer > base > block."""
    inputs = keras.Input((4,))
    x = L.BatchNormalization(name="bn")(L.Dense(4, name="c1")(inputs))
    block = keras.Model(inputs, x, name="block")
    inputs = keras.Input((6,))
    x = block(L.Dense(4, name="b1")(inputs))
    base = keras.Model(inputs, L.Dense(4, name="b2")(x), name="base")
    inputs = keras.Input((6,))
    return keras.Model(inputs, L.Dense(1, name="head")(base(inputs)), name="outer")


def flags(model: keras.Model) -> dict[str, bool]:
    return {name: B.layer(model, name).trainable for name in PARTS}


def part_of(model: keras.Model, name: str, how: str) -> Any:
    return B.layer(model, name) if how == "object" else select_layers(model, name)


@st.composite
def steps(draw: Any) -> list[tuple[str, str, str, str]]:
    """Draws a list of (action, part, how the part is passed, batch_norm)."""
    step = st.tuples(
        st.sampled_from(["freeze", "unfreeze"]),
        st.sampled_from(list(PARTS)),
        st.sampled_from(["object", "selected"]),
        st.sampled_from(["freeze", "train"]),
    )
    return draw(st.lists(step, min_size=1, max_size=6))


def expected_flags(model: keras.Model, todo: list[tuple[str, str, str, str]]) -> dict[str, bool]:
    """Applies the actions, and returns which leaves should be trainable afterwards."""
    expected = dict.fromkeys(LEAVES, True)
    for do, name, how, batch_norm in todo:
        part = part_of(model, name, how)
        if do == "freeze":
            freeze(part, batch_norm)
            expected |= dict.fromkeys(PARTS[name], False)
        elif (name, batch_norm) == ("bn", "freeze"):
            with pytest.raises(LayerMatchError, match="batch_norm='train'"):
                unfreeze(part, batch_norm)
        else:
            unfreeze(part, batch_norm)
            expected |= {leaf: leaf != "bn" or batch_norm == "train" for leaf in PARTS[name]}
    return expected


@FEW
@given(todo=steps())
def test_any_sequence_leaves_all_flags_right(todo: list):
    model = deep()

    leaves = expected_flags(model, todo)

    assert flags(model) == {part: any(leaves[leaf] for leaf in PARTS[part]) for part in PARTS}
    thawed = [B.layer(model, name) for name, trainable in leaves.items() if trainable]
    variables = {id(v) for leaf in thawed for v in leaf.trainable_variables}
    assert {id(v) for v in model.trainable_variables} == variables
    assert len(variables) == 2 * len(thawed)


@FEWER
@given(todo=steps())
def test_saving_and_loading_keeps_the_flags(todo: list, tmp_path_factory: pytest.TempPathFactory):
    model = deep()
    expected_flags(model, todo)
    assert flags(round_trip(model, tmp_path_factory.mktemp("saved"))) == flags(model)


def round_trip(model: keras.Model, folder: Path) -> keras.Model:
    model.save(folder / "model.keras")
    return keras.models.load_model(folder / "model.keras")


@pytest.mark.parametrize("kind", ["nested", "flat", "sequential", "shared"])
def test_saving_and_loading_every_kind_of_model(kind: str, tmp_path: Path):
    model = B.KINDS[kind](extras=True)
    freeze(model)
    unfreeze(select_layers(model, ["b3", "head"]))
    loaded = round_trip(model, tmp_path)
    for name in ("b1", "bn", "drop", "b2", "b3", "head"):
        assert B.layer(loaded, name).trainable == (name in ("b3", "head")), name
    owners = [variable.path.split("/")[-2] for variable in loaded.trainable_variables]
    assert owners == ["b3", "b3", "head", "head"]


def test_thawing_a_selection_opens_a_base_that_keras_froze(tmp_path: Path):
    model = deep()
    base = model.get_layer("base")
    base.trainable = False
    unfreeze(select_layers(model, "c1"))
    assert flags(model) == {part: bool({"c1", "head"} & {*below}) for part, below in PARTS.items()}
    assert len(base.trainable_variables) == 2
    assert flags(round_trip(model, tmp_path)) == flags(model)


def test_freezing_every_layer_of_a_selection_closes_its_base():
    model = deep()
    freeze(select_layers(model, "base"))
    assert not model.get_layer("base").trainable
    assert model.trainable


@pytest.mark.parametrize("kind", B.KINDS)
def test_freezing_the_base_of_every_kind_of_model(kind: str):
    model = B.KINDS[kind](extras=True)
    freeze(select_layers(model, "b1:b3"))
    assert [v.path.split("/")[-2] for v in model.trainable_variables] == ["head", "head"]
    unfreeze(select_layers(model, "b2:b3"))
    assert len(model.trainable_variables) == 6


def test_batch_norm_stays_frozen_unless_it_is_asked_for():
    model = B.nested(extras=True)
    base = model.get_layer("base")
    freeze(base)
    unfreeze(base)
    assert not base.get_layer("bn").trainable
    assert base.get_layer("drop").trainable
    unfreeze(base, batch_norm="train")
    assert base.get_layer("bn").trainable


def test_a_frozen_batch_norm_runs_in_inference_mode():
    model = B.nested(extras=True)
    x, y = B.data()
    freeze(model.get_layer("base"))
    unfreeze(model.get_layer("base"))
    before = B.weights(model)
    B.compiled(model).fit(x, y, verbose=0)
    assert B.changed(before, B.weights(model)) == {"b1", "b2", "b3", "head"}


def test_the_flags_are_those_that_fit_obeys():
    model = B.nested()
    x, y = B.data()
    freeze(model)
    unfreeze(select_layers(model, ["b3", "head"]))
    before = B.weights(model)
    B.compiled(model).fit(x, y, verbose=0)
    assert B.changed(before, B.weights(model)) == {"b3", "head"}


def test_the_weights_of_a_block_and_of_its_layers_are_told_apart():
    model = keras.Sequential([keras.Input((4,)), B.Block(name="block"), L.Dense(1, name="head")])
    freeze(model)
    unfreeze(select_layers(model, "inner"))
    assert [v.name for v in model.trainable_variables] == ["kernel", "bias"]
    unfreeze(select_layers(model, "block"))
    assert sorted(v.name for v in model.trainable_variables) == ["bias", "kernel", "scale"]


def test_a_layer_in_two_models_opens_both():
    tied = L.Dense(6, name="tied")
    models = [keras.Sequential([keras.Input((6,)), tied, L.Dense(1)]) for _ in range(2)]
    for model in models:
        freeze(model)
    unfreeze(tied)
    assert [model.trainable for model in models] == [True, True]
    assert [len(model.trainable_variables) for model in models] == [2, 2]


def test_the_same_twice_is_the_same_as_once():
    model = deep()
    for _ in range(2):
        freeze(model)
        unfreeze(select_layers(model, "b2"))
        assert flags(model) == {part: "b2" in below for part, below in PARTS.items()}


@pytest.mark.parametrize("change", [freeze, unfreeze])
@pytest.mark.parametrize("wrong", ["b1", None, [], ["b1"], 5])
def test_what_is_no_layer_changes_nothing(change: Callable[..., None], wrong: Any):
    model = deep()
    before = flags(model)
    with pytest.raises(LayerMatchError, match="`layers`"):
        change(wrong)
    with pytest.raises(LayerMatchError, match="`layers`"):
        change([B.layer(model, "b1"), "b2"])
    assert flags(model) == before
