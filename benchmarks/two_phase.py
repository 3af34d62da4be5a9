"""A two-phase run: stock Keras, features cached by hand, keras_freeze, and the limit.

    KERAS_BACKEND=jax python benchmarks/two_phase.py [--small] [--repeats 3] [--only NAME ...]
                                                     [--paths stock limit ours] [--once stock]
                                                     [--shuffle]
                                                     [--output FILE.json] [--plot FILE.png]

All paths run in one process, in turns. Each uses a fresh model with equal weights, and the same
data, order and epochs. A path's time is its wall time, including tracing and compiling.

- stock: two `fit` calls with `compile` in between, as in Keras' guide to transfer learning.
- by hand: features of the frozen base by `predict`, `fit` of the head on them, then fine-tuning of
  the whole model by `fit`, as in textbooks.
- limit L: each frozen part runs once for each image, and all epochs run on features in memory, also
  in fine-tuning: `predict` up to every cut, then a `fit` of each phase's tail. A perfect
  hand-written pipeline takes L = N f + V f + the sum over phases of epochs * (N h + V h').
- ours: one `fit` with FreezeBase, GradualUnfreeze and BottleneckCache.

eta = L / ours: at 1, ours runs at the limit; above 1, it is faster than the hand-written pipeline.
`steady` is L from the median epochs only, without tracing or compiling.

Inputs are seeded random images, and the weights are random. The benchmark measures only time, and
whether ours has the History of stock Keras.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
from machine import machine

from keras_freeze import BottleneckCache, FreezeBase, GradualUnfreeze

A = keras.applications


@dataclass(frozen=True)
class Workload:
    """A workload.

    Attributes:
        make: makes the base; None for its weights.
        size: size of the square images, in pixels.
        rows: number of training and validation rows.
        batch: batch size.
        epochs: number of epochs of each phase.
        cut: the name of the base's layer whose output is the input of the fine-tuned layers.
        pooling: as in keras.applications.
    """

    make: Callable[..., Any]
    size: int
    rows: tuple[int, int]
    batch: int
    epochs: tuple[int, int]
    cut: str = ""
    pooling: str | None = "avg"

    def small(self) -> Workload:
        """Returns a smaller workload of the same kind."""
        rows = (max(2 * self.batch, self.rows[0] // 4), max(self.batch, self.rows[1] // 4))
        epochs = (max(2, self.epochs[0] // 2), self.epochs[1] // 2)
        return replace(self, rows=rows, epochs=epochs)

    def base(self) -> Any:
        keras.utils.set_random_seed(0)
        shape = (self.size, self.size, 3)
        return self.make(
            weights=None, include_top=False, input_shape=shape, pooling=self.pooling, name="base"
        )

    def head(self) -> list[Any]:
        layers = [keras.layers.Dense(256, "relu", name="hidden"), keras.layers.Dense(1, "sigmoid")]
        return layers if self.pooling else [keras.layers.Flatten(), *layers]

    def model(self) -> Any:
        base = self.base()
        model = keras.Sequential([keras.Input(base.input_shape[1:]), base, *self.head()])
        return compiled(model)

    def data(self) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        rng = np.random.default_rng(0)
        sets = []
        for rows in self.rows:
            x = rng.random((rows, self.size, self.size, 3), "float32")
            sets.append((x, rng.integers(0, 2, (rows, 1)).astype("float32")))
        return sets[0], sets[1]


WORKLOADS = {
    "vgg19_64": Workload(A.VGG19, 64, (540, 200), 20, (5, 5), "block4_pool", None),
    "mobilenet_v2_96_head": Workload(A.MobileNetV2, 96, (540, 200), 20, (40, 0)),
    "mobilenet_v2_224": Workload(A.MobileNetV2, 224, (128, 32), 16, (10, 0)),
    "resnet50_224": Workload(A.ResNet50, 224, (128, 32), 16, (10, 0)),
    "efficientnet_b0_224": Workload(A.EfficientNetB0, 224, (128, 32), 16, (10, 0)),
}


def compiled(model: Any) -> Any:
    model.compile(keras.optimizers.RMSprop(1e-4), "binary_crossentropy", metrics=["accuracy"])
    return model


def stock(work: Workload, train: Any, val: Any) -> dict[str, list[float]]:
    model = work.model()
    base = model.get_layer("base")
    base.trainable = False
    logs = fit(compiled(model), train, val, work.batch, work.epochs[0])
    return joined(logs, fine_tuned(work, model, base, train, val))


def fine_tuned(work: Workload, model: Any, base: Any, train: Any, val: Any) -> dict[str, Any]:
    if not work.epochs[1]:
        return {}
    base.trainable = True
    names = [layer.name for layer in base.layers]
    for layer in base.layers[: names.index(work.cut) + 1]:
        layer.trainable = False
    return fit(compiled(model), train, val, work.batch, work.epochs[1])


def by_hand(work: Workload, train: Any, val: Any) -> dict[str, list[float]]:
    base = work.base()
    base.trainable = False
    features = [(base.predict(x, batch_size=work.batch, verbose=0), y) for x, y in (train, val)]
    head = compiled(keras.Sequential([keras.Input(base.output_shape[1:]), *work.head()]))
    logs = fit(head, *features, work.batch, work.epochs[0])
    if not work.epochs[1]:
        return logs
    whole = keras.Sequential([keras.Input(base.input_shape[1:]), base, *head.layers])
    return joined(logs, fine_tuned(work, whole, base, train, val))


def limit(work: Workload, train: Any, val: Any) -> dict[str, Any]:
    """Runs both phases on features. Returns the seconds, and L from the median epochs."""
    base = work.base()
    prefix = prefix_of(work, base)
    parts = [features(work, prefix, x) for x, _ in (train, val)]
    ends = EpochTimes()
    fit_tails(work, base, parts, (train[1], val[1]), ends)
    again = time.perf_counter()
    features(work, prefix, train[0])
    once = time.perf_counter() - again
    return {"extra": once, "steady": steady(work, once, ends.seconds)}


def prefix_of(work: Workload, base: Any) -> Any:
    """Returns the model from the images to the features of each phase."""
    taps = [base.output] + ([base.get_layer(work.cut).output] if work.epochs[1] else [])
    return keras.Model(base.input, taps)


def features(work: Workload, prefix: Any, x: np.ndarray) -> list[np.ndarray]:
    """Returns the features of each phase."""
    part = prefix.predict(x, batch_size=work.batch, verbose=0)
    return part if isinstance(part, list) else [part]


def fit_tails(work: Workload, base: Any, parts: Any, targets: Any, ends: EpochTimes) -> None:
    """Fits each phase's tail on the features of the training and the validation rows."""
    head_layers = work.head()
    head = compiled(keras.Sequential([keras.Input(base.output_shape[1:]), *head_layers]))
    sets = [(part[0], y) for part, y in zip(parts, targets, strict=True)]
    fit(head, *sets, work.batch, work.epochs[0], [ends])
    if work.epochs[1]:
        names = [layer.name for layer in base.layers]
        behind = base.layers[names.index(work.cut) + 1 :]
        sets = [(part[1], y) for part, y in zip(parts, targets, strict=True)]
        tail = [keras.Input(sets[0][0].shape[1:]), *behind, *head_layers]
        fit(compiled(keras.Sequential(tail)), *sets, work.batch, work.epochs[1], [ends])


