"""Estimates whether serving features is clearly faster than computing them."""

from __future__ import annotations

import statistics
from collections import deque

MEASURED = 8  # batches that are measured before the two are compared
KEPT = 31  # measured batches of which the median is taken
CLEAR = 3e-3  # seconds a batch: more than what a step costs in Python besides


class ServingCost:
    """The seconds that a row takes when it is served, and when the prefix runs on it.

    The prefix is the frozen layers before the cut, whose outputs are cached. To serve a row, the
    cache makes its key, looks it up and copies its features. The two are compared as medians, so
    that a pause of the machine doesn't count.
    """

    def __init__(self) -> None:
        self.prefix: deque[float] = deque(maxlen=KEPT)
        self.flops: float | None = None  # of the prefix that was measured, for one row
        self.begin_stage(None)

    def begin_stage(self, flops: float | None) -> None:
        """Begins to measure anew, since another cut has other features.

        Args:
            flops: floating point operations of the stage's prefix for one row, if known.
        """
        share = flops / self.flops if flops and self.flops else 1.0
        self.prefix = deque((seconds * share for seconds in self.prefix), maxlen=KEPT)
        self.flops = flops
        self.served: deque[float] = deque(maxlen=KEPT)
        self.is_compiled = False

    @property
    def is_due(self) -> bool:
        """True if the next batch should be measured, with nothing else running meanwhile."""
        return len(self.served) < MEASURED

    @property
    def is_known(self) -> bool:
        """True if both were measured."""
        return bool(self.prefix and self.served)

    def add_prefix(self, seconds: float, rows: int) -> None:
        """Adds a run of the prefix; the first one of a stage includes tracing and compiling."""
        if self.is_compiled:
            self.prefix.append(seconds / rows)
        self.is_compiled = True

    def add_served(self, seconds: float, rows: int) -> None:
        """Adds a batch whose rows were all known."""
        self.served.append(seconds / rows)

    def is_clear(self, rows: int) -> bool:
        """Returns True if serving a batch of so many rows is clearly faster, or can't be compared.

        It doesn't see what the two cost besides: the prefix alone is called from Python, but as a
        part of a step it isn't.
        """
        if not self.is_known:
            return True
        spared = statistics.median(self.prefix) - statistics.median(self.served)
        return rows * spared > CLEAR
