"""Seconds an epoch on the device at hand: stock Keras, ours, features by hand, and the limit.

    KERAS_BACKEND=jax python benchmarks/device.py [--only vgg19_64 resnet50_224] [--policy NAME]
                                                  [--sources arrays PyDataset files]
                                                  [--small] [--output FILE.json]

For a machine with a GPU, JAX or PyTorch; a run takes a few minutes. It also runs on a CPU. Times
are medians of a phase's epochs without the first, in which functions are compiled.

- stock: two `fit` calls with `compile` in between.
- ours: one `fit` with FreezeBase, GradualUnfreeze and BottleneckCache.
- by hand: `fit` of each phase's tail on its features, arrays in host memory.
- limit (JAX): all steps of an epoch in one compiled call, on features that are on the device.

The sources of the images: arrays; a PyDataset; JPEG files through `image_dataset_from_directory`
(a DataLoader on PyTorch). Images are random, so accuracy means nothing. *difference* is the largest
difference of a loss between stock Keras and ours; files are shuffled anew in each `fit`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
import keras
import numpy as np
from machine import machine
from two_phase import EpochTimes, Workload, compiled

from keras_freeze import BottleneckCache, FreezeBase, GradualUnfreeze

A = keras.applications
WORKLOADS = {
    "resnet50_224": Workload(A.ResNet50, 224, (1536, 512), 64, (5, 5), "conv4_block6_out"),
    "vgg19_64": Workload(A.VGG19, 64, (540, 200), 20, (5, 5), "block4_pool", None),
}


class Batches(keras.utils.PyDataset):
    """The batches of arrays."""

    def __init__(self, x: Any, y: Any, batch: int):
        super().__init__()
        self.x, self.y, self.batch = x, y, batch

    def __len__(self) -> int:
        return -(-len(self.x) // self.batch)

    def __getitem__(self, index: int) -> Any:
        rows = slice(index * self.batch, (index + 1) * self.batch)
        return self.x[rows], self.y[rows]


def of_arrays(work: Workload, folder: Path) -> Any:
    train, held_out = work.data()
    return {"x": train[0], "y": train[1], "batch_size": work.batch, "validation_data": held_out}


def of_batches(work: Workload, folder: Path) -> Any:
    train, held_out = (Batches(*each, work.batch) for each in work.data())
    return {"x": train, "validation_data": held_out}


def of_files(work: Workload, folder: Path) -> Any:
    """Writes the images as JPEG files, and reads them as the backend's users do."""
    sets = []
    for name, (x, y) in zip(("train", "held_out"), work.data(), strict=True):
        for row, (image, label) in enumerate(zip(x, y, strict=True)):
            path = folder / name / str(int(label[0])) / f"{row}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            keras.utils.save_img(path, image)
        read = _with_torch if keras.backend.backend() == "torch" else _with_keras
        sets.append(read(folder / name, work))
    return {"x": sets[0], "validation_data": sets[1]}


def _with_keras(folder: Path, work: Workload) -> Any:
    size, shuffle = (work.size, work.size), folder.name == "train"
    options = {"label_mode": "binary", "batch_size": work.batch, "image_size": size}
    return keras.utils.image_dataset_from_directory(folder, shuffle=shuffle, seed=0, **options)


def _with_torch(folder: Path, work: Workload) -> Any:
    import torch

    class Files(torch.utils.data.Dataset):
        def __init__(self) -> None:
            self.paths = sorted(folder.rglob("*.jpg"))

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, index: int) -> Any:
            image = keras.utils.img_to_array(keras.utils.load_img(self.paths[index]))
            return image, np.array([float(self.paths[index].parent.name)], "float32")

    return torch.utils.data.DataLoader(Files(), work.batch, shuffle=folder.name == "train")


SOURCES: dict[str, Callable[[Workload, Path], Any]] = {
    "arrays": of_arrays,
    "PyDataset": of_batches,
    "files": of_files,
}


def fit(model: Any, data: Any, epochs: int, callbacks: list[Any]) -> list[float]:
    keras.utils.set_random_seed(2)
    options = {"epochs": epochs, "verbose": 0, "callbacks": callbacks}
    shuffle = {"shuffle": False} if "y" in data or isinstance(data["x"], Batches) else {}
    losses: list[float] = model.fit(**data, **options, **shuffle).history["loss"]
    return losses


def later_layers(work: Workload, base: Any) -> tuple[list[str], str]:
    """Returns the names of the base's layers, and the selector of the second phase."""
    names = [layer.name for layer in base.layers]
    return names, f"{names[names.index(work.cut) + 1]}:"


def stock(work: Workload, data: Any, ends: EpochTimes) -> list[float]:
    model = work.model()
    base = model.get_layer("base")
    names, _ = later_layers(work, base)
    base.trainable = False
    losses = fit(compiled(model), data, work.epochs[0], [ends])
    base.trainable = True
    for layer in base.layers:
        is_frozen = isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = names.index(layer.name) > names.index(work.cut) and not is_frozen
    return losses + fit(compiled(model), data, work.epochs[1], [ends])


