"""What a cache costs: memory beyond its rows, and time if it steps aside.

    KERAS_BACKEND=jax python benchmarks/cache_costs.py [--repeats 5] [--epochs 12]
                                                     [--only memory "aside at once" "aside later"]
                                                     [--output FILE.json]

- memory: the peak resident memory of a run with the cache, minus that of the same run without it,
  divided by the bytes of the cached rows. Each run has its own process. 1.0 is optimal.
- aside: the time of a run whose cache steps aside, divided by that of the run without the callback,
  in turns in one process. "at once": the base has an active Dropout, which is found before the
  first step. "later": the images differ in each epoch, which is found in the second epoch. This
  costs time once (for steps compiled but not used), so a longer run loses a smaller share.
  `seconds lost` is that time.

The images and the weights are random: only memory and time are measured.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np

from keras_freeze import BottleneckCache, FreezeBase

L = keras.layers
SIZE, ROWS, BATCH = 64, 600, 20
COSTS = ["memory", "aside at once", "aside later"]


def model(*, dropout: float = 0.0) -> Any:
    """Returns a model with a frozen base of convolutions. Its features take 256 KB per image."""
    keras.utils.set_random_seed(0)
    layers = [L.Dropout(dropout)] if dropout else []
    layers += [L.Conv2D(filters, 3, 1, "same", activation="relu") for filters in (16, 16)]
    base = keras.Sequential([keras.Input((SIZE, SIZE, 3)), *layers], name="base")
    head = [L.Conv2D(4, 3, 2, activation="relu"), L.GlobalAveragePooling2D(), L.Dense(1)]
    whole = keras.Sequential([keras.Input((SIZE, SIZE, 3)), base, *head])
    if dropout:
        base.trainable = False
    whole.compile("rmsprop", "mse")
    return whole


class Images(keras.utils.PyDataset):
    """The same images in each epoch, or different ones.

    Args:
        differ: whether they differ.
    """

    def __init__(self, *, differ: bool):
        super().__init__()
        self.random = np.random.default_rng(0)
        self.differ = differ

    def __len__(self) -> int:
        return ROWS // BATCH

    def __getitem__(self, index: int) -> Any:
        random = self.random if self.differ else np.random.default_rng(index)
        x = random.random((BATCH, SIZE, SIZE, 3), "float32")
        return x, np.ones((BATCH, 1), "float32")


def memory() -> dict[str, Any]:
    """Returns the peaks of two processes, and the bytes of the rows."""
    peaks, rows = {}, 0
    for side in ("plain", "cached"):
        command = [sys.executable, __file__, "--peak", side]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[side], size = (int(number) for number in done.stdout.split()[-2:])
        rows = max(rows, size)
    return {**peaks, "rows": rows, "ratio": (peaks["cached"] - peaks["plain"]) / rows}


def peak(side: str) -> None:
    """Runs one side. Prints its peak and the bytes of its rows."""
    cache = BottleneckCache(verbose=0)
    callbacks = [FreezeBase("base"), *([cache] if side == "cached" else [])]
    model().fit(Images(differ=False), epochs=3, verbose=0, callbacks=callbacks)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, cache.stats.bytes)


def aside(
    repeats: int, epochs: int, make: Callable[[], Any], callbacks: list[Any], *, differ: bool
) -> dict[str, float]:
    """Returns medians of the time with a cache, divided by and minus the time without."""
    ratios, lost = [], []
    for repeat in range(repeats + 1):
        seconds = {}
        for with_cache in (True, False) if repeat % 2 else (False, True):
            cache = [BottleneckCache(verbose=0)] if with_cache else []
            one, data = make(), Images(differ=differ)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                start = time.perf_counter()
                one.fit(data, epochs=epochs, verbose=0, callbacks=[*callbacks, *cache])
                seconds[with_cache] = time.perf_counter() - start
            assert not any(each.stats.enabled for each in cache)
        ratios.append(seconds[True] / seconds[False])
        lost.append(seconds[True] - seconds[False])
    # The first repeat includes one-time costs of the process.
    return {"ratio": statistics.median(ratios[1:]), "seconds lost": statistics.median(lost[1:])}


def main() -> None:
    """Reads the options, measures, and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=12, help="of the runs that step aside")
    parser.add_argument("--only", nargs="+", choices=COSTS, default=COSTS)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--peak", choices=["plain", "cached"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        peak(options.peak)
        return
    frozen, runs = [FreezeBase("base")], (options.repeats, options.epochs)
    costs: dict[str, Callable[[], Any]] = {
        "memory": memory,
        "aside at once": lambda: aside(*runs, lambda: model(dropout=0.1), [], differ=False),
        "aside later": lambda: aside(*runs, model, frozen, differ=True),
    }
    results = {
        "backend": keras.backend.backend(),
        "keras": keras.__version__,
        "cores": os.cpu_count(),
        "epochs": options.epochs,
        **{name: costs[name]() for name in options.only},
    }
    print(json.dumps(results, indent=2))
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
