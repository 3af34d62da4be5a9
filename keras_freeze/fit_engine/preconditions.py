"""Checks of the model and the callbacks when `fit` begins."""

from __future__ import annotations

from typing import Any

import keras

from keras_freeze.errors import FreezeError, ScheduleError


def check_optimizer(model: Any) -> None:
    """Raises `FreezeError` if the model has no Keras optimizer."""
    if not isinstance(model.optimizer, keras.optimizers.Optimizer):
        raise FreezeError(
            "`model` must be compiled with a Keras optimizer. "
            "Use model.compile(optimizer='adam', ...). "
            f"Received: optimizer={model.optimizer!r}"
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
