"""One stage of a schedule."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, fields
from typing import Any

import keras

from keras_freeze.errors import (
    FreezeError,
    LayerMatchError,
    ScheduleError,
    check_choice,
    closest,
    shown,
)
from keras_freeze.graph.selectors import check_selector
from keras_freeze.schedule.plateau import MOST_EPOCHS, Plateau, finite
from keras_freeze.schedule.written import check_written, comparable, texts


@keras.saving.register_keras_serializable(package="keras_freeze")
@dataclass(frozen=True, init=False, eq=False)
class Stage:
    """What changes when an epoch begins.

    Args:
        at: the epoch, counted from 0 as in Keras, at whose beginning the stage begins; or a
            `Plateau`: it begins when the stage before it has stopped improving.
        unfreeze: a selector of the layers that become trainable (see `select_layers`). Names and
            patterns are looked up in the base first, then in the rest of the model; slices, indices
            and percentages count within the base. A layer outside the base is frozen before the
            first stage that thaws it, and trainable before the first that freezes it.
        freeze: a selector of the layers that are frozen. A layer in both ends up frozen nowhere:
            that is an error.
        learning_rate: a float or a `keras.optimizers.schedules.LearningRateSchedule`; `None`
            leaves the rate alone. A schedule is called with `optimizer.iterations`, which goes on
            counting over the stages with `optimizer="carry"` and begins at 0 with `"reset"`.
        optimizer: `"carry"` or `"reset"` for this stage alone; `None` = as the schedule's user
            (`GradualUnfreeze`) says.
        restore_best: goes back, when the stage begins, to the best epoch of the stage that ends:
            its weights and the optimizer's slots. Best by the monitor of the `Plateau`; with an
            epoch in `at`, by `val_loss`.
        name: shown in the stage's lines.

    Raises:
        ScheduleError: an argument is unknown or can't be meant.
        LayerMatchError: a selector can't be meant, whatever the model.

    Examples:
        >>> Stage(at=10, unfreeze="block5_conv1:", learning_rate=1e-5, name="fine-tune")
        Stage(at=10, unfreeze='block5_conv1:', learning_rate=1e-05, name='fine-tune')
    """

    at: int | Plateau
    unfreeze: Any = None
    freeze: Any = None
    learning_rate: Any = None
    optimizer: str | None = None
    restore_best: bool = False
    name: str | None = None

    def __init__(
        self,
        at: int | Plateau,
        unfreeze: Any = None,
        freeze: Any = None,
        *,
        learning_rate: Any = None,
        optimizer: str | None = None,
        restore_best: bool = False,
        name: str | None = None,
        **unknown: Any,
    ):
        _refuse_unknown(unknown, f"Stage(at={shown(at)})")
        given = {
            "at": check_at(at),
            "unfreeze": unfreeze,
            "freeze": freeze,
            "learning_rate": _check_rate(learning_rate),
            "optimizer": optimizer,
            "restore_best": restore_best,
            "name": name,
        }
        for key, value in given.items():
            object.__setattr__(self, key, value)
        self._check()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Stage):
            return NotImplemented
        mine, its = ([comparable(getattr(each, key)) for key in KEYS] for each in (self, other))
        return mine == its

    def __hash__(self) -> int:
        """Stages that are equal have equal epochs; a selector may be a list, which has no hash."""
        return hash(self.at)

    def _check(self) -> None:
        for argument in ("unfreeze", "freeze"):
            selector = getattr(self, argument)
            if selector is not None:
                check_selector(selector, f"`{argument}` of Stage(at={self.at})")
        self._check_overlap()
        try:
            check_choice("optimizer", self.optimizer, (None, "carry", "reset"))
        except FreezeError as error:
            raise ScheduleError(f"Stage(at={self.at}): {error}") from None
        if not isinstance(self.restore_best, bool):
            raise ScheduleError(
                f"`restore_best` of Stage(at={self.at}) must be True or False. "
                f"Received: restore_best={self.restore_best!r}"
            )
        if self.name is not None and not isinstance(self.name, str):
            raise ScheduleError(
                f"`name` of Stage(at={self.at}) must be a string. Received: name={self.name!r}"
            )
        if not self._given(fields(self)[1:]):
            raise ScheduleError(
                f"Stage(at={self.at}) changes nothing. Give it `unfreeze`, `freeze`, "
                "`learning_rate`, `optimizer`, `restore_best` or at least a `name`."
            )

    def _check_overlap(self) -> None:
        """Selectors that mean the same layers in every model; `fit` finds the others."""
        thawed, frozen = texts(self.unfreeze), texts(self.freeze)
        subtracts = any(text.startswith("!") for text in (*thawed, *frozen))
        both = sorted(thawed & frozen)
        if both and (thawed == frozen or not subtracts):
            raise ScheduleError(
                f"`unfreeze` and `freeze` of Stage(at={self.at}) both name {both}. A layer can be "
                f"in one of them only. Received: unfreeze={self.unfreeze!r}, freeze={self.freeze!r}"
            )

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, as Keras serialises them.

        Raises:
            ScheduleError: a selector is a function or a layer, which has no written form.
        """
        self.check_writable()
        config = {field.name: getattr(self, field.name) for field in fields(self)}
        return config | {
            key: keras.saving.serialize_keras_object(config[key]) for key in ("at", "learning_rate")
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Stage:
        """Returns the stage with these arguments."""
        objects = {
            key: keras.saving.deserialize_keras_object(value)
            for key, value in config.items()
            if key in ("at", "learning_rate") and isinstance(value, Mapping)
        }
        return cls(**{**config, **objects})

    def check_writable(self) -> None:
        """Raises `ScheduleError` if a selector is a function or a layer."""
        for argument in ("unfreeze", "freeze"):
            check_written(getattr(self, argument), f"`{argument}` of Stage(at={self.at})")

    def given(self) -> dict[str, Any]:
        """Returns the arguments that aren't their defaults, `at` first."""
        # An epoch of 0 is no default.
        return {"at": self.at, **self._given(fields(self)[1:])}

    def _given(self, among: Sequence[Field[Any]]) -> dict[str, Any]:
        """The arguments that aren't their defaults."""
        given = {field.name: getattr(self, field.name) for field in among}
        return {key: value for key, value in given.items() if value not in (None, False)}

    def __repr__(self) -> str:
        return f"Stage({', '.join(f'{key}={value!r}' for key, value in self.given().items())})"

    def title(self, number: int) -> str:
        """Returns how messages call the stage: its number, and its name if it has one."""
        return f"Stage {number}" + (f" '{self.name}'" if self.name else "")


def stage_from(at: Any, value: Any) -> Stage:
    """Reads one entry of `{epoch: selector or Stage}`; a mapping holds `Stage`'s arguments."""
    check_at(at)
    if isinstance(value, Mapping):
        _refuse_unknown({k: v for k, v in value.items() if k not in KEYS}, f"stage at epoch {at}")
        value = Stage(**{"at": at, **value})
    if isinstance(value, Stage):
        if value.at != at:
            under = f"epoch {at}" if isinstance(at, int) else at
            raise ScheduleError(
                f"`schedule` has Stage(at={value.at}) under {under}. Use the same epoch in both."
            )
        return value
    if value is None:
        raise ScheduleError(
            f"`schedule` has no selector for epoch {at}. Write what to unfreeze, for example "
            f"{{{at}: 'block5_*'}}. Received: None"
        )
    try:
        return Stage(at, unfreeze=value)
    except LayerMatchError as error:
        raise LayerMatchError(f"`schedule`: {error}") from None


def check_at(at: Any) -> int | Plateau:
    """Returns `at` as an int >= 0 or a `Plateau`, or raises `ScheduleError`."""
    if isinstance(at, Plateau):
        return at
    if isinstance(at, bool) or not isinstance(at, numbers.Integral):
        raise ScheduleError(
            "`at` must be an epoch, a whole number counted from 0 as in Keras, or a Plateau. "
            f"Received: at={at!r} (of type {type(at).__name__})"
        )
    epoch = operator.index(at)
    if epoch < 0:
        raise ScheduleError(f"`at` must be an epoch >= 0, counted from 0. Received: at={shown(at)}")
    if epoch > MOST_EPOCHS:
        raise ScheduleError(
            f"`at` must be an epoch that a run can reach, at most {MOST_EPOCHS}. "
            f"Received: at={shown(at)}"
        )
    return epoch


def _check_rate(rate: Any) -> Any:
    if rate is None or isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        return rate
    number = finite(rate)
    if number is not None and number > 0:
        return number
    raise ScheduleError(
        "`learning_rate` must be a float above 0 or a LearningRateSchedule. "
        f"Received: learning_rate={shown(rate)}"
    )


KEYS = tuple(field.name for field in fields(Stage))


def _refuse_unknown(unknown: Mapping[Any, Any], where: str) -> None:
    for key, value in unknown.items():
        raise ScheduleError(
            f"{where} has an unknown key {key!r}.{closest(key, KEYS)} Known keys: "
            f"{', '.join(KEYS)}. Received: {key}={value!r}"
        )
