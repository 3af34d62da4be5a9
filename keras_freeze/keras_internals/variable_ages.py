"""Counts optimizer updates for each variable from the moment it is unfrozen.

Optimizers correct for the start of a run (Adam's bias correction, Kingma & Ba 2015, section 3)
with one update count for all variables. A variable that is unfrozen late has empty slots, and the
count of the run is too large for it: Adam's first update would be 2.5 times the learning rate or
more. So variables are updated in groups of equal age. The *age* of a variable is the number of
updates since its *birth*, the step at which it was unfrozen. Each group uses its age as the count.

Private names of `keras.optimizers.Optimizer` used here were tried on Keras 3.12.0 and 3.15.1:
`_backend_update_step` (called on all backends), `_iterations`,
`_clip_gradients`, `_trainable_variables`,
`_update_model_variables_moving_average`, `_model_variables_moving_average`, `_u_product` (Nadam).
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from keras_freeze.keras_internals.apply_learning_rate_multipliers import (
    FULL,
    Multiplier,
    Multipliers,
    decay_weights,
    multiplied,
)
from keras_freeze.keras_internals.copy_to_numpy import to_numpy
from keras_freeze.keras_internals.temporary_attributes import Patch, attribute

Optimizer = Any
Variable = Any
Tensor = Any

# {optimizer: {variable key: value of `iterations` when the variable was unfrozen}}. It isn't an
# attribute of the optimizer, as we leave nothing on it. Weak, so that the optimizer can be freed.
_BIRTHS: weakref.WeakKeyDictionary[Optimizer, dict[Any, int]] = weakref.WeakKeyDictionary()

_KNOWN: weakref.WeakSet[Optimizer] = weakref.WeakSet()  # optimizers that fits of ours have used


def births_of(optimizer: Optimizer) -> dict[Any, int]:
    """Returns the current births; none if `iterations` was reset in between."""
    births = _BIRTHS.get(optimizer, {})
    if births and max(births.values()) > updates(optimizer):
        return {}
    return dict(births)


def updates(optimizer: Optimizer) -> int:
    """Returns the training steps that the optimizer has counted, as `iterations` does.

    With gradient accumulation, steps without an update count too.
    """
    return int(to_numpy(optimizer._iterations))


def set_births(optimizer: Optimizer, births: dict[Any, int]) -> None:
    """Stores births, if any differs from 0."""
    if any(births.values()):
        _BIRTHS[optimizer] = births
    else:
        _BIRTHS.pop(optimizer, None)


def set_births_of(optimizer: Optimizer, births: dict[int, int]) -> None:
    """Stores the births of variables, by the id of the variable; those without one were never late.

    Args:
        optimizer: a built optimizer.
        births: the value of `iterations` when each variable was unfrozen.
    """
    held = optimizer._trainable_variables
    set_births(optimizer, {optimizer._var_key(v): births.get(id(v), 0) for v in held})


def is_unknown(optimizer: Optimizer) -> bool:
    """Returns True for a trained optimizer that no fit of ours has used, as after `load_model`."""
    return bool(optimizer.built and optimizer not in _KNOWN and updates(optimizer))


def know(optimizers: list[Optimizer]) -> None:
    """Notes that a fit uses optimizers, so that the births of their variables are known."""
    for optimizer in optimizers:
        _KNOWN.add(optimizer)


def own_ages(optimizer: Optimizer, births: dict[Any, int], multipliers: Multipliers) -> list[Patch]:
    """Returns patches that make an optimizer use each variable's own age and multiplier."""

    def patch(name: str, stand_in: Callable[..., Any], *given: Any) -> Patch:
        return (
            optimizer,
            name,
            functools.partial(stand_in, optimizer, getattr(optimizer, name), *given),
        )

    patches = [patch("_backend_update_step", _update, births, multipliers)]
    if births:
        patches += [
            patch("_clip_gradients", _clip, births),
            patch("_update_model_variables_moving_average", _average, births),
        ]
    if multipliers:
        patches.append(patch("_apply_weight_decay", decay_weights, multipliers))
    return patches


def _update(
    optimizer: Optimizer,
    update: Callable[..., None],
    births: dict[Any, int],
    multipliers: Multipliers,
    grads: list[Tensor],
    variables: list[Variable],
    learning_rate: Tensor,
) -> None:
    """Calls `update` once for each group of variables of equal age and multiplier."""
    groups = _groups(optimizer, births, list(variables))
    products = _Products(optimizer) if isinstance(optimizer, keras.optimizers.Nadam) else None
    for birth, together in groups.items():
        for multiplier, indices in _by_multiplier(
            optimizer, multipliers, variables, together
        ).items():
            rate = multiplied(optimizer, multiplier, learning_rate)
            own_grads = [grads[i] for i in indices]
            with _shifted(optimizer, birth):
                if products is not None:
                    products.before_update()
                update(own_grads, [variables[i] for i in indices], rate)
                if products is not None:
                    products.after_update()
    if products is not None:
        products.keep_eldest()


