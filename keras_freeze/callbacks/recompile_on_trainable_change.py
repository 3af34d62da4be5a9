"""RecompileOnTrainableChange: makes other callbacks' changes of `trainable` take effect."""

from __future__ import annotations

from keras_freeze.callbacks.gradual_unfreeze import OPTIMIZER
from keras_freeze.errors import check_choice, names_unknown
from keras_freeze.fit_engine.first_and_last_callbacks import PublicCallback


class RecompileOnTrainableChange(PublicCallback):
    """Makes a change of `trainable` by any other callback take effect inside `fit`.

    Stock Keras ignores such a change (TensorFlow) or raises an error about shapes or unknown
    variables (JAX, PyTorch). With this callback, a change made in any hook takes effect at the next
    step. So a change at the end of an epoch applies to the next epoch, and one at the beginning of
    an epoch to that epoch. The callback may be anywhere in the list. Without a base (see
    `FreezeBase`), frozen layers run as in stock Keras.

    The logs are the same as without it. If no flag changes, everything else is too.

    Args:
        optimizer: `"carry"` or `"reset"`, as in `GradualUnfreeze`; the learning rate doesn't change
            with either.
        verbose: 0 = silent, 1 = prints each change, between two progress bars.

    Raises:
        FreezeError: `optimizer` is neither `"carry"` nor `"reset"`.

    Examples:
        >>> base = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)], name="base")
        >>> base.trainable = False
        >>> model = keras.Sequential([base, keras.layers.Dense(1)])
        >>> model.compile("adam", "mse")
        >>> def unfreeze(epoch, logs):
        ...     base.trainable = epoch >= 1
        >>> mine = keras.callbacks.LambdaCallback(on_epoch_begin=unfreeze)
        >>> x, y = np.ones((8, 4)), np.ones((8, 1))
        >>> history = model.fit(x, y, epochs=2, verbose=0,
        ...                     callbacks=[RecompileOnTrainableChange(verbose=0), mine])
        >>> len(model.trainable_variables), len(model.optimizer.variables)
        (4, 10)
    """

    role = "watch"

    @names_unknown()
    def __init__(self, *, optimizer: str = "carry", verbose: int = 1):
        super().__init__()
        check_choice("optimizer", optimizer, OPTIMIZER)
        self.optimizer = optimizer
        self.verbose = verbose
