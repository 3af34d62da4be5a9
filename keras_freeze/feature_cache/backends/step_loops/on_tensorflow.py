"""Runs many steps in one traced call on TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_freeze.feature_cache.backends.step_loops.batch_tables import (
    Tables,
    is_convolution,
    padded,
    tracing,
)

Array = np.ndarray[Any, Any]


class StepLoop:
    """Runs groups of steps of one stage. It is traced once for groups of all lengths.

    Args:
        function: the model's train or test function.
        lighter: runs single steps of the model.
        layers: unused: the layers and models that may run in a step.
    """

    def __init__(self, function: Callable[..., Any], lighter: Any, layers: Any):
        self.function = function
        self.jit = bool(lighter.model.jit_compile)
        self.traced: dict[Any, Any] = {}

    def run(
        self, state: tuple[Any, ...], tables: Tables, slots: Array, numbers: Array, most: int
    ) -> Any:
        """Runs a step for each batch; returns what the last one returns.

        Args:
            state: the element spec of the data.
            tables: all rows.
            slots: rows of the features in each batch, (batches, rows).
            numbers: rows of the other arrays in each batch.
            most: number of batches in the longest group. XLA compiles for each number of rows.

        Raises:
            CannotLoopError: the step can't be traced in a loop.
        """
        # Keras weighs the losses of several outputs by a batch size that is known.
        size = keras.tree.flatten(state[0])[0].shape[0]
        leaves = keras.tree.flatten(tables)
        tensors = [leaf for leaf in leaves if leaf is not None]
        key = (size, *[(tuple(tensor.shape), tensor.dtype) for tensor in tensors])
        if key not in self.traced:
            with tracing():
                self.traced[key] = self._trace(tables, tensors, size)
        rows = padded(slots, most), padded(numbers, most), np.int32(len(slots))
        return self.traced[key](*map(tf.constant, rows), *tensors)

    def _trace(self, tables: Tables, tensors: list[Any], size: int | None) -> Any:
        given = [leaf is not None for leaf in keras.tree.flatten(tables)]
        structure = keras.tree.map_structure(lambda _: None, tables)
        rows = tf.TensorSpec([None, size], tf.int32)
        specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in tensors]

        def batch(slots: Any, numbers: Any, *tensors: Any) -> Any:
            rest = iter(tensors)
            flat = [next(rest) if is_given else None for is_given in given]
            packed = keras.tree.pack_sequence_as(structure, flat)
            return packed.batch(slots, numbers, lambda table, rows: tf.gather(table, rows))

        row = tf.TensorSpec([size], tf.int32)
        step = tf.function(
            lambda *rows: self.function(iter([batch(*rows)])),
            input_signature=[row, row, *specs],
            autograph=False,
        ).get_concrete_function()
        logs = step.structured_outputs
        empty = keras.tree.map_structure(lambda log: tf.zeros(log.shape, log.dtype), logs)

        def run(slots: Any, numbers: Any, count: Any, *tensors: Any) -> Any:
            def body(place: Any, _: Any) -> Any:
                return place + 1, step(slots[place], numbers[place], *tensors)

            goes_on = lambda place, _: place < count  # noqa: E731
            return tf.while_loop(goes_on, body, (tf.constant(0), empty), parallel_iterations=1)[1]

        signature = [rows, rows, tf.TensorSpec([], tf.int32), *specs]
        # One compiled loop is faster than a loop of compiled steps.
        loop = tf.function(
            run, input_signature=signature, autograph=False, jit_compile=self.jit or None
        )
        return loop.get_concrete_function()


def can_loop(model: Any, layers: list[Any]) -> bool:
    """Returns True if steps are faster in a loop. XLA's convolutions aren't, on a CPU.

    Args:
        model: the model that is fitted.
        layers: the layers and models that may run in a step.
    """
    on_cpu = not tf.config.list_logical_devices("GPU")
    slow = on_cpu and model.jit_compile and any(map(is_convolution, layers))
    return not model.run_eagerly and not slow
