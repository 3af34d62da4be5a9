"""Reads and sets the state of the random generators that a `fit` draws from.

Random layers have generators of their own, whose states are variables of the model. These here are
the others: of Python, NumPy and PyTorch, from which Keras draws the order of rows, and Keras' own
global generator, for random functions without a seed.

Private names used here were tried on Keras 3.12.0 and 3.15.1: in the module of `SeedGenerator`,
`global_seed_generator`, and `global_state` with the global attribute of that name;
`TorchDataLoaderAdapter._dataloader`.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_freeze.keras_internals.copy_to_numpy import to_numpy

_SEEDS = sys.modules[keras.random.SeedGenerator.__module__]
States = dict[str, Any]  # numbers and arrays, by the name of the generator


def random_states(iterator: Any) -> States:
    """Returns the states of all generators that there are.

    Args:
        iterator: Keras' epoch iterator; a DataLoader in it may have a generator of its own.
    """
    version, numbers, gauss = random.getstate()
    states: States = {
        "python": [version, np.asarray(numbers, np.uint32), gauss],
        "numpy": np.random.get_state(legacy=False),
    }
    if _has_global_generator():
        states["keras"] = to_numpy(_SEEDS.global_seed_generator().state)
    torch = sys.modules.get("torch")
    if torch is not None:
        states["torch"] = torch.get_rng_state().numpy()
        if torch.cuda.is_initialized():
            states["cuda"] = [state.numpy() for state in torch.cuda.get_rng_state_all()]
        states["loaders"] = [each.get_state().numpy() for each in _of_loader(iterator)]
    return states


def _has_global_generator() -> bool:
    """True if Keras has made its global generator, which draws a seed from Python's."""
    return _SEEDS.global_state.get_global_attribute("global_seed_generator") is not None


def set_random_states(states: States, iterator: Any) -> None:
    """Sets the generators to what `random_states` returned."""
    if "keras" in states:  # first: to make the generator draws a number
        _SEEDS.global_seed_generator().state.assign(states["keras"])
    elif _has_global_generator():
        _SEEDS.global_state.set_global_attribute("global_seed_generator", None)
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    np.random.set_state(states["numpy"])
    torch = sys.modules.get("torch")
    if torch is None or "torch" not in states:
        return
    torch.set_rng_state(torch.from_numpy(states["torch"]))
    if "cuda" in states and torch.cuda.is_available():
        for number, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(torch.from_numpy(state), number)
    for generator, state in zip(_of_loader(iterator), states["loaders"], strict=False):
        generator.set_state(torch.from_numpy(state))


def _of_loader(iterator: Any) -> Iterator[Any]:
    """Yields the generators of a DataLoader, each once."""
    loader = getattr(getattr(iterator, "data_adapter", None), "_dataloader", None)
    seen: set[int] = set()
    for owner in (loader, getattr(loader, "sampler", None)):
        generator = getattr(owner, "generator", None)
        if generator is not None and hasattr(generator, "get_state") and id(generator) not in seen:
            seen.add(id(generator))
            yield generator
