"""One stage of a schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, fields
from typing import Any

import keras

from keras_freeze.errors import (
    FreezeError,
    ScheduleError,
    check_choice,
    closest,
    shown,
)
from keras_freeze.graph.selectors import check_selector
from keras_freeze.schedule.plateau import KEYS as PLATEAU_KEYS
from keras_freeze.schedule.plateau import Plateau
from keras_freeze.schedule.serialize_stage_values import check_written, comparable, texts
from keras_freeze.schedule.stage_arguments import (
    check_at,
    check_base_rate,
    check_decay,
    check_rate,
    check_steps,
)


@keras.saving.register_keras_serializable(package="keras_freeze")
@dataclass(frozen=True, init=False, eq=False)
class Stage:
    """What changes when an epoch begins.

    Args:
        at: the epoch, counted from 0 as in Keras, at whose beginning the stage begins; or a
            `Plateau`: it begins when the stage before it has stopped improving.
        unfreeze: a selector of the layers that become trainable (see `select_layers`). Names and
            patterns are looked up in the base first, then in the rest of the model; slices, indices
            and percentages count within the base. A layer outside the base stays as its `trainable`
            flag was when `fit` began until a stage names it, so a head may be listed too.
        freeze: a selector of the layers that are frozen. A layer outside the base that a stage
            freezes first begins trainable. A layer in both arguments is an error.
        learning_rate: a float, a `keras.optimizers.schedules.LearningRateSchedule`, or
            `{"factor": 0.1}`: that many times the rate before; `None` leaves the rate alone. A
            schedule is called with `optimizer.iterations`, which goes on
            counting over the stages with `optimizer="carry"` and begins at 0 with `"reset"`.
        base_learning_rate: the rate with which the base begins: a float, or `{"factor": 0.01}` for
            a part of `learning_rate`. From then on it keeps its ratio to `learning_rate`, whatever
            changes that (a later stage, a Keras schedule, `ReduceLROnPlateau`), until a stage sets
            another one, or resets the optimizer. `None` leaves the ratio alone, which is 1 at
            first. Beside a `LearningRateSchedule`, it is the ratio to the schedule's first value.
        layer_decay: above 0, at most 1: each block of the base, counted from the head, learns at
            this many times the rate of the one before it (0.38, that is 1/2.6: ULMFiT; 0.8 for
            deep ones); what lies outside the base learns at the full rate. With a
            `base_learning_rate`, that is the rate of the block next to the head. It holds until a
            stage sets another one, or resets the optimizer. `None` leaves it alone.
        warmup_steps: the layers that this stage unfreezes begin slowly: update i of so many gets
            i / `warmup_steps` of the rate. The others are not slowed down. It goes on over the end
            of the stage, but not into another `fit`.
        optimizer: `"carry"` or `"reset"` for this stage alone; `None` = as the schedule's user
            (`GradualUnfreeze`) says.
        restore_best: goes back, when the stage begins, to the best epoch of the stage that ends:
            its weights and the optimizer's slots. Best by the monitor of the `Plateau` that ends
            it; where none is waited for, by `val_loss`. What was best in an earlier `fit` isn't
            known.
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
    base_learning_rate: Any = None
    layer_decay: float | None = None
    warmup_steps: int = 0
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
        base_learning_rate: Any = None,
        layer_decay: float | None = None,
        warmup_steps: int = 0,
        optimizer: str | None = None,
        restore_best: bool = False,
        name: str | None = None,
        **unknown: Any,
    ):
        refuse_unknown(unknown, f"Stage(at={shown(at)})")
        given = {
            "at": check_at(at),
            "unfreeze": unfreeze,
            "freeze": freeze,
            "learning_rate": check_rate(learning_rate),
            "base_learning_rate": check_base_rate(base_learning_rate),
            "layer_decay": check_decay(layer_decay),
            "warmup_steps": check_steps(warmup_steps),
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
                "`learning_rate`, `base_learning_rate`, `layer_decay`, `optimizer`, `restore_best` "
                "or at least a `name`."
            )
        if self.warmup_steps and self.unfreeze is None:
            raise ScheduleError(
                f"`warmup_steps` of Stage(at={self.at}) is for the layers that the stage "
                f"unfreezes. Give it `unfreeze`. Received: warmup_steps={self.warmup_steps!r}"
            )

    def _check_overlap(self) -> None:
        """Selectors that mean the same layers in every model; `fit` finds the others."""
        unfrozen, frozen = texts(self.unfreeze), texts(self.freeze)
        subtracts = any(text.startswith("!") for text in (*unfrozen, *frozen))
        both = sorted(unfrozen & frozen)
        if both and (unfrozen == frozen or not subtracts):
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
        given = [(field, getattr(self, field.name)) for field in among]
        return {
            field.name: value
            for field, value in given
            if type(value) is not type(field.default) or value != field.default
        }

    def __repr__(self) -> str:
        return f"Stage({', '.join(f'{key}={value!r}' for key, value in self.given().items())})"

    def title(self, number: int) -> str:
        """Returns how messages call the stage: its number, and its name if it has one."""
        return f"Stage {number}" + (f" '{self.name}'" if self.name else "")


KEYS = tuple(field.name for field in fields(Stage))


# What people call them, where no rule of `closest` finds it.
ALSO_CALLED = {"at": ("epoch", "start", "begin", "begins"), "unfreeze": ("thaw", "layers", "train")}


def meant_by(key: Any) -> str:
    """Returns a hint at the key of a stage that is meant by an unknown one; "" if none is near."""
    named = next((name for name, others in ALSO_CALLED.items() if key in others), None)
    return f" Did you mean {named!r}?" if named else closest(key, KEYS)


def refuse_unknown(unknown: Mapping[Any, Any], where: str) -> None:
    """Raises `ScheduleError` if there is an unknown key."""
    for key, value in unknown.items():
        hint = meant_by(key)
        if key == "plateau" or key in PLATEAU_KEYS:
            hint = " A trigger is the stage's `at`: at=Plateau(patience=3)."
        elif key in ("base", "batch_norm"):
            hint = " It is the same for all stages: pass it to GradualUnfreeze or Schedule."
        raise ScheduleError(
            f"{where} has an unknown key {key!r}.{hint} Known keys: "
            f"{', '.join(KEYS)}. Received: {key}={shown(value)}"
        )
