"""Trains a model, whole or cut off somewhere, to compare a continued run with a whole one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_freeze import BackupAndRestore, GradualUnfreeze, Plateau, Stage
from tests.builders import data

L = keras.layers
EPOCHS = 7


class Cut(BaseException):
    """Ends a `fit` as Ctrl-C does."""


@dataclass
class Cutter(keras.callbacks.Callback):
    """Raises `Cut` after a number of training steps, or within validation of an epoch."""

    step: int | None = None
    validation_of: int | None = None
    epoch_end: int | None = None

    def __post_init__(self) -> None:
        super().__init__()
        self.steps = iter(range(1, 10**6))  # no number, which would be restored

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if next(self.steps) == self.step:
            raise Cut

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.epoch == self.validation_of:
            raise Cut

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if epoch == self.epoch_end:
            raise Cut


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "momentum": lambda: keras.optimizers.SGD(0.01, momentum=0.9),
    "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.01),
    "nadam": lambda: keras.optimizers.Nadam(0.01),
    "ema": lambda: keras.optimizers.Adam(0.01, use_ema=True, ema_overwrite_frequency=4),
    "accumulation": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=2),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(0.01), initial_scale=16.0, dynamic_growth_steps=3
    ),
    "decaying": lambda: keras.optimizers.Adam(
        keras.optimizers.schedules.ExponentialDecay(0.02, 5, 0.9)
    ),
}

SCHEDULES: dict[str, Callable[[], list[Stage]]] = {
    "epochs": lambda: [
        Stage(at=2, unfreeze="b3", learning_rate={"factor": 0.5}, warmup_steps=7),
        Stage(at=4, unfreeze="all", learning_rate={"factor": 0.1}, layer_decay=0.5),
    ],
    "plateau": lambda: [
        Stage(at=Plateau("val_loss", patience=1, max_epochs=2), unfreeze="b3"),
        Stage(at=Plateau("loss", max_epochs=3), unfreeze="all", restore_best=True),
    ],
    "reset": lambda: [
        Stage(at=1, unfreeze="b3", learning_rate=0.005),
        Stage(at=3, unfreeze="all", optimizer="reset", base_learning_rate={"factor": 0.1}),
        Stage(at=5, freeze="b1", learning_rate={"factor": 0.5}),
    ],
}


def built(optimizer: str, **compiling: Any) -> keras.Model:
    """Returns a compiled model with a BatchNormalization in its base and a Dropout in its head."""
    inside = [L.Dense(8, activation="tanh", name="b1"), L.BatchNormalization(name="bn")]
    inside += [L.Dense(8, activation="tanh", name=name) for name in ("b2", "b3")]
    base = keras.Sequential([keras.Input((6,)), *inside], name="base")
    model = keras.Sequential([base, L.Dropout(0.3), L.Dense(1, name="head")])
    model.compile(OPTIMIZERS[optimizer](), "mse", metrics=["mae"], **compiling)
    return model


@dataclass
class Run:
    """A run that can be trained again and again, as by a script that is started again.

    Attributes:
        directory: that of the backup.
        optimizer: a name in OPTIMIZERS.
        schedule: a name in SCHEDULES, or stages.
        feed: returns the data, as arguments of `fit`.
        others: returns other callbacks.
        backup: further arguments of BackupAndRestore.
        fit: further arguments of `fit`.
        epochs: number of epochs.
        gradual: further arguments of GradualUnfreeze.
        compiling: further arguments of `compile`.
    """

    directory: Path
    optimizer: str = "adam"
    schedule: Any = "epochs"
    feed: Callable[[], dict[str, Any]] | None = None
    others: Callable[[], list[Any]] = list
    backup: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)
    epochs: int = EPOCHS
    gradual: dict[str, Any] = field(default_factory=dict)
    compiling: dict[str, Any] = field(default_factory=dict)

    def train(self, cut: Cutter | None = None, *, late: bool = False) -> Any:
        """Trains a new model; returns its History, or None if the run was cut.

        Args:
            cut: ends the run.
            late: whether `cut` comes last in the list of callbacks.
        """
        keras.utils.set_random_seed(1)
        self.model = built(self.optimizer, **self.compiling)
        stages = self.schedule
        stages = SCHEDULES[stages]() if isinstance(stages, str) else stages
        arguments = {"base": "base", "verbose": 0, "batch_norm": "train"} | self.gradual
        backup = BackupAndRestore(self.directory, **({"verbose": 0} | self.backup))
        callbacks = [*self.others(), GradualUnfreeze(stages, **arguments), backup]
        callbacks.insert(len(callbacks) if late else 0, cut or Cutter())
        given = (self.feed or arrays)() | {"epochs": self.epochs, "verbose": 0} | self.fit
        try:
            return self.model.fit(callbacks=callbacks, **given)
        except Cut:
            return None

    def result(self, history: Any) -> dict[str, np.ndarray]:
        """Returns all that must be equal."""
        members = [self.model.optimizer, getattr(self.model.optimizer, "inner_optimizer", None)]
        slots = [v for member in members if member is not None for v in member.variables]
        values = {f"weight {i}": w for i, w in enumerate(self.model.get_weights())}
        values |= {f"slot {i}": keras.ops.convert_to_numpy(v) for i, v in enumerate(slots)}
        values |= {f"history {k}": np.asarray(v) for k, v in history.history.items()}
        return values | {"epochs": np.asarray(history.epoch)}


def arrays() -> dict[str, Any]:
    """Returns arrays, which Keras shuffles, with validation data."""
    x, y = data(26)
    x_val, y_val = data(10, seed=1)
    return {"x": x, "y": y, "batch_size": 5, "validation_data": (x_val, y_val)}


def assert_same(whole: dict[str, np.ndarray], continued: dict[str, np.ndarray]) -> None:
    """Compares two results to the last bit."""
    assert list(whole) == list(continued)
    for name, value in whole.items():
        assert value.dtype == continued[name].dtype, name
        np.testing.assert_array_equal(continued[name], value, err_msg=name)
