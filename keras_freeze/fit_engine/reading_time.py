"""Measures which share of the time a `fit` waits for its data."""

from __future__ import annotations

import time


class ReadingTime:
    """The time that training waits for batches, after the first epoch.

    Keras takes a batch between the callbacks of two steps, or at the beginning of a step.
    """

    def __init__(self) -> None:
        self.reading = self.whole = 0.0
        self.epochs = 0
        self.before: float | None = None  # end of the last step, or begin of the epoch

    def begin_epoch(self) -> None:
        """Begins an epoch, right before its first batch is taken."""
        self.epochs += 1
        self.before = time.perf_counter()

    def begin_step(self) -> None:
        """Notes that Keras begins a step."""
        now = time.perf_counter()
        if self.before is not None and self.epochs > 1:
            self.reading += now - self.before

    def end_step(self, pulled: float) -> None:
        """Notes the end of a step, within which taking batches took `pulled` seconds."""
        now = time.perf_counter()
        if self.epochs > 1 and self.before is not None:
            self.reading += pulled
            self.whole += now - self.before
        self.before = now

    @property
    def share(self) -> float:
        """The share of the time of the epochs after the first one; 0.0 if there are none."""
        return self.reading / self.whole if self.whole else 0.0
