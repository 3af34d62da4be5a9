"""Passes on which rows the next batch will hold, one batch ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from keras_freeze.keras_internals.copy_to_numpy import to_numpy

Batch = Any  # (row numbers, other arrays ...)
Listener = Callable[[np.ndarray[Any, Any]], None]


def one_ahead(taken: Iterator[Batch], listener: Callable[[], Listener | None]) -> Iterator[Batch]:
    """Yields batches. With a listener, it calls that with the row numbers of each next batch.

    Args:
        taken: the batches, with row numbers. With a listener, each is taken one step early.
        listener: returns the function to call, or None.
    """
    here = next(taken, None)
    while here is not None:
        following = None
        if (call := listener()) is not None and (following := next(taken, None)) is not None:
            call(to_numpy(following[0]))
        yield here
        here = following if following is not None else next(taken, None)
