"""The table of tried models, from the files that `benchmarks/zoo` writes."""

from __future__ import annotations

from typing import Any

from shown import DATA, load, table

BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}


def _files() -> dict[str, Any]:
    """What was measured, by backend."""
    names = {backend: f"zoo_{backend}.json" for backend in BACKENDS}
    return {backend: load(name) for backend, name in names.items() if (DATA / name).exists()}


def summary() -> str:
    """How many models were as they should be, on each backend."""
    parts = []
    for backend, found in _files().items():
        right = sum(not row["wrong"] for row in found["rows"])
        parts.append(f"{right} of {len(found['rows'])} on {BACKENDS[backend]}")
    keras = next(iter(_files().values()))["keras"]
    return f"As they should be, with Keras {keras}: {', '.join(parts)}."


def zoo() -> str:
    """A row for each model."""
    files = {
        backend: {row["model"]: row for row in found["rows"]} for backend, found in _files().items()
    }
    names = list(dict.fromkeys(name for rows in files.values() for name in rows))
    head = ["model", "base", "blocks", "cut", *(BACKENDS[backend] for backend in files)]
    lines = []
    for name in names:
        rows = [rows.get(name) for rows in files.values()]
        first = next(row for row in rows if row is not None)
        cuts = (first.get("cuts") or {}).get("0") or []
        text = [name, first.get("base", "-"), str(first.get("blocks", "-")), ", ".join(cuts) or "-"]
        lines.append([*text, *map(_told, rows)])
    return table(head, lines)


def _told(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not tried"
    if row["wrong"]:
        return "**" + "; ".join(row["wrong"]).replace("|", "/")[:200] + "**"
    return "cached" if row["cached"] is True else f"not cached: {row['cached']}"
