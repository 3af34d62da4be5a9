"""How a step gets its batches, and how the prefix is run: JAX."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import keras
import numpy as np

from keras_freeze.features.aside import StepAsideError, moves

Batch = Any


def pull(args: tuple[Any, ...], count: int) -> tuple[tuple[Any, ...], list[Batch]]:
    """Returns (what goes before the data, the batches of this step)."""
    state, iterator = args
    return (state,), list(itertools.islice(iterator, count))


def step(function: Callable[..., Any], state: tuple[Any, ...], batches: list[Batch]) -> Any:
    """Calls a train or test function of the model on batches."""
    return function(*state, iter(batches))


def compiled(model: Any, function: Callable[[Any], Any]) -> Callable[[tuple[Any, ...], Any], Any]:
    """Returns `function` as it is run on the inputs of a batch.

    The model's variables hold nothing while `fit` runs: their values are in the step's state,
    trainable ones first, then the others.
    """

    def run(trainable: list[Any], others: list[Any], x: Any) -> Any:
        variables = [*model.trainable_variables, *model.non_trainable_variables]
        mapping = list(zip(variables, [*trainable, *others], strict=True))
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope:
            features = function(x)
        for variable, value in mapping:
            if scope.get_current_value(variable) is not value:
                raise StepAsideError(*moves(variable))
        return features

    run = run if model.run_eagerly or not model.jit_compile else jax.jit(run)

    def prefix(state: tuple[Any, ...], x: Any) -> Any:
        ((trainable, others, *_),) = state
        return run(trainable, others, x)

    return prefix


def to_numpy(tensor: Any) -> np.ndarray[Any, Any]:
    """Returns a view of an array on the CPU, else a copy."""
    return np.asarray(tensor)


def to_tensor(array: np.ndarray[Any, Any]) -> Any:
    """Returns an array as the model's steps take it: `jit` moves it to the device."""
    return array


def check(model: Any) -> None:
    """Raises `StepAsideError` if a model can't be served on this backend."""
    if keras.distribution.distribution() is not None:
        raise StepAsideError(
            "`keras.distribution` spreads the batches over several devices", "train on one device"
        )
