"""A run in Keras and the same run with the plain-NumPy trainer, in float64.

All numbers that Keras rounds to float32 are exact there: learning rates, decays and epsilons are
powers of two or short sums of them, and data and initial weights are float32. Only the rounding of
float64 is left, so tolerances can be tight.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import keras
import numpy as np
from keras.src.backend.common import dtypes

from keras_freeze import FreezeBase, GradualUnfreeze, Stage
from tests.builders import weights
from tests.reference.optimizers import MLP, Rule, Trainer, Values

BATCH = 2


@dataclass(frozen=True)
class Run:
    """A run with a set of trainable layers for each epoch.

    Attributes:
        optimizer: the Keras optimizer's class.
        rule: the same optimizer in NumPy.
        trainable: for each epoch, the names of the trainable layers.
        widths: units of the base's layers "b0", "b1", ...; the head is "head".
        hyper: arguments of this optimizer only.
        common: arguments that all optimizers and the trainer accept.
        rate: the compiled learning rate.
        halving: a LearningRateSchedule halves the rate after this many steps; 0 for never.
        rates: `{epoch: learning rate}` of stages.
        base_rates: `{epoch: base_learning_rate}` of stages.
        decays: `{epoch: layer_decay}` of stages.
        warmups: `{epoch: warmup_steps}` of stages that unfreeze something.
        steps: steps per epoch.
        cut: the epoch at which a second `fit` begins; 0 for none.
        seed: seed of weights and data.
        eager: whether the steps run without tracing.
    """

    optimizer: type[keras.optimizers.Optimizer]
    rule: Rule
    trainable: list[set[str]]
    widths: tuple[int, ...] = (3, 3)
    hyper: dict[str, Any] = field(default_factory=dict)
    common: dict[str, Any] = field(default_factory=dict)
    rate: float = 2.0**-6
    halving: int = 0
    rates: dict[int, float] = field(default_factory=dict)
    base_rates: dict[int, float] = field(default_factory=dict)
    decays: dict[int, float] = field(default_factory=dict)
    warmups: dict[int, int] = field(default_factory=dict)
    steps: int = 3
    cut: int = 0
    seed: int = 0
    eager: bool = True

    @property
    def names(self) -> list[str]:
        return [*(f"b{i}" for i in range(len(self.widths))), "head"]

    @property
    def epochs(self) -> int:
        return len(self.trainable)

    def keras_rate(self) -> Any:
        if not self.halving:
            return self.rate
        schedules = keras.optimizers.schedules
        return schedules.ExponentialDecay(self.rate, self.halving, 0.5, staircase=True)

    def numpy_rate(self) -> Any:
        return (lambda i: self.rate * 0.5 ** (i // self.halving)) if self.halving else self.rate

    def stages(self) -> list[Stage]:
        """Returns the stages, from the differences between epochs. The base begins frozen."""
        before, found = self.trainable[0] & {"head"}, []
        for epoch, now in enumerate(self.trainable):
            thawed, frozen = sorted(now - before), sorted(before - now)
            rate, decay = self.rates.get(epoch), self.decays.get(epoch)
            base_rate = self.base_rates.get(epoch)
            warmup = self.warmups.get(epoch, 0) if thawed else 0
            if thawed or frozen or rate or base_rate or decay:
                stage = Stage(
                    epoch,
                    thawed or None,
                    frozen or None,
                    learning_rate=rate,
                    base_learning_rate=base_rate,
                    layer_decay=decay,
                    warmup_steps=warmup,
                )
                found.append(stage)
            before = now
        return found or [Stage(0, name="all as it is")]

    def scale(self, place: int, epoch: int) -> float:
        """Returns a base layer's share of the rate. The last layer is next to the head."""
        blocks = len(self.widths) - place
        decay = _latest(self.decays, epoch, 1.0)
        begins = max((each for each in self.base_rates if each <= epoch), default=None)
        if begins is None:
            return decay**blocks
        rate = _latest(self.rates, begins, self.rate)
        return self.base_rates[begins] / rate * decay ** (blocks - 1)

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        draw = np.random.default_rng(self.seed).normal
        rows = self.steps * BATCH
        return _exact(draw(size=(rows, 2))), _exact(draw(size=(rows, 2)))

    def values(self) -> Values:
        """Returns the initial weights, with nonzero biases."""
        draw, values, inputs = np.random.default_rng([self.seed, 1]).normal, {}, 2
        for name, outputs in zip(self.names, (*self.widths, 2), strict=True):
            values[f"{name}/kernel"] = _exact(draw(size=(inputs, outputs)))
            values[f"{name}/bias"] = _exact(draw(size=(outputs,)))
            inputs = outputs
        return values


