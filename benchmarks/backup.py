"""What a backup costs, next to one of keras.callbacks.BackupAndRestore.

    KERAS_BACKEND=jax python benchmarks/backup.py [--small] [--repeats 5] [--output FILE.json]

Runs in turns, in one process: stock Keras with the same layers frozen by hand and Keras'
BackupAndRestore; FreezeBase and ours. A clock around Keras' function that saves, and around all
that ours does in an epoch, gives the seconds of a backup; the median over the epochs, without the
first two.

- frozen: the base is frozen and its head is trained, as in feature extraction.
- trained: all layers are trained with Adam, so a backup holds three copies of the model.

Ours makes the disk keep the file (fsync), which Keras doesn't. `--no-sync` leaves that out. Inputs
and weights are random: only time is measured.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
from machine import machine

from keras_freeze import BackupAndRestore, FreezeBase
from keras_freeze.fit_engine.backups import Backups


def clocked(function: Any, seconds: list[float]) -> Any:
    """Returns a function that adds how long it takes to the last of `seconds`."""

    @functools.wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = function(*args, **kwargs)
        seconds[-1] += time.perf_counter() - start
        return result

    return timed


class Epochs(keras.callbacks.Callback):
    """Begins a new number for each epoch."""

    def __init__(self, seconds: list[float]) -> None:
        super().__init__()
        self.seconds = seconds

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.seconds.append(0.0)


def small() -> keras.Model:
    return keras.applications.MobileNetV2(
        weights=None, include_top=False, input_shape=(32, 32, 3), pooling="avg", alpha=0.35
    )


BASES = {
    "MobileNetV2": lambda: keras.applications.MobileNetV2(
        weights=None, include_top=False, input_shape=(64, 64, 3), pooling="avg"
    ),
    "VGG19": lambda: keras.applications.VGG19(
        weights=None, include_top=False, input_shape=(32, 32, 3), pooling="avg"
    ),
}


WORK_OF_OURS = ("begin_epoch", "before_data", "after_cache", "end_step", "end_epoch")


def backup_seconds(make: Any, *, trains: bool, kind: str, epochs: int) -> float:
    """Returns the seconds that backups take in an epoch.

    Args:
        make: makes the base.
        trains: whether the base is trained too.
        kind: "Keras" or "ours".
        epochs: number of epochs.
    """
    base = make()
    base.trainable = trains
    model = keras.Sequential([base, keras.layers.Dense(5)])
    model.compile("adam", "mse")
    x = np.random.default_rng(0).random((4, *base.input_shape[1:])).astype("float32")
    seconds = [0.0]
    callbacks: list[Any] = [Epochs(seconds)]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as patches:
        owner, names = Backups, WORK_OF_OURS
        if kind == "ours":
            callbacks += [] if trains else [FreezeBase(base)]
            callbacks.append(BackupAndRestore(folder))
        else:
            owner, names = keras.callbacks.BackupAndRestore, ("_save_model",)
            callbacks.append(owner(folder))
        for name in names:
            timed = clocked(getattr(owner, name), seconds)
            patches.enter_context(mock.patch.object(owner, name, timed))
        model.fit(x, np.zeros((4, 5)), epochs=epochs, verbose=0, callbacks=callbacks)
    return median(seconds[3:])


def compare(make: Any, *, trains: bool, repeats: int, epochs: int) -> dict[str, Any]:
    """Returns the seconds of a backup of Keras and of ours, medians over the repeats."""
    seconds: dict[str, list[float]] = {"Keras": [], "ours": []}
    for _ in range(repeats):
        for kind, found in seconds.items():
            found.append(backup_seconds(make, trains=trains, kind=kind, epochs=epochs))
    middles = {kind: median(found) for kind, found in seconds.items()}
    return {"seconds": seconds, "ours / Keras": middles["ours"] / middles["Keras"], **middles}


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmark, prints the ratios and writes all results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--no-sync", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args(arguments)
    results: dict[str, Any] = {"machine": machine(), "synced": not given.no_sync}
    bases = {"small": small} if given.small else BASES
    for name, make in bases.items():
        for trains in (False, True):
            part = f"{name}, {'trained' if trains else 'frozen'}"
            counts = {"repeats": given.repeats, "epochs": given.epochs}
            with mock.patch("os.fsync") if given.no_sync else mock.MagicMock():
                results[part] = compare(make, trains=trains, **counts)
            shown = {k: round(v, 4) for k, v in results[part].items() if k != "seconds"}
            print(f"{part}: {shown}", flush=True)
    if given.output:
        given.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
