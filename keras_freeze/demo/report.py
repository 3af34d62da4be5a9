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
    figure = load_extra("matplotlib.figure").Figure(figsize=(10, 4.4), layout="constrained")
    accuracy, loss = figure.subplots(1, 2)
    _draw_panel(accuracy, results, "val_accuracy", "accuracy on the test images")
    _draw_panel(loss, results, "loss", "training loss")
    loss.set_yscale("log")
    accuracy.set_ylim(top=1.0)
    accuracy.legend(loc="lower right", framealpha=1.0)
    figure.savefig(output, dpi=130)


def _draw_panel(axes: Any, results: Sequence[Result], key: str, title: str) -> None:
    for name in _names(results):
        curves = np.array([result.history[key] for result in _of(results, name)])
        epochs = np.arange(1, curves.shape[1] + 1)
        axes.plot(epochs, curves.mean(axis=0), label=name, **STYLES[name])
        color = STYLES[name]["color"]
        axes.fill_between(epochs, curves.min(axis=0), curves.max(axis=0), color=color, alpha=0.12)
    _draw_stages(axes, _of(results, ONE_FIT)[0].history)
    axes.set(title=title, xlabel="epoch")
    axes.grid(alpha=0.25)


def _draw_stages(axes: Any, history: History) -> None:
    shown = None
    for epoch, (stage, params) in enumerate(
        zip(history["stage"], history["trainable_params"], strict=True)
    ):
        if stage == shown:
            continue
        shown = stage
        axes.axvline(epoch + 0.5, color="black", linewidth=0.8, alpha=0.6)
        axes.annotate(
            f"stage {stage:.0f}\n{params:,.0f}\nparameters",
            (epoch + 0.5, 0.5),
            xycoords=("data", "axes fraction"),
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=8,
        )
