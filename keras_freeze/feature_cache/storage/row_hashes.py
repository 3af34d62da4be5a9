"""Keys of rows: the xxh3_128 hash of what is in them, so order and repeats don't matter."""

from __future__ import annotations

from typing import Any

import numpy as np
import xxhash

from keras_freeze.feature_cache.not_cacheable import NotCacheableError

Array = np.ndarray[Any, Any]
Key = bytes


def row_keys(arrays: list[Array]) -> list[Key]:
    """Returns a key for each row of arrays whose rows belong together.

    Args:
        arrays: each (rows, ...), of any numeric dtype. Shape and dtype of a row count as content.

    Raises:
        NotCacheableError: an array holds Python objects or strings, or has no rows.
    """
    look = [(array.shape[1:], array.dtype.str) for array in arrays]
    seed = xxhash.xxh3_64_intdigest(repr(look).encode())
    views = [_bytes_of(array) for array in arrays]
    if len(views) == 1:
        view, width = views[0]
        digest = xxhash.xxh3_128_digest
        return [digest(view[i * width : (i + 1) * width], seed) for i in range(len(arrays[0]))]
    return [_key_of_parts(views, row, seed) for row in range(len(arrays[0]))]


def _bytes_of(array: Array) -> tuple[memoryview, int]:
    """All bytes of an array, and how many of them a row has."""
    numeric = array.dtype.kind in "biufc" or array.dtype.name.startswith(("bfloat", "float8"))
    if not numeric or array.ndim == 0:
        raise NotCacheableError(
            f"the inputs can't be hashed: {array.dtype} of shape {array.shape}",
            "pass dense arrays of numbers",
        )
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return flat.data, flat.nbytes // max(1, len(array))


def _key_of_parts(views: list[tuple[memoryview, int]], row: int, seed: int) -> Key:
    hasher = xxhash.xxh3_128(seed=seed)
    for view, width in views:
        hasher.update(view[row * width : (row + 1) * width])
    return hasher.digest()


def stride(size: int) -> int:
    """Returns the distance of the elements, at most 2 million, by which an array is told apart."""
    return max(1, size >> 20)


def fingerprint(elements: Array) -> Key:
    """Returns a hash of elements of an array."""
    flat = np.ascontiguousarray(elements).reshape(-1)
    # A dtype that isn't NumPy's own, like bfloat16, has no buffer.
    raw = flat if flat.dtype.isbuiltin == 1 else flat.view(np.uint8)
    return xxhash.xxh3_128_digest(raw.data)
