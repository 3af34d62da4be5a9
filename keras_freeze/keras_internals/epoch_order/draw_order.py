"""Draws the order of the rows of each epoch as Keras does for arrays, without making batches.

Private names used here were tried on Keras 3.12.0 and 3.15.1: `ArrayDataAdapter._inputs`,
`_shuffle`, `_num_samples`.
"""

from __future__ import annotations

import copy
import importlib
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
        order = f"{__package__}.on_tensorflow"
        drawn: Callable[[], Array] = importlib.import_module(order).shuffled(count)
        return drawn
    return partial(np.random.permutation, count)


def _on_torch(adapter: Any) -> Array:
    loader = adapter.get_torch_dataloader()
    iter(loader)  # draws a number, even without shuffling
    return np.fromiter(loader.batch_sampler.sampler, np.int64)
