"""Warns if a callback, such as EarlyStopping, ended the run before all stages began."""

from __future__ import annotations

import math
from typing import Any

import keras

from keras_freeze.errors import warn
from keras_freeze.fit_engine.stage_clock import StageClock

PATIENT = (
    "Replace it with PerStage(EarlyStopping(...)), which ends the stage, so that the next one "
    "begins. Or raise its patience."
)


def warn_of_stop(
    clock: StageClock, epochs: int | None, callbacks: list[Any], logs: dict[str, Any]
) -> bool:
    """Warns if another callback ended the run before all planned stages began.

    Args:
        clock: the running stage and epoch.
        epochs: the `epochs` argument of `fit`.
        callbacks: the callbacks of the run.
        logs: the logs of the last epoch.

    Returns:
        True if it warned.
    """
    if epochs is None or clock.number < 0 or clock.epoch + 1 >= epochs:
        return False
    waiting = [
        (number, stage)
        for number, stage in enumerate(clock.plan.schedule or (), start=1)
        if number > clock.number and not (isinstance(stage.at, int) and stage.at >= epochs)
    ]
    if waiting:
        names = ", ".join(f"{stage.title(number)} (at={stage.at})" for number, stage in waiting)
        who, remedy = _stopped_by(callbacks, logs)
        warn(
            f"{who} ended the run after epoch {clock.epoch + 1}/{epochs}, before {names} began. "
            f"{remedy}",
        )
    return bool(waiting)


def _stopped_by(callbacks: list[Any], logs: dict[str, Any]) -> tuple[str, str]:
    """Returns who ended the run, if known, and what to do."""
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.EarlyStopping) and callback.stopped_epoch:
            return f"{type(callback).__name__}(monitor={callback.monitor!r})", PATIENT
        loss = logs.get("loss")
        is_bad = loss is not None and not math.isfinite(loss)
        if isinstance(callback, keras.callbacks.TerminateOnNaN) and is_bad:
            return "TerminateOnNaN", f"The loss was {loss}: lower the learning rate."
    return "A callback", "It set `model.stop_training`: let it do so in the last stage only."
