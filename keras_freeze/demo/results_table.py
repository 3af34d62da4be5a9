"""Formats the demo's results as a table, and compares the losses of one `fit` and of two."""

from collections.abc import Sequence
from statistics import mean, median

import numpy as np
from numpy.typing import NDArray

from keras_freeze.demo.measured_run import ONE_FIT, TWO_FITS, Result

HEADER = ("method", "test accuracy", "lowest - highest", "seconds", "base passes", "lines of code")


def format_table(results: Sequence[Result]) -> str:
    """Puts the results in aligned columns, one row a method.

    Args:
        results: All methods, any number of seeds.

    Returns:
        The table, its lines joined with newlines.
    """
    rows = [HEADER, *(_row(results_of(results, name)) for name in names_of(results))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(_align(row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _row(results: Sequence[Result]) -> tuple[str, ...]:
    shares = [100 * result.accuracy for result in results]
    return (
        results[0].method,
        f"{mean(shares):.1f} %",
        f"{min(shares):.1f} - {max(shares):.1f}",
        f"{median(result.seconds for result in results):.1f}",
        f"{mean(result.base_passes for result in results):.1f}",
        str(results[0].lines),
    )


def _align(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
    return [row[0].ljust(widths[0]), *cells[1:]]


def names_of(results: Sequence[Result]) -> list[str]:
    """Returns the methods that have results, in order."""
    return list(dict.fromkeys(result.method for result in results))


def results_of(results: Sequence[Result], name: str) -> list[Result]:
    """Returns the results of one method, in the order of the seeds."""
    return [result for result in results if result.method == name]


def loss_difference(results: Sequence[Result]) -> float:
    """Compares the losses of one fit and of two fits with the same seed.

    Args:
        results: Both methods, any number of seeds.

    Returns:
        The largest difference of any epoch's loss, in training or validation.
    """
    ours, theirs = (_losses(results_of(results, name)) for name in (ONE_FIT, TWO_FITS))
    return float(np.abs(ours - theirs).max())


def _losses(results: Sequence[Result]) -> NDArray[np.float64]:
    return np.array([[each.history["loss"], each.history["val_loss"]] for each in results])
