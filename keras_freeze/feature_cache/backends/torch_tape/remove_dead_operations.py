"""Removes operations from a tape (recorded PyTorch operations) whose results aren't needed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from keras_freeze.feature_cache.backends.torch_tape.tape import (
    Number,
    Operation,
    Slot,
    Tensor,
    filled,
)

CLONE = torch.ops.aten.clone.default
PURE = (torch.ops.aten.convolution.default, torch.ops.aten.constant_pad_nd.default)


def without_unread(operations: Sequence[Operation], kept: set[Number]) -> list[Operation]:
    """Removes operations whose results nothing reads.

    Args:
        operations: the operations in order.
        kept: the numbers of the tensors that the function returns.
    """
    wanted, left = set(kept), []
    for one in reversed(operations):
        if one.changes or wanted.intersection(one.gives):
            wanted.update(one.reads)
            left.append(one)
    return left[::-1]


def without_copies_of_copies(operations: Sequence[Operation], kept: set[Number]) -> list[Operation]:
    """Lets convolutions read the original tensor in place of a copy of its copy.

    Before each convolution, Keras 3.15 copies its input from "channels last" to "channels first" in
    memory, and back again. Copies with other strides than the original stay.

    Args:
        operations: the operations in order.
        kept: the numbers of the tensors that the function returns.
    """
    makers: dict[Number, int] = {}
    users: dict[Number, list[int]] = defaultdict(list)
    for place, one in enumerate(operations):
        makers |= {number: place for number in one.gives if number is not None}
        for number in one.reads:
            users[number].append(place)
    instead: dict[Number, Number] = {}
    for back in operations:
        if not _is_copy(back) or back.reads[0] not in makers:
            continue
        there = makers[back.reads[0]]
        if not _is_copy(operations[there]):
            continue
        (source,), (result,) = operations[there].reads, back.gives
        same = source in makers and operations[makers[source]].strides == back.strides
        if result is None or not same or not users[result] or result in kept:
            continue
        until = operations[there : users[result][-1] + 1]
        calm = not any(one.changes and not one.is_shared for one in until)
        if calm and all(operations[place].function in PURE for place in users[result]):
            instead[result] = source
    return [_rerouted(one, instead) for one in operations]


def with_constants(
    operations: Sequence[Operation], constants: dict[Number, Tensor]
) -> list[Operation]:
    """Replaces the results of operations by tensors that are known already.

    Args:
        operations: the operations in order.
        constants: known tensors, by number.
    """
    left = []
    for one in operations:
        gives = [number for number in one.gives if number is not None]
        if gives and not one.changes and constants.keys() >= set(gives):
            continue
        slots: dict[Number, Any] = {n: constants.get(n, Slot(n)) for n in one.reads}
        reads = tuple(number for number in one.reads if number not in constants)
        args, kwargs = filled(one.args, slots), filled(one.kwargs, slots)
        left.append(replace(one, args=args, kwargs=kwargs, reads=reads))
    return left


def _is_copy(one: Operation) -> bool:
    return one.function is CLONE and not one.is_shared and len(one.reads) == 1


def _rerouted(one: Operation, instead: dict[Number, Number]) -> Operation:
    if not any(number in instead for number in one.reads):
        return one
    reads = tuple(instead.get(number, number) for number in one.reads)
    slots: dict[Number, Any] = {n: Slot(instead.get(n, n)) for n in one.reads}
    return replace(one, reads=reads, args=filled(one.args, slots), kwargs=filled(one.kwargs, slots))
