"""The numbers that a variable holds."""

from __future__ import annotations

from typing import Any

import keras
import ml_dtypes
import numpy as np

Array = np.ndarray[Any, Any]


def to_numpy(value: Any) -> Array:
    """Returns a copy of what a variable, a tensor or a number is.

    Without NumPy 2's DeprecationWarning, which `keras.ops.convert_to_numpy` brings on of variables,
    and on TensorFlow and PyTorch of tensors too: their `__array__` takes no `copy`.
    """
    value = keras.ops.convert_to_tensor(value) if isinstance(value, keras.Variable) else value
    if hasattr(value, "detach"):
        value = _of_torch(value.detach().cpu())
    return np.array(value.numpy() if hasattr(value, "numpy") else value)


def _of_torch(tensor: Any) -> Any:
    if keras.backend.standardize_dtype(tensor.dtype) == "bfloat16":
        return tensor.float().numpy().astype(ml_dtypes.bfloat16)
    return tensor
