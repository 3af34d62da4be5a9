"""The cache on PyTorch: takes batches, computes features, and runs steps on them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import torch

from keras_freeze.feature_cache.backends.torch_tape import random_generators
from keras_freeze.feature_cache.backends.torch_tape.replay_tape import Replay
from keras_freeze.feature_cache.not_cacheable import NotCacheableError, drawn
from keras_freeze.feature_cache.storage.row_hashes import Key, fingerprint, stride
from keras_freeze.keras_internals import copy_to_numpy
from keras_freeze.keras_internals.row_numbers_instead_of_rows import numbered
from keras_freeze.keras_internals.temporary_attributes import Patch, attributes

Batch = Any


def pull(args: tuple[Any, ...], count: int) -> tuple[tuple[Any, ...], list[Batch]]:
    """Returns (the arguments before the data, the batches of this step)."""
    return state_of(args), list(numbered(args[-1]))


def state_of(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the arguments with which Keras calls a step function, without the data."""
    return ()


def state_outside_fit(model: Any) -> tuple[Any, ...]:
    """Returns the arguments of a step before the data: none."""
    return ()


def next_args(result: Any) -> tuple[Any, ...]:
    """Returns the arguments before the data of the next step: none."""
    return ()


def compiled(
    model: Any, function: Callable[[Any], Any], *, is_trusted: bool
) -> Callable[[tuple[Any, ...], list[Any]], list[Any]]:
    """Returns a function that runs `function`: (state, inputs of batches) -> features of each.

    Args:
        model: the model that is fitted.
        function: computes features from the inputs of a batch.
        is_trusted: whether it calls Keras' own layers only, so that it may be recorded on a tape.
    """

    def plain(x: Any) -> Any:
        with torch.no_grad():
            return function(x)

    replays: dict[str, Replay] = {}

    def run(state: tuple[Any, ...], batches: list[Any]) -> list[Any]:
        flat = [keras.tree.flatten(x) for x in batches]
        leaves = flat[0]
        if model.run_eagerly or not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
            return [plain(x) for x in batches]
        specs = str([(leaf.shape, leaf.stride(), leaf.dtype, leaf.device) for leaf in leaves])
        if specs not in replays:
            structure = keras.tree.map_structure(lambda _: None, batches[0])
            replays[specs] = Replay(
                lambda *leaves: plain(keras.tree.pack_sequence_as(structure, leaves))
            )
        with torch.no_grad():
            return replays[specs].run(flat)

    return run if is_trusted else lambda state, batches: [_without_draws(plain, x) for x in batches]


def _without_draws(function: Callable[[Any], Any], x: Any) -> Any:
    """Calls a function that must not draw from PyTorch's generators.

    Keras' Dropout draws from these, which changes no Keras variable.
    """
    before = random_generators.states()
    try:
        features = function(x)
        if not all(map(torch.equal, before, random_generators.states())):
            raise drawn()
        return features
    except NotCacheableError:
        random_generators.set_states(before)
        raise


def is_faster_together(model: Any) -> bool:
    """Returns True if computing several batches at once is faster, which holds on a CPU.

    Operations on weights only run once for all of them. A GPU may lack memory for several.
    """
    devices = {variable.value.device.type for variable in model.variables}
    return devices <= {"cpu"} and not model.run_eagerly


class UsedStateStep:
    """Runs steps in which Keras visits only the layers that run.

    In each step, Keras collects weights, gradients and losses from all layers, in Python. With a
    large frozen base and a small head, that takes longer than the step.

    Args:
        model: the model that is fitted.
        hidden: patches that hide layers that don't run.
    """

    def __init__(self, model: Any, hidden: list[Patch]):
        self.model = model
        zero_grad = functools.partial(_zero_grad, model)
        self.patches = [*hidden, (model, "zero_grad", zero_grad)] if hidden else []

    def step(
        self, function: Callable[..., Any], state: tuple[Any, ...], batches: list[Batch]
    ) -> Any:
        """Calls the model's train or test function on batches."""
        with attributes(self.patches):
            return function(batches)

    def wait(self) -> None:
        """Waits for the queued steps."""
        wait(None)


def plain(function: Callable[..., Any], *args: Any) -> Any:
    """Calls the train or test function of the whole model, as Keras does."""
    return function(*args)


def _zero_grad(model: Any, set_to_none: bool = True) -> None:
    """Does the same as `torch.nn.Module.zero_grad`, for trainable variables only."""
    for variable in model.trainable_variables:
        if set_to_none or variable.value.grad is None:
            variable.value.grad = None
        else:
            variable.value.grad.zero_()


def to_numpy(tensor: Any) -> np.ndarray[Any, Any]:
    """Returns a tensor as a NumPy view if it is on the CPU, else as a copy."""
    if not isinstance(tensor, torch.Tensor):
        return np.asarray(tensor)
    if tensor.dtype == torch.bfloat16:
        return copy_to_numpy.to_numpy(tensor)
    array: np.ndarray[Any, Any] = tensor.detach().cpu().numpy()
    return array


def fingerprints(variables: list[Any]) -> Callable[[], list[Key]]:
    """Returns a function that returns the fingerprints of variables.

    Only the hashed elements are copied from the device.
    """
    return lambda: [_print(variable.value.detach()) for variable in variables]


def _print(value: Any) -> Key:
    apart = stride(value.numel())
    return fingerprint(to_numpy(value if apart == 1 else value.reshape(-1)[::apart]))


def to_tensor(array: np.ndarray[Any, Any]) -> Any:
    """Converts an array to a tensor on the device where the steps run."""
    if array.dtype.name == "bfloat16":
        return to_tensor(array.view(np.int16)).view(torch.bfloat16)
    return keras.ops.convert_to_tensor(torch.from_numpy(array))


def draw_as_data_do() -> None:
    """Draws a number, as each iteration over a DataLoader does: Dropout uses the same generator."""
    torch.empty((), dtype=torch.int64).random_()


def alike(array: np.ndarray[Any, Any], *, is_array: bool) -> Any:
    """Returns an array as it is, or as a tensor on the device."""
    return array if is_array else to_tensor(array)


def to_table(array: np.ndarray[Any, Any]) -> Any:
    """Returns an array as a tensor on the device; on a CPU they share memory."""
    return to_tensor(array)


def take(table: Any, rows: np.ndarray[Any, Any]) -> Any:
    """Returns rows of a table."""
    return table.index_select(0, torch.from_numpy(rows).to(table.device))


def free_device_memory() -> int | None:
    """Returns the free bytes of the device, or None on a CPU, whose memory is the host's."""
    return int(torch.cuda.mem_get_info()[0]) if torch.cuda.is_initialized() else None


def wait(tensors: Any) -> None:
    """Waits until tensors are there: on a CPU, they are."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def unshared(tensor: Any) -> Any:
    """Returns a copy of a batch's tensor, since a train step may change it in place."""
    return tensor.clone() if isinstance(tensor, torch.Tensor) else tensor


def check(model: Any) -> None:
    """Raises `NotCacheableError` if a model can't be cached on this backend: never, here."""
