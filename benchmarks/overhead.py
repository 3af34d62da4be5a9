"""What the callbacks cost: in an epoch without a transition, and in a transition.

    KERAS_BACKEND=jax python benchmarks/overhead.py [--small] [--repeats 7] [--output FILE.json]

Both sides run in one process, in turns, on the same data and the same trainable layers.

- own: the time that a step spends in the callbacks' hooks and in the guard around the train
  function, measured by a clock around them. The median over epochs, next to the median step.
- steady: epochs with FreezeBase, GradualUnfreeze and RecompileOnTrainableChange (no stage begins),
  compared with epochs of stock Keras with the base frozen by hand. The overhead is the difference
  of the fastest epochs, because other work on a machine only adds time. A second stock model,
  measured in the same way, shows the error of the result.
- transition: how much longer the epoch in which a stage begins takes than the next one, compared
  with what `compile` and a new `fit` add to its first epoch. Both trace and compile the new step.

The inputs and the weights are random: only time is measured.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import time
import warnings
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
from machine import machine

from keras_freeze import FreezeBase, GradualUnfreeze, RecompileOnTrainableChange, Stage
from keras_freeze.fit_engine.first_and_last_callbacks import First, Last
from keras_freeze.keras_internals.replace_step_functions import GuardedStep

NEVER = 10**6


class EpochEnds(keras.callbacks.Callback):
    """Records when each epoch ends, in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.times.append(time.perf_counter())

    def durations(self) -> list[float]:
        """Returns the epochs except the first, which compiles."""
        return [float(d) for d in np.diff(self.times)]


def dense() -> tuple[keras.Model, str]:
    """Returns a base with the smallest steps, where Python's share is largest."""
    layers = [keras.layers.Dense(64, "relu", name=f"d{i}") for i in range(8)]
    return keras.Sequential([keras.Input((64,)), *layers], name="base"), "d7"


def mobilenet() -> tuple[keras.Model, str]:
    """Returns a real network: MobileNetV2 at 96x96."""
    base = keras.applications.MobileNetV2(
        weights=None, include_top=False, input_shape=(96, 96, 3), pooling="avg"
    )
    return base, "block_16_project:"


WORKLOADS = {
    # name: (base, rows, batch size, epochs of a timed fit)
    "dense": (dense, 4096, 32, 21),
    "mobilenet_v2_96": (mobilenet, 256, 32, 4),
}


def build(base: keras.Model) -> keras.Model:
    """Returns the base with a head of one unit, compiled."""
    model = keras.Sequential([base, keras.layers.Dense(1)])
    model.build((None, *base.input_shape[1:]))
    base.trainable = False
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    return model


def fit(model: keras.Model, x: np.ndarray, y: np.ndarray, batch: int, epochs: int, ours: list):
    """Runs one `fit`. Returns when its epochs ended."""
    ends = EpochEnds()
    model.fit(x, y, batch_size=batch, epochs=epochs, verbose=0, callbacks=[*ours, ends])
    return ends


def steady(make, x, y, batch, epochs, repeats) -> dict[str, list[float]]:
    """Returns the seconds of all epochs of stock Keras, ours, and stock Keras again, in turns."""
    models = {side: build(make()[0]) for side in ("stock", "ours", "stock again")}
    seconds: dict[str, list[float]] = {side: [] for side in models}
    for repeat in range(repeats):
        for side in list(models)[:: 1 if repeat % 2 else -1]:
            ours = callbacks(models[side]) if side == "ours" else []
            seconds[side] += fit(models[side], x, y, batch, epochs, ours).durations()
    return seconds


