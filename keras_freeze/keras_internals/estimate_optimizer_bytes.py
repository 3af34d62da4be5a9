"""Computes how much memory an optimizer needs for given variables, without allocating it.

Private names of `keras.optimizers.Optimizer` used here were tried on Keras 3.12.0 and 3.15.1:
`_learning_rate`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_freeze.keras_internals.optimizer_rebuild import leaves
from keras_freeze.keras_internals.temporary_attributes import attribute

Shape = tuple[int, ...]
PRIMES = (2, 3, 5, 7, 11, 13, 17, 19)  # the length of a slot's axis identifies the variable's axis


def slot_bytes(optimizer: Any, variables: Sequence[Any]) -> int | None:
    """Returns the bytes of all slots (moments, averages, accumulators) for variables.

    A fresh optimizer of the same kind is built on a tiny variable of each rank.

    Args:
        optimizer: the compiled optimizer. The result is None if it is made of several.
        variables: the variables that will be trainable.
    """
    if len(leaves(optimizer)) != 1:
        return None
    (member,) = leaves(optimizer)
    known: dict[int, list[tuple[Shape, int]]] = {}
    total = 0
    for variable in variables:
        shape = tuple(int(length) for length in variable.shape)
        if len(shape) not in known:
            known[len(shape)] = _slots_of_rank(member, len(shape))
        lengths = dict(zip(PRIMES, shape, strict=False))
        for axes, size in known[len(shape)]:
            total += size * math.prod(lengths.get(axis, axis) for axis in axes)
    return total


def _slots_of_rank(optimizer: Any, rank: int) -> list[tuple[Shape, int]]:
    """Returns shape and element size of each slot of a variable whose axes are `PRIMES`."""
    # `get_config` converts the rate to a float, which makes NumPy 2 warn. No slot depends on it.
    with attribute(optimizer, "_learning_rate", 0.1):
        fresh = type(optimizer).from_config(optimizer.get_config())
    before = {id(variable) for variable in fresh.variables}
    fresh.build([keras.Variable(np.zeros(PRIMES[:rank], "float32"))])
    slots = [variable for variable in fresh.variables if id(variable) not in before]
    return [
        (tuple(int(length) for length in slot.shape), _itemsize(slot.dtype))
        for slot in slots
        if len(slot.shape) or not rank
    ]


def _itemsize(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else int(np.dtype(dtype).itemsize)
