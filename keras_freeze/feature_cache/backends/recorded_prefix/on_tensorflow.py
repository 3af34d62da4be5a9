"""Runs the prefix of recorded epochs on TensorFlow, with its random draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_freeze.feature_cache.backends.on_tensorflow import compiled
from keras_freeze.feature_cache.backends.recorded_prefix.variables_around import variables_around


def recorded(
    model: Any,
    function: Callable[[Any], Any],
    inside: list[Any],
    *,
    is_trusted: bool,
    around: Any,
) -> Callable[[tuple[Any, ...], Any], tuple[Any, tuple[Any, ...]]]:
    """Returns a function that runs `function` as a train step does, with its random draws.

    It is (state, inputs of a batch) -> (features, new state).

    Args:
        model: the model that is fitted.
        function: computes features from the inputs of a batch.
        inside: variables of the layers that compute them.
        is_trusted: whether it calls Keras' own layers only.
        around: None if nothing else runs. Code around these layers runs again in the step, so its
            variables keep their values.
    """
    prefix = compiled(model, function, is_trusted=is_trusted)
    restored = [] if around is None else variables_around(model, inside)

    def run(state: tuple[Any, ...], x: Any) -> tuple[Any, tuple[Any, ...]]:
        before = [tf.identity(variable.value) for variable in restored]
        (features,) = prefix(state, [x])
        for variable, value in zip(restored, before, strict=True):
            variable.assign(value)
        return features, state

    return run


def rest_compiler(model: Any, is_trusted: Callable[[Any], bool]) -> Callable[..., Any] | None:
    """Returns None: the whole prefix is a graph."""
    return None


def compiles_step(model: Any, prefix: list[Any], others: list[Any]) -> bool:
    """Returns False: steps are graphs in any case."""
    return False
