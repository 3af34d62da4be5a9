"""Many layers in one line: grouped by block, and never too long."""

from __future__ import annotations

import re
from typing import Any

import keras
import numpy as np
import pytest

from keras_freeze import (
    BottleneckCache,
    FreezeBase,
    GradualUnfreeze,
    RecompileOnTrainableChange,
    Schedule,
    Stage,
)
from keras_freeze.display.fit_messages import base_line, first_pass_line, shorten
from keras_freeze.graph.layer_tree import LayerTree, own_variables
from keras_freeze.graph.shorten_layer_names import names_in_short
from tests import builders as B
from tests.builders import L
from tests.test_blocks_of_transformers import backbone

pytestmark = pytest.mark.one_backend

LONGEST = 99


class Block(L.Layer):
    """A transformer layer: seven layers with weights, with the same names in each."""

    def __init__(self, norm: Any = L.LayerNormalization, **kwargs: Any):
        super().__init__(**kwargs)
        self.attention = L.MultiHeadAttention(2, 4, name="self_attention_layer")
        self.first, self.second = norm(name="first_norm"), norm(name="second_norm")
        self.dense = L.Dense(8, name="feedforward_dense")

    def build(self, shape: Any) -> None:
        self.attention.build(shape, shape)
        for layer in (self.first, self.second, self.dense):
            layer.build(shape)
        self.built = True

    def call(self, x: Any, training: Any = None) -> Any:
        x = self.first(x + self.attention(x, x))
        return self.second(x + self.dense(x))


def stack(blocks: int = 4, name: str = "encoder_block", **kwargs: Any) -> keras.Model:
    """A base of blocks between a Dense and a normalization, and a head."""
    inputs = keras.Input((5, 8))
    x = L.Dense(8, name="embedding")(inputs)
    for number in range(blocks):
        x = Block(name=f"{name}_{number}", **kwargs)(x)
    base = keras.Model(inputs, L.LayerNormalization(name="last_norm")(x), name="base")
    pooled = L.GlobalAveragePooling1D()(base(inputs))
    return B.compiled(keras.Model(inputs, L.Dense(1, name="head")(pooled)))


X, Y = np.random.default_rng(0).normal(size=(8, 5, 8)).astype("float32"), np.zeros((8, 1))


def lines(
    capsys: Any, model: keras.Model, x: Any, y: Any, *callbacks: Any, epochs: int
) -> list[str]:
    """Returns the lines that a fit prints."""
    model.fit(x, y, epochs=epochs, verbose=0, callbacks=[*callbacks])
    return str(capsys.readouterr().out).splitlines()


def changed(printed: list[str]) -> list[str]:
    """Returns what stages unfroze and froze."""
    found = [re.match(r"  (unfrozen|frozen)  +(.*)", line) for line in printed]
    return [f"{match[1]} {match[2]}" for match in found if match]


STAGES = [
    Stage(1, "encoder_block_3:"),
    Stage(2, ["encoder_block_1", "encoder_block_2"]),
    Stage(3, "re:.*block_0/.*query"),
    Stage(4, freeze="encoder_block_1"),
    Stage(5, "all"),
]


def test_a_stack_of_transformer_layers(capsys: Any):
    stages = [FreezeBase("base"), GradualUnfreeze(STAGES)]
    printed = lines(capsys, stack(), X, Y, *stages, epochs=6)
    assert changed(printed) == [
        "frozen embedding, encoder_block_0, ..., last_norm (30 layers)",
        "unfrozen encoder_block_3, last_norm (8 layers)",
        "unfrozen encoder_block_1, encoder_block_2 (14 layers)",
        "unfrozen base/encoder_block_0/self_attention_layer/query",
        "frozen encoder_block_1 (7 layers)",
        "unfrozen embedding, ..., encoder_block_1 (14 layers)",
    ]
    assert max(map(len, printed)) <= LONGEST


def test_the_preview_tells_stages_apart():
    model = stack()
    table = Schedule(STAGES).preview(model, epochs=6, base="base")
    assert [row["layers"] for row in table][:5] == [
        None,
        "+ encoder_block_3, last_norm (8 layers)",
        "+ encoder_block_1, encoder_block_2 (14 layers)",
        "+ base/encoder_block_0/self_attention_layer/query",
        "- encoder_block_1 (7 layers)",
    ]
    assert len({row["layers"] for row in table}) == len(table)
    for row in table:
        said = re.search(r"\((\d+) layers\)", row["layers"] or "")
        assert not said or int(said[1]) == len(row["thawed"]) + len(row["frozen"])
    assert "+ encoder_block_3, last_norm (8 layers)" in str(table)
    assert "query, key" not in str(table)


def test_the_batch_norm_policy_does_not_hide_a_block(capsys: Any):
    """The line names the block, and counts only the layers that change."""
    stages = [FreezeBase("base"), GradualUnfreeze({1: "encoder_block_1"})]
    printed = lines(capsys, stack(norm=L.BatchNormalization), X, Y, *stages, epochs=2)
    assert changed(printed)[1] == "unfrozen encoder_block_1 (5 layers)"
    free = [FreezeBase("base"), GradualUnfreeze({1: "encoder_block_1"}, batch_norm="train")]
    printed = lines(capsys, stack(norm=L.BatchNormalization), X, Y, *free, epochs=2)
    assert changed(printed)[1] == "unfrozen encoder_block_1 (7 layers)"


def test_changes_by_others(capsys: Any):
    model = stack()
    model.get_layer("base").trainable = False
    model.compile("sgd", "mse")
    block = B.layer(model, "encoder_block_2")
    other = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: setattr(block, "trainable", epoch > 0)
    )
    printed = lines(capsys, model, X, Y, RecompileOnTrainableChange(), other, epochs=2)
    assert changed(printed) == ["unfrozen encoder_block_2 (7 layers)"]


