"""Runs a function on several batches in threads, to use all cores of a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def side_by_side(run: Callable[[Any], Any], batches: Sequence[Any]) -> list[Any]:
    """Returns the function's result for each batch; runs several batches in threads."""
    if len(batches) == 1:
        return [run(batches[0])]
    with ThreadPoolExecutor(len(batches)) as pool:
        return list(pool.map(run, batches))
