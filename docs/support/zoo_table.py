"""The table of tested models, from the files that `benchmarks/zoo` writes."""

from __future__ import annotations

from typing import Any

from shown import DATA, load, table

RUNS = {
    "tensorflow": "TensorFlow, CPU",
    "jax": "JAX, CPU",
    "torch": "PyTorch, CPU",
    "jax_gpu": "JAX, H100",
    "torch_gpu": "PyTorch, H100",
}


def _files() -> dict[str, Any]:
    """Returns measured results, by backend and device."""
    names = {run: f"zoo_{run}.json" for run in RUNS}
    return {run: load(name) for run, name in names.items() if (DATA / name).exists()}


def summary() -> str:
    """Returns how many models passed all checks, on each backend."""
    parts = []
    for run, found in _files().items():
        right = sum(not row["wrong"] for row in found["rows"])
        parts.append(f"{right} of {len(found['rows'])} ({RUNS[run]})")
    keras = next(iter(_files().values()))["keras"]
    return f"Passed all checks with Keras {keras}: {', '.join(parts)}."


def zoo() -> str:
    """Returns a table with a row for each model."""
    files = {run: {row["model"]: row for row in found["rows"]} for run, found in _files().items()}
    names = list(dict.fromkeys(name for rows in files.values() for name in rows))
    head = ["model", "base", "blocks", "cut", *(RUNS[run] for run in files)]
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
