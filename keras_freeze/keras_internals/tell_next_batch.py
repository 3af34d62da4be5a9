"""Tells which rows the next batch will hold, one batch ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from keras_freeze.keras_internals.copy_to_numpy import to_numpy

Batch = Any  # (row numbers, other arrays ...)
Tell = Callable[[np.ndarray[Any, Any]], None]


def told(taken: Iterator[Batch], tell: Callable[[], Tell | None]) -> Iterator[Batch]:
    """Yields batches. Each is taken one step early if somebody wants to be told.

    Args:
        taken: the batches, with row numbers.
        tell: returns the function to call with the row numbers of the batch after the one that is
            yielded next, or None.
    """
    here = next(taken, None)
    while here is not None:
        following = None
        if (call := tell()) is not None and (following := next(taken, None)) is not None:
            call(to_numpy(following[0]))
        yield here
        here = following if following is not None else next(taken, None)
