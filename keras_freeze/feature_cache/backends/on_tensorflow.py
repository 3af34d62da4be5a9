"""The cache on TensorFlow: takes batches, computes features, and runs steps on them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_freeze.feature_cache.backends.parallel_batches import side_by_side
from keras_freeze.feature_cache.not_cacheable import NotCacheableError
from keras_freeze.feature_cache.storage.row_chunks import ALIGNED
from keras_freeze.feature_cache.storage.row_hashes import Key, fingerprint, stride
from keras_freeze.keras_internals.row_numbers_instead_of_rows import numbered
from keras_freeze.keras_internals.temporary_attributes import Patch

Batch = Any


def pull(args: tuple[Any, ...], count: int) -> tuple[tuple[Any, ...], list[Batch]]:
    """Returns (the element spec of the data, the batches of this step)."""
    return state_of(args), list(itertools.islice(numbered(args[-1]), count))


def state_of(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the element spec of the data."""
    return (getattr(args[-1], "element_spec", None),)


def state_outside_fit(model: Any) -> tuple[Any, ...]:
    """Returns the element spec of the data, which is unknown."""
    return (None,)


def next_args(result: Any) -> tuple[Any, ...]:
    """Returns the arguments before the data of the next step: none."""
    return ()


def compiled(
    model: Any, function: Callable[[Any], Any], *, is_trusted: bool
) -> Callable[[tuple[Any, ...], list[Any]], list[Any]]:
    """Returns a function that runs `function`: (state, inputs of batches) -> features of each.

    It is traced once for all batch sizes.

    Args:
        model: the model that is fitted.
        function: computes features from the inputs of a batch.
        is_trusted: whether it calls Keras' own layers only. Unused: it is traced, as the step is.
    """
    traced: dict[str, Any] = {}

    def prefix(state: tuple[Any, ...], batches: list[Any]) -> list[Any]:
        if model.run_eagerly:
            return [function(x) for x in batches]
        x = batches[0]
        specs = [(leaf.shape[1:], leaf.dtype) for leaf in _tensors(x)]
        if (key := str(specs)) not in traced:
            spec = [tf.TensorSpec([None, *shape], dtype) for shape, dtype in specs]
            traced[key] = tf.function(
                lambda *leaves: function(keras.tree.pack_sequence_as(x, leaves)),
                input_signature=spec,
                jit_compile=model.jit_compile,
                autograph=False,
            ).get_concrete_function()
        return side_by_side(lambda inputs: traced[key](*_tensors(inputs)), batches)

    return prefix


def _tensors(x: Any) -> list[Any]:
    return [tf.convert_to_tensor(leaf) for leaf in keras.tree.flatten(x)]


def is_faster_together(model: Any) -> bool:
    """Returns True if computing several batches at once is faster, by the use of idle cores."""
    return not model.run_eagerly and not tf.config.list_logical_devices("GPU")


class UsedStateStep:
    """Runs steps on batches. A traced step uses only the variables that it needs.

    It is traced with the batch size of the data's spec, as in `fit`, which is None if the last
    batch is smaller: Keras weighs the losses of several outputs by a batch size that is known.

    Args:
        model: the model that is fitted.
        hidden: patches that hide layers that don't run.
    """

    def __init__(self, model: Any, hidden: list[Patch]):
        self.model = model
        self.is_eager = model.run_eagerly
        self.traced: dict[Any, Any] = {}

    def step(
        self, function: Callable[..., Any], state: tuple[Any, ...], batches: list[Batch]
    ) -> Any:
        """Calls the model's train or test function on batches."""
        (spec,) = state
        leaves = keras.tree.flatten(batches)
        tensors = [leaf for leaf in leaves if leaf is not None]
        dense = all(isinstance(leaf, tf.Tensor) and leaf.shape.rank for leaf in tensors)
        if self.is_eager or spec is None or not dense:
            return function(iter(batches))
        rows = keras.tree.flatten(spec)[0].shape[0]
        specs = [(rows, *leaf.shape.as_list()[1:]) for leaf in tensors]
        dtypes = [leaf.dtype for leaf in tensors]
        given = [leaf is not None for leaf in leaves]
        key = (function, *specs, *dtypes, *given)
        if key not in self.traced:
            structure = keras.tree.map_structure(lambda _: None, batches)

            def run(*tensors: Any) -> Any:
                rest = iter(tensors)
                flat = [next(rest) if is_given else None for is_given in given]
                return function(iter(keras.tree.pack_sequence_as(structure, flat)))

            signature = [tf.TensorSpec(*spec) for spec in zip(specs, dtypes, strict=True)]
            step = tf.function(run, input_signature=signature, autograph=False)
            self.traced[key] = step.get_concrete_function()
        return self.traced[key](*tensors)

    def wait(self) -> None:
        """Waits for the queued steps."""
        wait(None)


