"""How a step gets its batches, and how the prefix is run: TensorFlow."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_freeze.features.aside import StepAsideError
from keras_freeze.training.patch import Patch

Batch = Any


def pull(args: tuple[Any, ...], count: int) -> tuple[tuple[Any, ...], list[Batch]]:
    """Returns (what goes before the data, the batches of this step)."""
    (iterator,) = args
    return (), list(itertools.islice(iterator, count))


def compiled(model: Any, function: Callable[[Any], Any]) -> Callable[[tuple[Any, ...], Any], Any]:
    """Returns `function` as it is run on the inputs of a batch, of any number of rows."""
    if model.run_eagerly:
        return lambda state, x: function(x)
    traced: dict[Any, Any] = {}

    def prefix(state: tuple[Any, ...], x: Any) -> Any:
        flat = [tf.convert_to_tensor(leaf) for leaf in keras.tree.flatten(x)]
        looks = tuple((leaf.shape[1:], leaf.dtype) for leaf in flat)
        if (key := str(looks)) not in traced:
            spec = [tf.TensorSpec([None, *shape], dtype) for shape, dtype in looks]
            traced[key] = tf.function(
                lambda *leaves: function(keras.tree.pack_sequence_as(x, leaves)),
                input_signature=spec,
                jit_compile=model.jit_compile,
                autograph=False,
            )
        return traced[key](*flat)

    return prefix


class Lighter:
    """Runs served steps. Nothing to save here: a traced step knows what it uses."""

    def __init__(self, model: Any, hidden: list[Patch]):
        pass

    def step(
        self, function: Callable[..., Any], state: tuple[Any, ...], batches: list[Batch]
    ) -> Any:
        """Calls a train or test function of the model on batches."""
        return function(iter(batches))


def plain(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a train or test function of the whole model as Keras does."""
    return function(*args)


def plain_step(function: Callable[..., Any], state: tuple[Any, ...], batches: list[Batch]) -> Any:
    """Calls a train or test function of the whole model on batches."""
    return function(iter(batches))


def to_numpy(tensor: Any) -> np.ndarray[Any, Any]:
    """Returns a view of a tensor on the CPU, else a copy."""
    if isinstance(tensor, tf.Tensor) and tensor.dtype.is_numpy_compatible:
        try:
            return np.asarray(memoryview(tensor))
        except (BufferError, TypeError, ValueError):  # on a device, or a dtype without a format
            return np.asarray(tensor.numpy())
    return np.asarray(tensor)


def reader(variables: list[Any]) -> Callable[[], list[np.ndarray[Any, Any]]]:
    """Returns what reads the values of variables: all in one call, which is much faster."""
    if not variables:
        return list

    def read() -> list[Any]:
        return [variable.value.read_value() for variable in variables]

    traced = tf.function(read, autograph=False)
    return lambda: [to_numpy(value) for value in traced()]


def to_tensor(array: np.ndarray[Any, Any]) -> Any:
    """Returns an array as the model's steps take it."""
    return tf.convert_to_tensor(array)


def check(model: Any) -> None:
    """Raises `StepAsideError` if a model can't be served on this backend."""
    if model.distribute_strategy.num_replicas_in_sync > 1:
        raise StepAsideError(
            "`tf.distribute` spreads the batches over several devices", "train on one device"
        )
