"""A two-phase run with live augmentation: stock Keras, recorded views, and the limit.

    KERAS_BACKEND=jax python benchmarks/augmented.py [--small] [--repeats 3] [--views 1 3 5]
                                                     [--paths stock limit views] [--once stock]
                                                     [--output FILE.json]

VGG19 on 64x64 images: 10 epochs of a head on the frozen base, then 10 epochs of fine-tuning from
`block5_conv1` on. Random layers in front of the base rotate, shift, shear, zoom and flip each image
anew in each epoch. All paths run in one process, in turns, each with a fresh model and equal
weights. A path's time is its wall time, including tracing and compiling.

- stock: two `fit` calls with `compile` in between, augmented in each epoch.
- views K: one `fit` with FreezeBase, GradualUnfreeze and BottleneckCache(views=K). The first K
  epochs are augmented and recorded, the others are trained on the recordings.
- limit L_K: what a careful user would write by hand: K times, the images are augmented and run
  through the frozen part (`predict`), validation images once; then a `fit` of each phase's tail on
  features in memory. All its epochs use one view here: another view takes the same time.

eta_K = L_K / ours: at 1, ours takes the time of the hand-written pipeline; above 1, it is faster.
`steady` is L_K from the median pass and the median epochs, without tracing or compiling.

Keras compiles a step neither by `jax.jit` nor by XLA if a layer of the model, such as
RandomRotation, says that it can't be (`supports_jit`). So stock Keras runs all layers one by one on
JAX. The limit's augmentation is a model of its own; its other steps are compiled.

The aim: 3 views run at least 3.5 times as fast as stock Keras, and eta is at least 1.

Inputs are seeded random images, and the weights are random. The benchmark measures only time. What
recorded views cost in accuracy is in views_accuracy.py.
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
import two_phase
from machine import machine
from two_phase import EpochTimes, Workload

from keras_freeze import BottleneckCache

VIEWS = (1, 3, 5)


@dataclass(frozen=True)
class Augmented(Workload):
    """A workload with random layers in front of the base."""

    def small(self) -> Augmented:
        """Returns a workload of the same kind that takes seconds."""
        return replace(self, make=few_layers, size=16, rows=(8, 4), batch=4, epochs=(4, 2))

    def augmentation(self) -> list[Any]:
        layers = keras.layers
        return [
            layers.RandomRotation(40 / 360),
            layers.RandomTranslation(0.2, 0.2),
            layers.RandomShear(0.2, 0.2),
            layers.RandomZoom(0.2),
            layers.RandomFlip("horizontal"),
        ]

    def model(self) -> Any:
        base = self.base()
        shape = base.input_shape[1:]
        layers = [keras.Input(shape), *self.augmentation(), base, *self.head()]
        return two_phase.compiled(keras.Sequential(layers))


def few_layers(*, input_shape: tuple[int, ...], name: str, **_: Any) -> Any:
    """Returns a base with some of VGG19's names, whose layers take no time."""
    inputs = x = keras.Input(input_shape)
    for block in (4, 5):
        x = keras.layers.Conv2D(8, 3, activation="relu", name=f"block{block}_conv1")(x)
        x = keras.layers.MaxPooling2D(name=f"block{block}_pool")(x)
    return keras.Model(inputs, x, name=name)


WORKLOAD = Augmented(keras.applications.VGG19, 64, (540, 200), 20, (10, 10), "block4_pool", None)


class AlwaysOn(keras.layers.Layer):
    """Calls random layers as in training, also in `predict`.

    It says what it makes, as Keras would find out slowly on PyTorch.
    """

    def __init__(self, inner: list[Any]) -> None:
        super().__init__()
        self.inner = inner

    def call(self, inputs: Any) -> Any:
        for layer in self.inner:
            inputs = layer(inputs, training=True)
        return inputs

    def build(self, input_shape: Any) -> None:
        for layer in self.inner:
            layer.build(input_shape)

    def compute_output_spec(self, inputs: Any) -> Any:
        return keras.KerasTensor(inputs.shape, inputs.dtype)


def views_path(views: int) -> Callable[..., dict[str, float]]:
    """Returns the path with this many recorded views."""

    def ours(work: Augmented, train: Any, val: Any) -> dict[str, float]:
        cache = BottleneckCache(views=views, verbose=0)
        start = time.perf_counter()
        two_phase.one_fit(work, train, val, cache)
        took = time.perf_counter() - start
        assert cache.stats.enabled, cache.stats.reason
        assert cache.stats.views == cache.stats.base_passes == views
        assert cache.stats.replayed == sum(work.epochs) - views
        return {name_of(views): took}

    return ours


def name_of(views: int) -> str:
    return f"views {views}"


