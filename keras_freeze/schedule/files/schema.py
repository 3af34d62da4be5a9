"""Defines the valid keys and types of a schedule file, as pydantic models, and its JSON Schema.

A new argument of `Stage` is one line in `Changes`. A description completes "`key` must be ..." in
messages, and is shown by editors. Types are strict: a string isn't converted to a number. `Stage`
checks what depends on more than the types (a share above 100 %, a stage that changes nothing).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, RootModel, Tag, TypeAdapter

from keras_freeze.schedule.plateau import MOST_EPOCHS
from keras_freeze.schedule.serialize_stage_values import RATES

SELECTOR = 'a selector in quotes, such as "block5_*" or "block5_conv1:", or a list of these'
MODE = "'carry' or 'reset'"


class Strict(BaseModel):
    """A mapping with known keys only, whose values have exactly the given types."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Selector(RootModel[Any]):
    """Which layers: a name, a pattern, a slice, a share, or a list of these."""

    root: (
        Annotated[str, Field(min_length=1, examples=["block5_*", "block5_conv1:", "-20:", "20%"])]
        | Annotated[list[Selector], Field(min_length=1)]
    )


class Trigger(Strict):
    """Begins the stage when the one before it has stopped improving: see `Plateau`."""

    monitor: str = Field("val_loss", min_length=1, description="a name in the logs")
    patience: int = Field(3, ge=0, le=MOST_EPOCHS, description="a number of epochs, 0 or more")
    min_delta: float = Field(0.0, ge=0, description="a number, 0 or more")
    mode: Literal["auto", "min", "max"] = Field("auto", description="'auto', 'min' or 'max'")
    min_epochs: int = Field(1, ge=1, le=MOST_EPOCHS, description="a number of epochs, 1 or more")
    max_epochs: int | None = Field(
        None, ge=1, le=MOST_EPOCHS, description="a number of epochs, 1 or more, or null"
    )


class WhenOver(Strict):
    """A trigger in place of an epoch."""

    plateau: Trigger = Field(
        description="a mapping with any of the keys monitor, patience, min_delta, mode, "
        "min_epochs, max_epochs; {} = the defaults"
    )


class RateSchedule(Strict):
    """A learning rate schedule of Keras, as Keras serializes it."""

    class_name: Literal[RATES] = Field(  # type: ignore[valid-type]
        description=f"a class of keras.optimizers.schedules: {', '.join(RATES)}"
    )
    config: dict[str, Any] = Field(description="a mapping with the arguments of the class")
    module: Literal["keras.optimizers.schedules"] = Field(
        "keras.optimizers.schedules", description="'keras.optimizers.schedules', or left out"
    )
    registered_name: None = Field(None, description="null, or left out")


class Factor(Strict):
    """A factor by which the learning rate is multiplied."""

    factor: float = Field(gt=0, description="a number above 0, such as 0.1")


def _kind(value: Any) -> str:
    return "[mapping]" if isinstance(value, Mapping) else "[number]"


def rate_model(value: Any) -> type[Strict]:
    """Returns the model of a mapping under `learning_rate`."""
    is_schedule = not isinstance(value, Mapping) or {"class_name", "config"} & {*value}
    return RateSchedule if is_schedule else Factor


def _rate_kind(value: Any) -> str:
    is_factor = isinstance(value, Mapping) and rate_model(value) is Factor
    return "[factor]" if is_factor else _kind(value)


Epoch = Annotated[int, Field(ge=0, le=MOST_EPOCHS)]
At = Annotated[
    Annotated[Epoch, Tag("[number]")] | Annotated[WhenOver, Tag("[mapping]")], Discriminator(_kind)
]
Rate = Annotated[
    Annotated[float, Field(gt=0), Tag("[number]")]
    | Annotated[Factor, Tag("[factor]")]
    | Annotated[RateSchedule, Tag("[mapping]")],
    Discriminator(_rate_kind),
]


BaseRate = Annotated[
    Annotated[float, Field(gt=0), Tag("[number]")] | Annotated[Factor, Tag("[factor]")],
    Discriminator(lambda value: "[factor]" if isinstance(value, Mapping) else "[number]"),
]


class Changes(Strict):
    """What changes when a stage begins: the arguments of `Stage` without `at`."""

    unfreeze: Selector | None = Field(None, description=SELECTOR)
    freeze: Selector | None = Field(None, description=SELECTOR)
    learning_rate: Rate | None = Field(
        None,
        description="a number above 0, {factor: 0.1}, or a mapping with class_name and config",
    )
    base_learning_rate: BaseRate | None = Field(
        None, description="a number above 0, or {factor: 0.1}, a part of `learning_rate`"
    )
    layer_decay: float | None = Field(
        None, gt=0, le=1, description="a number above 0, at most 1, such as 0.8"
    )
    warmup_steps: int = Field(
        0, ge=0, le=MOST_EPOCHS, description="a whole number of updates, 0 or more"
    )
    optimizer: Literal["carry", "reset"] | None = Field(None, description=MODE)
    restore_best: bool = Field(False, description="true or false")
    name: str | None = Field(None, description="a string (in quotes, if it looks like a number)")


class Entry(Changes):
    """One stage in a list of stages."""

    at: At = Field(
        description="an epoch, a whole number counted from 0 and below 2147483648, or a trigger, "
        "{plateau: {monitor: val_loss, patience: 3}}"
    )


ByEpoch = Annotated[
    dict[Annotated[str, Field(pattern=r"^[0-9]+$")], Selector | Changes | Entry],
    Field(min_length=1, json_schema_extra={"additionalProperties": False}),
]
Entries = Annotated[list[Entry], Field(min_length=1)]
STAGES = 'a list of stages, each with `at` and what it changes, or a mapping {10: "block5_*"}'


class Settings(Strict):
    """The stages, and the settings that are the same for all of them."""

    schema_: str | None = Field(
        None, alias="$schema", description="the path of the JSON Schema, for editors"
    )
    base: Selector | None = Field(None, description="the name of the base, or " + SELECTOR)
    optimizer: Literal["carry", "reset"] | None = Field(None, description=MODE)
    batch_norm: Literal["freeze", "train"] | None = Field(None, description="'freeze' or 'train'")


class Plan(Settings):
    """A file as it is checked, with the short forms expanded."""

    stages: Entries = Field(description=STAGES)


class File(Settings):
    """A file as users write it."""

    stages: Entries | ByEpoch = Field(description=STAGES)


def json_schema() -> str:
    """Returns the JSON Schema of schedule files, which `schedule/schema.json` holds."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "keras_freeze schedule",
        **TypeAdapter(File | Entries | ByEpoch).json_schema(),
    }
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    print(json_schema(), end="")
