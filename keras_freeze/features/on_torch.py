"""How a step gets its batches, and how the prefix is run: PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import torch

Batch = Any


def pull(args: tuple[Any, ...], count: int) -> tuple[tuple[Any, ...], list[Batch]]:
    """Returns (what goes before the data, the batches of this step)."""
    (data,) = args
    return (), list(data)


def step(function: Callable[..., Any], state: tuple[Any, ...], batches: list[Batch]) -> Any:
    """Calls a train or test function of the model on batches."""
    return function(batches)


def compiled(model: Any, function: Callable[[Any], Any]) -> Callable[[tuple[Any, ...], Any], Any]:
    """Returns `function` as it is run on the inputs of a batch, without gradients."""

    def prefix(state: tuple[Any, ...], x: Any) -> Any:
        with torch.no_grad():
            return function(x)

    return prefix


def to_numpy(tensor: Any) -> np.ndarray[Any, Any]:
    """Returns a view of a tensor on the CPU, else a copy."""
    if not isinstance(tensor, torch.Tensor):
        return np.asarray(tensor)
    if tensor.dtype == torch.bfloat16:
        return np.asarray(keras.ops.convert_to_numpy(tensor))
    return np.asarray(tensor.detach().cpu())


def to_tensor(array: np.ndarray[Any, Any]) -> Any:
    """Returns an array as the model's steps take it, on the device where they run."""
    if array.dtype.name == "bfloat16":
        return to_tensor(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array).to(keras.ops.zeros(()).device)


def check(model: Any) -> None:
    """Raises `StepAsideError` if a model can't be served on this backend: here each can."""
