"""Features on disk: a cold and a warm run, a sweep over heads, and JPEG files.

    KERAS_BACKEND=jax python benchmarks/disk.py [--small] [--repeats 3]
                                                [--parts runs sweep files] [--trials 20]
                                                [--stock-trials 20] [--output FILE.json]

All paths of a part run in one process, in turns, each with fresh models and equal weights. A time
is the wall time of a whole run, including tracing and compiling. The images are seeded noise and
the weights are random: the benchmark measures time, and checks that the History stays the same.

runs: VGG19 at 64x64, 540 training and 200 validation images, batches of 20, 5 epochs of the head
and 5 of fine-tuning from block5 on, as in two_phase.py.

- limit L: each frozen part runs once for each image, and all epochs run on features in memory.
- tails: the part of L after the features were computed.
- memory: `BottleneckCache()`.
- cold: `BottleneckCache(directory=...)` in a new directory.
- warm: the same again, with all features there.

The aims: L / cold >= 0.8 and warm / tails <= 1.15.

sweep: 20 trials of a head (units, dropout, learning rate) on the same base and images, 10 epochs
each. Every trial builds the whole model, as a tuner does.

- stock: a frozen base.
- by hand: the features are computed once by `predict`; a trial builds and fits the head alone.
- ours: `BottleneckCache(directory=...)` in a new directory.

The aim: stock / ours >= 10. `--stock-trials` runs fewer trials of stock Keras, each of which takes
the same time, and counts them up.

files (on TensorFlow): 2,000 JPEG files of 500x400 pixels through `image_dataset_from_directory`, a
Dense layer on a frozen MobileNetV2 at 160x160, 10 epochs, as in files.py.

- stock: the files are read in each epoch.
- tf cache: stock Keras with `dataset.cache(file)`, which keeps decoded images on disk.
- cold, warm: `BottleneckCache(directory=...)`, which reads the files in each epoch.
- view cold, view warm: `BottleneckCache(views=1, directory=..., data="files")`; warm reads no file.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import files
import keras
import two_phase
from machine import machine

from keras_freeze import BottleneckCache, FreezeBase

L = keras.layers
PARTS = ("runs", "sweep", "files")
Seconds = dict[str, list[float]]


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Returns the seconds that a function takes, and what it returns."""
    keras.backend.clear_session()
    gc.collect()
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


# Cold and warm runs


def measure_runs(work: Any, repeats: int) -> dict[str, Any]:
    """Returns the seconds of each path, and the largest difference of any History."""
    train, val = work.data()
    seconds: Seconds = {name: [] for name in ("limit", "tails", "memory", "cold", "warm")}
    far = 0.0
    for _ in range(repeats):
        with TemporaryDirectory() as folder:
            kept = Path(folder) / "features"
            took, tails = timed(lambda: limit(work, train, val))
            seconds["limit"].append(took)
            seconds["tails"].append(tails)
            logs = []
            for name in ("memory", "cold", "warm"):
                cache = BottleneckCache(directory=None if name == "memory" else kept, verbose=0)
                took, done = timed(
                    lambda cache=cache: two_phase.one_fit(work, train, val, cache)  # type: ignore
                )
                assert cache.stats.base_passes == (0.0 if name == "warm" else 1.0)
                seconds[name].append(took)
                logs.append(done)
            far = max(far, *(two_phase.difference(logs[0], each) for each in logs[1:]))
    return {"seconds": seconds, "difference": far}


def limit(work: Any, train: Any, val: Any) -> float:
    """Runs both phases on features; returns the seconds after these were computed."""
    base = work.base()
    prefix = two_phase.prefix_of(work, base)
    parts = [two_phase.features(work, prefix, x) for x, _ in (train, val)]
    start = time.perf_counter()
    times = two_phase.EpochTimes()
    two_phase.fit_tails(work, base, parts, (train[1], val[1]), times)
    return time.perf_counter() - start


# A sweep


def trials(count: int) -> list[dict[str, float]]:
    """Returns the settings of the head in each trial."""
    grid = itertools.product((64, 128, 256), (0.0, 0.2, 0.5), (1e-3, 3e-4, 1e-4))
    return [dict(zip(("units", "dropout", "rate"), each, strict=True)) for each in grid][:count]


def head(trial: dict[str, float]) -> list[Any]:
    hidden = L.Dense(int(trial["units"]), activation="relu")
    return [L.Flatten(), hidden, L.Dropout(trial["dropout"], seed=0), L.Dense(1, "sigmoid")]


def fit_trial(model: Any, trial: dict[str, float], sets: Any, work: Any, callbacks: Any) -> Any:
    optimizer = keras.optimizers.Adam(trial["rate"])
    model.compile(optimizer, "binary_crossentropy", metrics=["accuracy"])
    options = {"batch_size": work.batch, "epochs": work.epochs[0], "verbose": 0}
    done = model.fit(*sets[0], validation_data=sets[1], callbacks=callbacks, **options)
    return done.history


def whole_model(work: Any, trial: dict[str, float]) -> Any:
    base = work.base()
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input(base.input_shape[1:]), base, *head(trial)])


def stock_sweep(work: Any, sets: Any, chosen: Any) -> list[Any]:
    logs = []
    for trial in chosen:
        model = whole_model(work, trial)
        model.get_layer("base").trainable = False
        logs.append(fit_trial(model, trial, sets, work, []))
    return logs


