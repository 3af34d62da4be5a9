"""Plateau: begins a stage of a schedule when a metric stops improving."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import keras

from keras_freeze.errors import FreezeError, ScheduleError, check_choice, names_unknown, shown

MODES = ("auto", "min", "max")
MOST_EPOCHS = 2**31 - 1  # a larger number is a mistake, and logs can't hold it exactly
RISING = ("acc", "auc", "precision", "recall", "f1", "f_score", "fbeta", "iou", "r2", "top_k")


@keras.saving.register_keras_serializable(package="keras_freeze")
@dataclass(frozen=True, init=False)
class Plateau:
    """Begins a stage when the running stage has stopped improving.

    Replaces the epoch: `Stage(at=Plateau(patience=2), unfreeze="block5_*")`. The arguments mean the
    same as in Keras' `EarlyStopping`, but count from the beginning of the running stage. The next
    stage begins one epoch after the trigger has fired.

    Args:
        monitor: the name of the quantity to monitor, as in the logs.
        patience: the number of epochs without improvement after which the stage ends; 0 = at the
            first epoch that isn't better. With `validation_freq`, only epochs whose logs have the
            monitor count.
        min_delta: the minimum change that counts as an improvement, in the monitor's unit.
        mode: `"min"`, `"max"` or `"auto"` (by the monitor's name: `"max"` for accuracies, AUC,
            precision, recall, F-scores, IoU and R2, else `"min"`).
        min_epochs: the minimum length of the running stage.
        max_epochs: the maximum length of the running stage, even if it improves; None = no limit.

    Raises:
        ScheduleError: an argument is unknown or invalid.

    Examples:
        >>> Stage(at=Plateau("val_accuracy", patience=2), unfreeze="block5_*")
        Stage(at=Plateau(monitor='val_accuracy', patience=2), unfreeze='block5_*')
    """

    monitor: str = "val_loss"
    patience: int = 3
    min_delta: float = 0.0
    mode: str = "auto"
    min_epochs: int = 1
    max_epochs: int | None = None

    @names_unknown(ScheduleError)
    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        patience: int = 3,
        min_delta: float = 0.0,
        mode: str = "auto",
        min_epochs: int = 1,
        max_epochs: int | None = None,
    ):
        if not isinstance(monitor, str) or not monitor:
            raise ScheduleError(
                "`monitor` of Plateau must be a name in the logs, such as 'val_loss'. "
                f"Received: monitor={monitor!r}"
            )
        try:
            check_choice("mode", mode, MODES)
        except FreezeError as error:
            raise ScheduleError(f"Plateau: {error}") from None
        given = {
            "monitor": monitor,
            "patience": _whole("patience", patience, 0),
            "min_delta": _delta(min_delta),
            "mode": mode,
            "min_epochs": _whole("min_epochs", min_epochs, 1),
            "max_epochs": None if max_epochs is None else _whole("max_epochs", max_epochs, 1),
        }
        for key, value in given.items():
            object.__setattr__(self, key, value)
        if self.max_epochs is not None and self.max_epochs < self.min_epochs:
            raise ScheduleError(
                "`max_epochs` of Plateau must be at least `min_epochs`. Received: "
                f"min_epochs={min_epochs!r}, max_epochs={max_epochs!r}"
            )

    @property
    def is_rising(self) -> bool:
        """True if larger is better."""
        if self.mode == "auto":
            name = self.monitor.lower()
            return any(part in name for part in RISING) and not name.endswith("loss")
        return self.mode == "max"

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, as Keras serializes them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Plateau:
        """Returns the trigger with these arguments."""
        return cls(**config)

    def given(self) -> dict[str, Any]:
        """Returns `monitor`, and the arguments that differ from their defaults."""
        defaults = {field.name: field.default for field in fields(self)}
        arguments = self.get_config()
        return {k: v for k, v in arguments.items() if v != defaults[k] or k == "monitor"}

    def __repr__(self) -> str:
        return f"Plateau({', '.join(f'{key}={value!r}' for key, value in self.given().items())})"


class Watched:
    """Tracks the monitor during a stage, until the trigger fires.

    Args:
        plateau: the trigger of the next stage.
    """

    def __init__(self, plateau: Plateau):
        self.plateau = plateau
        self.best: float | None = None
        self.epochs = 0
        self.wait = 0

    def see(self, value: float | None) -> bool:
        """Counts an epoch; returns whether it is the best so far.

        Args:
            value: the monitor's value; None if this epoch has none (`validation_freq`).
        """
        self.epochs += 1
        if value is None:
            return False
        better = self._is_better(value)
        self.best, self.wait = (value, 0) if better else (self.best, self.wait + 1)
        return better

    @property
    def is_over(self) -> bool:
        """True if the next stage begins with the next epoch."""
        limit = self.plateau.max_epochs
        if limit is not None and self.epochs >= limit:
            return True
        waited = self.wait > 0 and self.wait >= self.plateau.patience
        return waited and self.epochs >= self.plateau.min_epochs

    def _is_better(self, value: float) -> bool:
        if math.isnan(value):
            return False
        if self.best is None:
            return True
        gain = value - self.best if self.plateau.is_rising else self.best - value
        return gain > self.plateau.min_delta


def _whole(name: str, value: Any, least: int) -> int:
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or not least <= value <= MOST_EPOCHS:
        raise ScheduleError(
            f"`{name}` of Plateau must be a whole number of epochs, {least} or more. "
            f"Received: {name}={shown(value)}"
        )
    return operator.index(value)


def _delta(value: Any) -> float:
    delta = finite(value)
    if delta is None or delta < 0:
        raise ScheduleError(
            "`min_delta` of Plateau must be a number, 0 or more. "
            f"Received: min_delta={shown(value)}"
        )
    return delta


def finite(value: Any) -> float | None:
    """Returns a number as a float; None if it isn't a number, or isn't finite as a float."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        number = float(value)
    except OverflowError:  # 10**400
        return None
    return number if math.isfinite(number) else None


KEYS = tuple(field.name for field in fields(Plateau))
