"""Copies the values of variables and tensors to NumPy arrays."""

from __future__ import annotations

from typing import Any

import keras
import ml_dtypes
import numpy as np

Array = np.ndarray[Any, Any]


def to_numpy(value: Any) -> Array:
    """Returns a copy of the value of a variable, a tensor or a number.

    `keras.ops.convert_to_numpy` would raise a DeprecationWarning of NumPy 2, as `__array__` of
    variables, and of tensors of TensorFlow and PyTorch, has no `copy` argument.
    """
    return np.array(_as_array(value))


def as_numpy(value: Any) -> Array:
    """Returns the value as an array that may share its memory: use it before the next step."""
    return np.asarray(_as_array(value))


def _as_array(value: Any) -> Any:
    value = keras.ops.convert_to_tensor(value) if isinstance(value, keras.Variable) else value
    if hasattr(value, "detach"):
        value = _of_torch(value.detach().cpu())
    return value.numpy() if hasattr(value, "numpy") else value


def _of_torch(tensor: Any) -> Any:
    if keras.backend.standardize_dtype(tensor.dtype) == "bfloat16":
        return tensor.float().numpy().astype(ml_dtypes.bfloat16)
    return tensor
