"""Dropout in a frozen base. The learning rate is 0, so all epochs should have the same loss."""

import keras
import numpy as np

from keras_freeze import FreezeBase

x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
y = x.sum(axis=1, keepdims=True)


def run(*callbacks):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((6,)), keras.layers.Dense(8), keras.layers.Dropout(0.5)]
    base = keras.Sequential(layers, name="base")
    model = keras.Sequential([keras.Input((6,)), base, keras.layers.Dense(1)])
    base.trainable = False
    model.compile(keras.optimizers.SGD(0.0), "mse")
    history = model.fit(x, y, epochs=4, verbose=0, shuffle=False, callbacks=[*callbacks])
    same = np.ptp(history.history["loss"]) < 1e-4
    return "all epochs have the same loss" if same else "each epoch has another loss"


print("stock Keras: ", run())
print("keras_freeze:", run(FreezeBase("base")))
