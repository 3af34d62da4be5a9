"""KerasHub's backbones and tasks, in tiny configurations."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import keras
import keras_hub
import numpy as np

from zoo.member import CLASSES, LOGITS, ROWS, SPARSE, Built, Zoo, classes, images, random, softmax

L = keras.layers
LAYERS, LENGTH, WORDS, SIZE = 4, 8, 50, 32

# Values for the backbones' arguments, by name. Each backbone gets those it accepts.
SMALL = {
    "vocabulary_size": WORDS,
    "vocab_size": WORDS,
    "num_layers": LAYERS,
    "num_heads": 2,
    "num_attention_heads": 2,
    "num_query_heads": 2,
    "num_key_value_heads": 1,
    "hidden_dim": 16,
    "intermediate_dim": 32,
    "embedding_dim": 8,
    "head_dim": 8,
    "max_sequence_length": LENGTH,
    "num_segments": 2,
    "dropout": 0.0,
    "dropout_rate": 0.0,
    "attention_dropout": 0.0,
    "attention_dropout_rate": 0.0,
    "feedforward_dropout_rate": 0.0,
    "num_experts": 2,
    "top_k": 1,
    "moe_intermediate_dim": 16,
    "shared_expert_intermediate_size": 16,
    "shared_expert_intermediate_dim": 16,
    "norm_top_k_prob": True,
    "decoder_sparse_step": 1,
    "rope_layer_enabled_list": [True] * LAYERS,
    "layer_types": ["full_attention"] * LAYERS,
    "attention_bias": False,
    "mlp_bias": False,
    "layer_norm_epsilon": 1e-5,
    "max_position_embeddings": LENGTH,
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.5,
    "head_size": 8,
    "max_wavelength": 1e4,
    "mlp_dim": 32,
    "image_shape": (SIZE, SIZE, 3),
    "patch_size": 8,
    "drop_path_rate": 0.0,
}
OTHERS: dict[str, dict[str, Any]] = {
    "Gemma3Backbone": {"image_size": 16, "vision_encoder": None},
    "Qwen3_5Backbone": {"layer_types": ["full_attention"] * LAYERS},
    "ResNetBackbone": {
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [3],
        "stackwise_num_filters": [64, 64],
        "stackwise_num_blocks": [1, 1],
        "stackwise_num_strides": [1, 2],
        "block_type": "basic_block",
    },
    "DenseNetBackbone": {"stackwise_num_repeats": [2, 2], "growth_rate": 4},
    "VGGBackbone": {"stackwise_num_repeats": [1, 1], "stackwise_num_filters": [4, 8]},
    "XceptionBackbone": {"stackwise_conv_filters": [[4, 8], [8, 8]], "stackwise_pooling": [1, 0]},
    "EfficientNetBackbone": {
        "stackwise_kernel_sizes": [3, 3],
        "stackwise_num_repeats": [1, 2],
        "stackwise_input_filters": [8, 8],
        "stackwise_output_filters": [8, 16],
        "stackwise_expansion_ratios": [1, 4],
        "stackwise_squeeze_and_excite_ratios": [0.0, 0.25],
        "stackwise_strides": [1, 2],
        "stackwise_block_types": ["fused", "unfused"],
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
        "dropout": 0.0,
    },
    "MiTBackbone": {
        "layerwise_depths": [1, 1],
        "num_layers": 2,
        "layerwise_num_heads": [1, 2],
        "layerwise_sr_ratios": [2, 1],
        "max_drop_path_rate": 0.0,
        "layerwise_patch_sizes": [7, 3],
        "layerwise_strides": [4, 2],
        "hidden_dims": [8, 16],
    },
}
# It computes token positions from all rows together.
ASIDE = {"XLNetBackbone": "different features for the same row"}
ONE_LAYER = {"AlbertBackbone"}  # called several times
# Their routers add to the loss, even in frozen layers in stock Keras.
ROUTERS = {"MixtralBackbone", "QwenMoeBackbone", "Qwen3MoeBackbone"}
TEXT = [
    "AlbertBackbone",
    "BertBackbone",
    "DistilBertBackbone",
    "ElectraBackbone",
    "RobertaBackbone",
    "XLMRobertaBackbone",
    "FNetBackbone",
    "DebertaV3Backbone",
    "ESM2Backbone",
    "RoformerV2Backbone",
    "XLNetBackbone",
    "T5Backbone",
    "BartBackbone",
    "GPT2Backbone",
    "GPTNeoXBackbone",
    "OPTBackbone",
    "BloomBackbone",
    "FalconBackbone",
    "GemmaBackbone",
    "Gemma3Backbone",
    "LlamaBackbone",
    "Llama3Backbone",
    "MistralBackbone",
    "MixtralBackbone",
    "Phi3Backbone",
    "QwenBackbone",
    "Qwen2Backbone",
    "Qwen3Backbone",
    "QwenMoeBackbone",
    "Qwen3MoeBackbone",
]
IMAGE = [
    "ResNetBackbone",
    "DenseNetBackbone",
    "VGGBackbone",
    "XceptionBackbone",
    "EfficientNetBackbone",
    "MiTBackbone",
    "ViTBackbone",
    "DeiTBackbone",
    "DINOV2Backbone",
]
TASKS = [
    ("BertTextClassifier", "BertBackbone"),
    ("DistilBertTextClassifier", "DistilBertBackbone"),
    ("RobertaTextClassifier", "RobertaBackbone"),
    ("AlbertTextClassifier", "AlbertBackbone"),
    ("FNetTextClassifier", "FNetBackbone"),
    ("DebertaV3TextClassifier", "DebertaV3Backbone"),
    ("RoformerV2TextClassifier", "RoformerV2Backbone"),
    ("ResNetImageClassifier", "ResNetBackbone"),
    ("VGGImageClassifier", "VGGBackbone"),
    ("DenseNetImageClassifier", "DenseNetBackbone"),
    ("XceptionImageClassifier", "XceptionBackbone"),
    ("EfficientNetImageClassifier", "EfficientNetBackbone"),
    ("ViTImageClassifier", "ViTBackbone"),
    ("DeiTImageClassifier", "DeiTBackbone"),
    ("MiTImageClassifier", "MiTBackbone"),
]
MASKED = ["Bert", "DistilBert", "Roberta", "Albert", "FNet", "DebertaV3"]
CAUSAL = ["GPT2", "OPT", "Bloom", "Llama", "Mistral", "Gemma", "Phi3", "Qwen3", "GPTNeoX", "Falcon"]
FUSED = {"GPTNeoX"}  # its `enable_lora` doesn't find layers by their names
SAMPLE = {"BertBackbone", "DistilBertTextClassifier", "GPT2CausalLM, lower half"}


def add_to(zoo: Zoo) -> None:
    for name in (*TEXT, *IMAGE):
        if hasattr(keras_hub.models, name):
            zoo.add(name, partial(_with_head, name), sample=name in SAMPLE)
    for task, backbone in TASKS:
        if hasattr(keras_hub.models, task):
            zoo.add(task, partial(_classifier, task, backbone), sample=task in SAMPLE)
    for name in MASKED:
        zoo.add(f"{name}MaskedLM", partial(_masked_lm, name))
    for name in CAUSAL:
        zoo.add(f"{name}CausalLM, asks", partial(_causal_lm, name, "asks"))
        lower = f"{name}CausalLM, lower half"
        zoo.add(lower, partial(_causal_lm, name, "lower"), sample=lower in SAMPLE)
        if name not in FUSED:
            zoo.add(f"{name}CausalLM, LoRA", partial(_causal_lm, name, "lora"))


def backbone(name: str) -> Any:
    """Returns a small one with random weights."""
    kind = getattr(keras_hub.models, name)
    known = inspect.signature(kind.__init__).parameters
    options = {key: value for key, value in SMALL.items() if key in known}
    return kind(**(options | OTHERS.get(name, {})))


def data_for(inputs: Any) -> Any:
    """Returns rows for symbolic inputs: words, masks and segments by name, otherwise images."""
    return keras.tree.map_structure(_rows, inputs)


def _rows(symbol: Any) -> Any:
    shape = tuple(length or LENGTH for length in symbol.shape[1:])
    if len(shape) == 3:
        return images(shape[0]) / 255
    if "mask" in symbol.name and "position" not in symbol.name:
        return np.ones((ROWS, *shape), "int32")
    limit = LENGTH if "position" in symbol.name else 2 if "segment" in symbol.name else WORDS
    return random().integers(0 if limit < WORDS else 1, limit, (ROWS, *shape)).astype("int32")


def _sequence(outputs: Any) -> Any:
    """Returns the last features of each token, or of each position in an image."""
    if not isinstance(outputs, dict):
        return outputs
    names = ("sequence_output", "decoder_sequence_output")
    found = [outputs[name] for name in names if name in outputs]
    return found[0] if found else next(iter(outputs.values()))


def _with_head(name: str) -> Built:
    base = backbone(name)
    inputs = (
        {key: _like(symbol, key) for key, symbol in base.input.items()}
        if isinstance(base.input, dict)
        else _like(base.input, "images")
    )
    features = _sequence(base(inputs))
    pools = {3: L.GlobalAveragePooling1D, 4: L.GlobalAveragePooling2D}
    pooled = pools[len(features.shape)]()(features)
    model = keras.Model(inputs, softmax()(pooled))
    built = Built(model, data_for(base.input), classes(), base, loss=SPARSE)
    built.blocks = LAYERS if name in TEXT and name not in ONE_LAYER else None
    built.aside = ASIDE.get(name, "")
    built.not_two = "stock Keras adds the losses of frozen routers" if name in ROUTERS else ""
    return built


def _like(symbol: Any, name: str) -> Any:
    return keras.Input(symbol.shape[1:], dtype=symbol.dtype, name=name)


def _classifier(task: str, name: str) -> Built:
    base = backbone(name)
    options = {"backbone": base, "num_classes": CLASSES, "preprocessor": None}
    model = getattr(keras_hub.models, task)(**options)
    return Built(model, data_for(base.input), classes(), base, loss=LOGITS)


def _masked_lm(name: str) -> Built:
    base = backbone(f"{name}Backbone")
    model = getattr(keras_hub.models, f"{name}MaskedLM")(backbone=base, preprocessor=None)
    y = random().integers(0, WORDS, (ROWS, LENGTH))
    return Built(model, data_for(model.input), y, base, loss=LOGITS)


def _causal_lm(name: str, way: str) -> Built:
    base = backbone(f"{name}Backbone")
    model = getattr(keras_hub.models, f"{name}CausalLM")(backbone=base, preprocessor=None)
    y = random().integers(0, WORDS, (ROWS, LENGTH))
    built = Built(model, data_for(base.input), y, base, loss=LOGITS)
    layers = [layer for layer in base.layers if layer.weights]
    if way == "lora":
        base.enable_lora(2)
        return built
    end = next(place for place, layer in enumerate(layers) if layer.name.endswith("_1"))
    built.named, built.base = f":{layers[end].name}", layers[: end + 1]
    built.asks = way == "asks"
    return built
