"""A head on images that are read from files: stock Keras, the exact cache, and one recorded view.

    KERAS_BACKEND=jax python benchmarks/files.py [--small] [--repeats 3] [--paths stock exact views]
                                                 [--readers keras torch] [--workers 0]
                                                 [--once stock] [--output FILE.json]

2,000 JPEG files of 500x400 pixels, made on the spot, are resized to 160x160. A Dense layer is
trained for 10 epochs on a frozen MobileNetV2, with batches of 32, shuffled anew in each epoch. All
paths run in one process, in turns, each with a fresh model, equal weights and a fresh reader. A
path's time is the wall time of the whole run, including tracing and compiling.

- stock: the files are read, and the frozen base runs, in each epoch.
- exact: `BottleneckCache()` knows images by their content. It reads the files in each epoch, and
  runs the base in the first.
- views: `BottleneckCache(views=1)` reads the files and runs the base in the first epoch alone.

Readers:

- keras: `keras.utils.image_dataset_from_directory`, which needs TensorFlow on each backend.
- torch: a PyTorch DataLoader over the files, which reads them with Pillow. On PyTorch only;
  `--workers` sets its number of processes.

The aim: one view runs at least 5 times as fast as stock Keras on two CPU cores.

The images are sums of seeded noise of several sizes, which take about as long to read as photos.
The operating system keeps the files in memory. There is no validation. The weights are random: the
benchmark measures only time.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
from machine import machine
from PIL import Image

from keras_freeze import BottleneckCache, FreezeBase

CLASSES = 4
PATHS = ("stock", "exact", "views")


@dataclass(frozen=True)
class Workload:
    """A workload.

    Attributes:
        make: makes the base.
        files: number of files.
        pixels: width and height of the images in the files.
        size: width and height of the images that the model gets.
        batch: batch size.
        epochs: number of epochs.
    """

    make: Callable[..., Any]
    files: int
    pixels: tuple[int, int]
    size: int
    batch: int
    epochs: int

    def model(self) -> Any:
        keras.utils.set_random_seed(0)
        shape = (self.size, self.size, 3)
        base = self.make(
            weights=None, include_top=False, input_shape=shape, pooling="avg", name="base"
        )
        scale = keras.layers.Rescaling(1 / 127.5, -1)
        head = keras.layers.Dense(CLASSES, activation="softmax")
        return keras.Sequential([keras.Input(shape), scale, base, head])


def few_layers(*, input_shape: tuple[int, ...], name: str, **_: Any) -> Any:
    """Returns a base that takes no time."""
    layers = [keras.layers.Conv2D(8, 3), keras.layers.GlobalAveragePooling2D()]
    return keras.Sequential([keras.Input(input_shape), *layers], name=name)


WORKLOAD = Workload(keras.applications.MobileNetV2, 2000, (500, 400), 160, 32, 10)
SMALL = Workload(few_layers, 24, (50, 40), 16, 8, 3)


def write_files(work: Workload, folder: Path) -> None:
    """Writes the JPEG files, in a folder for each class."""
    rng = np.random.default_rng(0)
    width, height = work.pixels
    for index in range(work.files):
        pixels = np.full((height, width, 3), 128.0)
        for coarse in (100, 25, 6, 1):
            shape = (height // coarse + 1, width // coarse + 1, 3)
            noise = Image.fromarray(rng.integers(0, 256, shape, dtype="uint8"))
            smooth = noise.resize((width, height), Image.Resampling.BICUBIC)
            pixels += (np.asarray(smooth) - 128.0) * (0.5 if coarse > 1 else 0.05)
        path = folder / str(index % CLASSES) / f"{index:05}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype("uint8")).save(path, quality=85)


class ImageFiles:
    """A map-style dataset of PyTorch: images, read with Pillow, and their classes."""

    def __init__(self, folder: Path, size: int) -> None:
        self.paths, self.size = sorted(folder.glob("*/*.jpg")), size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        path = self.paths[index]
        with Image.open(path) as image:
            small = image.convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR)
        return np.asarray(small, "float32"), int(path.parent.name)


def read_by_keras(work: Workload, folder: Path, workers: int) -> Any:
    return keras.utils.image_dataset_from_directory(
        folder, image_size=(work.size, work.size), batch_size=work.batch, seed=0, verbose=False
    )


def read_by_torch(work: Workload, folder: Path, workers: int) -> Any:
    from torch.utils.data import DataLoader

    files: Any = ImageFiles(folder, work.size)
    return DataLoader(files, work.batch, shuffle=True, num_workers=workers)


READERS = {"keras": read_by_keras, "torch": read_by_torch}


def run(path: str, work: Workload, data: Any) -> None:
    model = work.model()
    callbacks: list[Any] = []
    cache = BottleneckCache(views=1, verbose=0) if path == "views" else BottleneckCache(verbose=0)
    if path == "stock":
        model.get_layer("base").trainable = False
    else:
        callbacks = [FreezeBase("base", verbose=0), cache]
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(data, epochs=work.epochs, verbose=0, callbacks=callbacks)
    if path != "stock":
        assert cache.stats.enabled, cache.stats.reason
        assert cache.stats.base_passes == 1.0
    if path == "views":
        assert cache.stats.pulled == -(-work.files // work.batch)


def measure(work: Workload, reader: str, folder: Path, options: Any) -> dict[str, Any]:
    """Returns the seconds of each path, and the ratios of stock Keras to it."""
    seconds: dict[str, list[float]] = {path: [] for path in options.paths}
    for repeat in range(options.repeats):
        due = [path for path in options.paths if repeat == 0 or path not in options.once]
        for path in due[:: 1 if repeat % 2 == 0 else -1]:
            keras.backend.clear_session()
            gc.collect()
            start = time.perf_counter()
            run(path, work, READERS[reader](work, folder, options.workers))
            seconds[path].append(time.perf_counter() - start)
            print(f"{reader:<6} {path:<6} {seconds[path][-1]:8.1f} s", flush=True)
    return {"seconds": seconds, "ratios": ratios(seconds)}


def ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Returns medians, over the repeats, of the ratios of stock Keras to ours in each."""
    found = {}
    for path in seconds:
        pairs = list(zip(seconds.get("stock", []), seconds[path], strict=False))
        found[path] = statistics.median(a / b for a, b in pairs) if pairs else float("nan")
    return found