def test_long_names(capsys: Any):
    """Even with long names, a line stays short and gives the number of layers."""
    name = "a_transformer_layer_with_a_name_that_nobody_would_like_to_read_to_its_end_in_any_line"
    selectors = ["re:.*query", "re:.*_norm", "re:.*_1/.*", "all"]
    stages = [Stage(epoch, selector) for epoch, selector in enumerate(selectors, 1)]
    callbacks = [FreezeBase("base"), GradualUnfreeze(stages), BottleneckCache()]
    printed = lines(capsys, stack(2, name=name), X, Y, *callbacks, epochs=5)
    assert max(map(len, printed)) <= LONGEST
    numbers = [int(re.search(r"\((\d+) layers\)", line)[1]) for line in changed(printed)[2:]]
    assert numbers == [5, 4, 5]
    assert "query" in changed(printed)[1]


def counts(names: dict[str, int]) -> int:
    return sum(names.values())


@pytest.mark.parametrize("name", ["ResNet50", "MobileNetV2", "EfficientNetB0", "ConvNeXtTiny"])
def test_models_of_keras(name: str):
    """Each leaf with weights is counted once, for any selection."""
    kind = getattr(keras.applications, name)
    base = kind(weights=None, input_shape=(32, 32, 3), include_top=False, pooling="avg")
    model = keras.Sequential([keras.Input((32, 32, 3)), base, L.Dense(1)])
    tree = LayerTree(model)
    weighted = [id(leaf) for leaf in tree.leaves if own_variables(leaf)]
    for chosen in (weighted, weighted[::2], weighted[:1], weighted[-7:]):
        names = names_in_short(tree, set(chosen), {id(base)}, set())
        assert counts(names) == len(chosen)
        assert len(shorten(names, 60)) <= 60
    table = Schedule.auto(base, stages=4).preview(model, base=base)
    shown = [row["layers"] for row in table if row["thawed"]]
    assert len(set(shown)) == 4
    assert all(len(text) <= 64 for text in shown)


def test_bert(capsys: Any):
    """KerasHub's paths are long."""
    bert = backbone("Bert")
    model = keras.Model(bert.input, L.Dense(1, name="head")(bert.output["pooled_output"]))
    B.compiled(model)
    x = {name: np.ones((4, 8), "int32") for name in ("token_ids", "segment_ids", "padding_mask")}
    stages = [
        Stage(1, "transformer_layer_3"),
        Stage(2, ["transformer_layer_1", "transformer_layer_2"]),
        Stage(3, "re:.*query"),
        Stage(4, "all"),
    ]
    printed = lines(
        capsys, model, x, np.zeros((4, 1)), FreezeBase(bert), GradualUnfreeze(stages), epochs=5
    )
    assert changed(printed)[1:3] == [
        "unfrozen transformer_layer_3 (8 layers)",
        "unfrozen transformer_layer_1, transformer_layer_2 (16 layers)",
    ]
    assert max(map(len, printed)) <= LONGEST
    table = Schedule(stages).preview(model, base=bert)
    assert [row["layers"] for row in table][1] == "+ transformer_layer_3 (8 layers)"
    assert len({row["layers"] for row in table}) == 5


def test_vit(capsys: Any):
    """Its blocks are inside an encoder, which is a layer."""
    vit = backbone("ViT")
    inputs = keras.Input((8, 8, 3))
    head = L.Dense(1, name="head")(L.Flatten()(vit(inputs)))
    model = B.compiled(keras.Model(inputs, head))
    images = np.zeros((2, 8, 8, 3), "float32")
    stages = [FreezeBase(vit), GradualUnfreeze({1: "transformer_block_4"})]
    printed = lines(capsys, model, images, np.zeros((2, 1)), *stages, epochs=2)
    assert "vit_encoder" in changed(printed)[0]
    assert changed(printed)[1].startswith("unfrozen transformer_block_4 (8 layers)")


def test_layers_that_two_containers_hold():
    """A shared layer is counted once."""
    shared = L.Dense(4, name="shared")
    one = keras.Sequential([keras.Input((4,)), shared, L.Dense(4, name="a")], name="one")
    two = keras.Sequential([keras.Input((4,)), shared, L.Dense(4, name="b")], name="two")
    inputs = keras.Input((4,))
    tree = LayerTree(keras.Model(inputs, two(one(inputs))))
    weighted = {id(leaf) for leaf in tree.leaves if own_variables(leaf)}
    assert names_in_short(tree, weighted, set(), set()) == {"one": 2, "b": 1}


@pytest.mark.parametrize("room", [30, 45, 60, 82])
def test_names_that_do_not_fit(room: int):
    path = "backbone/stage_{}/transformer_layer_{}/self_attention_layer/query"
    for number in (1, 2, 3, 5, 9):
        names = [path.format(n, n) for n in range(number)]
        text = shorten(names, room)
        assert len(text) <= max(room, 40)
        assert (f"({number} layers)" in text) == (number > 2)


def test_paths_lose_their_middle():
    names = ["bert/layer_0/attention/query", "bert/layer_7/attention/query"]
    assert shorten(names, 70) == ", ".join(names)
    assert shorten(names, 40) == "layer_0/.../query, layer_7/.../query"
    assert shorten(["x" * 50], 21) == "xxxxxxxxx...xxxxxxxxx"


def test_other_lines():
    assert len(base_line("a/" * 90 + "b", 16, True)) <= LONGEST
    line = first_pass_line(["a" * 70, "b" * 70], 8192, 540)
    assert len(line) <= LONGEST
    assert line.endswith(": 8.2 KB a row, 4.4 MB for 540 training rows")