class Clock:
    """Sums the time spent in functions, minus the time of the calls they make to Keras."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, function, sign: int = 1):
        @functools.wraps(function)
        def timed(*args, **kwargs):
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += sign * (time.perf_counter() - start)

        return timed


def own(make, x, y, batch, epochs) -> dict[str, float]:
    """Returns the microseconds per step in our code, and of the whole step."""
    clock, seconds = Clock(), []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: seconds.append(clock.seconds))
    timed = [(First, "on_train_batch_begin"), (First, "on_train_batch_end")]
    timed += [(Last, "on_train_batch_begin"), (GuardedStep, "__call__")]
    plain = GuardedStep.plain

    def timed_plain(step):
        return clock.wrap(plain(step), sign=-1)

    model = build(make()[0])
    with ExitStack() as stack:
        for owner, name in timed:
            wrapped = clock.wrap(getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, wrapped))
        stack.enter_context(mock.patch.object(GuardedStep, "plain", timed_plain))
        ends = fit(model, x, y, batch, epochs, [*callbacks(model), note])
    steps = len(x) // batch
    microseconds = 1e6 * statistics.median(np.diff(seconds)) / steps
    step = 1e6 * statistics.median(ends.durations()) / steps
    share = 100 * microseconds / step
    return {"microseconds a step": microseconds, "of a step of": step, "percent": share}


def added(times: dict[str, list[float]], side: str, steps: int) -> dict[str, float]:
    """Returns how much longer an epoch of `side` takes than one of stock Keras."""
    stock, other = min(times["stock"]), min(times[side])
    medians = statistics.median(times[side]) / statistics.median(times["stock"])
    return {
        "percent": 100 * (other / stock - 1),
        "microseconds a step": 1e6 * (other - stock) / steps,
        "percent by medians": 100 * (medians - 1),
    }


def callbacks(model: keras.Model) -> list[keras.callbacks.Callback]:
    """Returns all three, with a stage that never begins."""
    return [
        FreezeBase(model.layers[0]),
        GradualUnfreeze({NEVER: "all"}, verbose=0),
        RecompileOnTrainableChange(verbose=0),
    ]


def transition(make, x, y, batch, repeats) -> dict[str, list[float]]:
    """Returns the seconds that a change of stage adds: ours, and by `compile` and `fit`."""
    seconds: dict[str, list[float]] = {"two fits": [], "carry": [], "reset": []}
    for _ in range(repeats):
        for mode in ("carry", "reset"):
            seconds[mode].append(_one_fit(make, x, y, batch, mode))
        seconds["two fits"].append(_two_fits(make, x, y, batch))
    return seconds


def _one_fit(make, x, y, batch, mode) -> float:
    base, selector = make()
    stage = GradualUnfreeze([Stage(2, selector)], optimizer=mode, batch_norm="train", verbose=0)
    ends = fit(build(base), x, y, batch, 5, [FreezeBase(base), stage]).durations()
    return ends[1] - statistics.median(ends[2:])


def _two_fits(make, x, y, batch) -> float:
    base, selector = make()
    model = build(base)
    first = fit(model, x, y, batch, 2, [])
    _thaw_by_hand(base, selector)
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    second = fit(model, x, y, batch, 3, [])
    begins = second.times[0] - first.times[-1]
    return begins - statistics.median(second.durations())


def _thaw_by_hand(base: keras.Model, selector: str) -> None:
    base.trainable = True
    names = [layer.name for layer in base.layers]
    for layer in base.layers[: names.index(selector.rstrip(":"))]:
        layer.trainable = False


def summary(values: list[float]) -> dict[str, float]:
    """Returns the median and the quartiles."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"median": middle, "low": low, "high": high}


def run(repeats: int, small: bool) -> dict[str, object]:
    """Returns all results, and prints them during the run."""
    results: dict[str, object] = {"machine": machine(), "repeats": repeats}
    print(" ".join(f"{key}={value}" for key, value in machine().items()))
    for name, (make, rows, batch, epochs) in WORKLOADS.items():
        rows = rows // 4 if small else rows
        rng = np.random.default_rng(0)
        x = rng.random((rows, *make()[0].input_shape[1:])).astype("float32")
        y = rng.random((rows, 1)).astype("float32")
        times = steady(make, x, y, batch, epochs, repeats)
        steps = rows // batch
        figures = {side: added(times, side, steps) for side in ("ours", "stock again")}
        print(f"{name}: stock epoch of {steps} steps, {min(times['stock']) * 1e3:.1f} ms")
        figures["own"] = own(make, x, y, batch, epochs)
        for side, figure in figures.items():
            parts = [f"{unit} {value:.2f}" for unit, value in figure.items()]
            print(f"{name}: {side}: {', '.join(parts)}")
        costs = {
            k: summary(v) for k, v in transition(make, x, y, batch, max(2, repeats // 2)).items()
        }
        for side, cost in costs.items():
            print(f"{name}: one transition, {side}: {cost['median']:.2f} s")
        results[name] = {"steady": figures, "seconds": times, "transition": costs}
        keras.backend.clear_session()
    return results


def main() -> None:
    """Reads the options, measures, and writes JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a quarter of the rows")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*never reached.*")
    results = run(options.repeats, options.small)
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
