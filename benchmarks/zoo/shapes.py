"""Models as in Keras' code examples: siamese, distillation, segmentation, captions, towers."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from zoo.member import CLASSES, ROWS, SPARSE, Built, Zoo, classes, images, random, softmax

L = keras.layers
SIZE = 16
Model = keras.Model


def add_to(zoo: Zoo) -> None:
    zoo.add("Nested head larger than the base", _large_head, sample=True)
    zoo.add("Siamese network", _siamese, sample=True)
    zoo.add("Distillation", _distillation)
    zoo.add("Two heads, flat", _two_heads, sample=True)
    zoo.add("Two towers", _two_towers)
    zoo.add("Image and numbers", _image_and_numbers)
    zoo.add("U-Net on a nested encoder", _unet)
    zoo.add("DeepLab, flat, ResNet50 given", _deeplab, sample=True)
    zoo.add("Captions", _captions)
    zoo.add("Video: TimeDistributed and LSTM", _video)
    zoo.add("Autoencoder's encoder as a classifier", _encoder)
    zoo.add("Flat text classifier", _text)


def conv(filters: int, **options: Any) -> Any:
    return L.Conv2D(filters, 3, padding="same", activation="relu", **options)


def chain(*layers: Any, shape: Any = (SIZE, SIZE, 3), name: str | None = None) -> Any:
    return keras.Sequential([keras.Input(shape), *layers], name=name)


def net(name: str, filters: int = 8) -> Any:
    return chain(conv(filters), conv(filters), name=name)


def _image(name: str = "image") -> Any:
    return keras.Input((SIZE, SIZE, 3), name=name)


def _photos() -> Any:
    return images(SIZE) / 255


def _masks(size: int) -> Any:
    """Returns the class of each pixel, as probabilities."""
    return random().dirichlet(np.ones(CLASSES), (ROWS, size, size)).astype("float32")


def _large_head() -> Built:
    base = net("vgg")
    top = chain(L.Flatten(), L.Dense(64), softmax(), shape=(SIZE, SIZE, 8), name="top")
    return Built(chain(base, top), _photos(), classes(), base, loss=SPARSE, blocks=2)


def _siamese() -> Built:
    layers = [conv(8), conv(8), L.Flatten(), L.Dense(16), L.BatchNormalization(), L.Dense(4)]
    embedding = chain(*layers, name="Embedding")
    both = [_image("anchor"), _image("other")]
    network = Model(both, L.Dot(1)([embedding(one) for one in both]))

    class Siamese(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def call(self, inputs: Any) -> Any:
            return self.network(inputs)

    model, x = Siamese(), (_photos(), _photos()[::-1].copy())
    model(x)
    return Built(model, x, np.ones((ROWS, 1), "float32"), layers[:2], blocks=2)


def _distillation() -> Built:
    teacher = chain(net("teachers", 16), L.GlobalAveragePooling2D(), softmax(), name="teacher")
    teacher.trainable = False
    body = net("body")
    student = chain(body, L.GlobalAveragePooling2D(), softmax(), name="student")

    class Distiller(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.teacher, self.student = teacher, student

        def call(self, x: Any) -> Any:
            return self.student(x)

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, **_: Any) -> Any:
            soft = keras.ops.mean((self.teacher(x, training=False) - y_pred) ** 2)
            return soft + keras.ops.mean(keras.losses.sparse_categorical_crossentropy(y, y_pred))

    model = Distiller()
    model(_photos())
    return Built(model, _photos(), classes(), [body, teacher], loss=SPARSE)


def _two_heads() -> Built:
    image, layers = _image(), [conv(8), conv(8)]
    h = L.GlobalAveragePooling2D()(layers[1](layers[0](image)))
    heads = [L.Dense(1, name=name)(L.Dense(4)(h)) for name in ("age", "sex")]
    y = [random().normal(size=(ROWS, 1)).astype("float32") for _ in heads]
    return Built(Model(image, heads), _photos(), y, layers, loss=["mse", "mse"], blocks=2)


def _two_towers() -> Built:
    towers, inputs = [net("left"), net("right")], [_image("a"), _image("b")]
    pair = zip(towers, inputs, strict=True)
    h = L.Concatenate()([L.GlobalAveragePooling2D()(tower(one)) for tower, one in pair])
    built = Built(Model(inputs, softmax()(h)), [_photos()] * 2, classes(), towers, loss=SPARSE)
    built.asks, built.named = True, ["left", "right"]
    return built


def _image_and_numbers() -> Built:
    image, numbers, base = _image(), keras.Input((4,), name="numbers"), net("base", 16)
    beside = L.Dense(4, activation="relu")(numbers)
    h = L.Concatenate()([L.GlobalAveragePooling2D()(base(image)), beside])
    x = [_photos(), random().normal(size=(ROWS, 4)).astype("float32")]
    return Built(Model([image, numbers], softmax()(h)), x, classes(), base, loss=SPARSE, blocks=2)


def _unet() -> Built:
    image, other = _image(), _image("photo")
    low = conv(8)(image)
    encoder = Model(image, [low, conv(8, strides=2)(low)], name="encoder")
    skip, h = encoder(other)
    up = conv(8)(L.UpSampling2D()(h))
    masks = L.Conv2D(CLASSES, 1, activation="softmax")(L.Concatenate()([up, skip]))
    return Built(Model(other, masks), _photos(), _masks(SIZE), encoder)


def _deeplab() -> Built:
    base = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(32, 32, 3))
    high = base.get_layer("conv3_block2_2_relu").output
    low = base.get_layer("conv2_block3_2_relu").output
    high = L.UpSampling2D(low.shape[1] // high.shape[1])(conv(8)(high))
    h = conv(8)(L.Concatenate()([high, L.Conv2D(4, 1)(low)]))
    model = Model(base.input, L.Conv2D(CLASSES, 1, activation="softmax")(h))
    inside = {id(layer) for layer in model.layers}
    layers = [layer for layer in base.layers if id(layer) in inside and layer.weights]
    return Built(model, images(32), _masks(h.shape[1]), layers, named=base)


def _captions() -> Built:
    base = net("cnn")
    base.trainable = False
    image, words = _image(), keras.Input((5,), dtype="int32", name="words")
    queries, keys = keras.Input((5, 8)), keras.Input((SIZE * SIZE, 8))
    attended = L.Add()([queries, L.MultiHeadAttention(2, 4)(queries, keys)])
    decoder = Model([queries, keys], L.LayerNormalization()(attended), name="decoder")
    h = decoder([L.Embedding(9, 8)(words), L.Reshape((SIZE * SIZE, 8))(base(image))])
    model = Model([image, words], L.Dense(9, activation="softmax")(h))
    y = random().integers(0, 9, (ROWS, 5))
    return Built(model, [_photos(), y.astype("int32")], y, base, loss=SPARSE, blocks=2)


def _video() -> Built:
    base = chain(conv(8), L.GlobalAveragePooling2D(), name="frame")
    layers = [L.TimeDistributed(base), L.LSTM(8), softmax()]
    x = np.stack([_photos()] * 2, axis=1)
    return Built(chain(*layers, shape=(2, SIZE, SIZE, 3)), x, classes(), base, loss=SPARSE)


def _encoder() -> Built:
    image = _image()
    encoder = Model(image, conv(8, strides=2)(conv(8)(image)), name="encoder")
    head = [L.Flatten(), L.Dense(16, activation="relu"), softmax()]
    return Built(chain(encoder, *head), _photos(), classes(), encoder, loss=SPARSE, blocks=2)


def _text() -> Built:
    words = keras.Input((6,), dtype="int32", name="words")
    layers = [L.Embedding(20, 8), L.LSTM(8)]
    h = L.Dense(8, activation="relu")(layers[1](layers[0](words)))
    x = random().integers(0, 20, (ROWS, 6)).astype("int32")
    return Built(Model(words, softmax()(h)), x, classes(), layers, loss=SPARSE)
