"""The result of `Schedule.preview`: a list of dicts, one for each stage, shown as a table."""

from __future__ import annotations

import html
from typing import Any

from keras_freeze.display.fit_messages import readable, shorten
from keras_freeze.errors import check_choice
from keras_freeze.feature_cache.storage.number_of_views import check_views
from keras_freeze.preview.preview_footnotes import footnotes
from keras_freeze.preview.stage_rows import ROOM, Row, memory_of, number_of_images, stage_rows
from keras_freeze.schedule.plateau import Plateau
from keras_freeze.schedule.schedule import Schedule

ORDERS = ("stage", "memory")


class Preview(list[Row]):
    """What each stage of a schedule will do: a list of dicts, shown as a table.

    Keys of each dict: `stage` (its number), `name`, `begins` (an epoch or a `Plateau`), `epochs`
    and `steps` (None if a trigger decides), `thawed` and `frozen` (names of layers), `layers` (both
    in short: if all layers of a block change, the block is named),
    `trainable_params` and `frozen_params`, `learning_rate` (of the optimizer), `base_learning_rate`
    (the same, unless a stage sets one for the base), `lowest_rate` (of the layer with the lowest
    rate), `warmup_steps`, `optimizer_bytes` (of all slots), `cut` (the layers whose outputs a cache
    would keep), `row_bytes` and `cache_bytes` (of one sample of the data, and of all), `work` and
    `work_cached` (floating point operations of a step without a cache, and with a cache after its
    first pass, as a share of training the whole model). With `views`, `row_bytes` has the inputs
    too that layers after the cut read, but no targets; `cache_bytes` is that of all views; and
    `work_cached` is the mean over the stage's epochs, recorded ones included. None = unknown;
    `why` gives the reason by key, and so does a line under the table.
    """

    def __str__(self) -> str:
        cells = [COLUMNS, *map(_cells, self)]
        widths = [max(len(row[place]) for row in cells) for place in range(len(COLUMNS))]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
        rule = "  ".join("-" * width for width in widths)
        return "\n".join([lines[0], rule, *lines[1:], *footnotes(self, COLUMN_OF)])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        """Returns the table as HTML for notebooks."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in COLUMNS)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(row)) + "</tr>"
            for row in self
        )
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in footnotes(self, COLUMN_OF))
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"


def preview(
    schedule: Schedule,
    model: Any,
    *,
    epochs: int | None,
    steps_per_epoch: int | None,
    data: Any,
    base: Any,
    order: str,
    views: Any,
) -> Preview:
    """Returns the preview of a schedule: see `Schedule.preview`."""
    check_choice("order", order, ORDERS)
    rows = stage_rows(
        schedule,
        model,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        images=number_of_images(data),
        base=base,
        views=check_views(views),
    )
    if order == "memory":
        rows.sort(key=memory_of, reverse=True)
    return Preview(rows)


COLUMNS = [
    "stage",
    "begins",
    "epochs",
    "layers",
    "trainable",
    "frozen",
    "rate",
    "optimizer",
    "cache after",
    "a row",
    "in all",
    "work",
    "cached",
]
# The columns whose values may be missing, by key.
COLUMN_OF = {
    "epochs": "epochs",
    "layers": "layers",
    "learning_rate": "rate",
    "optimizer_bytes": "optimizer",
    "cut": "cache after",
    "row_bytes": "a row",
    "cache_bytes": "in all",
    "work": "work",
    "work_cached": "cached",
}


def _cells(row: Row) -> list[str]:
    return [
        f"{row['stage']} {row['name']}" if row["name"] else str(row["stage"]),
        _begins(row["begins"]),
        _or_dash(row["epochs"]) + (f" ({row['steps']} steps)" if row["steps"] else ""),
        row["layers"] or "-",
        f"{row['trainable_params']:,}",
        f"{row['frozen_params']:,}",
        _rate(row),
        _size(row["optimizer_bytes"]),
        shorten(row["cut"], ROOM) if row["cut"] else "-",
        _size(row["row_bytes"]),
        _size(row["cache_bytes"]),
        _share(row["work"]),
        _share(row["work_cached"]),
    ]


def _begins(at: Any) -> str:
    if isinstance(at, Plateau):
        return f"after {at.monitor}, patience {at.patience}"
    return f"epoch {at}"


def _rate(row: Row) -> str:
    rate, base, lowest = row["learning_rate"], row["base_learning_rate"], row["lowest_rate"]
    if not isinstance(rate, float):
        return "-" if rate is None else type(rate).__name__
    text = f"{rate:.4g}" + (f", base {base:.4g}" if base != rate else "")
    text += f" to {lowest:.4g}" if lowest < min(base, rate) else ""
    return text + (f", warm-up {row['warmup_steps']} steps" if row["warmup_steps"] else "")


def _size(size: int | None) -> str:
    return "-" if size is None else readable(size)


def _share(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)
