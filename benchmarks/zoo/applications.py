"""All families of keras.applications, each nested in a model and as part of a flat one."""

from __future__ import annotations

from functools import partial
from typing import Any

import keras

from zoo.member import SPARSE, Built, Zoo, classes, images, softmax

L = keras.layers
# The smallest images that each accepts without its top.
FAMILIES = {
    "VGG16": 32,
    "ResNet50": 32,
    "ResNet50V2": 32,
    "DenseNet121": 32,
    "InceptionV3": 75,
    "InceptionResNetV2": 75,
    "Xception": 71,
    "MobileNet": 32,
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "NASNetMobile": 32,
    "EfficientNetB0": 32,
    "EfficientNetV2B0": 32,
    "ConvNeXtTiny": 32,
}
NOT_ON_TORCH = {"NASNetMobile": ("tensorflow", "jax")}
SCALED = {"NASNetMobile"}  # without its weights, it overflows on pixels from 0 to 255
SAMPLE = {"MobileNetV2", "ConvNeXtTiny"}


def add_to(zoo: Zoo) -> None:
    for family, size in FAMILIES.items():
        options = {"backends": NOT_ON_TORCH.get(family, ())}
        zoo.add(f"{family}, nested", partial(_nested, family, size), **options)
        sample = family in SAMPLE
        zoo.add(f"{family}, flat", partial(_flat, family, size), sample=sample, **options)
    zoo.add("EfficientNetB0 by input_tensor, Keras' example", _example_of_keras)


def _base(family: str, **options: Any) -> Any:
    return getattr(keras.applications, family)(include_top=False, weights=None, **options)


def _built(model: Any, size: int, base: Any, family: str = "") -> Built:
    x = images(size) / 127.5 - 1 if family in SCALED else images(size)
    return Built(model, x, classes(), base, loss=SPARSE)


def _nested(family: str, size: int) -> Built:
    base = _base(family, input_shape=(size, size, 3))
    layers = [base, L.GlobalAveragePooling2D(), L.Dense(8, name="hidden"), softmax()]
    return _built(keras.Sequential([keras.Input((size, size, 3)), *layers]), size, base, family)


def _flat(family: str, size: int) -> Built:
    base = _base(family, input_shape=(size, size, 3), pooling="avg")
    return _built(keras.Model(base.input, softmax()(base.output)), size, base, family)


def _example_of_keras() -> Built:
    inputs = keras.Input((32, 32, 3))
    base = _base("EfficientNetB0", input_tensor=inputs)
    pooled = L.GlobalAveragePooling2D(name="avg_pool")(base.output)
    head = L.Dropout(0.2, name="top_dropout")(L.BatchNormalization()(pooled))
    return _built(keras.Model(inputs, softmax("pred")(head)), 32, base)
