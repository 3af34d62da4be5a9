"""Tables of the results of benchmarks/disk.py."""

from __future__ import annotations

from statistics import median
from typing import Any

from benchmark_tables import BACKENDS
from shown import load, table


def _middle(part: str, backend: str) -> tuple[dict[str, float], dict[str, Any]]:
    """Returns the median seconds of each path, and all results."""
    found = load(f"disk_{part}_{backend}.json")[part]
    return {name: median(took) for name, took in found["seconds"].items() if took}, found


def runs() -> str:
    """Returns the table of cold and warm runs."""
    rows = []
    for backend, label in BACKENDS.items():
        took, found = _middle("runs", backend)
        rows.append(
            [
                label,
                *(f"{took[name]:.1f} s" for name in ("limit", "memory", "cold", "warm", "tails")),
                f"{took['limit'] / took['cold']:.2f}",
                f"{took['warm'] / took['tails']:.2f}",
                f"{found['difference']:.0e}" if found["difference"] else "0",
            ]
        )
    head = ["backend", "L", "memory", "cold", "warm", "tails", "L / cold", "warm / tails"]
    return table([*head, "difference"], rows)


def sweep() -> str:
    """Returns the table of a sweep over heads."""
    rows = []
    for backend, label in BACKENDS.items():
        took, found = _middle("sweep", backend)
        rows.append(
            [
                label,
                f"{took['stock']:.0f} s ({found['stock trials']} trials ran)",
                f"{took['by hand']:.1f} s",
                f"{took['ours']:.1f} s",
                f"{took['stock'] / took['ours']:.1f}",
                f"{took['by hand'] / took['ours']:.2f}",
                f"{found['difference']:.0e}" if found["difference"] else "0",
            ]
        )
    head = ["backend", "stock", "by hand", "ours", "stock / ours", "by hand / ours", "difference"]
    return table(head, rows)


def files() -> str:
    """Returns the table of image files on TensorFlow."""
    took, _ = _middle("files", "tensorflow")
    return table(list(took), [[f"{seconds:.1f} s" for seconds in took.values()]])
