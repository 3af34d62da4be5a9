"""Draws the order of the rows in each epoch as Keras' pipeline does on TensorFlow.

`context.global_seed` isn't public and was tried on TensorFlow 2.21.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context

Array = np.ndarray[Any, Any]


def has_seed() -> bool:
    """Returns True if `tf.random.set_seed` was called: another process has the same orders then."""
    return context.global_seed() is not None


def shuffled(count: int) -> Callable[[], Array]:
    """Returns a function that returns the shuffled row numbers of an epoch.

    Each iterator over a pipeline begins with the seed with which the pipeline was made. With a
    global seed, all epochs have the same order, so it is drawn once.

    Args:
        count: number of rows.
    """

    def permutation(_: Any) -> Any:
        # Both operations count for the seed of the second one.
        return tf.random.shuffle(tf.range(count, dtype=tf.int64))

    if not has_seed():
        return lambda: np.asarray(permutation(None))
    dataset = tf.data.Dataset.range(1).map(permutation).prefetch(1)
    known: list[Array] = []

    def order() -> Array:
        if not known:
            known.append(next(iter(dataset)).numpy())
        return known[0]

    return order
