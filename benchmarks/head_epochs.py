"""Epochs of a head on cached features, against Keras' own `fit` on the same features.

    KERAS_BACKEND=jax python benchmarks/head_epochs.py [--repeats 3] [--jit] [--output FILE.json]

Both paths run in one process, in turns, with equal heads (a Dense of 10 classes), data, order and
epochs (batches of 32, Adam). Time is the median of an epoch, without the first ones, in which
functions are compiled:

- features: `fit` of the head on features in memory.
- ours: `fit` of a frozen base and the head, with `FreezeBase` and `BottleneckCache`.

The data are random. The benchmark measures only time, and whether the losses are equal.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
from machine import machine

from keras_freeze import BottleneckCache, FreezeBase

SIZES = ((540, 512, 300), (5000, 1280, 40))  # rows, features, epochs: long enough for groups
BATCH, CLASSES, PIXELS = 32, 10, 48
WORK = 60  # Dense layers of work


class Epochs(keras.callbacks.Callback):
    """Measures the seconds of each epoch, from its first hook to its last."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        float((logs or {})["loss"])  # waits for the steps that are queued on JAX
        self.seconds.append(time.perf_counter() - self.began)


def base_of(width: int) -> Any:
    """Returns a base with real work in it, but few weights: one layer is called many times."""
    inputs = keras.Input((PIXELS,))
    x, layer = keras.layers.Dense(width)(inputs), keras.layers.Dense(width, activation="tanh")
    for _ in range(WORK):
        x = layer(x)
    return keras.Model(inputs, x, name="base")


def head_on(inputs: Any, outputs: Any, jit: bool) -> Any:
    keras.utils.set_random_seed(1)
    scores = keras.layers.Dense(CLASSES, activation="softmax")(outputs)
    model = keras.Model(inputs, scores)
    compile_as = {"jit_compile": True} if jit else {}
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], **compile_as)
    return model


def timed(model: Any, x: Any, y: Any, callbacks: list[Any], **options: Any) -> Any:
    keras.utils.set_random_seed(2)
    clock = Epochs()
    history = model.fit(x, y, verbose=0, callbacks=[*callbacks, clock], **options).history
    return clock.seconds, history["loss"]


def compare(rows: int, width: int, *, shuffle: bool, epochs: int, jit: bool) -> dict[str, Any]:
    """Runs both paths once; returns seconds an epoch and the largest difference of a loss."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(rows, PIXELS)).astype("float32")
    y = generator.integers(0, CLASSES, rows)
    options = {"batch_size": BATCH, "epochs": epochs, "shuffle": shuffle}
    keras.utils.set_random_seed(0)
    base = base_of(width)
    features = base.predict(x, batch_size=BATCH, verbose=0)
    inputs = keras.Input((width,))
    by_hand, losses = timed(head_on(inputs, inputs, jit), features, y, [], **options)
    images = keras.Input((PIXELS,))
    whole = head_on(images, base(images), jit)
    callbacks = [FreezeBase(base, verbose=0), BottleneckCache(verbose=0)]
    ours, our_losses = timed(whole, x, y, callbacks, **options)
    late = slice(epochs // 2, None)
    return {
        "features": statistics.median(by_hand[late]),
        "ours": statistics.median(ours[late]),
        "difference": float(np.abs(np.subtract(losses, our_losses)).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--jit", action="store_true", help="compile with jit_compile=True")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    results = []
    for rows, width, epochs in SIZES:
        for shuffle in (True, False):
            runs = [
                compare(rows, width, shuffle=shuffle, epochs=epochs, jit=arguments.jit)
                for _ in range(arguments.repeats)
            ]
            ratio = statistics.median(run["features"] / run["ours"] for run in runs)
            row = {"rows": rows, "width": width, "shuffle": shuffle, "ratio": ratio}
            row |= {name: statistics.median(run[name] for run in runs) for name in runs[0]}
            results.append(row)
            print(
                f"{rows} x {width}, shuffle={shuffle}: {1e3 * row['features']:.1f} ms an epoch on "
                f"features, {1e3 * row['ours']:.1f} ms ours, ratio {ratio:.2f}, largest "
                f"difference {row['difference']:.1e}",
                flush=True,
            )
    if arguments.output:
        report = {"machine": machine(), "jit": arguments.jit, "results": results}
        arguments.output.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
