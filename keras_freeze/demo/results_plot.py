"""Draws the demo's results: accuracy and loss by epoch with the stages, and seconds by method."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from keras_freeze.demo.compared_methods import History
from keras_freeze.demo.measured_run import METHODS, ONE_FIT, Result
from keras_freeze.demo.optional_imports import load_extra
from keras_freeze.demo.results_table import names_of, results_of

# Colours that colour-blind readers can tell apart. One fit is a broad line under the narrow dashes
# of two fits: where the losses are equal, both are seen.
_LINES: tuple[dict[str, Any], ...] = (
    {"color": "#56b4e9", "linewidth": 5, "solid_capstyle": "round"},
    {"color": "#0b3c5d", "linewidth": 1.6, "linestyle": (0, (4, 3))},
    {"color": "#d55e00", "linewidth": 1.6, "linestyle": (0, (1, 1.5))},
    {"color": "#888888", "linewidth": 1.8},
)
STYLES = dict(zip(METHODS, _LINES, strict=True))


def save_plot(results: Sequence[Result], output: Path) -> None:
    """Draws validation accuracy, training loss and seconds, mean and range over the seeds.

    Args:
        results: All methods, any number of seeds.
        output: The image to write; its suffix is the format.
    """
    # A bare Figure draws with Agg and leaves the caller's pyplot backend as it was.
    figure = load_extra("matplotlib.figure").Figure(figsize=(13, 4.8), layout="constrained")
    accuracy, loss, seconds = figure.subplots(1, 3, width_ratios=[3, 3, 2])
    _draw_curves(accuracy, results, "val_accuracy", "Validation accuracy")
    _draw_curves(loss, results, "loss", "Training loss")
    _draw_seconds(seconds, results)
    loss.set_yscale("log")
    handles = accuracy.get_lines()[: len(names_of(results))]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=4, frameon=False, handlelength=3
    )
    figure.savefig(output, dpi=130)


def _draw_curves(axes: Any, results: Sequence[Result], key: str, title: str) -> None:
    for name in names_of(results):
        curves = np.array([result.history[key] for result in results_of(results, name)])
        epochs = np.arange(1, curves.shape[1] + 1)
        axes.plot(epochs, curves.mean(axis=0), label=name, **STYLES[name])
        color = STYLES[name]["color"]
        axes.fill_between(epochs, curves.min(axis=0), curves.max(axis=0), color=color, alpha=0.1)
    _draw_stages(axes, results_of(results, ONE_FIT)[0].history)
    axes.set_title(title, pad=30, loc="left", weight="bold")  # the stages stand below the title
    axes.set(xlabel="epoch", xlim=(0.5, epochs[-1] + 0.5))
    _tidy(axes)


def _draw_stages(axes: Any, history: History) -> None:
    stages = np.array(history["stage"])
    for epoch in [0, *(np.flatnonzero(np.diff(stages)) + 1)]:
        if epoch:
            axes.axvline(epoch + 0.5, color="black", linewidth=0.8, alpha=0.6)
        axes.annotate(
            f"stage {stages[epoch]:.0f}\n{history['trainable_params'][epoch]:,.0f} trainable",
            (epoch + 0.5, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4),
            textcoords="offset points",
            fontsize=8,
        )


def _draw_seconds(axes: Any, results: Sequence[Result]) -> None:
    names = names_of(results)
    seconds = [median(result.seconds for result in results_of(results, name)) for name in names]
    colors = [STYLES[name]["color"] for name in names]
    bars = axes.barh(range(len(names)), seconds, color=colors, height=0.6)
    passes = [mean(result.base_passes for result in results_of(results, name)) for name in names]
    words = [f"{s:.1f} s\nbase ran {p:.0f}x" for s, p in zip(seconds, passes, strict=True)]
    axes.bar_label(bars, words, padding=5, fontsize=9)
    axes.set_title("Seconds of a run", pad=30, loc="left", weight="bold")
    axes.set(xlabel="seconds, median", xlim=(0, 1.5 * max(seconds)), yticks=[])
    axes.invert_yaxis()
    _tidy(axes)


def _tidy(axes: Any) -> None:
    axes.locator_params(axis="x", integer=True)
    axes.grid(axis="y" if axes.get_yticks().size else "x", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
