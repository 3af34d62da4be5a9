"""The multiplier of each variable: which share of the learning rate it gets.

Discriminative rates give layers far from the output a smaller one (Howard & Ruder 2018, ULMFiT,
section 3.2); a layer that has just been unfrozen may begin with small steps. The rate of the
optimizer stays what it is, so that it is read, logged, scheduled and saved as ever.

Private names of `keras.optimizers.Optimizer` used here were tried on Keras 3.12.0 and 3.15.1:
`_iterations`, `_var_key`, `_get_current_learning_rate` (what weight decay multiplies with),
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
    """What the learning rate of a variable is multiplied with.

    Attributes:
        scale: at full speed.
        start: the number of updates at which it begins to speed up.
        steps: the number of updates after which it is at full speed; 0 = at once. Update i of
            them (i = 1, 2, ...) takes i / steps of the rate.
    """

    scale: float = 1.0
    start: int = 0
    steps: int = 0


FULL = Multiplier()
Multipliers = Mapping[Any, Multiplier]  # by the key that the optimizer has for a variable


def multiplied(optimizer: Optimizer, multiplier: Multiplier, rate: Tensor) -> Tensor:
    """Returns the rate of variables of a multiplier, at the step that runs."""
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
    """Weight decay, which Keras multiplies with the rate: with the share of each variable."""
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
