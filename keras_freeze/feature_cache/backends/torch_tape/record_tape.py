"""Records the PyTorch operations of a function as a tape, after autograd has handled them.

This is the idea of `make_fx` in `torch.fx.experimental`, which takes longer to trace than a small
model takes to run.

These names aren't public and were tested on PyTorch 2.13: `torch.utils._python_dispatch`,
`torch.utils.weak`, `OpOverload._schema`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from keras_freeze.feature_cache.backends.torch_tape.remove_dead_operations import (
    without_copies_of_copies,
    without_unread,
)
from keras_freeze.feature_cache.backends.torch_tape.tape import (
    Number,
    Operation,
    Slot,
    Tape,
    Tensor,
)
from keras_freeze.graph.layer_calls import version_of


def record(function: Callable[..., Any], tensors: Sequence[Tensor]) -> tuple[Any, Tape | None]:
    """Calls a function of tensors; returns its result, and its tape.

    The tape is None if replaying it could differ from calling the function: if the function draws
    random numbers, reads the values of a tensor, or changes a tensor that it didn't make, such as
    an argument.

    Args:
        function: returns tensors, alone or in lists, tuples and dicts.
        tensors: the arguments of the function.
    """
    recorder, before = Recorder(tensors), [version_of(tensor) for tensor in tensors]
    with recorder:
        given = function(*tensors)
    if not recorder.is_repeatable or before != [version_of(tensor) for tensor in tensors]:
        return given, None
    kept: set[Number] = set()
    outputs = recorder.with_slots(given, kept)
    operations = without_unread(without_copies_of_copies(recorder.operations, kept), kept)
    return given, Tape(operations, recorder.inputs, outputs, kept)


class Recorder(TorchDispatchMode):
    """Records the operations that are called within it."""

    def __init__(self, tensors: Sequence[Tensor]):
        super().__init__()
        self.operations: list[Operation] = []
        self.numbers = WeakTensorKeyDictionary()  # weak, so that tensors are freed as usual
        self.shared: set[Number] = set()
        self.count = 0
        self.is_repeatable = True
        self.given = list(tensors)
        self.inputs = [self._number(tensor) for tensor in tensors]

    def _number(self, tensor: Tensor) -> Number:
        if tensor not in self.numbers:
            self.count += 1
            self.numbers[tensor] = self.count
        return int(self.numbers[tensor])

    def with_slots(self, structure: Any, found: set[Number]) -> Any:
        """Returns a structure with slots for recorded tensors; adds their numbers to `found`."""
        if isinstance(structure, torch.Tensor) and structure in self.numbers:
            found.add(self.numbers[structure])
            return Slot(self.numbers[structure])
        if isinstance(structure, (tuple, list)):
            return [self.with_slots(part, found) for part in structure]
        if isinstance(structure, dict):
            return {key: self.with_slots(part, found) for key, part in structure.items()}
        return structure

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        reads: set[Number] = set()
        slots = self.with_slots(args, reads), self.with_slots(kwargs, reads)
        is_shared = reads <= self.shared
        changed = list(_changed(function, args, kwargs))
        self.is_repeatable &= self._may_repeat(function, changed, is_shared)
        given = function(*args, **kwargs)
        many = isinstance(given, (tuple, list))
        results = given if many else [given]
        gives = tuple(self._number(r) if isinstance(r, torch.Tensor) else None for r in results)
        if is_shared:
            self.shared.update(number for number in gives if number is not None)
        strides = given.stride() if isinstance(given, torch.Tensor) else None
        self.operations.append(
            Operation(
                function, *slots, tuple(reads), gives, is_shared, bool(changed), strides, many
            )
        )
        return given

    def _may_repeat(self, function: Any, changed: list[Tensor], is_shared: bool) -> bool:
        draws = torch.Tag.nondeterministic_seeded in function.tags
        reads_values = torch.Tag.data_dependent_output in function.tags
        own = [self.numbers.get(tensor) for tensor in changed]
        # A tensor that is computed once for all batches must not be changed by one of them.
        apart = is_shared or not self.shared.intersection(own)
        return apart and None not in own and not draws and not reads_values


def _changed(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Yields the tensors that a call changes in place."""
    for place, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            yield from value if isinstance(value, (tuple, list)) else [value]
