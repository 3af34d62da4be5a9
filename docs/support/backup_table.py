"""Table of the results of benchmarks/backup.py."""

from __future__ import annotations

from benchmark_tables import BACKENDS
from shown import load, table


def backups() -> str:
    """Returns the table of what a backup takes."""
    rows = []
    for backend, label in BACKENDS.items():
        found = load(f"backup_{backend}.json")
        for part, took in found.items():
            if part in ("machine", "synced"):
                continue
            seconds = [f"{took[name] * 1000:.0f} ms" for name in ("Keras", "ours")]
            rows.append([label, part, *seconds, f"{took['ours / Keras']:.2f}"])
    return table(["backend", "model", "Keras", "ours", "ours / Keras"], rows)
