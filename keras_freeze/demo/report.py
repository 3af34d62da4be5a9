"""What the demo shows at the end: a table and a plot."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from keras_freeze.demo.extras import load_extra
from keras_freeze.demo.methods import METHODS, ONE_FIT, History, Result

HEADER = ("method", "test accuracy", "lowest - highest", "fits", "epochs", "seconds")
# Blue, orange and grey of a palette that colour-blind readers can tell apart.
_LINES: tuple[dict[str, Any], ...] = (
    {"color": "#0072b2", "linewidth": 2.2, "zorder": 3},
    {"color": "#d55e00", "linewidth": 1.6, "linestyle": "--"},
    {"color": "#777777", "linewidth": 1.6, "linestyle": ":"},
)
STYLES = dict(zip(METHODS, _LINES, strict=True))


def format_table(results: Sequence[Result]) -> str:
    """Puts the results in aligned columns, one row a method.

    Args:
        results: All methods, any number of seeds.

    Returns:
        The table, its lines joined with newlines.
    """
    rows = [HEADER, *(_row(_of(results, name)) for name in _names(results))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(_align(row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _row(results: Sequence[Result]) -> tuple[str, ...]:
    shares = [100 * result.accuracy for result in results]
    return (
        results[0].method,
        f"{mean(shares):.1f} %",
        f"{min(shares):.1f} - {max(shares):.1f}",
        str(results[0].fits),
        str(results[0].epochs),
        f"{median(result.seconds for result in results):.1f}",
    )


def _align(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
    return [row[0].ljust(widths[0]), *cells[1:]]


def _names(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(result.method for result in results))


def _of(results: Sequence[Result], name: str) -> list[Result]:
    return [result for result in results if result.method == name]


def save_plot(results: Sequence[Result], output: Path) -> None:
    """Draws test accuracy and training loss by epoch, mean and range over the seeds.

    Args:
        results: All methods, any number of seeds.
        output: The image to write; its suffix is the format.
    """
    # A bare Figure draws with Agg and leaves the caller's pyplot backend as it was.
    figure = load_extra("matplotlib.figure").Figure(figsize=(10, 4.6), layout="constrained")
    accuracy, loss = figure.subplots(1, 2)
    _draw_panel(accuracy, results, "val_accuracy", "Accuracy on the test images")
    _draw_panel(loss, results, "loss", "Training loss")
    accuracy.set_ylim(0.5, 1.0)  # the first epochs, near chance, would flatten all others
    loss.set_yscale("log")
    figure.legend(handles=accuracy.get_lines()[: len(METHODS)], loc="outside lower center", ncols=3)
    figure.savefig(output, dpi=130)


def _draw_panel(axes: Any, results: Sequence[Result], key: str, title: str) -> None:
    for name in _names(results):
        curves = np.array([result.history[key] for result in _of(results, name)])
        every = _of(results, name)[0].epochs // curves.shape[1]
        epochs = every * np.arange(1, curves.shape[1] + 1)
        axes.plot(epochs, curves.mean(axis=0), label=name, **STYLES[name])
        color = STYLES[name]["color"]
        axes.fill_between(epochs, curves.min(axis=0), curves.max(axis=0), color=color, alpha=0.12)
    _draw_stages(axes, _of(results, ONE_FIT)[0].history)
    axes.set_title(title, pad=30)  # the stages' labels stand between title and frame
    axes.set(xlabel="epoch", xlim=(0.5, epochs[-1] + 0.5))
    axes.grid(alpha=0.25)


def _draw_stages(axes: Any, history: History) -> None:
    stages = np.array(history["stage"])
    for epoch in [0, *(np.flatnonzero(np.diff(stages)) + 1)]:
        axes.axvline(epoch + 0.5, color="black", linewidth=0.8, alpha=0.6)
        axes.annotate(
            f"stage {stages[epoch]:.0f}\n{history['trainable_params'][epoch]:,.0f} trainable",
            (epoch + 0.5, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4),
            textcoords="offset points",
            fontsize=8,
        )