def reading(work: Workload, reader: str, folder: Path, workers: int) -> float:
    """Returns the seconds of reading all files once, without a model."""
    data = READERS[reader](work, folder, workers)
    start = time.perf_counter()
    for _ in data:
        pass
    return time.perf_counter() - start


def main(arguments: list[str] | None = None) -> None:
    """Reads the options, writes the files, measures, and prints a table."""
    on_torch = keras.backend.backend() == "torch"
    readers = list(READERS) if on_torch else ["keras"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="few small images: takes seconds")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=list(PATHS))
    parser.add_argument("--readers", nargs="+", choices=readers, default=readers)
    workers = "processes of PyTorch's DataLoader"
    parser.add_argument("--workers", type=int, default=0, help=workers)
    once = "paths that run in the first repeat alone, as they take long"
    parser.add_argument("--once", nargs="+", choices=PATHS, default=[], help=once)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    work = SMALL if options.small else WORKLOAD
    results: dict[str, Any] = {"machine": machine(), "repeats": options.repeats}
    print(" ".join(f"{key}={value}" for key, value in machine().items()))
    with TemporaryDirectory() as place:
        write_files(work, Path(place))
        for reader in options.readers:
            results[reader] = measure(work, reader, Path(place), options)
            results[reader]["reading"] = reading(work, reader, Path(place), options.workers)
    show({reader: results[reader] for reader in options.readers})
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")


def show(results: dict[str, Any]) -> None:
    print(f"{'reader':<8} {'path':<8} {'seconds':>8} {'stock/':>8}")
    for reader, result in results.items():
        for path, values in result["seconds"].items():
            middle, ratio = statistics.median(values), result["ratios"][path]
            print(f"{reader:<8} {path:<8} {middle:8.1f} {ratio:8.2f}")
        print(f"{reader:<8} {'reading all files once':<18} {result['reading']:.1f} s")


if __name__ == "__main__":
    main()
