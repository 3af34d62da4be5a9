"""Runs the prefix of recorded epochs on JAX, with its random draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import keras

from keras_freeze.feature_cache.backends.on_jax import is_compiled
from keras_freeze.feature_cache.not_cacheable import moved
from keras_freeze.graph.layer_tree import is_seed, layers_of


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
        inside: variables of the layers that compute them. Code around these runs again in the step.
        is_trusted: unused: it is traced, as the step is.
        around: unused: variables that aren't `inside` keep their values.
    """
    ids = {id(variable) for variable in inside}

    def run(trainable: list[Any], others: list[Any], x: Any) -> tuple[Any, dict[int, Any]]:
        variables = [*model.trainable_variables, *model.non_trainable_variables]
        mapping = list(zip(variables, [*trainable, *others], strict=True))
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope:
            features = function(x)
        drawn = {}
        for place, (variable, value) in enumerate(mapping, start=-len(trainable)):
            new = scope.get_current_value(variable)
            if new is not value and id(variable) in ids:
                if not is_seed(variable):
                    raise moved([variable])
                drawn[place] = new
        return features, drawn

    ready: dict[str, Any] = {}

    def prefix(state: tuple[Any, ...], x: Any) -> tuple[Any, tuple[Any, ...]]:
        ((trainable, others, *rest),) = state
        whole = list(others)
        key = str([(leaf.shape, leaf.dtype) for leaf in keras.tree.flatten(x)])
        if is_compiled(model) and key not in ready:
            ready[key] = jax.jit(run).lower(trainable, whole, x).compile()
        features, drawn = ready.get(key, run)(trainable, whole, x)
        for place, value in drawn.items():
            whole[place] = value
        return features, ((trainable, whole, *rest),)

    return prefix


def rest_compiler(model: Any, is_trusted: Callable[[Any], bool]) -> Callable[..., Any] | None:
    """Returns what compiles the part of a prefix that comes after random layers.

    None if the whole prefix is compiled, or nothing is to be.

    Args:
        model: the model that is fitted.
        is_trusted: unused: a part is traced, as the step is.
    """
    if model.jit_compile or model.run_eagerly:
        return None

    def compile(function: Callable[[list[Any]], Any], called: list[Any]) -> Callable[..., Any]:
        layers = layers_of(called)
        if not all(layer.supports_jit for layer in layers):
            return function
        variables = list({id(v): v for layer in layers for v in layer.variables}.values())

        def run(values: list[Any], given: list[Any]) -> Any:
            mapping = list(zip(variables, values, strict=True))
            with keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope:
                outputs = function(given)
            new = [v for v, value in mapping if scope.get_current_value(v) is not value]
            if new:
                raise moved(new)
            return outputs

        compiled = jax.jit(run)
        return lambda given: compiled([variable.value for variable in variables], given)

    return compile


def compiles_step(model: Any, prefix: list[Any], others: list[Any]) -> bool:
    """Returns True if only layers of the prefix keep Keras from compiling the step.

    Args:
        model: the model that is fitted.
        prefix: the layers of the prefix.
        others: all other layers.
    """
    if model.jit_compile or model.run_eagerly:
        return False
    own = [layer for layer in others if layer is not model]
    return not all(each.supports_jit for each in prefix) and all(each.supports_jit for each in own)
