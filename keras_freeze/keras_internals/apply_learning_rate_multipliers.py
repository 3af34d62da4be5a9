"""Scales the learning rate of each variable by a factor of the variable's own.

With discriminative rates, layers far from the output get a smaller rate (Howard & Ruder 2018,
ULMFiT, section 3.2). A layer that has just been unfrozen may warm up. The optimizer's own rate
doesn't change: it is read, logged, scheduled and saved as usual.

Private names of `keras.optimizers.Optimizer` used here were tried on Keras 3.12.0 and 3.15.1:
`_iterations`, `_var_key`, `_get_current_learning_rate` (the rate that weight decay uses),
`_use_weight_decay`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras

from keras_freeze.keras_internals.temporary_attributes import attribute

Optimizer = Any
Variable = Any
Tensor = Any


@dataclass(frozen=True)
class Multiplier:
    """The learning-rate multiplier of a variable.

    Attributes:
        scale: the multiplier after the warm-up.
        start: the update at which the warm-up begins.
        steps: the length of the warm-up in updates; 0 = no warm-up. Update i (i = 1, 2, ...) uses
            scale * i / steps.
    """

    scale: float = 1.0
    start: int = 0
    steps: int = 0


FULL = Multiplier()
Multipliers = Mapping[Any, Multiplier]  # by the optimizer's key of a variable


def multiplied(optimizer: Optimizer, multiplier: Multiplier, rate: Tensor) -> Tensor:
    """Returns the rate of variables with this multiplier, at the current training step."""
    if multiplier == FULL:
        return rate
    rate = keras.ops.convert_to_tensor(rate)
    if not multiplier.steps:
        return rate * keras.ops.cast(multiplier.scale, rate.dtype)
    each = optimizer.gradient_accumulation_steps or 1
    done = optimizer._iterations // each - multiplier.start + 1
    part = keras.ops.cast(keras.ops.clip(done, 1, multiplier.steps), rate.dtype)
    return rate * (part * keras.ops.cast(multiplier.scale / multiplier.steps, rate.dtype))


def decay_weights(
    optimizer: Optimizer,
    apply: Callable[[list[Variable]], None],
    multipliers: Multipliers,
    variables: list[Variable],
) -> None:
    """Applies weight decay, which Keras multiplies by the rate, with each variable's own rate."""
    groups: dict[Multiplier, list[Variable]] = {}
    for variable in variables:
        if optimizer.weight_decay is not None and optimizer._use_weight_decay(variable):
            multiplier = multipliers.get(optimizer._var_key(variable), FULL)
            groups.setdefault(multiplier, []).append(variable)
    rate = optimizer._get_current_learning_rate
    for multiplier, members in groups.items():
        with attribute(
            optimizer,
            "_get_current_learning_rate",
            lambda multiplier=multiplier: multiplied(optimizer, multiplier, rate()),
        ):
            apply(members)
