"""Hashes rows and weights (xxh3_128). A row's hash is its key in the cache, in any batch."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import xxhash

from keras_freeze.feature_cache.not_cacheable import NotCacheableError

Array = np.ndarray[Any, Any]
Key = bytes
THREADS = min(4, os.cpu_count() or 1)  # that hash a batch
PARALLEL = 1 << 22  # bytes of a batch from which on several threads hash it


def row_keys(arrays: list[Array]) -> list[Key]:
    """Returns a key for each row; row i consists of row i of each array.

    Args:
        arrays: each (rows, ...), of any numeric dtype. The key depends on shape and dtype too.

    Raises:
        NotCacheableError: an array holds Python objects or strings, or has no rows.
    """
    look = [(array.shape[1:], array.dtype.str) for array in arrays]
    seed = xxhash.xxh3_64_intdigest(repr(look).encode())
    views = [_bytes_of(array) for array in arrays]
    rows = len(arrays[0])
    if THREADS < 2 or rows < 2 or sum(view.nbytes for view, _ in views) < PARALLEL:
        return _keys(views, seed, range(rows))
    parts = [range(rows * n // THREADS, rows * (n + 1) // THREADS) for n in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:  # hashing a long row lets other threads run
        return [key for keys in pool.map(partial(_keys, views, seed), parts) for key in keys]


def _keys(views: list[tuple[memoryview, int]], seed: int, rows: range) -> list[Key]:
    if len(views) == 1:
        view, width = views[0]
        digest = xxhash.xxh3_128_digest
        return [digest(view[i * width : (i + 1) * width], seed) for i in rows]
    return [_key_of_parts(views, row, seed) for row in rows]


def is_numeric(array: Array) -> bool:
    """Returns True for an array of numbers, also of a dtype that NumPy doesn't have."""
    return array.dtype.kind in "biufc" or array.dtype.name.startswith(("bfloat", "float8"))


def _bytes_of(array: Array) -> tuple[memoryview, int]:
    """Returns all bytes of an array, and the number of bytes of a row."""
    if not is_numeric(array) or array.ndim == 0:
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
    """Returns the step between the elements that `fingerprint` hashes: at most 2 million."""
    return max(1, size >> 20)


def fingerprint(elements: Array) -> Key:
    """Returns a hash of the elements of an array."""
    flat = np.ascontiguousarray(elements).reshape(-1)
    # A dtype from outside NumPy, such as bfloat16, has no buffer.
    raw = flat if flat.dtype.isbuiltin == 1 else flat.view(np.uint8)
    return xxhash.xxh3_128_digest(raw.data)
