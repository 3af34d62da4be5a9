"""A function of tensors as the operations of PyTorch that it calls.

Running these alone skips all that is around them: a layer of Keras takes longer to call than many a
convolution to run. They are the same kernels on tensors of the same shape and layout, so the bits
are the same. JAX and TensorFlow do this by tracing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Tensor = Any
Number = int  # of a tensor on the tape


@dataclass(frozen=True)
class Slot:
    """Stands for a tensor of the tape."""

    number: Number


@dataclass(frozen=True)
class Operation:
    """A call of PyTorch.

    Attributes:
        function: what is called.
        args: with slots for tensors of the tape.
        kwargs: likewise.
        reads: the numbers of these tensors.
        gives: of the tensors that it returns; None for what isn't one.
        is_shared: whether it does the same for each batch: it depends on weights alone.
        changes: whether it changes an argument in place.
        strides: of the tensor that it returns; None if it isn't one.
    """

    function: Callable[..., Any]
    args: Any
    kwargs: Any
    reads: tuple[Number, ...]
    gives: tuple[Number | None, ...]
    is_shared: bool
    changes: bool
    strides: tuple[int, ...] | None


class Tape:
    """Runs operations again, for several batches side by side.

    Operation by operation: what depends on weights alone, as the kernels that Keras turns around in
    each call, then runs once for all.

    Args:
        operations: in order.
        inputs: the numbers of the tensors that the function takes.
        outputs: what it returns, with slots.
        kept: the numbers of these.
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
        """Returns what the function returns for each batch.

        Args:
            batches: the tensors of each, of the shapes that were recorded.
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
    """Returns a structure with tensors for its slots.

    Not by `keras.tree`: this runs for each operation, and that takes longer than many of them.
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
