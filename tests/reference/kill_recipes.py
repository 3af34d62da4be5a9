"""Runs of many kinds that are killed and continued, see `kills`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_freeze import (
    BackupAndRestore,
    BottleneckCache,
    GradualUnfreeze,
    PerStage,
    Plateau,
    Stage,
)

C, L, O = keras.callbacks, keras.layers, keras.optimizers  # noqa: E741
ROWS, TEST_ROWS, BATCH, EPOCHS = 36, 12, 8, 8


def three_stages(second: dict[str, Any], third: dict[str, Any]) -> Callable[[], list[Stage]]:
    """Returns a function that makes two stages after the first: at an epoch, and at a plateau."""
    plateau = Plateau("val_loss", patience=2, max_epochs=3)

    def stages() -> list[Stage]:
        return [
            Stage(**{"at": 2, "unfreeze": "b3"} | second),
            Stage(**{"at": plateau, "unfreeze": "all"} | third),
        ]

    return stages


@dataclass
class Recipe:
    """A run.

    Attributes:
        optimizer: makes the optimizer.
        stages: makes the stages.
        unfreeze: further arguments of GradualUnfreeze.
        callbacks: makes other callbacks; gets a directory.
        cache: makes the cache; gets a directory.
        backup: arguments of BackupAndRestore.
        compile: further arguments of `compile`.
        noise: whether the inputs are augmented.
        watched: whether a callback has hooks after each batch. Without, steps may run in groups.
    """

    optimizer: Callable[[], Any]
    stages: Callable[[], list[Stage]]
    unfreeze: dict[str, Any] = field(default_factory=dict)
    callbacks: Callable[[Path], list[Any]] = lambda folder: []
    cache: Callable[[Path], Any] = lambda folder: None
    backup: dict[str, Any] = field(default_factory=dict)
    compile: dict[str, Any] = field(default_factory=dict)
    noise: bool = False
    watched: bool = True


def usual(folder: Path) -> list[Any]:
    return [
        C.EarlyStopping("val_loss", patience=7, restore_best_weights=True),
        C.ReduceLROnPlateau("val_loss", patience=1, factor=0.5),
        C.ModelCheckpoint(folder / "best.weights.h5", save_best_only=True, save_weights_only=True),
    ]


def per_stage(folder: Path) -> list[Any]:
    stop = C.EarlyStopping("val_loss", patience=1, restore_best_weights=True)
    return [PerStage(stop), PerStage(C.ReduceLROnPlateau("loss", patience=1, min_delta=0.1))]


def loss_scaled() -> Any:
    return O.LossScaleOptimizer(O.Adam(0.02), initial_scale=64.0, dynamic_growth_steps=4)


def decayed() -> Any:
    return O.Adam(O.schedules.CosineDecay(0.02, 30), use_ema=True)


def ema(**kwargs: Any) -> Any:
    return O.AdamW(0.02, weight_decay=0.01, use_ema=True, ema_momentum=0.8, **kwargs)


RECIPES = {
    "adam": Recipe(
        lambda: O.Adam(0.02),
        three_stages({"layer_decay": 0.5, "warmup_steps": 7}, {"restore_best": True}),
        callbacks=usual,
    ),
    "reset": Recipe(
        lambda: O.SGD(0.05, momentum=0.9, nesterov=True),
        three_stages(
            {"base_learning_rate": {"factor": 0.1}}, {"learning_rate": 0.01, "restore_best": True}
        ),
        unfreeze={"optimizer": "reset", "batch_norm": "train"},
        callbacks=usual,
        backup={"save_freq": 3},
    ),
    "ema": Recipe(
        lambda: ema(ema_overwrite_frequency=4),
        three_stages({"base_learning_rate": {"factor": 0.1}}, {"warmup_steps": 4}),
        unfreeze={"batch_norm": "train"},
        backup={"save_freq": 1, "double_checkpoint": True},
    ),
    "loss scale": Recipe(
        loss_scaled,
        three_stages(
            {"learning_rate": {"factor": 0.5}, "warmup_steps": 9},
            {"layer_decay": 0.5, "restore_best": True},
        ),
        callbacks=usual,
        backup={"save_freq": 3, "double_checkpoint": True},
    ),
    "accumulation": Recipe(
        lambda: O.Adam(0.02, gradient_accumulation_steps=2),
        three_stages({"layer_decay": 0.5, "warmup_steps": 3}, {"learning_rate": {"factor": 0.1}}),
        backup={"save_freq": 1},
    ),
    "per stage": Recipe(
        lambda: O.SGD(0.1, momentum=0.9),
        three_stages({"learning_rate": {"factor": 0.5}}, {"optimizer": "reset"}),
        callbacks=per_stage,
        backup={"save_freq": 4},
    ),
    "groups": Recipe(
        decayed,
        three_stages({"warmup_steps": 5}, {"restore_best": True}),
        unfreeze={"batch_norm": "train"},
        backup={"save_freq": 2},
        compile={"steps_per_execution": 1 if keras.backend.backend() == "torch" else 2},
    ),
    "cache": Recipe(
        lambda: O.Adam(0.02),
        three_stages({"warmup_steps": 5}, {"restore_best": True}),
        callbacks=usual,
        cache=lambda folder: BottleneckCache(verbose=0),
        backup={"save_freq": 3},
    ),
    "cache on disk": Recipe(
        ema,
        three_stages({"base_learning_rate": {"factor": 0.3}}, {"optimizer": "reset"}),
        callbacks=usual,
        cache=lambda folder: BottleneckCache(directory=folder / "cache", verbose=0),
        watched=False,
    ),
    "views": Recipe(
        lambda: O.Adam(0.02),
        # If nothing is frozen, views are kept in memory only, so another process has none.
        three_stages({"layer_decay": 0.5}, {"restore_best": True, "unfreeze": "b2"}),
        callbacks=usual,
        cache=lambda folder: BottleneckCache(
            views=2, directory=folder / "cache", data="d", verbose=0
        ),
        noise=True,
    ),
}


def model(recipe: Recipe) -> keras.Model:
    base = keras.Sequential(
        [
            keras.Input((6,)),
            L.Dense(8, activation="tanh", name="b1"),
            L.BatchNormalization(momentum=0.8, name="bn"),
            L.Dense(8, activation="tanh", name="b2"),
            L.Dense(8, activation="tanh", name="b3"),
        ],
        name="base",
    )
    noise = [L.GaussianNoise(0.1)] if recipe.noise else []
    made = keras.Sequential([keras.Input((6,)), *noise, base, L.Dropout(0.3), L.Dense(1)])
    made.compile(recipe.optimizer(), "mse", metrics=["mae"], **recipe.compile)
    return made


def data(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows and targets."""
    x = np.random.default_rng(seed).normal(size=(rows, 6)).astype("float32")
    return x, x.sum(axis=1, keepdims=True)


def test_data() -> tuple[np.ndarray, np.ndarray]:
    """Returns rows with random targets, so that many epochs are worse than those before."""
    x, y = data(TEST_ROWS, 1)
    return x, np.random.default_rng(5).normal(size=y.shape).astype("float32")


def fit(recipe: Recipe, folder: Path, watch: Any) -> tuple[keras.Model, Any]:
    """Runs the fit; returns the model and its History.

    Args:
        recipe: the run.
        folder: for the backup and all other files of the run.
        watch: a callback that sees what happens.
    """
    keras.utils.set_random_seed(7)
    made = model(recipe)
    cache = recipe.cache(folder)
    callbacks = [
        *recipe.callbacks(folder),
        GradualUnfreeze(recipe.stages(), base="base", verbose=0, **recipe.unfreeze),
        *([cache] if cache is not None else []),
        BackupAndRestore(folder / "backup", verbose=0, **recipe.backup),
        watch,
    ]
    history = made.fit(
        *data(ROWS, 0),
        validation_data=test_data(),
        batch_size=BATCH,
        epochs=EPOCHS,
        verbose=0,
        callbacks=callbacks,
    )
    return made, history