def stock(work: Augmented, train: Any, val: Any) -> dict[str, float]:
    start = time.perf_counter()
    two_phase.stock(work, train, val)
    return {"stock": time.perf_counter() - start}


def limits(work: Augmented, train: Any, val: Any, views: list[int]) -> dict[str, float]:
    """Returns the limit of each number of views, and the same without tracing or compiling."""
    began = time.perf_counter()
    base, ends = work.base(), EpochTimes()
    shape = base.input_shape[1:]
    augmented = keras.Sequential([keras.Input(shape), AlwaysOn(work.augmentation())])
    prefix = two_phase.prefix_of(work, base)
    passes, recorded = [], []
    for _ in range(max(*views, 2)):  # the first one compiles
        start = time.perf_counter()
        images = augmented.predict(train[0], batch_size=work.batch, verbose=0)
        recorded = two_phase.features(work, prefix, images)
        passes.append(time.perf_counter() - start)
    start = time.perf_counter()
    validated = two_phase.features(work, prefix, val[0])
    validation = time.perf_counter() - start
    two_phase.fit_tails(work, base, (recorded, validated), (train[1], val[1]), ends)
    rest = time.perf_counter() - began - sum(passes)
    first, second = ends.seconds[: work.epochs[0]], ends.seconds[work.epochs[0] :]
    steady = validation + sum(len(part) * statistics.median(part) for part in (first, second))
    found = {f"limit {each}": sum(passes[:each]) + rest for each in views}
    once = statistics.median(passes)
    return found | {f"steady {each}": each * once + steady for each in views}


def measure(work: Augmented, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the seconds of each path, and the ratios of the paths."""
    train, val = work.data()
    views: list[int] = options.views
    paths: dict[str, Callable[..., dict[str, float]]] = {
        "stock": stock,
        "limit": lambda work, train, val: limits(work, train, val, views),
        **{name_of(each): views_path(each) for each in views},
    }
    paths = {name: path for name, path in paths.items() if name.split()[0] in options.paths}
    seconds: dict[str, list[float]] = {}
    for repeat in range(options.repeats):
        due = [name for name in paths if repeat == 0 or name not in options.once]
        for name in due[:: 1 if repeat % 2 == 0 else -1]:
            keras.backend.clear_session()
            gc.collect()
            for key, took in paths[name](work, train, val).items():
                seconds.setdefault(key, []).append(took)
                print(f"{key:<10} {took:8.1f} s", flush=True)
    return {"seconds": seconds, "ratios": ratios(seconds, views)}


def ratios(seconds: dict[str, list[float]], views: list[int]) -> dict[str, dict[str, float]]:
    """Returns for each number of views the medians, over the repeats, of the ratios in each."""

    def ratio(above: str, views: int) -> float:
        values, ours = seconds.get(above, []), seconds.get(name_of(views), [])
        each = [a / b for a, b in zip(values, ours, strict=False)]
        return statistics.median(each) if each else float("nan")

    return {
        str(each): {
            "stock": ratio("stock", each),
            "eta": ratio(f"limit {each}", each),
            "steady": ratio(f"steady {each}", each),
        }
        for each in views
    }


def show(result: dict[str, Any]) -> None:
    def middle(name: str) -> float:
        return statistics.median(result["seconds"].get(name, [float("nan")]))

    print(
        f"{'views':>5} {'stock':>8} {'limit L':>8} {'steady':>8} {'ours':>8} {'stock/':>8} "
        f"{'eta=L/':>8} {'steady/':>8}"
    )
    for views, over in result["ratios"].items():
        print(
            f"{views:>5} {middle('stock'):8.1f} {middle(f'limit {views}'):8.1f} "
            f"{middle(f'steady {views}'):8.1f} {middle(f'views {views}'):8.1f} "
            f"{over['stock']:8.2f} {over['eta']:8.2f} {over['steady']:8.2f}"
        )


def main(arguments: list[str] | None = None) -> None:
    """Reads the options, measures, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="few small images: takes seconds")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--views", nargs="+", type=int, default=list(VIEWS))
    paths = ["stock", "limit", "views"]
    parser.add_argument("--paths", nargs="+", choices=paths, default=paths)
    once = "run stock Keras in the first repeat alone, as it takes long"
    parser.add_argument("--once", nargs="+", choices=["stock"], default=[], help=once)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    two_phase.shuffles.on = True
    work = WORKLOAD.small() if options.small else WORKLOAD
    print(" ".join(f"{key}={value}" for key, value in machine().items()))
    results: dict[str, Any] = {
        "machine": machine(),
        "repeats": options.repeats,
        "rows": work.rows,
        "epochs": work.epochs,
        **measure(work, options),
    }
    show(results)
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