def steady(work: Workload, prefix: float, epochs: list[float]) -> float:
    """Returns L from medians: the prefix of the training rows, and the epochs of each phase."""
    total = prefix * sum(work.rows) / work.rows[0]
    first, second = epochs[: work.epochs[0]], epochs[work.epochs[0] :]
    return total + sum(len(part) * statistics.median(part) for part in (first, second) if part)


def ours(work: Workload, train: Any, val: Any) -> dict[str, Any]:
    cache = BottleneckCache(verbose=0)
    logs = one_fit(work, train, val, cache)
    assert cache.stats.enabled, cache.stats.reason
    assert cache.stats.base_passes == 1.0
    return logs


def one_fit(work: Workload, train: Any, val: Any, cache: BottleneckCache) -> dict[str, Any]:
    """Runs both phases in one `fit`."""
    callbacks: list[Any] = [FreezeBase("base"), cache]
    model = work.model()
    if work.epochs[1]:
        names = [layer.name for layer in model.get_layer("base").layers]
        behind = names[names.index(work.cut) + 1]
        stages = {work.epochs[0]: f"{behind}:"}
        callbacks.append(GradualUnfreeze(stages, optimizer="reset", verbose=0))
    return fit(model, train, val, work.batch, sum(work.epochs), callbacks)


