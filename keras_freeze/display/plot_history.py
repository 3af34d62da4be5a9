"""Plots a Keras History: losses, metrics and learning rates, with the beginning of each stage."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from keras_freeze.display.read_history import Curves, read_curves
from keras_freeze.errors import names_unknown
from keras_freeze.schedule.schedule import Schedule

# Okabe and Ito's colours, suitable for colour-blind readers. The first is for the loss.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MANY_EPOCHS = 40  # with so many epochs, markers would hide the curve


@names_unknown()
def plot_history(history: Any, *, schedule: Any = None) -> Any:
    """Plots losses, metrics and learning rates of a run, and marks where its stages begin.

    The panels show losses, other metrics, and learning rates on a logarithmic scale. A panel
    without values is left out. Validation curves are dashed. Epochs count from 1, as in the
    progress bar.

    Needs matplotlib: `pip install "keras_freeze[plot]"`. The figure doesn't use `pyplot`: no window
    opens and no global state changes. Save it with `figure.savefig("history.png")`; a notebook
    shows it as the last expression of a cell.

    Args:
        history: what `fit` returned, its `history` dict, or the path of a `CSVLogger` file. If a
            list has fewer values than epochs (`validation_freq`), they are drawn at equal
            distances, since a History doesn't record their epochs.
        schedule: a `Schedule`, or what `GradualUnfreeze` takes as one. Its stages' names are shown.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        FreezeError: `history` is of another type, is empty, or has no `loss`.
        ScheduleError: `schedule` is invalid.
        ImportError: matplotlib isn't installed.

    Examples:
        >>> history = {"loss": [3.0, 2.0, 1.0], "learning_rate": [0.1, 0.1, 0.01],
        ...            "stage": [0, 0, 1]}
        >>> figure = plot_history(history, schedule=[Stage(2, "block5_*", name="fine-tune")])
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['loss', 'learning rate']
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['stage 0', 'stage 1: fine-tune']
    """
    names = _names(schedule)
    curves = read_curves(history)
    panels = {
        "loss": curves.losses,
        "metrics": curves.metrics,
        "learning rate": curves.rates,
    }
    shown = {label: keys for label, keys in panels.items() if keys}
    heights = [2 if label == "loss" else 1.4 for label in shown]
    figure = _figure_class()(figsize=(8, 1.0 + 1.5 * sum(heights)), layout="constrained")
    grid = figure.subplots(
        len(shown), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for axes, (label, keys) in zip(grid[:, 0], shown.items(), strict=True):
        _draw(axes, curves, keys)
        axes.set_ylabel(label)
        if label == "learning rate" and any((curves.values[key] > 0).any() for key in keys):
            axes.set_yscale("log")
        for _, begin in curves.stages[1:]:
            axes.axvline(begin, color="black", linewidth=0.8, alpha=0.6)
    _finish(grid[:, 0], curves, names)
    return figure


def _names(schedule: Any) -> dict[int, str]:
    stages = Schedule(schedule) if schedule is not None else ()
    return {number: stage.name for number, stage in enumerate(stages, 1) if stage.name}


def _figure_class() -> Any:
    try:
        from keras_freeze.display.figure_with_png_repr import Picture
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "matplotlib":
            raise  # matplotlib is installed, but one of its dependencies is missing
        raise ImportError(
            "plot_history needs `matplotlib`, which is not installed. "
            'Run: pip install "keras_freeze[plot]"',
            name="matplotlib",
        ) from error
    return Picture


def _draw(axes: Any, curves: Curves, keys: Sequence[str]) -> None:
    """Draws one panel. A metric and its validation have the same colour."""
    metrics = list(dict.fromkeys(key.removeprefix("val_") for key in keys))
    colors = dict(zip(metrics, itertools.cycle(COLORS), strict=False))
    for key in keys:
        few = len(curves.epochs[key]) < MANY_EPOCHS
        axes.plot(
            curves.epochs[key],
            curves.values[key],
            label=key,
            color=colors[key.removeprefix("val_")],
            linestyle="--" if key.startswith("val_") else "-",
            drawstyle="steps-mid" if key in curves.rates else "default",  # a rate per epoch
            marker="o" if few else "",
            markersize=3,
        )
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, ncols=1 + len(keys) // 7)


def _finish(panels: Sequence[Any], curves: Curves, names: Mapping[int, str]) -> None:
    """Sets the epoch axis, and writes the stages' labels above the first panel."""
    left, right = curves.span
    panels[-1].set(xlabel="epoch", xlim=(left, right))
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    rows: list[float] = []  # where the last label of each row ends
    for number, begin in curves.stages:
        label = f"stage {number}" + (f": {names[number]}" if number in names else "")
        width = 0.011 * (len(label) + 2) * (right - left)  # estimated for 8-point letters
        at_right = begin + width > right
        start = begin - width if at_right else begin
        free = [row for row, end in enumerate(rows) if end <= start]
        row = free[0] if free else len(rows)
        rows[row : row + 1] = [start + width]
        panels[0].annotate(
            label,
            (begin, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3 + 11 * row),
            textcoords="offset points",
            fontsize=8,
            ha="right" if at_right and begin > left else "left",
        )