def sweep_by_hand(work: Any, sets: Any, chosen: Any) -> list[Any]:
    base = work.base()
    made = [(base.predict(x, batch_size=work.batch, verbose=0), y) for x, y in sets]
    logs = []
    for trial in chosen:
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input(base.output_shape[1:]), *head(trial)])
        logs.append(fit_trial(model, trial, made, work, []))
    return logs


def our_sweep(work: Any, sets: Any, chosen: Any, kept: Path) -> list[Any]:
    logs = []
    for number, trial in enumerate(chosen):
        cache = BottleneckCache(directory=kept, verbose=0)
        callbacks = [FreezeBase("base", verbose=0), cache]
        logs.append(fit_trial(whole_model(work, trial), trial, sets, work, callbacks))
        assert cache.stats.base_passes == (0.0 if number else 1.0)
    return logs


def measure_sweep(work: Any, repeats: int, count: int, stock: int) -> dict[str, Any]:
    """Returns the seconds of each path, and the largest difference of any History."""
    sets, chosen = work.data(), trials(count)
    seconds: Seconds = {name: [] for name in ("stock", "by hand", "ours")}
    far = 0.0
    for repeat in range(repeats):
        with TemporaryDirectory() as folder:
            kept = Path(folder) / "features"
            took, ours = timed(lambda: our_sweep(work, sets, chosen, kept))  # noqa: B023
            seconds["ours"].append(took)
            seconds["by hand"].append(timed(lambda: sweep_by_hand(work, sets, chosen))[0])
            if repeat == 0:
                took, logs = timed(lambda: stock_sweep(work, sets, chosen[:stock]))
                seconds["stock"].append(took * count / len(logs))
                far = max(two_phase.difference(*pair) for pair in zip(logs, ours, strict=False))
    return {"seconds": seconds, "difference": far, "stock trials": stock}


# Files


def measure_files(work: Any, repeats: int) -> dict[str, Any]:
    """Returns the seconds of each path."""
    names = ("stock", "tf cache", "cold", "warm", "view cold", "view warm")
    seconds: Seconds = {name: [] for name in names}
    with TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        images.mkdir()
        files.write_files(work, images)
        for repeat in range(repeats):
            for kept in (Path(folder) / "features", Path(folder) / "views"):
                shutil.rmtree(kept, ignore_errors=True)
            for name in names:
                if repeat and name in ("stock", "tf cache"):
                    continue
                took, _ = timed(lambda name=name: run_files(name, work, images, Path(folder)))  # type: ignore
                seconds[name].append(took)
                print(f"files  {name:<10} {took:8.1f} s", flush=True)
    return {"seconds": seconds}


def run_files(name: str, work: Any, images: Path, folder: Path) -> None:
    data = files.read_by_keras(work, images, 0)
    if name == "tf cache":
        data = data.cache(str(folder / "decoded"))
    model, callbacks, passes = work.model(), [], 0.0 if name.endswith("warm") else 1.0
    cache = None
    if name in ("stock", "tf cache"):
        model.get_layer("base").trainable = False
    elif name.startswith("view"):
        cache = BottleneckCache(views=1, directory=folder / "views", data="files", verbose=0)
    else:
        cache = BottleneckCache(directory=folder / "features", verbose=0)
    if cache is not None:
        callbacks = [FreezeBase("base", verbose=0), cache]
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(data, epochs=work.epochs, verbose=0, callbacks=callbacks)
    assert cache is None or cache.stats.base_passes == passes, cache.stats


def show(part: str, result: dict[str, Any]) -> None:
    middle = {name: statistics.median(took) for name, took in result["seconds"].items() if took}
    print(part, " ".join(f"{name} {took:.2f} s" for name, took in middle.items()), end="")
    if part == "runs":
        print(f"; L/cold {middle['limit'] / middle['cold']:.2f}", end="")
        print(f", warm/tails {middle['warm'] / middle['tails']:.2f}", end="")
    elif part == "sweep":
        for name in ("stock", "by hand"):
            print(f"; {name}/ours {middle[name] / middle['ours']:.2f}", end="")
    if "difference" in result:
        print(f"; difference {result['difference']:.1e}", end="")
    print(flush=True)


def small_base(*, input_shape: tuple[int, ...], name: str, **_: Any) -> Any:
    """Returns a base that takes no time."""
    images = keras.Input(input_shape)
    cut = L.Conv2D(4, 3, name="block4_pool")(images)
    return keras.Model(images, L.Conv2D(4, 3, name="block5_conv1")(cut), name=name)


SMALL = two_phase.Workload(small_base, 16, (24, 8), 4, (2, 2), "block4_pool", None)


def main(arguments: list[str] | None = None) -> None:
    """Reads the options, measures, and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="few small images: takes seconds")
    parser.add_argument("--repeats", type=int, default=3)
    on_tensorflow = keras.backend.backend() == "tensorflow"
    parts = PARTS if on_tensorflow else PARTS[:2]
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--stock-trials", type=int, default=20)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    work = SMALL if options.small else two_phase.WORKLOADS["vgg19_64"]
    results: dict[str, Any] = {"machine": machine(), "repeats": options.repeats}
    print(" ".join(f"{key}={value}" for key, value in machine().items()), flush=True)
    for part in options.parts:
        if part == "runs":
            results[part] = measure_runs(work, options.repeats)
        elif part == "sweep":
            ten = two_phase.replace(work, epochs=(2 if options.small else 10, 0))
            stock = min(options.stock_trials, options.trials)
            results[part] = measure_sweep(ten, options.repeats, options.trials, stock)
        else:
            images = files.SMALL if options.small else files.WORKLOAD
            results[part] = measure_files(images, options.repeats)
        show(part, results[part])
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