class EpochTimes(keras.callbacks.Callback):
    """Records the seconds of each epoch, including its validation."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seconds.append(time.perf_counter() - self.began)


@dataclass
class Shuffles:
    """Whether each `fit` shuffles. Without, two fits and one get the same batches."""

    on: bool = False


shuffles = Shuffles()


def fit(model: Any, train: Any, val: Any, batch: int, epochs: int, callbacks: Any = ()) -> Any:
    done = model.fit(
        *train,
        validation_data=val,
        batch_size=batch,
        epochs=epochs,
        shuffle=shuffles.on,
        verbose=0,
        callbacks=list(callbacks),
    )
    return done.history


def joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    return {key: values + second.get(key, []) for key, values in first.items()}


PATHS = {"stock": stock, "by hand": by_hand, "limit": limit, "ours": ours}


def measure(work: Workload, repeats: int, names: list[str], once: list[str]) -> dict[str, Any]:
    """Returns the seconds of each path, and how far our History is from stock Keras'."""
    train, val = work.data()
    paths = {name: path for name, path in PATHS.items() if name in names}
    seconds: dict[str, list[float]] = {name: [] for name in (*paths, "steady")}
    results: dict[str, Any] = {}
    for repeat in range(repeats):
        due = [name for name in paths if repeat == 0 or name not in once]
        for name in due[:: 1 if repeat % 2 == 0 else -1]:
            keras.backend.clear_session()
            gc.collect()
            start = time.perf_counter()
            results[name] = paths[name](work, train, val)
            took = time.perf_counter() - start
            if name == "limit":
                took -= results[name]["extra"]
                seconds["steady"].append(results[name]["steady"])
            seconds[name].append(took)
    both = "stock" in results and "ours" in results
    far = difference(results["stock"], results["ours"]) if both else float("nan")
    return {"seconds": seconds, "difference": far}


def difference(a: dict[str, list[float]], b: dict[str, list[float]]) -> float:
    """Returns the largest difference of any loss or accuracy in any epoch."""
    return max(float(np.abs(np.subtract(a[key], b[key])).max()) for key in a)


def ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Returns medians, over the repeats, of the ratios within each repeat."""

    def ratio(above: str) -> float:
        pairs = list(zip(seconds.get(above, []), seconds.get("ours", []), strict=False))
        return statistics.median(a / b for a, b in pairs) if pairs else float("nan")

    return {name: ratio(name) for name in ("stock", "by hand", "limit", "steady")}


def show(name: str, work: Workload, result: dict[str, Any]) -> None:
    middle = {path: float("nan") for path in (*PATHS, "steady")}
    middle |= {path: statistics.median(v) for path, v in result["seconds"].items() if v}
    over = ratios(result["seconds"])
    print(
        f"{name:<22} {middle['stock']:8.1f} {middle['by hand']:8.1f} {middle['limit']:8.1f} "
        f"{middle['steady']:8.1f} {middle['ours']:8.1f} {over['stock']:8.2f} {over['limit']:8.2f} "
        f"{over['steady']:8.2f} {result['difference']:12.1e}",
        flush=True,
    )


def plot(results: dict[str, Any], path: Path) -> None:
    """Draws bars of the seconds relative to stock Keras, in a group for each workload."""
    from matplotlib import pyplot

    names = [name for name in results if name in WORKLOADS]
    paths = [path for path in PATHS if path in results[names[0]]["seconds"]]
    figure, axes = pyplot.subplots(figsize=(1.8 + 1.8 * len(names), 3.6))
    for index, side in enumerate(paths):
        middle = [statistics.median(results[name]["seconds"][side]) for name in names]
        whole = [statistics.median(results[name]["seconds"]["stock"]) for name in names]
        heights = [a / b for a, b in zip(middle, whole, strict=True)]
        bars = axes.bar(np.arange(len(names)) + 0.2 * (index - 1.5), heights, 0.19, label=side)
        axes.bar_label(bars, [f"{value:.0f} s" for value in middle], fontsize=7)
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_ylabel("time / stock Keras")
    axes.set_title(f"{results['machine']['backend']}, {results['machine']['device']}", fontsize=9)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Reads the options, measures, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a quarter of the rows, fewer epochs")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--paths", nargs="+", choices=list(PATHS), default=list(PATHS))
    once = "paths that run in the first repeat alone, as they take long"
    parser.add_argument("--once", nargs="+", choices=list(PATHS), default=[], help=once)
    shuffle = "shuffle as Keras does by default; two fits and one then get other batches"
    parser.add_argument("--shuffle", action="store_true", help=shuffle)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    shuffles.on = options.shuffle
    if options.plot and "stock" not in options.paths:
        parser.error("--plot shows times relative to the path 'stock': put it into --paths")
    results: dict[str, Any] = {"machine": machine(), "repeats": options.repeats}
    print(" ".join(f"{key}={value}" for key, value in machine().items()))
    print(
        f"{'seconds':<22} {'stock':>8} {'by hand':>8} {'limit L':>8} {'steady':>8} {'ours':>8} "
        f"{'stock/':>8} {'eta=L/':>8} {'steady/':>8} {'difference':>12}"
    )
    for name in options.only:
        work = WORKLOADS[name].small() if options.small else WORKLOADS[name]
        results[name] = measure(work, options.repeats, options.paths, options.once)
        show(name, work, results[name])
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
