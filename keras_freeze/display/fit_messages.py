"""Formats the lines that are printed about stages and the cache in a `fit`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LINE = 99  # maximum number of characters in a line


@dataclass(frozen=True)
class StageReport:
    """The printed lines about what a stage changed.

    Attributes:
        title: "Stage 1 'fine-tune'".
        when: "from epoch 11/20".
        base: description of the base, "" if it was printed before or there is none.
        adapters: number of layers with trainable LoRA adapters.
        unfrozen: names of the layers with weights that became trainable, or of blocks of them, with
            the number of layers that each name stands for.
        frozen: the same for layers that were frozen.
        trainable_params: number of trainable scalars.
        frozen_params: number of frozen scalars.
        rates: `{"learning_rate": rate}`, with `"base_learning_rate"` if the base has its own.
        optimizer: what happened to the optimizer, "" if nothing.
    """

    title: str
    when: str
    unfrozen: Mapping[str, int]
    frozen: Mapping[str, int]
    trainable_params: int
    frozen_params: int
    rates: dict[str, float]
    optimizer: str = ""
    base: str = ""
    adapters: int = 0

    def __str__(self) -> str:
        lines = [f"{self.title} {self.when}"]
        room = LINE - len("  base           ")
        if self.base:
            lines.append(f"  base           {self.base}")
        if self.unfrozen:
            lines.append(f"  unfrozen       {shorten(self.unfrozen, room)}")
        if self.frozen:
            lines.append(f"  frozen         {shorten(self.frozen, room)}")
        lines.append(
            f"  parameters     {self.trainable_params:,} trainable, {self.frozen_params:,} frozen"
        )
        if self.adapters:
            lines.append(f"  adapters       LoRA, trainable in {counted(self.adapters)}")
        for name, rate in self.rates.items():
            if name.startswith("learning_rate"):
                own = self.rates.get(f"base_{name}", rate)
                of_base = f", base {own:.6g}" if own != rate else ""
                lines.append(f"  {name.replace('_', ' '):<14} {rate:.6g}{of_base}")
        if self.optimizer:
            lines.append(f"  optimizer      {self.optimizer}")
        return "\n".join(lines)


def base_line(label: str, layers: int, is_found: bool) -> str:
    """Returns the description of the base.

    Args:
        label: name of the base.
        layers: number of its layers with weights.
        is_found: whether the base was found, not named by the user.

    Examples:
        >>> base_line("vgg19", 16, True)
        'vgg19, 16 layers with weights (found; pass `base` to choose another)'
    """
    how = " (found; pass `base` to choose another)" if is_found else ""
    what = f", {counted(layers)} with weights{how}"
    return f"{_abridged(label, LINE - len('  base           ') - len(what))}{what}"


def counted(layers: int) -> str:
    """Returns a number with the word "layer" or "layers".

    Examples:
        >>> counted(1), counted(2)
        ('1 layer', '2 layers')
    """
    return f"{layers} layer" if layers == 1 else f"{layers} layers"


def ended_early_line(title: str, when: str, askers: Sequence[str]) -> str:
    """Returns the line about a stage that callbacks ended early.

    Examples:
        >>> ended_early_line("Stage 1", "epoch 7/20", ["EarlyStopping"])
        'Stage 1 ends early, with epoch 7/20: EarlyStopping'
    """
    return f"{title} ends early, with {when}: {', '.join(askers)}"


def first_pass_line(
    cuts: Sequence[str],
    bytes_per_row: int | None,
    rows: int | None,
    batches: int | None = None,
    *,
    validation_only: bool = False,
) -> str:
    """Returns the line about what will be cached, printed before the base runs the first time.

    Args:
        cuts: names of the layers whose outputs will be cached.
        bytes_per_row: bytes for each row (one sample of the data); None = unknown.
        rows: number of rows; None = unknown before the first batch.
        batches: number of batches; None = unknown.
        validation_only: whether only validation rows are cached.

    Examples:
        >>> first_pass_line(["block5_pool"], 8192, 540)
        'BottleneckCache after block5_pool: 8.2 KB a row, 4.4 MB for 540 training rows'
        >>> first_pass_line(["block5_pool"], 8192, None, 27)
        'BottleneckCache after block5_pool: 8.2 KB a row, in 27 training batches'
        >>> first_pass_line(["block5_pool"], 8192, None, validation_only=True)
        'BottleneckCache after block5_pool, for validation only: 8.2 KB a row'
    """
    of = "validation" if validation_only else "training"
    what = ", for validation only" if validation_only else ""
    if bytes_per_row is not None:
        what += f": {readable(bytes_per_row)} a row"
        if rows:
            what += f", {readable(bytes_per_row * rows)} for {rows} {of} rows"
        elif batches:
            what += f", in {batches} {of} batches"
    return f"BottleneckCache after {shorten(cuts, LINE - 22 - len(what))}{what}"


def pass_line(epoch: int, epochs: int | None, stats: Any) -> str:
    """Returns the line about what is cached at the end of an epoch.

    Examples:
        >>> from types import SimpleNamespace
        >>> stats = SimpleNamespace(rows=740, bytes=6_062_080, base_passes=1.0, read=0)
        >>> stats.validation_only = False
        >>> pass_line(1, 20, stats)
        'BottleneckCache, epoch 1 of 20: 740 rows, 6.1 MB; the base has run 1.0 times'
        >>> stats.validation_only = True
        >>> pass_line(1, None, stats)
        'BottleneckCache, epoch 1: 740 validation rows, 6.1 MB; the base has run 1.0 times for them'
        >>> stats = SimpleNamespace(rows=740, bytes=6_062_080, base_passes=0.3, read=540)
        >>> stats.validation_only = False
        >>> pass_line(1, 9, stats)
        'BottleneckCache, epoch 1 of 9: 740 rows, 540 from disk, 6.1 MB; the base has run 0.3 times'
    """
    of = f" of {epochs}" if epochs else ""
    rows, for_them = ("validation rows", " for them") if stats.validation_only else ("rows", "")
    from_disk = f", {stats.read} from disk" if stats.read else ""
    return (
        f"BottleneckCache, epoch {epoch}{of}: {stats.rows} {rows}{from_disk}, "
        f"{readable(stats.bytes)}; "
        f"the base has run {stats.base_passes:.1f} times{for_them}"
    )


def view_line(
    epoch: int, epochs: int | None, views: int, rows: int, size: float, fitting: int
) -> str:
    """Returns the line about the first recorded view, printed before the second epoch.

    Args:
        epoch: the epoch that was recorded, from 1.
        epochs: number of epochs, if known.
        views: how many views were asked for.
        rows: number of rows in the view.
        size: bytes of the view.
        fitting: how many such views the memory holds.

    Examples:
        >>> view_line(1, 20, 3, 540, 4.4e6, 1500)
        'BottleneckCache, epoch 1 of 20: view 1 of 3 has 540 rows, 4.4 MB; memory for 1,500 views'
    """
    of = f" of {epochs}" if epochs else ""
    return (
        f"BottleneckCache, epoch {epoch}{of}: view 1 of {views} has {rows} rows, "
        f"{readable(size)}; memory for {fitting:,} views"
    )


def replay_line(epoch: int, epochs: int | None, views: int, loaded: int = 0) -> str:
    """Returns the line about the first epoch that trains on a recording.

    Args:
        epoch: the epoch, from 1.
        epochs: number of epochs, if known.
        views: number of views.
        loaded: how many of them came from a directory.

    Examples:
        >>> replay_line(4, 20, 3)
        'BottleneckCache, from epoch 4 of 20: trains on 3 recorded views'
        >>> replay_line(1, 20, 3, 3)
        'BottleneckCache, from epoch 1 of 20: trains on 3 recorded views, 3 from disk'
    """
    of = f" of {epochs}" if epochs else ""
    what = f"{views} recorded views" if views > 1 else "the recorded view"
    from_disk = f", {loaded} from disk" if loaded else ""
    return f"BottleneckCache, from epoch {epoch}{of}: trains on {what}{from_disk}"


def reading_line(share: float) -> str:
    """Returns the line about a data pipeline that takes most of the time.

    Args:
        share: share of an epoch in which training waits for data.

    Examples:
        >>> reading_line(0.83)
        'BottleneckCache: reading took 83 % of an epoch; if epochs are alike, views=1 reads once'
    """
    took = f"reading took {100 * share:.0f} % of an epoch"
    return f"BottleneckCache: {took}; if epochs are alike, views=1 reads once"


def readable(size: float) -> str:
    """Returns a number of bytes with a unit.

    Examples:
        >>> readable(8192), readable(5_920_000), readable(12)
        ('8.2 KB', '5.9 MB', '12 B')
    """
    unit = "B"
    for larger in ("KB", "MB", "GB", "TB"):
        if size >= 1000:
            size, unit = size / 1000, larger
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"


def shorten(names: Mapping[str, int] | Sequence[str], room: int = LINE) -> str:
    """Returns at most four names, and the number of layers.

    Args:
        names: names of layers, or a mapping of names to the number of layers each stands for.
        room: maximum number of characters. If the names don't fit, fewer are shown. Then paths lose
            the folders that all of them begin with, and folders in their middle.

    Examples:
        >>> shorten(["a", "b"])
        'a, b'
        >>> shorten(["a", "b", "c", "d", "e", "f"])
        'a, b, ..., f (6 layers)'
        >>> shorten({"transformer_layer_3": 8})
        'transformer_layer_3 (8 layers)'
        >>> shorten(["bert/layer_0/attention/query", "bert/layer_3/attention/query"], 46)
        'layer_0/.../query, layer_3/.../query'
    """
    layers = sum(names.values()) if isinstance(names, Mapping) else len(names)
    listed = [*names]
    for most in (4, 2):
        few = len(listed) <= most
        count = f" ({counted(layers)})" if layers > len(listed) or not few else ""
        chosen = listed if few else [*listed[: most // 2], "...", listed[-1]]
        text = ", ".join(chosen) + count
        if len(text) <= room:
            return text
    own = [name for name in chosen if name != "..."]
    each = (room - len(text) + sum(map(len, own))) // len(own)
    short = iter(_abridged(name, each) for name in _without_beginning(own))
    return ", ".join(name if name == "..." else next(short) for name in chosen) + count


def _without_beginning(paths: list[str]) -> list[str]:
    """Returns paths without the folders that all of them begin with."""
    parts = [path.split("/") for path in paths]
    common = 0
    while min(map(len, parts)) > common + 1 and len({each[common] for each in parts}) == 1:
        common += 1
    return ["/".join(each[common:]) for each in parts]


def _abridged(path: str, room: int) -> str:
    """Returns a path, without its middle if it is too long."""
    if len(path) <= room:
        return path
    first, *rest = path.split("/")
    for start in range(1, len(rest)):
        short = "/".join([first, "...", *rest[start:]])
        if len(short) <= room:
            return short
    kept = max(2, room - 3)
    return f"{path[: kept // 2]}...{path[-(kept - kept // 2) :]}"
