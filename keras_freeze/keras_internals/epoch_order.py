"""Draws the order of the rows of each epoch as Keras does for arrays, without making batches.

Private names used here were tried on Keras 3.12.0 and 3.15.1: `ArrayDataAdapter._inputs`,
`_shuffle`, `_num_samples`; on TensorFlow 2.21: `context.global_seed`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np

Array = np.ndarray[Any, Any]


def epoch_order(adapter: Any) -> Callable[[], Array]:
    """Returns a function that returns the row numbers of an epoch in Keras' order.

    It draws from the same random generators as Keras, as often as Keras.

    Args:
        adapter: a new `ArrayDataAdapter`. Its `shuffle` must not be "batch".
    """
    count = adapter._num_samples
    if keras.backend.backend() == "torch":
        light = copy.copy(adapter)
        light._inputs = (np.arange(count),)
        return partial(_on_torch, light)
    if not adapter._shuffle:
        return partial(np.arange, count)
    if keras.backend.backend() == "tensorflow":
        return _on_tensorflow(count)
    return partial(np.random.permutation, count)


def _on_torch(adapter: Any) -> Array:
    loader = adapter.get_torch_dataloader()
    iter(loader)  # draws a number, even without shuffling
    return np.fromiter(loader.batch_sampler.sampler, np.int64)


def _on_tensorflow(count: int) -> Callable[[], Array]:
    """Repeats the part of Keras' pipeline that draws.

    Each iterator over a pipeline begins with the seed with which the pipeline was made. With a
    global seed, all epochs have the same order, so it is drawn once.
    """
    import tensorflow as tf
    from tensorflow.python.eager import context

    def permutation(_: Any) -> Any:
        # Both operations count for the seed of the second one.
        return tf.random.shuffle(tf.range(count, dtype=tf.int64))

    if context.global_seed() is None:
        return lambda: permutation(None).numpy()
    dataset = tf.data.Dataset.range(1).map(permutation).prefetch(1)
    known: list[Array] = []

    def order() -> Array:
        if not known:
            known.append(next(iter(dataset)).numpy())
        return known[0]

    return order
