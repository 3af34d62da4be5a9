"""Memory limit and dtype of the cache: argument checks, free memory, bytes of a row."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import ml_dtypes
import numpy as np
import psutil

from keras_freeze.errors import CacheError, closest

UNITS = {
    "B": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", start=1)},
    **{f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", start=1)},
}
DTYPES = (None, "float16", "bfloat16", "float32")
_GROUP_LIMIT, _GROUP_USE = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")


def check_max_bytes(max_bytes: Any) -> int | None:
    """Returns a number of bytes, or None for `"auto"`.

    Raises:
        CacheError: it is neither a number of bytes nor a size such as `"2 GB"`.
    """
    if isinstance(max_bytes, str) and max_bytes.strip().lower() == "auto":
        return None
    if isinstance(max_bytes, str):
        return _parse(max_bytes)
    number = isinstance(max_bytes, numbers.Real) and not isinstance(max_bytes, bool)
    if number and 0 < max_bytes < float("inf"):
        return int(max_bytes)
    raise CacheError(
        "`max_bytes` must be 'auto', a number of bytes above 0, or a size such as '2 GB'. "
        f"Received: max_bytes={max_bytes!r}"
    )


def _parse(text: str) -> int:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    units = {unit.lower(): size for unit, size in UNITS.items()} | {"": 1}
    if match and match[2].lower() in units and float(match[1]) > 0:
        return max(1, int(float(match[1]) * units[match[2].lower()]))
    hint = closest(match[2], UNITS) if match else closest(text, ["auto"])
    raise CacheError(
        f"`max_bytes` must be 'auto', a number of bytes above 0, or a size with one of the units "
        f"{', '.join(UNITS)}, such as '2 GB'.{hint} Received: max_bytes={text!r}"
    )


def check_dtype(dtype: Any) -> str | None:
    """Returns the name of the dtype in which features are kept; None = their own dtype.

    Raises:
        CacheError: `dtype` is none of the supported ones.
    """
    name = getattr(dtype, "__name__", None) or getattr(dtype, "name", None) or dtype
    name = str(name).rsplit(".", 1)[-1] if name is not None else None
    if name in DTYPES:
        return name
    raise CacheError(
        "`dtype` must be None (the dtype of the features), 'float16', 'bfloat16' or 'float32'."
        f"{closest(name, [each for each in DTYPES if each])} Received: dtype={dtype!r}"
    )


def free_memory() -> int:
    """Returns the free memory in bytes, within the memory limit of a container (cgroup)."""
    free = int(psutil.virtual_memory().available)
    try:
        limit, use = _GROUP_LIMIT.read_text().strip(), int(_GROUP_USE.read_text())
    except (OSError, ValueError):
        return free
    return min(free, max(0, int(limit) - use)) if limit.isdigit() else free


def row_bytes(symbols: Sequence[Any], dtype: Any = None) -> int | None:
    """Returns the bytes of a row of features; None if a length is unknown.

    Args:
        symbols: symbolic tensors (rows, ...) of the cached features.
        dtype: dtype in which float features are kept; None = their own.
    """
    if any(None in symbol.shape[1:] for symbol in symbols):
        return None
    sizes = [math.prod(symbol.shape[1:]) * _itemsize(symbol.dtype, dtype) for symbol in symbols]
    return int(sum(sizes))


def _itemsize(name: str, dtype: Any) -> int:
    if dtype is not None and keras.backend.is_float_dtype(name):
        return int(dtype.itemsize)
    return int(numpy_dtype(name).itemsize)


def numpy_dtype(name: str) -> Any:
    """Returns the NumPy dtype of that name; "bfloat16" comes from ml_dtypes, as in Keras."""
    return np.dtype(getattr(ml_dtypes, name, name))
