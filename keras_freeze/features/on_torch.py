"""How a step gets its batches, and how the prefix is run: PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import torch

from keras_freeze.features.keys import Key, fingerprint, stride
from keras_freeze.training.patch import Patch, attributes

Batch = Any


def pull(args: tuple[Any, ...], count: int) -> tuple[tuple[Any, ...], list[Batch]]:
    """Returns (what goes before the data, the batches of this step)."""
    (data,) = args
    return (), list(data)


def compiled(
    model: Any, function: Callable[[Any], Any]
) -> Callable[[tuple[Any, ...], Any], Callable[[Any], Any]]:
    """Returns (state, inputs of a batch) -> `function` as it is run on such: without gradients."""

    def prefix(x: Any) -> Any:
        with torch.no_grad():
            return function(x)

    return lambda state, x: prefix


def leaves_cores_idle(model: Any) -> bool:
    """True if two batches of the prefix take less time at once than one after the other: no."""
    return False


class Lighter:
    """Runs served steps in which Keras looks only at the layers that run.

    In each step Keras walks all layers, in Python, for weights, gradients and losses; a large
    frozen base takes longer to walk than a small head to train.

    Args:
        model: the model that is fitted.
        hidden: what hides layers that don't run.
    """

    def __init__(self, model: Any, hidden: list[Patch]):
        zero_grad = functools.partial(_zero_grad, model)
        self.patches = [*hidden, (model, "zero_grad", zero_grad)] if hidden else []

    def step(
        self, function: Callable[..., Any], state: tuple[Any, ...], batches: list[Batch]
    ) -> Any:
        """Calls a train or test function of the model on batches."""
        with attributes(self.patches):
            return function(batches)


def plain(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a train or test function of the whole model as Keras does."""
    return function(*args)


def _zero_grad(model: Any, set_to_none: bool = True) -> None:
    """As `torch.nn.Module.zero_grad`, for what a served step has gradients of."""
    for variable in model.trainable_variables:
        if set_to_none or variable.value.grad is None:
            variable.value.grad = None
        else:
            variable.value.grad.zero_()


def to_numpy(tensor: Any) -> np.ndarray[Any, Any]:
    """Returns a view of a tensor on the CPU, else a copy."""
    if not isinstance(tensor, torch.Tensor):
        return np.asarray(tensor)
    if tensor.dtype == torch.bfloat16:
        return np.asarray(keras.ops.convert_to_numpy(tensor))
    return np.asarray(tensor.detach().cpu())


def fingerprints(variables: list[Any]) -> Callable[[], list[Key]]:
    """Returns what takes the fingerprints of variables: only what counts leaves the device."""
    return lambda: [_print(variable.value.detach()) for variable in variables]


def _print(value: Any) -> Key:
    apart = stride(value.numel())
    return fingerprint(to_numpy(value if apart == 1 else value.reshape(-1)[::apart]))


def to_tensor(array: np.ndarray[Any, Any]) -> Any:
    """Returns an array as the model's steps take it, on the device where they run."""
    if array.dtype.name == "bfloat16":
        return to_tensor(array.view(np.int16)).view(torch.bfloat16)
    return keras.ops.convert_to_tensor(torch.from_numpy(array))


def lent(tensor: Any) -> Any:
    """Returns a copy of a tensor of a batch: a train step may change it in place."""
    return tensor.clone() if isinstance(tensor, torch.Tensor) else tensor


def check(model: Any) -> None:
    """Raises `StepAsideError` if a model can't be served on this backend: here each can."""
