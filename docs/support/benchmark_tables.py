"""Tables and a plot of the benchmarks' result files."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

from shown import DATA, load, table

BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
TITLES = {
    "vgg19_64": "VGG19-64, 5 + 5 epochs",
    "mobilenet_v2_96_head": "MobileNetV2-96, head, 40 epochs",
    "mobilenet_v2_224": "MobileNetV2-224",
    "resnet50_224": "ResNet50-224",
    "efficientnet_b0_224": "EfficientNetB0-224",
    "mobilenet_v2_224 small": "MobileNetV2-224 (small)",
    "resnet50_224 small": "ResNet50-224 (small)",
    "efficientnet_b0_224 small": "EfficientNetB0-224 (small)",
}


def _results(backend: str) -> dict[str, Any]:
    """Returns {workload: seconds of each pipeline, and the difference} of a backend's files."""
    found: dict[str, Any] = {}
    for path in sorted(DATA.glob(f"two_phase_*_{backend}.json")):
        size = " small" if "_small" in path.name else ""
        found |= {f"{name}{size}": value for name, value in load(path.name).items()}
    return found


def _ratio(seconds: dict[str, list[float]], above: str) -> float:
    """Returns the ratio of the medians, or the median of the ratios if measured in turns."""
    values, ours = seconds.get(above, []), seconds["ours"]
    if len(values) == len(ours):
        return median(a / b for a, b in zip(values, ours, strict=True))
    return median(values) / median(ours) if values else math.nan


def _number(values: list[float]) -> str:
    return f"{median(values):.1f}" if values else "-"


def _times(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def two_phase() -> str:
    """Returns a table of all workloads on all backends."""
    rows = []
    for name, title in TITLES.items():
        for backend, label in BACKENDS.items():
            result = _results(backend).get(name)
            if result is None:
                continue
            seconds, far = result["seconds"], result["difference"]
            rows.append(
                [
                    title,
                    label,
                    _number(seconds.get("stock", [])),
                    _number(seconds["limit"]),
                    _number(seconds["ours"]),
                    _times(_ratio(seconds, "stock")),
                    _times(_ratio(seconds, "limit")),
                    "-" if far is None or math.isnan(far) else f"{far:.0e}",
                    str(len(seconds["ours"])),
                ]
            )
    head = [
        "workload",
        "backend",
        "stock (s)",
        "L (s)",
        "ours (s)",
        "stock / ours",
        "eta",
        "difference",
        "runs",
    ]
    return table(head, rows)


def gains() -> str:
    """Returns the table of the home page."""
    rows = []
    for backend, label in BACKENDS.items():
        seconds = _results(backend)["vgg19_64"]["seconds"]
        stock, ours = _ratio(seconds, "stock"), _ratio(seconds, "limit")
        rows.append(
            [
                label,
                f"{_number(seconds['stock'])}&nbsp;s",
                f"{_number(seconds['ours'])}&nbsp;s",
                f"{stock:.1f} x",
                f"{ours:.2f}",
            ]
        )
    return table(
        ["VGG19, 64x64, 5 + 5 epochs", "stock Keras, two fits", "one fit", "faster", "L / ours"],
        rows,
    )


def machine() -> str:
    """Returns the machine and versions of the benchmarks."""
    found = load("two_phase_vgg19_torch.json")["machine"]
    return (
        f"{found['cores']} cores, {found['machine']}, CPU; Keras {found['keras']}, Python "
        f"{found['python']}. Seconds are medians over the runs; stock Keras ran once. *difference* "
        "is the largest difference of any epoch's loss or accuracy between stock Keras and ours."
    )


def costs() -> str:
    """Returns the cache's memory, and the time of runs in which it steps aside."""
    rows = []
    for backend, label in BACKENDS.items():
        found, longer = (
            load(f"cache_costs_{backend}.json"),
            load(f"cache_costs_long_{backend}.json"),
        )
        rows.append(
            [
                label,
                f"{found['memory']['ratio']:.2f}",
                f"{found['aside at once']['ratio']:.2f}",
                f"{found['aside later']['ratio']:.2f}",
                f"{longer['aside later']['ratio']:.2f} ({longer['epochs']} epochs)",
                f"{found['aside later']['seconds lost']:.1f} s",
            ]
        )
    head = [
        "backend",
        "memory",
        "aside at once",
        "aside later, 12 epochs",
        "aside later, longer",
        "lost, once",
    ]
    return table(head, rows)


def head_epochs() -> str:
    """Returns the time of a head's epoch on cached features, and on features in memory."""
    rows = []
    files = {f"{backend}.json": label for backend, label in BACKENDS.items()}
    files["tensorflow_jit.json"] = "TensorFlow, `jit_compile=True`"
    for name, label in files.items():
        for one in load(f"head_epochs_{name}")["results"]:
            rows.append(
                [
                    f"{one['rows']:,} x {one['width']:,}",
                    label,
                    "yes" if one["shuffle"] else "no",
                    f"{1e3 * one['features']:.1f} ms",
                    f"{1e3 * one['ours']:.1f} ms",
                    _times(one["ratio"]),
                    f"{one['difference']:.0e}" if one["difference"] else "0",
                ]
            )
    head = ["features", "backend", "shuffled", "Keras", "ours", "Keras / ours", "difference"]
    return table(head, sorted(rows, key=lambda row: len(row[0])))


def plot() -> Any:
    """Returns a plot of each workload's eta, by backend."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.2))
    axes = figure.subplots()
    names = list(TITLES)
    for index, (backend, label) in enumerate(BACKENDS.items()):
        results = _results(backend)
        known = [name for name in names if name in results]
        places = [names.index(name) + 0.27 * (index - 1) for name in known]
        heights = [_ratio(results[name]["seconds"], "limit") for name in known]
        bars = axes.bar(places, heights, 0.25, label=label)
        axes.bar_label(bars, [f"{height:.2f}" for height in heights], fontsize=7)
    axes.axhline(1, color="0.3", linewidth=1, linestyle="--")
    labels = [TITLES[name].split(",")[0].replace("-", "\n").replace(" ", "\n") for name in names]
    axes.set_xticks(range(len(names)), labels, fontsize=7)
    axes.set_ylabel("eta = L / ours")
    axes.legend(fontsize=8)
    return figure
