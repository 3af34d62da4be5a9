"""Checks of the model and the callbacks when `fit` begins."""

from __future__ import annotations

from typing import Any

import keras

from keras_freeze.errors import FreezeError, ScheduleError
from keras_freeze.keras_internals import training_values


def check_optimizer(model: Any) -> None:
    """Raises `FreezeError` if the model has no Keras optimizer."""
    if not isinstance(model.optimizer, keras.optimizers.Optimizer):
        raise FreezeError(
            "`model` must be compiled with a Keras optimizer. "
            "Use model.compile(optimizer='adam', ...). "
            f"Received: optimizer={model.optimizer!r}"
        )


def check_no_keras_backup(model: Any, callbacks: list[Any], ours: list[Any]) -> None:
    """Raises `FreezeError` if Keras' BackupAndRestore would save a run with stages.

    Its `on_train_begin` may have been called already, and Keras never forgets the epoch that it
    sets. So that the next `fit` begins with its own epoch, it is forgotten here.

    Args:
        model: the model that is fitted.
        callbacks: all callbacks of the `fit`.
        ours: the public callbacks of keras_freeze among them.
    """
    stages = [type(each).__name__ for each in ours if each.role in ("freeze", "schedule")]
    others = [getattr(each, "callback", each) for each in callbacks]  # PerStage holds another one
    theirs = [each for each in others if isinstance(each, keras.callbacks.BackupAndRestore)]
    if stages and theirs:
        training_values.begin_at(model, None)
        raise FreezeError(
            f"keras.callbacks.BackupAndRestore can't be used with {stages[0]}. It restores weights "
            "before the layers of the running stage are unfrozen, so the optimizer's slots are "
            "skipped, or those of other layers are loaded. Use keras_freeze.BackupAndRestore, "
            "which takes the same arguments. If there was a backup, Keras has loaded its weights "
            "into the model by now: build the model anew. "
            f"Received: backup_dir={theirs[0].backup_dir!r}"
        )


def check_built(model: Any, leaves: list[Any]) -> None:
    """Raises `FreezeError` if the model has no weights yet.

    A layer of a built model that was never called may have no weights, and is ignored.
    """
    if not model.built:
        unbuilt = [layer.name for layer in leaves if not layer.built]
        raise FreezeError(
            f"`model` must be built before its layers can be frozen: {unbuilt[:5]} aren't. Call it "
            "on one batch first, model(images[:1]), or use model.build(input_shape). "
            f"Received: model={model.name!r}"
        )


def at_most_one(callbacks: list[Any]) -> Any:
    """Returns the only callback of a list, or None; raises `ScheduleError` if there are several."""
    if len(callbacks) > 1:
        name = type(callbacks[0]).__name__
        raise ScheduleError(
            f"`callbacks` holds {len(callbacks)} {name}. Use one; for several schedules, put their "
            "stages into one list."
        )
    return callbacks[0] if callbacks else None


def check_has_stages(per_stage: list[Any], gradual: Any) -> None:
    """Raises `FreezeError` if PerStage callbacks have no stages to follow."""
    if per_stage and gradual is None:
        kinds = ", ".join(type(each.callback).__name__ for each in per_stage)
        raise FreezeError(
            "PerStage needs the stages of a GradualUnfreeze in the same list: "
            "callbacks=[FreezeBase(), GradualUnfreeze({10: 'block5_*'}), PerStage(...)]. "
            f"Received: PerStage({kinds}) without one."
        )
