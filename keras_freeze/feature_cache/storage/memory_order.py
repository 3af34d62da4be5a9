"""Memory order of features: PyTorch draws random masks in the order of a tensor's memory."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Axes = tuple[int, ...]


def axes_in_memory(array: Array) -> Axes | None:
    """Returns the axes of an array in their order in memory; None if that is C order."""
    if array.flags.c_contiguous:
        return None
    return tuple(np.argsort(array.strides)[::-1].tolist())


def laid_out(array: Array, axes: Axes | None) -> Array:
    """Returns an array with its axes in this order in memory."""
    if axes is None:
        return array
    return np.ascontiguousarray(array.transpose(axes)).transpose(np.argsort(axes))
