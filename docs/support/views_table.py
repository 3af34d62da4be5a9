"""Tables of recorded views: their accuracy, and the time of runs with them."""

from __future__ import annotations

from statistics import median
from typing import Any

from shown import DATA, load, table

BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
NAMES = {"none": "no augmentation", "live": "live augmentation"}


def accuracy() -> str:
    """Returns the accuracy of each task under each condition."""
    found = load("views_accuracy_torch.json")
    tasks = [
        name for name, value in found.items() if isinstance(value, dict) and "summary" in value
    ]
    rows = []
    for condition in found[tasks[0]]["summary"]:
        row = [NAMES.get(condition, f"K = {condition.removeprefix('views ')}")]
        summaries = [found[task]["summary"][condition] for task in tasks]
        row += [f"{100 * one['mean']:.1f} ± {100 * one['deviation']:.1f}" for one in summaries]
        row += [
            "" if condition == "live" else f"{100 * one['to live']:+.1f} ± {100 * one['error']:.1f}"
            for one in summaries
        ]
        rows.append(row)
    head = ["", *tasks, *(f"{task}: to live" for task in tasks)]
    return table(head, rows)


def _measured(name: str) -> dict[str, Any]:
    """Returns the results of a benchmark by backend."""
    paths = {backend: f"{name}_{backend}.json" for backend in BACKENDS}
    return {backend: load(path) for backend, path in paths.items() if (DATA / path).exists()}


def augmented() -> str:
    """Returns the times of a two-phase run with live augmentation."""
    rows = []
    for backend, found in _measured("augmented").items():
        seconds = found["seconds"]
        for views, ratios in found["ratios"].items():
            rows.append(
                [
                    BACKENDS[backend],
                    views,
                    f"{median(seconds['stock']):.0f}",
                    f"{median(seconds[f'limit {views}']):.1f}",
                    f"{median(seconds[f'views {views}']):.1f}",
                    f"{ratios['stock']:.1f}",
                    f"{ratios['eta']:.2f}",
                ]
            )
    head = ["backend", "K", "stock (s)", "L_K (s)", "ours (s)", "stock / ours", "eta"]
    return table(head, rows)


def files() -> str:
    """Returns the times of a head on images from files."""
    readers = {"keras": "`image_dataset_from_directory`", "torch": "`DataLoader`"}
    rows = []
    for backend, found in _measured("files").items():
        for reader, title in readers.items():
            if reader not in found:
                continue
            seconds = found[reader]["seconds"]
            stock, exact, views = (median(seconds[path]) for path in ("stock", "exact", "views"))
            rows.append(
                [
                    BACKENDS[backend],
                    title,
                    f"{stock:.0f}",
                    f"{exact:.1f}",
                    f"{views:.1f}",
                    f"{stock / exact:.1f}",
                    f"{stock / views:.1f}",
                ]
            )
    head = ["backend", "reader", "stock (s)", "exact (s)", "views=1 (s)"]
    return table([*head, "stock / exact", "stock / views=1"], rows)
