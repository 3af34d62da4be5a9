"""Rows that were read from a directory, and how to continue from an earlier cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_freeze.feature_cache.storage.memory_order import Axes
from keras_freeze.graph.layer_calls import LayerCall, Value

Columns = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Continuation:
    """How features are computed from those of a cut that comes earlier.

    Attributes:
        sources: the earlier tensors, whose features are in the directory.
        calls: the calls of layers in between.
    """

    sources: frozenset[Value]
    calls: tuple[LayerCall, ...]


@dataclass(frozen=True)
class Brought:
    """Features that were read.

    Attributes:
        positions: positions of their keys among those that were asked for.
        columns: arrays (rows, ...).
        axes: for each column, its axes in memory order, if that isn't C order.
    """

    positions: np.ndarray[Any, Any]
    columns: Columns
    axes: dict[str, Axes | None]
