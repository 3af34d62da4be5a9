"""A callback freezes one layer and unfreezes another of the same shape. The learning rate is 0."""

import keras
import numpy as np

from keras_freeze import RecompileOnTrainableChange

x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
y = x.sum(axis=1, keepdims=True)


class Swap(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            a, b = self.model.layers[:2]
            a.trainable, b.trainable = False, True
            self.model.optimizer = keras.optimizers.SGD(0.0)
            self.model.optimizer.build(self.model.trainable_variables)


def run(*callbacks):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(6, "relu"), keras.layers.Dense(6), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((6,)), *layers])
    layers[1].trainable = False
    model.compile(keras.optimizers.SGD(0.0), "mse")
    history = model.fit(x, y, epochs=4, verbose=0, shuffle=False, callbacks=[Swap(), *callbacks])
    return "losses " + ", ".join(f"{loss:.2f}" for loss in history.history["loss"])


print("stock Keras: ", run())
print("keras_freeze:", run(RecompileOnTrainableChange(verbose=0)))
