"""`use_ema=True`, and a weight of 1.0 that is unfrozen late. The learning rate is 0."""

import keras
import numpy as np

from keras_freeze import FreezeBase, GradualUnfreeze


class Shift(keras.layers.Layer):
    def build(self, shape):
        self.shift = self.add_weight(name="shift", shape=(), initializer="ones")

    def call(self, inputs):
        return inputs + self.shift


def build():
    base, head = Shift(name="base"), Shift(name="head")
    model = keras.Sequential([keras.Input((1,)), base, head])
    optimizer = keras.optimizers.SGD(0.0, use_ema=True, ema_momentum=0.99)
    model.compile(optimizer, lambda y, output: keras.ops.mean(output))
    return model, base, optimizer


def stock():
    """The weight joins an optimizer that has made a step, so its average begins at 0."""
    model, base, optimizer = build()
    optimizer.build(model.trainable_variables)
    optimizer.iterations.assign(1)
    zeros = [keras.ops.zeros(()) for _ in model.trainable_variables]
    optimizer.apply(zeros, model.trainable_variables)
    optimizer.finalize_variable_values(model.trainable_variables)
    return float(keras.ops.convert_to_numpy(base.shift))


def one_fit():
    model, base, _ = build()
    x = np.zeros((20, 1), "float32")
    callbacks = [FreezeBase("base"), GradualUnfreeze({1: "all"}, verbose=0)]
    model.fit(x, x, batch_size=1, epochs=2, verbose=0, callbacks=callbacks)
    return float(keras.ops.convert_to_numpy(base.shift))


print(f"stock Keras:  ends at {stock():.3f}")
print(f"keras_freeze: ends at {one_fit():.3f}")
