"""Reads the curves of a run from a Keras History, its dict or a CSVLogger file."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_freeze.errors import FreezeError

NO_METRICS = ("stage", "trainable_params", "epoch")
MISSING = "NA"  # CSVLogger writes this for a missing value


@dataclass(frozen=True)
class Curves:
    """The curves of a run.

    Attributes:
        epochs: the epochs of each key's values, counted from 1.
        values: the values of each key, as many as its epochs.
        stages: `(number, begin)` of the stages in the order of the run. A stage begins half an
            epoch before its first epoch.
        span: half an epoch before the first epoch, and half an epoch after the last one.
    """

    epochs: dict[str, np.ndarray]
    values: dict[str, np.ndarray]
    stages: list[tuple[int, float]]
    span: tuple[float, float]

    @property
    def losses(self) -> list[str]:
        """The keys of losses, including those of single outputs."""
        return [key for key in self.values if key == "loss" or key.endswith("_loss")]

    @property
    def rates(self) -> list[str]:
        """The keys of learning rates."""
        return [key for key in self.values if key == "lr" or key.startswith("learning_rate")]

    @property
    def metrics(self) -> list[str]:
        """All other keys."""
        others = (*self.losses, *self.rates, *NO_METRICS)
        return [key for key in self.values if key not in others]


def read_curves(history: Any) -> Curves:
    """Returns the curves of a History, of its dict or of a CSVLogger file.

    Raises:
        FreezeError: it is none of these, is empty, or has no `loss`.
    """
    logs, counted = _logs_of(history)
    if not any(len(column) for column in logs.values()):
        raise FreezeError(
            "`history` is empty: no epoch has ended. "
            f"Received: {_short(history)} with the keys {sorted(logs)}"
        )
    if not len(logs.get("loss", ())):
        raise FreezeError(
            "`history` must have a 'loss', one number for each epoch, as the History that `fit` "
            f"returns. Received: {_short(history)} with the keys {sorted(logs)}"
        )
    total = len(logs["loss"])
    if counted is None or len(counted) != total:
        counted = range(total)
    numbers = np.asarray(counted, dtype=float) + 1
    epochs, values = {}, {}
    for key, column in logs.items():
        column_values = _numbers(key, column)
        if column_values is None:
            continue
        places = _places(key, len(column), numbers)
        known = np.array([value is not None for value in column], dtype=bool)
        epochs[key], values[key] = places[known], column_values[known]
    span = float(numbers.min()) - 0.5, float(numbers.max()) + 0.5
    stages = _stages(epochs.get("stage", ()), values.get("stage", ()))
    return Curves(epochs, values, stages, span)


def _logs_of(history: Any) -> tuple[Mapping[str, Sequence[Any]], Sequence[int] | None]:
    """Returns the columns and, if known, the epochs, counted from 0."""
    if isinstance(history, keras.callbacks.History):
        # A new History has no such attributes before its first `fit`.
        return getattr(history, "history", {}), getattr(history, "epoch", None)
    if isinstance(history, Mapping):
        for key, column in history.items():
            if isinstance(column, (str, bytes, Mapping)) or not isinstance(column, Iterable):
                raise FreezeError(
                    "`history` as a dict must be {name: [one number for each epoch]}. "
                    f"Received: {key!r}: {column!r}"
                )
        return {str(key): list(column) for key, column in history.items()}, None
    if isinstance(history, (str, Path)):
        return _read_file(Path(history))
    raise FreezeError(
        "`history` must be what `fit` returned, its `history` (a dict of lists), or the path of a "
        f"CSVLogger file. Received: {_short(history)}"
    )


def _read_file(path: Path) -> tuple[dict[str, list[Any]], list[int]]:
    """Reads a CSVLogger file with any separator. Its first column is the epoch."""
    with path.open(newline="", encoding="utf-8") as file:
        header = file.readline().rstrip("\r\n")
        if not header.startswith("epoch") or len(header) < len("epoch,x"):
            raise FreezeError(
                "`history` as a path must be a file that a CSVLogger wrote: its first line begins "
                f"with 'epoch'. Received: {str(path)!r}, which begins with {header[:60]!r}"
            )
        separator = header[len("epoch")]
        names = header.split(separator)
        rows = list(csv.DictReader(file, names, delimiter=separator))
    columns = {name: [_cell(row[name]) for row in rows] for name in names}
    return columns, [int(float(row["epoch"])) for row in rows]


def _cell(text: str | None) -> Any:
    if text is None or text in ("", MISSING):
        return None
    try:
        return float(text)
    except ValueError:
        return text  # a metric that isn't a number


def _numbers(key: str, column: Sequence[Any]) -> np.ndarray | None:
    """Returns the values, NaN for missing ones; None if they aren't numbers."""
    try:
        found = np.array([np.nan if value is None else value for value in column], dtype=float)
    except (TypeError, ValueError):
        found = np.zeros(())
    if found.ndim == 1:
        return found
    if key == "loss":
        raise FreezeError(f"`history` must have numbers as 'loss'. Received: {_short(column)}")
    return None


def _places(key: str, count: int, numbers: np.ndarray) -> np.ndarray:
    """Returns the epochs of a column. A shorter column has values of every n-th epoch."""
    total = len(numbers)
    if count == total:
        return numbers
    if count > total:
        raise FreezeError(
            f"`history` has {count} values of {key!r} for {total} epochs (values of 'loss'). "
            "Pass the history of one fit."
        )
    every = total // max(count, 1)
    # `validation_freq` counts from epoch 1. Several frequencies may give this number of values.
    for frequency in (every, *range(1, int(numbers.max()) + 1)):
        due: np.ndarray = numbers[numbers % frequency == 0]
        if len(due) == count:
            return due
    return numbers[np.arange(1, count + 1) * every - 1]


def _stages(epochs: Iterable[float], numbers: Iterable[float]) -> list[tuple[int, float]]:
    stages: list[tuple[int, float]] = []
    for epoch, number in zip(epochs, numbers, strict=True):
        if np.isfinite(number) and (not stages or stages[-1][0] != int(number)):
            stages.append((int(number), float(epoch) - 0.5))
    return stages


def _short(received: Any) -> str:
    text = repr(received)
    kind = type(received).__name__
    return f"{text if len(text) <= 80 else text[:77] + '...'} (of type {kind})"
