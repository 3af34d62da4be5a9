"""The base is called with `training=False`, as in Keras' guide to fine-tuning, and unfrozen."""

import keras
import numpy as np

from keras_freeze import FreezeBase, GradualUnfreeze

x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
y = x.sum(axis=1, keepdims=True)


def run(*callbacks):
    keras.utils.set_random_seed(0)
    norm = keras.layers.BatchNormalization()
    base = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8), norm], name="base")
    inputs = keras.Input((6,))
    model = keras.Model(inputs, keras.layers.Dense(1)(base(inputs, training=False)))
    model.compile("adam", "mse")
    model.fit(x, y, epochs=2, verbose=0, callbacks=[*callbacks])
    moved = bool(np.any(keras.ops.convert_to_numpy(norm.moving_mean) != 0))
    return "the statistics move" if moved else "the statistics stay"


print("stock Keras: ", run())
print("keras_freeze:", run(FreezeBase("base"), GradualUnfreeze({0: "all"}, verbose=0)))
