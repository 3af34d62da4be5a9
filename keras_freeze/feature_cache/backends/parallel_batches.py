"""Several batches of a prefix at once, on a CPU with cores that one leaves idle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def side_by_side(run: Callable[[Any], Any], batches: Sequence[Any]) -> list[Any]:
    """Returns what a function gives for each batch: in a thread for each, if there are several."""
    if len(batches) == 1:
        return [run(batches[0])]
    with ThreadPoolExecutor(len(batches)) as pool:
        return list(pool.map(run, batches))
