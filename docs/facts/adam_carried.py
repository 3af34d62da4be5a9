"""A weight is unfrozen after 1000 steps. How large is its largest update, in learning rates?"""

import keras
import numpy as np

from keras_freeze import FreezeBase, GradualUnfreeze

RATE, STEPS = 1e-3, 1000


class Shift(keras.layers.Layer):
    def build(self, shape):
        self.shift = self.add_weight(name="shift", shape=(), initializer="ones")

    def call(self, inputs):
        return inputs + self.shift


class Look(keras.callbacks.Callback):
    """Records the weight of the base after each step."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.values = layer, []

    def on_train_batch_end(self, batch, logs=None):
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()
        self.values.append(float(keras.ops.convert_to_numpy(self.layer.shift)))


def longest(run):
    """`run` trains the model. The gradient of each weight is 1 in each step."""
    layers = [Shift(name="base"), Shift(name="head")]
    model = keras.Sequential([keras.Input((1,)), *layers])
    model.compile(keras.optimizers.Adam(RATE), lambda y, output: keras.ops.mean(output))
    look = Look(layers[0])
    look.set_model(model)
    run(model, look)
    return f"{np.abs(np.diff(look.values[-41:])).max() / RATE:.1f} learning rates"


def carried(model, look):
    """Adam has both weights from the start. One has a gradient of 0 at first."""
    shift, head = (layer.shift for layer in model.layers)
    optimizer = model.optimizer
    optimizer.build([shift, head])
    one, none = keras.ops.ones(()), keras.ops.zeros(())
    for _ in range(STEPS):
        optimizer.apply([none, one], [shift, head])
    for _ in range(41):
        look.on_train_batch_end(0, None)
        optimizer.apply([one, one], [shift, head])


def one_fit(model, look):
    x = np.zeros((STEPS, 1), "float32")
    callbacks = [FreezeBase("base"), GradualUnfreeze({1: "all"}, verbose=0), look]
    model.fit(x, x, batch_size=1, epochs=1, verbose=0, callbacks=callbacks)
    model.fit(
        x[:41], x[:41], batch_size=1, initial_epoch=1, epochs=2, verbose=0, callbacks=callbacks
    )


print("stock Keras: ", longest(carried))
print("keras_freeze:", longest(one_fit))
