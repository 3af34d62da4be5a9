"""Tables from which a loop of steps takes its batches, by row numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_freeze.feature_cache.not_cacheable import NotCacheableError

Tensor = Any


class CannotLoopError(Exception):
    """The steps can't run in one call. Nothing has changed: they can run one by one."""


@contextmanager
def tracing() -> Iterator[None]:
    """Within it a step is traced in a loop, which changes nothing.

    Raises:
        CannotLoopError: it can't be traced, as when a value has another dtype after a step.
    """
    try:
        yield
    except NotCacheableError:
        raise
    except Exception as error:
        raise CannotLoopError from error


class Tables(NamedTuple):
    """All rows of the arrays that make up the batches, as tensors (rows, ...).

    Attributes:
        features: the cached features, by column.
        leaves: the inputs that the layers after the cut read, by place.
        others: the targets, and the sample weights or None.
    """

    features: dict[str, Tensor]
    leaves: dict[str, Tensor]
    others: tuple[Any, ...]

    def batch(
        self, slots: Tensor, numbers: Tensor, take: Callable[[Tensor, Tensor], Tensor]
    ) -> Any:
        """Returns a batch for a step: (features, inputs, targets, sample weights).

        Args:
            slots: rows of the cached features.
            numbers: rows of the other arrays.
            take: returns rows of a table.
        """

        def of(leaf: Any) -> Any:
            return None if leaf is None else take(leaf, numbers)

        features = {name: take(table, slots) for name, table in self.features.items()}
        leaves = {place: take(table, numbers) for place, table in self.leaves.items()}
        y, *weights = keras.tree.map_structure(of, self.others)
        return features, leaves, y, weights[0] if weights else None


def is_convolution(layer: Any) -> bool:
    """Returns True for Keras' convolutions of all kinds, and layers that inherit from them."""
    return any("Conv" in each.__name__ for each in type(layer).__mro__)


def padded(rows: np.ndarray[Any, Any], length: int) -> np.ndarray[Any, Any]:
    """Returns the row numbers of a group (batches, rows), with zeros up to `length` batches."""
    out = np.zeros((length, rows.shape[1]), np.int32)
    out[: len(rows)] = rows
    return out