def in_keras(run: Run) -> Values:
    """Returns the final weights of the run in Keras, with optimizer="carry"."""
    keras.backend.clear_session()
    model = _model(run)
    optimizer = run.optimizer(run.keras_rate(), **run.hyper, **run.common)
    model.compile(optimizer, "mse", run_eagerly=run.eager)
    callbacks = [FreezeBase("base"), GradualUnfreeze(run.stages(), verbose=0)]
    kwargs = {"batch_size": BATCH, "shuffle": False, "verbose": 0, "callbacks": callbacks}
    for begin, end in [(0, run.cut), (run.cut, run.epochs)]:
        if begin < end:
            model.fit(*run.data(), initial_epoch=begin, epochs=end, **kwargs)
    return weights(model)


def in_numpy(run: Run) -> Values:
    """Returns the final weights of the run without Keras."""
    trainer = Trainer(run.rule, run.numpy_rate(), **run.common)
    network = MLP([(name, "linear" if name == "head" else "tanh") for name in run.names])
    (x, y), values = run.data(), run.values()
    for epoch, trainable in enumerate(run.trainable):
        if epoch and epoch == run.cut:
            values = trainer.finalize(values)  # at the end of a fit
        trainer.lr = run.rates.get(epoch, trainer.lr)
        _set_multipliers(run, trainer, epoch)
        values = _set_trainable(trainer, trainable, values)
        for first in range(0, len(x), BATCH):
            rows = slice(first, first + BATCH)
            values = trainer.step(network.gradients(x[rows], y[rows], values)[1], values)
    return trainer.finalize(values)


def _latest(given: dict[int, float], epoch: int, default: float) -> float:
    begun = [each for each in given if each <= epoch]
    return given[max(begun)] if begun else default


def _set_multipliers(run: Run, trainer: Trainer, epoch: int) -> None:
    """The base's last layer is one block away from the head."""
    if epoch == run.cut:
        trainer.ramps = {}  # a fit that continues has no warm-up
    before = run.trainable[epoch - 1] if epoch else run.trainable[0] & {"head"}
    for place, name in enumerate(run.names):
        for variable in (f"{name}/kernel", f"{name}/bias"):
            if name != "head":
                trainer.scales[variable] = run.scale(place, epoch)
            if epoch in run.warmups and name in run.trainable[epoch] - before:
                trainer.ramps[variable] = (trainer.updates, run.warmups[epoch])


def _set_trainable(trainer: Trainer, trainable: set[str], values: Values) -> Values:
    """A weight that is frozen gets its moving average, as at the end of a fit."""
    values = dict(values)
    for name in values:
        if name.split("/")[0] in trainable:
            trainer.thaw(name, values[name])
        elif name in trainer.states:
            average = trainer.states[name].average
            values[name] = values[name] if average is None else average
            trainer.freeze(name)
    return values


def _model(run: Run) -> keras.Model:
    dense = [keras.layers.Dense(n, "tanh", name=f"b{i}") for i, n in enumerate(run.widths)]
    base = keras.Sequential([keras.Input((2,)), *dense], name="base")
    head = keras.layers.Dense(2, name="head")
    model = keras.Sequential([base, head])
    for layer in (*dense, head):
        first = run.values()
        layer.set_weights([first[f"{layer.name}/kernel"], first[f"{layer.name}/bias"]])
    head.trainable = "head" in run.trainable[0]
    return model


def _exact(values: np.ndarray) -> np.ndarray:
    return values.astype("float32").astype("float64")


@contextmanager
def double_precision() -> Iterator[None]:
    """Makes Keras compute in float64.

    Except on TensorFlow, Keras' type promotion turns float64 into float32 (in `matmul`, `mean`,
    `maximum`, ...). One table entry is responsible for that.
    """
    floatx, on_jax = keras.config.floatx(), keras.backend.backend() == "jax"
    with patch.dict(dtypes.BIT64_TO_BIT32_DTYPE, float64="float64"):
        try:
            _set_floatx("float64", on_jax)
            yield
        finally:
            _set_floatx(floatx, on_jax)


def _set_floatx(floatx: str, on_jax: bool) -> None:
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(floatx)
    if on_jax:
        importlib.import_module("jax").config.update("jax_enable_x64", floatx == "float64")
