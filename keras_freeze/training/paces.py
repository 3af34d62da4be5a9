"""The pace of each variable: which share of the learning rate it gets.

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

from keras_freeze.training.patch import attribute

Optimizer = Any
Variable = Any
Tensor = Any


@dataclass(frozen=True)
class Pace:
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


FULL = Pace()
Paces = Mapping[Any, Pace]  # by the key that the optimizer has for a variable


def share(optimizer: Optimizer, pace: Pace, rate: Tensor) -> Tensor:
    """Returns the rate of variables of a pace, at the step that runs."""
    if pace == FULL:
        return rate
    rate = keras.ops.convert_to_tensor(rate)
    if not pace.steps:
        return rate * keras.ops.cast(pace.scale, rate.dtype)
    each = optimizer.gradient_accumulation_steps or 1
    done = optimizer._iterations // each - pace.start + 1
    part = keras.ops.cast(keras.ops.clip(done, 1, pace.steps), rate.dtype)
    return rate * (part * keras.ops.cast(pace.scale / pace.steps, rate.dtype))


def decay(
    optimizer: Optimizer,
    apply: Callable[[list[Variable]], None],
    paces: Paces,
    variables: list[Variable],
) -> None:
    """Weight decay, which Keras multiplies with the rate: with the share of each variable."""
    groups: dict[Pace, list[Variable]] = {}
    for variable in variables:
        if optimizer.weight_decay is not None and optimizer._use_weight_decay(variable):
            pace = paces.get(optimizer._var_key(variable), FULL)
            groups.setdefault(pace, []).append(variable)
    rate = optimizer._get_current_learning_rate
    for pace, members in groups.items():
        with attribute(
            optimizer,
            "_get_current_learning_rate",
            lambda pace=pace: share(optimizer, pace, rate()),
        ):
            apply(members)
