"""The cache on JAX: takes batches from fit's iterator, computes features, runs steps on them."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import keras
import numpy as np

from keras_freeze.feature_cache.backends.parallel_batches import side_by_side
from keras_freeze.feature_cache.not_cacheable import NotCacheableError, moved
from keras_freeze.feature_cache.storage.row_hashes import Key, fingerprint, stride
from keras_freeze.keras_internals.row_numbers_instead_of_rows import numbered
from keras_freeze.keras_internals.temporary_attributes import Patch, attributes

Batch = Any
AHEAD = 2  # steps that may be queued; each keeps its batch of features in memory


def pull(args: tuple[Any, ...], count: int) -> tuple[tuple[Any, ...], list[Batch]]:
    """Returns (the arguments before the data, the batches of this step)."""
    return state_of(args), list(itertools.islice(numbered(args[-1]), count))


def state_of(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the arguments with which Keras calls a step function, without the data."""
    return args[:-1]


def state_outside_fit(model: Any) -> tuple[Any, ...]:
    """Returns the arguments of a step before the data, with the present values of variables."""
    trainable, others = model.trainable_variables, model.non_trainable_variables
    return (([v.value for v in trainable], [v.value for v in others]),)


def next_args(result: Any) -> tuple[Any, ...]:
    """Returns the arguments before the data of the next step, from what a step returned."""
    return (result[1],)


def compiled(
    model: Any, function: Callable[[Any], Any], *, is_trusted: bool
) -> Callable[[tuple[Any, ...], list[Any]], list[Any]]:
    """Returns a function that runs `function`: (state, inputs of batches) -> features of each.

    The model's variables are empty while `fit` runs: their values are in the step's state,
    trainable ones first.

    Args:
        model: the model that is fitted.
        function: computes features from the inputs of a batch.
        is_trusted: whether it calls Keras' own layers only. Unused: it is traced, as the step is.
    """

    def run(trainable: list[Any], others: list[Any], x: Any) -> Any:
        variables = [*model.trainable_variables, *model.non_trainable_variables]
        mapping = list(zip(variables, [*trainable, *others], strict=True))
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope:
            features = function(x)
        new = [v for v, value in mapping if scope.get_current_value(v) is not value]
        if new:
            raise moved(new)
        return features

    ready: dict[str, Any] = {}

    def prefix(state: tuple[Any, ...], batches: list[Any]) -> list[Any]:
        ((trainable, others, *_),) = state
        values = trainable, list(others)
        if not is_compiled(model):
            return [run(*values, x) for x in batches]
        specs = str([(leaf.shape, leaf.dtype) for leaf in keras.tree.flatten(batches[0])])
        if specs not in ready:
            ready[specs] = jax.jit(run).lower(*values, batches[0]).compile()
        return side_by_side(lambda x: jax.block_until_ready(ready[specs](*values, x)), batches)

    return prefix


def is_compiled(model: Any) -> bool:
    """Returns True if Keras compiles the model's steps."""
    return bool(model.jit_compile) and not model.run_eagerly


def is_faster_together(model: Any) -> bool:
    """Returns True if computing several batches at once is faster, by the use of idle cores."""
    return is_compiled(model) and jax.default_backend() == "cpu"


class UsedStateStep:
    """Runs steps with only the variables that they use.

    Keras passes all variables of the model to each step and gets them back. With a large frozen
    base and a small head, that takes longer than the step.

    Args:
        model: the model that is fitted.
        hidden: patches that hide layers that don't run.
    """

    def __init__(self, model: Any, hidden: list[Patch]):
        self.patches = hidden
        self.running: deque[Any] = deque()  # the logs of the last steps
        every = [id(variable) for variable in model.non_trainable_variables]
        with attributes(self.patches):
            seen = {id(variable) for variable in model.non_trainable_variables}
        self.kept = [place for place, variable in enumerate(every) if variable in seen]

    def step(
        self, function: Callable[..., Any], state: tuple[Any, ...], batches: list[Batch]
    ) -> Any:
        """Calls the model's train or test function on batches."""
        ((trainable, others, *rest),) = state
        whole = list(others)
        used = [whole[place] for place in self.kept]
        with attributes(self.patches):
            logs, (trainable, used, *rest) = function((trainable, used, *rest), iter(batches))
        for place, value in zip(self.kept, used, strict=True):
            whole[place] = value
        self.running.append(logs)
        if len(self.running) > AHEAD:
            jax.block_until_ready(self.running.popleft())
        return logs, (trainable, Whole(whole), *rest)

    def wait(self) -> None:
        """Waits for the queued steps."""
        wait(list(self.running))
        self.running.clear()


class Whole(Sequence[Any]):
    """The values of all variables, which `fit` passes from step to step.

    `fit` sets them as an attribute of the model after each step. Keras visits each value of a list
    that is set, but not of this type.
    """

    def __init__(self, values: list[Any]):
        self.values = values

    def __getitem__(self, place: Any) -> Any:
        return self.values[place]

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)


def plain(function: Callable[..., Any], *args: Any) -> Any:
    """Calls the train or test function of the whole model, as Keras does."""
    (trainable, others, *rest), iterator = args
    return function((trainable, list(others), *rest), iterator)


def to_numpy(tensor: Any) -> np.ndarray[Any, Any]:
    """Returns an array as a NumPy view if it is on the CPU, else as a copy."""
    return np.asarray(tensor)


def fingerprints(variables: list[Any]) -> Callable[[], list[Key]]:
    """Returns a function that returns the fingerprints of variables.

    JAX arrays can't be changed in place, so only new array objects are hashed again.
    """
    known: list[tuple[Any, Key]] = [(None, b"") for _ in variables]

    def take() -> list[Key]:
        for place, variable in enumerate(variables):
            value = variable.value
            if value is not known[place][0]:
                flat = to_numpy(value).reshape(-1)
                known[place] = (value, fingerprint(flat[:: stride(flat.size)]))
        return [key for _, key in known]

    return take


def to_tensor(array: np.ndarray[Any, Any]) -> Any:
    """Converts an array to a tensor; on a CPU, `jit` takes the array itself."""
    return array if jax.default_backend() == "cpu" else jax.device_put(array)


def draw_as_data_do() -> None:
    """Does nothing: only PyTorch draws a number when data are iterated over."""


def alike(array: np.ndarray[Any, Any], *, is_array: bool) -> Any:
    """Returns an array as it is, or as a tensor on the device."""
    return array if is_array else jax.device_put(array)


def to_table(array: np.ndarray[Any, Any]) -> Any:
    """Returns an array as a tensor on the device; on a CPU it may share the array's memory."""
    return jax.device_put(array, may_alias=True)


def take(table: Any, rows: np.ndarray[Any, Any]) -> Any:
    """Returns rows of a table."""
    return jax.numpy.take(table, rows, axis=0, mode="clip")


def free_device_memory() -> int | None:
    """Returns the free bytes of the device, or None on a CPU, whose memory is the host's."""
    stats = jax.local_devices()[0].memory_stats() or {}
    limit = stats.get("bytes_limit")
    return None if limit is None else int(limit - stats["bytes_in_use"])


def wait(tensors: Any) -> None:
    """Waits until tensors are there."""
    jax.block_until_ready(tensors)


def unshared(tensor: Any) -> Any:
    """Returns the tensor itself, since it can't be changed in place."""
    return tensor


def check(model: Any) -> None:
    """Raises `NotCacheableError` if a model can't be cached on this backend."""
    if keras.distribution.distribution() is not None:
        raise NotCacheableError(
            "`keras.distribution` spreads the batches over several devices", "train on one device"
        )