def _average(
    optimizer: Optimizer,
    average: Callable[..., None],
    births: dict[Any, int],
    variables: list[Variable],
) -> None:
    """Updates the moving average of the weights (EMA); a group's first update copies the value."""
    averages = optimizer._model_variables_moving_average
    for birth, indices in _groups(optimizer, births, list(variables)).items():
        own = [averages[i] for i in indices]
        with (
            attribute(optimizer, "_model_variables_moving_average", own),
            _shifted(optimizer, birth),
        ):
            average([variables[i] for i in indices])


def _groups(
    optimizer: Optimizer, births: dict[Any, int], variables: list[Variable]
) -> dict[int, list[int]]:
    """Returns the indices of variables by birth, the oldest group first."""
    groups: dict[int, list[int]] = {}
    for index, variable in enumerate(variables):
        groups.setdefault(births.get(optimizer._var_key(variable), 0), []).append(index)
    return dict(sorted(groups.items()))


def _by_multiplier(
    optimizer: Optimizer, multipliers: Multipliers, variables: list[Variable], indices: list[int]
) -> dict[Multiplier, list[int]]:
    groups: dict[Multiplier, list[int]] = {}
    for index in indices:
        multiplier = multipliers.get(optimizer._var_key(variables[index]), FULL)
        groups.setdefault(multiplier, []).append(index)
    return groups


@contextmanager
def _shifted(optimizer: Optimizer, birth: int) -> Iterator[None]:
    """Makes `optimizer.iterations` count from `birth` within the context.

    With gradient accumulation, it counts from the beginning of the window (the steps between two
    updates) that contains the birth. The first update is then update 0, as in a new optimizer.
    """
    steps = optimizer.gradient_accumulation_steps or 1
    count = optimizer._iterations
    shifted = count - (birth - birth % steps) if birth >= steps else count
    with attribute(optimizer, "_iterations", shifted):
        yield


def _clip(
    optimizer: Optimizer,
    clip: Callable[..., list[Tensor]],
    births: dict[Any, int],
    grads: list[Tensor],
) -> list[Tensor]:
    """Corrects the first accumulated gradient of a variable, then clips.

    Keras divides by the number of steps of the whole window, but a variable that was unfrozen
    within the window has summed fewer gradients. Clipping applies to the mean, so it comes after.
    """
    steps = optimizer.gradient_accumulation_steps or 1
    variables = optimizer._trainable_variables
    if steps == 1 or len(grads) != len(variables):  # Keras drops variables without a gradient
        return clip(grads)
    born = [births.get(optimizer._var_key(variable), 0) for variable in variables]
    pairs = zip(grads, born, strict=True)
    return clip([_mean_over_seen(optimizer, grad, birth, steps) for grad, birth in pairs])


def _mean_over_seen(optimizer: Optimizer, grad: Tensor, birth: int, steps: int) -> Tensor:
    if not birth % steps:
        return grad
    seen = keras.ops.minimum(optimizer._iterations - birth + 1, steps)
    return grad * (steps / keras.ops.cast(seen, grad.dtype))


class _Products:
    """Gives each group Nadam's running product of momentum factors, which Keras has only once.

    Dozat 2016 (Incorporating Nesterov Momentum into Adam): the factor of step i is
    beta_1 * (1 - 0.5 * 0.96**i). The product depends only on the age, so it is looked up for each
    group. The optimizer's own variable keeps the product of the oldest group.
    """

    # 0.96**i no longer changes a float64 product after this step.
    LAST = 1000
    TABLE = np.cumprod(np.concatenate([[1.0], 1 - 0.5 * 0.96 ** np.arange(1.0, LAST + 1)]))

    def __init__(self, optimizer: Optimizer):
        self.optimizer = optimizer
        self.eldest: Tensor = None

    def before_update(self) -> None:
        dtype = self.optimizer._u_product.dtype
        age = self.optimizer.iterations
        table = keras.ops.convert_to_tensor(self.TABLE, dtype=dtype)
        damped = keras.ops.take(table, keras.ops.minimum(age, self.LAST))
        power = keras.ops.power(
            keras.ops.cast(self.optimizer.beta_1, dtype), keras.ops.cast(age, dtype)
        )
        self.optimizer.assign(self.optimizer._u_product, power * damped)

    def after_update(self) -> None:
        if self.eldest is None:
            self.eldest = keras.ops.copy(keras.ops.convert_to_tensor(self.optimizer._u_product))

    def keep_eldest(self) -> None:
        self.optimizer.assign(self.optimizer._u_product, self.eldest)
