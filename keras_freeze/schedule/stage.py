"""Stage: what a schedule freezes, unfreezes and changes when an epoch begins."""

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
            `Plateau`: the stage begins when the stage before it has stopped improving.
        unfreeze: a selector of the layers that become trainable (see `select_layers`). Names and
            patterns are looked up in the base first, then in the rest of the model; slices, indices
            and percentages count within the base. A layer outside the base keeps the `trainable`
            flag that it had when `fit` began until a stage names it, so a head may be listed too.
        freeze: a selector of the layers that are frozen. A layer outside the base is trainable
            until the first stage that freezes it. A layer in both arguments is an error.
        learning_rate: a float, a `keras.optimizers.schedules.LearningRateSchedule`, or
            `{"factor": 0.1}` to multiply the rate before; `None` = unchanged. A schedule is called
            with `optimizer.iterations`, which continues over the stages with `optimizer="carry"`
            and begins at 0 with `"reset"`.
        base_learning_rate: the rate of the base when the stage begins: a float, or
            `{"factor": 0.01}` for a part of `learning_rate`. The base then keeps its ratio to
            `learning_rate` when that changes (by a later stage, a Keras schedule or
            `ReduceLROnPlateau`), until a stage sets another one or resets the optimizer. `None` =
            the ratio is unchanged, at first 1. With a `LearningRateSchedule`, the ratio is that to
            the schedule's first value.
        layer_decay: a number above 0, at most 1. Each block of the base, counted from the head, has
            the rate of the block before it times this number (ULMFiT uses 1/2.6, about 0.38; use
            0.8 for deep models). Layers outside the base have the full rate. With a
            `base_learning_rate`, that is the rate of the block next to the head. It holds until a
            stage sets another one or resets the optimizer. `None` = unchanged.
        warmup_steps: the number of updates over which the layers that this stage unfreezes warm
            up: update i uses i / `warmup_steps` of the rate. Other layers have no warm-up. The
            warm-up continues after the end of the stage, but not in another `fit`.
        optimizer: `"carry"` or `"reset"` for this stage only; `None` = as in `GradualUnfreeze`.
        restore_best: True restores weights and optimizer slots of the best epoch of the stage
            before, when this stage begins. The best epoch is chosen by the monitor of this stage's
            `Plateau`, or by `val_loss` if it has none. Epochs of an earlier `fit` don't count.
        name: a name that is shown in the lines about the stage.

    Raises:
        ScheduleError: an argument is unknown or invalid.
        LayerMatchError: a selector is invalid for any model.

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
        """Hashes `at` only, as a selector may be a list, which has no hash."""
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
        """Finds selectors that match the same layers in every model; `fit` finds the others."""
        unfrozen, frozen = texts(self.unfreeze), texts(self.freeze)
        subtracts = any(text.startswith("!") for text in (*unfrozen, *frozen))
        both = sorted(unfrozen & frozen)
        if both and (unfrozen == frozen or not subtracts):
            raise ScheduleError(
                f"`unfreeze` and `freeze` of Stage(at={self.at}) both name {both}. A layer can be "
                f"in one of them only. Received: unfreeze={self.unfreeze!r}, freeze={self.freeze!r}"
            )

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, as Keras serializes them.

        Raises:
            ScheduleError: a selector is a function or a layer, which can't be saved.
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
        """Returns `at`, which has no default, and the arguments that differ from their defaults."""
        return {"at": self.at, **self._given(fields(self)[1:])}

    def _given(self, among: Sequence[Field[Any]]) -> dict[str, Any]:
        """Returns the arguments that differ from their defaults."""
        given = [(field, getattr(self, field.name)) for field in among]
        return {
            field.name: value
            for field, value in given
            if type(value) is not type(field.default) or value != field.default
        }

    def __repr__(self) -> str:
        return f"Stage({', '.join(f'{key}={value!r}' for key, value in self.given().items())})"

    def title(self, number: int) -> str:
        """Returns the stage's name in messages: its number, and its name if it has one."""
        return f"Stage {number}" + (f" '{self.name}'" if self.name else "")


KEYS = tuple(field.name for field in fields(Stage))


# Other words for keys that `closest` can't find.
ALSO_CALLED = {"at": ("epoch", "start", "begin", "begins"), "unfreeze": ("thaw", "layers", "train")}


def meant_by(key: Any) -> str:
    """Returns a hint with the closest key of a stage; "" if no key is similar."""
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
