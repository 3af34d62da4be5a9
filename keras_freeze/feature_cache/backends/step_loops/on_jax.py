"""Runs many steps in one compiled call on JAX."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from keras_freeze.feature_cache.backends.step_loops.batch_tables import (
    Tables,
    is_convolution,
    padded,
    tracing,
)

Array = np.ndarray[Any, Any]


class StepLoop:
    """Runs groups of steps of one stage. It is compiled once for groups of all lengths.

    Args:
        function: the model's train or test function. It was traced for single steps already.
        lighter: passes only the variables that the steps use.
        layers: unused: the layers and models that may run in a step.
    """

    def __init__(self, function: Callable[..., Any], lighter: Any, layers: Any):
        self.lighter = lighter
        self.is_traced = False
        self.steps = jax.jit(partial(_steps, function), donate_argnums=0)

    def run(
        self, state: tuple[Any, ...], tables: Tables, slots: Array, numbers: Array, most: int
    ) -> Any:
        """Runs a step for each batch; returns what the last one returns.

        Args:
            state: the arguments that Keras passes to a step before the data.
            tables: all rows.
            slots: rows of the features in each batch, (batches, rows).
            numbers: rows of the other arrays in each batch.
            most: number of batches in the longest group.

        Raises:
            CannotLoopError: the step can't be traced in a loop.
        """
        rows = padded(slots, most), padded(numbers, most), len(slots)

        def run(state: Any, _: Any) -> Any:
            if not self.is_traced:
                with tracing():
                    self.steps.eval_shape(state, tables, *rows)
                self.is_traced = True
            return self.steps(state, tables, *rows)

        return self.lighter.step(run, state, [])


def _steps(
    function: Callable[..., Any],
    state: Any,
    tables: Tables,
    slots: Any,
    numbers: Any,
    count: Any,
) -> Any:
    def batch(place: Any) -> Any:
        return tables.batch(slots[place], numbers[place], partial(jnp.take, axis=0, mode="clip"))

    def body(place: Any, carried: Any) -> Any:
        return function(carried[1], iter([batch(place)]))

    state = jax.tree.map(jnp.asarray, state)
    logs, _ = jax.eval_shape(lambda: body(0, (None, state)))
    logs = jax.tree.map(lambda log: jnp.zeros(log.shape, log.dtype), logs)
    return jax.lax.fori_loop(0, count, body, (logs, state))


def can_loop(model: Any, layers: list[Any]) -> bool:
    """Returns True if steps are faster in a loop. XLA's convolutions aren't, on a CPU.

    Args:
        model: the model that is fitted.
        layers: the layers and models that may run in a step.
    """
    compiles = bool(model.jit_compile) and not model.run_eagerly
    on_cpu = jax.default_backend() == "cpu"
    return compiles and not (on_cpu and any(map(is_convolution, layers)))
