"""A callback sets `trainable` at the start of an epoch."""

import keras
import numpy as np

from keras_freeze import RecompileOnTrainableChange

x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
y = x.sum(axis=1, keepdims=True)


class Unfreeze(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            self.model.get_layer("base").trainable = True


def run(*callbacks):
    keras.utils.set_random_seed(0)
    base = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, name="inner")], name="base")
    model = keras.Sequential([keras.Input((6,)), base, keras.layers.Dense(1)])
    base.trainable = False
    model.compile("adam", "mse")
    before = base.get_weights()[0].copy()
    try:
        model.fit(x, y, epochs=4, verbose=0, callbacks=[Unfreeze(), *callbacks])
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:60]} ..."
    moved = np.abs(base.get_weights()[0] - before).max()
    return "the base learns" if moved else "the base does not learn, and nothing is said"


print("stock Keras: ", run())
print("keras_freeze:", run(RecompileOnTrainableChange(verbose=0)))