def plain(function: Callable[..., Any], *args: Any) -> Any:
    """Calls the train or test function of the whole model, as Keras does."""
    return function(*args)


def to_numpy(tensor: Any) -> np.ndarray[Any, Any]:
    """Returns a tensor as a NumPy view if it is on the CPU, else as a copy."""
    if isinstance(tensor, tf.Tensor) and tensor.dtype.is_numpy_compatible:
        try:
            return np.asarray(memoryview(tensor))
        except (BufferError, TypeError, ValueError):  # on a GPU, or a dtype without a buffer format
            return np.asarray(tensor.numpy())
    return np.asarray(tensor)


def fingerprints(variables: list[Any]) -> Callable[[], list[Key]]:
    """Returns a function that returns the fingerprints of variables.

    Only the hashed elements are copied from the device. The reads run eagerly: a traced read of 260
    variables takes 4 ms instead of 8, but 1.2 s to trace.
    """
    return lambda: [_print(_read(variable.value)) for variable in variables]


def _read(variable: Any) -> Any:
    """Returns the tensor of a variable, in half the time of `read_value`."""
    return tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=variable.dtype)


def _print(value: Any) -> Key:
    apart = stride(value.shape.num_elements())
    return fingerprint(to_numpy(value if apart == 1 else tf.reshape(value, [-1])[::apart]))


def to_tensor(array: np.ndarray[Any, Any]) -> Any:
    """Converts an array to a tensor."""
    return tf.convert_to_tensor(array)


def draw_as_data_do() -> None:
    """Does nothing: only PyTorch draws a number when data are iterated over."""


def alike(array: np.ndarray[Any, Any], *, is_array: bool) -> Any:
    """Returns an array as it is, or as a tensor."""
    return array if is_array else to_tensor(array)


def to_table(array: np.ndarray[Any, Any]) -> Any:
    """Returns an array as a tensor on the device; on a CPU it may share the array's memory."""
    aligned = array.ctypes.data % ALIGNED == 0 and array.flags.c_contiguous
    plain = array.dtype.isbuiltin == 1 and array.dtype != np.bool_
    if tf.config.list_logical_devices("GPU") or not aligned or not plain:
        return tf.convert_to_tensor(array)
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


def take(table: Any, rows: np.ndarray[Any, Any]) -> Any:
    """Returns rows of a table."""
    return tf.gather(table, rows)


def free_device_memory() -> int | None:
    """Returns the free bytes of the device, or None on a CPU, whose memory is the host's.

    TensorFlow doesn't tell how much memory a GPU has: 0, so that features stay in host memory.
    """
    return 0 if tf.config.list_logical_devices("GPU") else None


def wait(tensors: Any) -> None:
    """Waits until tensors are there: on a CPU, they are."""
    if tf.config.list_logical_devices("GPU"):
        tf.test.experimental.sync_devices()


def unshared(tensor: Any) -> Any:
    """Returns the tensor itself, since it can't be changed in place."""
    return tensor


def check(model: Any) -> None:
    """Raises `NotCacheableError` if a model can't be cached on this backend."""
    if model.distribute_strategy.num_replicas_in_sync > 1:
        raise NotCacheableError(
            "`tf.distribute` spreads the batches over several devices", "train on one device"
        )
