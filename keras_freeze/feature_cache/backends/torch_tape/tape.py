"""A tape: the PyTorch operations that a function of tensors calls, recorded to run again.

Replaying them saves the time of Keras' layer calls, each of which may take longer than a
convolution. The kernels, shapes and memory layouts are the same, so results are equal bit by bit.
JAX and TensorFlow do the same by tracing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Tensor = Any
Number = int  # number of a tensor on the tape


@dataclass(frozen=True)
class Slot:
    """A placeholder for a tensor of the tape."""

    number: Number


@dataclass(frozen=True)
class Operation:
    """A call of a PyTorch operation.

    Attributes:
        function: the operation.
        args: its arguments, with slots for tensors of the tape.
        kwargs: its keyword arguments, likewise.
        reads: the numbers of the tensors in the arguments.
        gives: the numbers of the tensors that it returns; None for other results.
        is_shared: whether its result is the same for each batch: it depends on weights only.
        changes: whether it changes an argument in place.
        strides: the strides of the tensor that it returns; None for other results.
        gives_many: whether it returns a list or tuple of tensors.
    """

    function: Callable[..., Any]
    args: Any
    kwargs: Any
    reads: tuple[Number, ...]
    gives: tuple[Number | None, ...]
    is_shared: bool
    changes: bool
    strides: tuple[int, ...] | None
    gives_many: bool


class Tape:
    """Replays operations for several batches at once.

    Each operation runs for all batches before the next one. An operation on weights only, as the
    transposition of a kernel, runs once for all batches.

    Args:
        operations: the operations in order.
        inputs: the numbers of the function's arguments.
        outputs: the function's result, with slots for tensors.
        kept: the numbers of the tensors in the result.
    """

    def __init__(
        self, operations: Sequence[Operation], inputs: list[Number], outputs: Any, kept: set[Number]
    ):
        self.operations = operations
        self.inputs = inputs
        self.outputs = outputs
        last: dict[Number, int] = {}
        for place, one in enumerate(operations):
            last |= dict.fromkeys((*one.reads, *(n for n in one.gives if n is not None)), place)
        self.done: list[list[Number]] = [[] for _ in operations]
        for number, place in last.items():
            if number not in kept:
                self.done[place].append(number)

    def run(self, batches: Sequence[Sequence[Tensor]]) -> list[Any]:
        """Returns the function's result for each batch.

        Args:
            batches: the tensors of each batch, with the recorded shapes.
        """
        values = [dict(zip(self.inputs, batch, strict=True)) for batch in batches]
        for one, done in zip(self.operations, self.done, strict=True):
            shared: dict[Number, Tensor] = {}
            for known in values:
                if not shared:
                    given = one.function(*filled(one.args, known), **filled(one.kwargs, known))
                    new = dict(_numbered(one.gives, given))
                known.update(new)
                shared = new if one.is_shared else shared
            for known in values:
                for number in done:
                    known.pop(number, None)
        return [filled(self.outputs, known) for known in values]


def filled(structure: Any, known: dict[Number, Tensor]) -> Any:
    """Returns a structure with tensors in place of its slots.

    `keras.tree` would take longer than many of the operations for which this runs.
    """
    if isinstance(structure, Slot):
        return known[structure.number]
    if isinstance(structure, (tuple, list)):
        return [filled(part, known) for part in structure]
    if isinstance(structure, dict):
        return {key: filled(part, known) for key, part in structure.items()}
    return structure


def _numbered(gives: Sequence[Number | None], given: Any) -> Iterator[tuple[Number, Tensor]]:
    results = given if isinstance(given, (tuple, list)) else [given]
    return ((n, tensor) for n, tensor in zip(gives, results, strict=True) if n is not None)
