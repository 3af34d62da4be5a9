"""Records the PyTorch operations of a whole training or test step, to run on other batches.

A step changes variables, optimizer state and metrics in place, and may draw random numbers. The
same operations on the next batch change the same tensors, and draw the next numbers.

These names aren't public and were tested on PyTorch 2.13: those of `record_tape`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from keras_freeze.feature_cache.backends.torch_tape.record_tape import Recorder
from keras_freeze.feature_cache.backends.torch_tape.remove_dead_operations import (
    with_constants,
    without_unread,
)
from keras_freeze.feature_cache.backends.torch_tape.tape import (
    Number,
    Operation,
    Slot,
    Tensor,
    filled,
)

FRESH = torch.ops.aten.lift_fresh.default
LEAVES = (torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.__array__)
GUARDED = 16  # elements of a tensor whose values are compared before each replay


class StepRecord:
    """The operations of a step.

    Attributes:
        operations: the operations in order.
        inputs: the numbers of the batch's tensors.
        outputs: the result of the step, with slots for tensors.
        kept: the numbers of the tensors in it.
        changed: the tensors that exist before the step and are changed in place.
        guards: (tensor, value) of tensors whose values the step's Python code reads. With other
            values, the operations may be others.
    """

    def __init__(self, recorder: _StepRecorder, result: Any):
        constants = recorder.unchanged_constants()
        kept: set[Number] = set()
        outputs = recorder.with_slots(result, kept)
        self.inputs = recorder.inputs
        self.kept = kept - constants.keys()
        self.outputs = filled(outputs, {n: constants.get(n, Slot(n)) for n in kept})
        self.operations = with_constants(recorder.operations, constants)
        self.changed = list(recorder.changed.values())
        self.guards = list(recorder.guards.values())

    def needed(self, *, results: bool) -> list[Operation]:
        """Returns the operations without those whose results nothing reads.

        Args:
            results: whether the step's result is read.
        """
        return without_unread(self.operations, self.kept if results else set())

    def holds(self) -> bool:
        """Returns True if no value was changed that the step's Python code read."""
        return all(torch.equal(tensor, value) for tensor, value in self.guards)


def record_step(
    function: Callable[..., Any], tensors: Sequence[Tensor]
) -> tuple[Any, StepRecord | None]:
    """Runs a step; returns its result, and its record.

    The record is None if the step's code reads values that change from step to step.

    Args:
        function: runs the step on the tensors of a batch.
        tensors: the tensors of a batch.
    """
    recorder = _StepRecorder(tensors)
    with recorder, _NoticesNumPy(recorder):
        result = function(*tensors)
    moves = any(_memory(tensor) in recorder.changed for tensor, _ in recorder.guards.values())
    return result, None if moves or not recorder.is_repeatable else StepRecord(recorder, result)


class _NoticesNumPy(TorchFunctionMode):
    """Notices values that leave PyTorch without an operation, as in Keras' Nadam."""

    def __init__(self, recorder: _StepRecorder):
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in LEAVES:
            self.recorder.is_repeatable = False
        return function(*args, **(kwargs or {}))


class _StepRecorder(Recorder):
    """Records the operations of a step."""

    def __init__(self, tensors: Sequence[Tensor]):
        self.roots: dict[Number, dict[int, Tensor]] = {}  # tensors from before the step
        self.changed: dict[int, Tensor] = {}
        self.constants: dict[Number, Tensor] = {}
        self.guards: dict[int, tuple[Tensor, Tensor]] = {}
        super().__init__(tensors)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        count = len(self.operations)
        known = self.count
        roots = self._roots(args, kwargs or {})
        given = super().__torch_dispatch__(function, types, args, kwargs)
        if torch.Tag.data_dependent_output in function.tags:
            self._guard(self.operations[count], roots)
        if torch.Tag.nondeterministic_seeded in function.tags:
            self.operations[count] = replace(self.operations[count], changes=True)
        if function is FRESH:
            roots = {}  # a number in the step's code
        one = self.operations[count]
        results = given if isinstance(given, (tuple, list)) else [given]
        for number, result in zip(one.gives, results, strict=True):
            if number is not None and number > known:
                self.roots[number] = roots
                if one.is_shared and not roots and not one.changes:
                    self.constants[number] = result
        return given

    def unchanged_constants(self) -> dict[Number, Tensor]:
        """Returns the tensors that are the same in each step, because they depend on nothing."""
        return {n: each for n, each in self.constants.items() if _memory(each) not in self.changed}

    def _roots(self, args: Any, kwargs: Any) -> dict[int, Tensor]:
        """Returns the tensors from before the step on which arguments depend."""
        found: dict[int, Tensor] = {}
        for tensor in _tensors([args, list(kwargs.values())]):
            number = self.numbers.get(tensor)
            found |= {id(tensor): tensor} if number is None else self.roots.get(number, {})
        return found

    def _guard(self, one: Operation, roots: dict[int, Tensor]) -> None:
        """Notes the tensors whose values are read, unless they depend on the batch."""
        small = all(root.numel() <= GUARDED for root in roots.values())
        self.is_repeatable &= one.is_shared and small
        for key, root in roots.items():
            self.guards.setdefault(key, (root, root.detach().clone()))

    def _may_repeat(self, function: Any, changed: list[Tensor], is_shared: bool) -> bool:
        if torch.Tag.dynamic_output_shape in function.tags:
            return False
        inputs = {_memory(tensor) for tensor in self.given}
        for tensor in changed:
            self.changed.setdefault(_memory(tensor), tensor)
        return inputs.isdisjoint(map(_memory, changed))


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage().data_ptr())


def _tensors(structure: Any) -> list[Tensor]:
    if isinstance(structure, torch.Tensor):
        return [structure]
    if isinstance(structure, (tuple, list)):
        return [tensor for part in structure for tensor in _tensors(part)]
    return []
