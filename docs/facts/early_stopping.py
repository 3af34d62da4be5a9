"""EarlyStopping stops in the epoch in which another callback calls `compile`."""

import keras
import numpy as np

from keras_freeze import RecompileOnTrainableChange

x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
y = x.sum(axis=1, keepdims=True)


class Compile(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1:
            if not self.ours:
                self.model.compile("adam", "mse")
                self.model.make_train_function(force=True)
            else:
                self.model.layers[0].trainable = True


def run(*ours):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(8), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((6,)), *layers])
    layers[0].trainable = False
    model.compile("adam", "mse")
    stop = keras.callbacks.EarlyStopping("loss", patience=0, min_delta=1e9)  # stops after epoch 2
    change = Compile()
    change.ours = bool(ours)
    try:
        history = model.fit(x, y, epochs=5, verbose=0, callbacks=[stop, change, *ours])
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:60]} ..."
    return f"ends after epoch {len(history.history['loss'])}"


print("stock Keras: ", run())
print("keras_freeze:", run(RecompileOnTrainableChange(verbose=0)))
