"""The run that `BottleneckCache(views=K)` must equal: epoch e gets the data of epoch e mod K.

Random layers of the model draw in epoch e what they drew in epoch e mod K, too.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from keras_freeze import BottleneckCache, CacheWarning, FreezeBase, GradualUnfreeze
from keras_freeze.graph.layer_tree import seed_states
from tests import builders
from tests.builders import BACKEND

L = keras.layers
ROWS, BATCH = 28, 8  # the last batch is smaller
X, Y = builders.data(ROWS)


class Augmented(keras.utils.PyDataset):
    """Images, so to speak, to which every epoch adds other noise.

    Args:
        period: epoch e is the same as epoch e mod period; None = all differ.
        batch: makes a batch of (x, y).

    Attributes:
        epoch: the running epoch; set by a `Counter`.
        asked: number of batches that were asked for.
    """

    def __init__(self, period: int | None = None, batch: Any = lambda x, y: (x, y), **options: Any):
        super().__init__(**options)
        self.period = period
        self.batch = batch
        self.epoch = self.asked = 0

    def __len__(self) -> int:
        return -(-ROWS // BATCH)

    def __getitem__(self, index: int) -> Any:
        self.asked += 1
        epoch = self.epoch if self.period is None else self.epoch % self.period
        rows = slice(index * BATCH, (index + 1) * BATCH)
        noise = np.random.default_rng(100 * epoch + index).normal(size=X[rows].shape)
        return self.batch((X[rows] + 0.3 * noise).astype("float32"), Y[rows])


class Counter(keras.callbacks.Callback):
    """Tells the data which epoch runs."""

    def __init__(self, data: Any):
        super().__init__()
        self.data = data

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.data.epoch = epoch


class Redraws(keras.callbacks.Callback):
    """Sets the seeds of layers to what they were `period` epochs ago."""

    def __init__(self, names: tuple[str, ...], period: int):
        super().__init__()
        self.names = names
        self.period = period
        self.known: dict[int, list[Any]] = {}

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        layers = [builders.layer(self.model, name) for name in self.names]
        seeds = [seed for layer in layers for seed in seed_states(layer)]
        if epoch < self.period:
            self.known[epoch] = [keras.ops.convert_to_numpy(seed).copy() for seed in seeds]
        for seed, value in zip(seeds, self.known[epoch % self.period], strict=True):
            seed.assign(value)


@dataclass
class Run:
    """A fit, to be run with views and as its reference.

    Attributes:
        make: makes the model.
        stages: stages of GradualUnfreeze, or None.
        random: names of the random layers in front of the base.
        data: makes the data of `fit` from the period of its augmentation.
        options: further arguments of `fit`.
        compile: further arguments of `compile`.
        traced: whether steps are traced and compiled.
        callbacks: makes further callbacks.
        base: the base.
    """

    make: Callable[[], Any] = builders.nested
    stages: Any = None
    random: tuple[str, ...] = ()
    data: Callable[[int | None], Any] = Augmented
    options: dict[str, Any] = field(default_factory=dict)
    compile: dict[str, Any] = field(default_factory=dict)
    traced: bool = False
    callbacks: Callable[[], list[Any]] = list
    base: Any = "base"

    def fit(
        self, cache: BottleneckCache | None, period: int | None
    ) -> tuple[dict[str, list[float]], Any, Any]:
        """Fits; returns (History, weights, data)."""
        keras.utils.set_random_seed(3)
        eager = not self.traced and BACKEND != "torch"
        model = builders.compiled(
            self.make(), **({"metrics": ["mae"], "run_eagerly": eager} | self.compile)
        )
        data = self.data(period)
        callbacks = [FreezeBase(self.base), *self.callbacks()]
        callbacks += [Counter(data)] if isinstance(data, Augmented) else []
        if self.stages is not None:
            callbacks.append(GradualUnfreeze(self.stages, verbose=0))
        if self.random and period is not None:
            callbacks.append(Redraws(self.random, period))
        callbacks += [] if cache is None else [cache]
        keras.utils.set_random_seed(4)
        options = {"epochs": 7, "verbose": 0, "shuffle": False} | self.options
        if not isinstance(data, dict):
            data = {"x": data}
        history = model.fit(**data, callbacks=callbacks, **options).history
        return history, builders.weights(model), data["x"]


def check(run: Run, views: int = 2, period: int | None = None, **cache: Any) -> Any:
    """Runs with views and as its reference, and compares. Returns (statistics, data)."""
    expected, expected_weights, _ = run.fit(None, period or views)
    recording = BottleneckCache(views=views, shuffle=False, verbose=0, **cache)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CacheWarning)
        history, weights, data = run.fit(recording, None)
    assert history == expected
    left_out = {f"{name}/seed_generator_state" for name in run.random}  # not drawn in a replay
    kept = {name: value for name, value in weights.items() if name not in left_out}
    builders.assert_equal(kept, {name: expected_weights[name] for name in kept})
    return recording.stats, data
