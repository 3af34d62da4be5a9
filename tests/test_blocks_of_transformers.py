"""KerasHub's backbones: one block for each transformer layer, even if all layers share an input."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import keras
import pytest

from keras_freeze import Schedule, select_layers
from keras_freeze.fit_engine.learning_rate_multipliers import depths_in
from keras_freeze.graph.block_boundaries import block_starts, weighted_blocks
from keras_freeze.graph.find_base import Base
from keras_freeze.graph.layer_tree import LayerTree, own_variables
from keras_freeze.graph.selector_scope import Scope
from tests.builders import L

pytestmark = pytest.mark.one_backend

LAYERS = 4
SMALL: dict[str, Any] = {
    "vocabulary_size": 20,
    "vocab_size": 20,
    "num_layers": LAYERS,
    "num_heads": 2,
    "num_attention_heads": 2,
    "num_query_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "head_size": 8,
    "max_wavelength": 10000,
    "hidden_dim": 16,
    "embedding_dim": 8,
    "intermediate_dim": 16,
    "mlp_dim": 16,
    "moe_intermediate_dim": 8,
    "shared_expert_intermediate_dim": 8,
    "num_experts": 2,
    "top_k": 1,
    "layer_types": ["full_attention"] * LAYERS,
    "image_shape": (8, 8, 3),
    "image_size": 8,
    "patch_size": 4,
}
MORE: dict[str, dict[str, Any]] = {
    "Albert": {"num_groups": 1, "num_inner_repetitions": 1},
    "SmolLM3": {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rope_layer_enabled_list": [True] * LAYERS,
        "mlp_bias": False,
        "layer_norm_epsilon": 1e-5,
        "max_position_embeddings": 16,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 1.0,
    },
    "Whisper": {"max_encoder_sequence_length": 16, "max_decoder_sequence_length": 8},
    "Moonshine": {
        "filter_dim": 16,
        "encoder_num_layers": LAYERS,
        "decoder_num_layers": LAYERS,
        "encoder_num_heads": 2,
        "decoder_num_heads": 2,
    },
}
# The names of an encoder's or a decoder's layers, in order. "{}" is the number.
STACKS = {
    "Bart": ["transformer_encoder_layer_{}", "transformer_decoder_layer_{}"],
    "Bert": ["transformer_layer_{}"],
    "Bloom": ["transformer_layer_{}"],
    "DINOV2": ["encoder/layers_{}"],
    "DebertaV3": ["disentangled_attention_encoder_layer_{}"],
    "DeiT": ["deit_encoder/transformer_block_{1}"],
    "DistilBert": ["transformer_layer_{}"],
    "ESM": ["transformer_layer_{}"],
    "Electra": ["transformer_layer_{}"],
    "FNet": ["f_net_layer_{}"],
    "Falcon": ["transformer_layer_{}"],
    "GPT2": ["transformer_layer_{}"],
    "GPTNeoX": ["transformer_layer_{}"],
    "Gemma": ["decoder_block_{}"],
    "Gemma3": ["decoder_block_{}"],
    "GptOss": ["transformer_layer_{}"],
    "Llama": ["transformer_layer_{}"],
    "Llama3": ["transformer_layer_{}"],
    "Mistral": ["transformer_layer_{}"],
    "Mixtral": ["transformer_layer_{}"],
    "Moonshine": ["encoder_block_{}", "decoder_block_{}"],
    "OPT": ["transformer_layer_{}"],
    "Phi3": ["transformer_layer_{}"],
    "Qwen": ["transformer_layer_{}"],
    "Qwen3": ["transformer_layer_{}"],
    "QwenMoe": ["transformer_layer_{}"],
    "Qwen3Moe": ["transformer_layer_{}"],
    "Roberta": ["transformer_layer_{}"],
    "RoformerV2": ["transformer_layer_{}"],
    "SmolLM3": ["transformer_layer_{}"],
    "T5": ["transformer_encoder_layer_{}", "transformer_decoder_layer_{}"],
    "ViT": ["vit_encoder/transformer_block_{1}"],
    "Whisper": ["transformer_encoder_layer_{}", "transformer_decoder_layer_{}"],
    "XLMRoberta": ["transformer_layer_{}"],
    "XLNet": ["xlnet_encoder_{}"],
}
NAMES = list(STACKS)


def backbone(name: str) -> keras.Model:
    """Returns a tiny one with random weights. KerasHub is slow to import and loads TensorFlow."""
    keras_hub = pytest.importorskip("keras_hub", exc_type=ImportError)
    if not hasattr(keras_hub.models, f"{name}Backbone"):
        pytest.skip(f"KerasHub {keras_hub.__version__} has no {name}Backbone")
    kind = getattr(keras_hub.models, f"{name}Backbone")
    asked = inspect.signature(kind.__init__).parameters.values()
    options = {p.name: SMALL[p.name] for p in asked if p.default is p.empty and p.name in SMALL}
    if "max_sequence_length" in inspect.signature(kind.__init__).parameters:
        options["max_sequence_length"] = 8
    return kind(**options | MORE.get(name, {}))


def layers_of(name: str) -> list[str]:
    """Returns the paths of the transformer layers. Some count from 1."""
    return [
        stack.replace("{1}", "{}").format(number + ("{1}" in stack))
        for stack in STACKS[name]
        for number in range(LAYERS)
    ]


def holders(tree: LayerTree, leaves: list[Any], names: list[str]) -> set[str]:
    """Returns the transformer layers that are, or contain, some of the leaves."""
    paths = [f"{path}/" for leaf in leaves for path in tree.paths(leaf)]
    return {name for name in names if any(path.startswith(f"{name}/") for path in paths)}


def weighted(layer: Any) -> set[int]:
    return {id(leaf) for leaf in LayerTree(layer).leaves if own_variables(leaf)}


@pytest.mark.parametrize("name", NAMES)
def test_each_transformer_layer_is_a_block(name: str):
    model, names = backbone(name), layers_of(name)
    tree = LayerTree(model)
    blocks = weighted_blocks(tree, tree.leaves)
    held = [holders(tree, block, names) for block in blocks]
    assert all(len(found) <= 1 for found in held), "layers are tied together"
    assert sorted(itertools.chain(*held)) == sorted(names), "a layer is split"
    assert not held[0], "the embedding is tied to a layer"


def test_one_shared_layer_is_one_block():
    model = backbone("Albert")
    tree = LayerTree(model)
    blocks = weighted_blocks(tree, tree.leaves)
    shared = weighted(model.get_layer("group_0_inner_layer_0"))
    assert [len(block) for block in blocks if {id(leaf) for leaf in block} & shared] == [
        len(shared)
    ]


@pytest.fixture(scope="module")
def bert() -> keras.Model:
    return backbone("Bert")


# Bloom and SmolLM3 create layers that they never call. A share can't count those.
UNBUILT = ("Bloom", "SmolLM3")
ONE_STACK = [name for name in NAMES if len(STACKS[name]) == 1 and name not in UNBUILT]


@pytest.mark.parametrize("name", ONE_STACK)
def test_half_of_the_weights_is_the_upper_half_of_the_layers(name: str):
    model, names = backbone(name), layers_of(name)
    found = holders(LayerTree(model), select_layers(model, "50%"), names)
    assert found == set(names[LAYERS // 2 :])


def test_embeddings_and_pooler_are_blocks(bert: keras.Model):
    blocks = [
        {leaf.name for leaf in block}
        for block in weighted_blocks(LayerTree(bert), LayerTree(bert).leaves)
    ]
    embeddings = {"token_embedding", "position_embedding", "segment_embedding"}
    assert blocks[0] == {*embeddings, "embeddings_layer_norm"}
    assert blocks[-1] == {"pooled_dense"}
    assert len(blocks) == LAYERS + 2


def unfrozen(model: keras.Model, schedule: Schedule) -> list[int]:
    """Returns how many transformer layers each stage selects."""
    tree, names = LayerTree(model), layers_of("Bert")
    return [len(holders(tree, select_layers(model, s.unfreeze), names)) for s in schedule]


def test_ulmfit_has_a_stage_for_each_layer(bert: keras.Model):
    assert unfrozen(bert, Schedule.ulmfit(bert, start=1)) == [0, 1, 2, 3, 4, 4]


def test_auto_shares_the_layers_out(bert: keras.Model):
    counts = unfrozen(bert, Schedule.auto(bert, stages=4, start=1, every=1))
    assert counts == sorted(set(counts))
    assert counts[-1] == LAYERS


def test_chain_thaw_has_a_stage_for_each_layer(bert: keras.Model):
    head = L.Dense(2, name="head")(bert.output["pooled_output"])
    model = keras.Model(bert.input, head)
    schedule = list(Schedule.chain_thaw(model, bert, start=1, every=1))
    assert unfrozen(bert, Schedule(schedule[:-1])) == [0, 1, 1, 1, 1, 0]


def test_layer_decay_is_deeper_by_one_for_each_layer(bert: keras.Model):
    depths = depths_in(Base("bert", Scope(LayerTree(bert))))
    found = [
        {depths[id(v)] for v in bert.get_layer(f"transformer_layer_{n}").trainable_variables}
        for n in range(LAYERS)
    ]
    assert found == [{5}, {4}, {3}, {2}]


def test_reading_a_stack_leaves_no_trace():
    vit = backbone("ViT")
    below = vit.get_layer("vit_encoder")._flatten_layers(include_self=False)
    block_starts(vit)
    assert not any(each._inbound_nodes or each._outbound_nodes for each in below)
    assert not any("compute_output_spec" in vars(each) for each in below)
    assert vit(keras.ops.zeros((2, 8, 8, 3))).shape == (2, 5, 16)


def test_a_stack_in_a_sequential_model_has_its_blocks():
    vit = backbone("ViT")
    encoder = vit.get_layer("vit_encoder")
    model = keras.Sequential([keras.Input((5, 16)), encoder, L.Dense(2, name="head")])
    tree = LayerTree(model)
    assert len(weighted_blocks(tree, tree.leaves)) == LAYERS + 1


def test_layers_whose_results_are_all_read_at_the_end_are_tied():
    """If a decoder reads a layer's output, that is a skip connection around the layers above it."""
    encoder = backbone("DINOV2").get_layer("encoder")
    inputs = keras.Input((5, 16))
    x, pyramid = encoder(inputs)
    model = keras.Model(inputs, [x, *pyramid.values()][:-1])
    tree = LayerTree(model)
    assert len(weighted_blocks(tree, tree.leaves)) == 1