def ours(work: Workload, data: Any, ends: EpochTimes) -> tuple[list[float], Any]:
    model = work.model()
    _, selector = later_layers(work, model.get_layer("base"))
    cache = BottleneckCache(verbose=0)
    unfreeze = GradualUnfreeze({work.epochs[0]: selector}, optimizer="reset", verbose=0)
    callbacks = [FreezeBase("base"), unfreeze, cache, ends]
    return fit(model, data, sum(work.epochs), callbacks), cache.stats


def tails(work: Workload) -> list[tuple[Any, Any]]:
    """Returns (features, model) of each phase."""
    base, (train, held_out) = work.base(), work.data()
    taps = [base.output, base.get_layer(work.cut).output]
    prefix = keras.Model(base.input, taps)
    parts = [prefix.predict(x, batch_size=work.batch, verbose=0) for x, _ in (train, held_out)]
    found = []
    for place, tap in enumerate(taps):
        middle = [keras.Model(tap, base.output)] if place else []
        tail = keras.Sequential([keras.Input(tap.shape[1:]), *middle, *work.head()])
        sets = {"x": parts[0][place], "y": train[1], "batch_size": work.batch}
        sets["validation_data"] = parts[1][place], held_out[1]
        found.append((sets, compiled(tail)))
    return found


def by_hand(work: Workload, ends: EpochTimes) -> None:
    for phase, (sets, model) in enumerate(tails(work)):
        fit(model, sets, work.epochs[phase], [ends])


def limit(work: Workload) -> list[float]:
    """Returns the seconds of an epoch of each phase: training and validation, two calls."""
    return [_limit_of_phase(sets, model, work.batch) for sets, model in tails(work)]


def _limit_of_phase(sets: Any, model: Any, batch: int) -> float:
    import jax

    model.optimizer.build(model.trainable_variables)
    variables = model.trainable_variables, model.non_trainable_variables
    state = [[v.value for v in each] for each in (*variables, model.optimizer.variables)]

    def loss_of(trainable: Any, others: Any, x: Any, y: Any) -> Any:
        scores, others = model.stateless_call(trainable, others, x, training=True)
        return keras.losses.binary_crossentropy(y, scores).mean(), others

    def step(state: Any, data: Any) -> Any:
        trainable, others, slots = state
        gradients = jax.value_and_grad(loss_of, has_aux=True)
        (loss, others), grads = gradients(trainable, others, *data)
        trainable, slots = model.optimizer.stateless_apply(slots, grads, trainable)
        return (trainable, others, slots), loss

    @jax.jit
    def epoch(state: Any, x: Any, y: Any, order: Any) -> Any:
        return jax.lax.scan(lambda state, rows: step(state, (x[rows], y[rows])), state, order)

    @jax.jit
    def validation(state: Any, x: Any, y: Any) -> Any:
        return jax.lax.map(lambda data: loss_of(state[0], state[1], *data)[0], (x, y))

    x, y = jax.device_put(sets["x"]), jax.device_put(sets["y"])
    held_out = [_in_batches(jax.device_put(each), batch) for each in sets["validation_data"]]
    order = _in_batches(np.arange(len(y)), batch)
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        state, _losses = epoch(tuple(state), x, y, order)
        jax.block_until_ready((state, validation(tuple(state), *held_out)))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def _in_batches(array: Any, batch: int) -> Any:
    full = len(array) // batch
    return array[: full * batch].reshape(full, batch, *array.shape[1:])


def phases(work: Workload, ends: EpochTimes) -> list[float]:
    """Returns the median seconds of an epoch in each phase, without the first one."""
    first = work.epochs[0]
    return [statistics.median(ends.seconds[1:first]), statistics.median(ends.seconds[first + 1 :])]


def fresh() -> EpochTimes:
    keras.backend.clear_session()
    gc.collect()
    return EpochTimes()


def compare(work: Workload, source: str) -> dict[str, Any]:
    """Runs stock Keras and ours on one source of images."""
    with tempfile.TemporaryDirectory() as folder:
        data = SOURCES[source](work, Path(folder))
        ends = fresh()
        expected = stock(work, data, ends)
        result: dict[str, Any] = {"stock": phases(work, ends)}
        ends = fresh()
        losses, stats = ours(work, data, ends)
    result |= {"ours": phases(work, ends), "first epochs": ends.seconds[:: work.epochs[0]]}
    result["difference"] = float(np.abs(np.subtract(expected, losses)).max())
    result["cache"] = stats.reason or f"{stats.base_passes:.2f} passes, {stats.grouped} grouped"
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--sources", nargs="+", choices=list(SOURCES), default=list(SOURCES))
    parser.add_argument("--policy", help="such as mixed_bfloat16")
    parser.add_argument("--small", action="store_true", help="a quarter of the rows")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.policy:
        keras.config.set_dtype_policy(options.policy)
    results: dict[str, Any] = {"machine": machine(), "policy": options.policy or "float32"}
    print(results["machine"], results["policy"], flush=True)
    for name in options.only:
        work = WORKLOADS[name].small() if options.small else WORKLOADS[name]
        results[name] = {}
        for source in options.sources:
            results[name][source] = compare(work, source)
            print(name, source, results[name][source], flush=True)
        ends = fresh()
        by_hand(work, ends)
        results[name]["by hand"] = phases(work, ends)
        if keras.backend.backend() == "jax":
            fresh()
            results[name]["limit"] = limit(work)
        print(name, {key: results[name].get(key) for key in ("by hand", "limit")}, flush=True)
    if options.output:
        options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
