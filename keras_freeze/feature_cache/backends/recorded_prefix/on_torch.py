"""Runs the prefix of recorded epochs on PyTorch, with its random draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from keras_freeze.feature_cache.backends.on_torch import compiled
from keras_freeze.feature_cache.backends.recorded_prefix.variables_around import variables_around
from keras_freeze.feature_cache.backends.torch_tape import random_generators
from keras_freeze.feature_cache.backends.torch_tape.replay_tape import Replay
from keras_freeze.feature_cache.not_cacheable import drawn


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
        is_trusted: whether it calls Keras' own layers only, none of which draws random numbers.
        around: None if nothing else runs. Code around these layers runs again in the step, so its
            variables and PyTorch's generators keep their values; `around.enters` is called between.
    """
    prefix = compiled(model, function, is_trusted=True) if is_trusted else None
    restored = [] if around is None else variables_around(model, inside)

    def run(state: tuple[Any, ...], x: Any) -> tuple[Any, tuple[Any, ...]]:
        if prefix is not None:
            return prefix(state, [x])[0], state
        before = [variable.value.detach().clone() for variable in restored]
        if around is None:
            with torch.no_grad():
                return function(x), state
        began, entered = random_generators.states(), list[Any]()
        around.enters = lambda: entered.extend(random_generators.states())
        with torch.no_grad():
            features = function(x)
        is_same = all(map(torch.equal, entered, random_generators.states()))
        for variable, value in zip(restored, before, strict=True):
            variable.assign(value)
        random_generators.set_states(began)
        if not is_same:
            raise drawn()  # the step would draw the same numbers again
        return features, state

    return run


def rest_compiler(model: Any, is_trusted: Callable[[Any], bool]) -> Callable[..., Any] | None:
    """Returns what records, on a tape, the part of a prefix that comes after random layers.

    Args:
        model: the model that is fitted.
        is_trusted: returns whether a layer may be recorded.
    """

    def compile(function: Callable[[list[Any]], Any], called: list[Any]) -> Callable[..., Any]:
        return _replayed(function) if all(map(is_trusted, called)) else function

    return None if model.run_eagerly else compile


def _replayed(function: Callable[[list[Any]], Any]) -> Callable[..., Any]:
    replays: dict[str, Replay] = {}

    def run(given: list[Any]) -> Any:
        specs = str([(leaf.shape, leaf.stride(), leaf.dtype, leaf.device) for leaf in given])
        if specs not in replays:
            replays[specs] = Replay(lambda *leaves: function(list(leaves)))
        return replays[specs].run([given])[0]

    return run


def compiles_step(model: Any, prefix: list[Any], others: list[Any]) -> bool:
    """Returns False: by default, Keras doesn't compile steps on PyTorch."""
    return False
