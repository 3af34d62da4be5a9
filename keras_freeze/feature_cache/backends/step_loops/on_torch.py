"""Runs many steps in one call on PyTorch: the operations of a recorded step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import torch

from keras_freeze.feature_cache.backends.step_loops.batch_tables import Tables
from keras_freeze.feature_cache.backends.torch_tape import random_generators
from keras_freeze.feature_cache.backends.torch_tape.operations_to_graph import to_graph
from keras_freeze.feature_cache.backends.torch_tape.record_step import StepRecord, record_step
from keras_freeze.keras_internals.code_of_step import is_all_of_keras, settings_of, step_objects

Array = np.ndarray[Any, Any]
Tensor = Any


class StepLoop:
    """Runs groups of steps of one stage.

    The first step is recorded. The second one is computed both ways; if any bit differs, or if the
    step's code reads values that change, all steps run as Keras runs them.

    Args:
        function: the model's train or test function.
        lighter: runs single steps of the model.
        layers: the layers and models that may run in a step.
    """

    def __init__(self, function: Callable[..., Any], lighter: Any, layers: Any):
        self.function = function
        self.lighter = lighter
        self.layers = layers
        self.objects: list[Any] | None = None
        self.settings: list[Any] = []
        self.replay: _Replay | None = None
        self.is_plain = False

    def run(
        self, state: tuple[Any, ...], tables: Tables, slots: Array, numbers: Array, most: int
    ) -> Any:
        """Runs a step for each batch; returns what the last one returns.

        Args:
            state: unused: the arguments that Keras passes to a step before the data.
            tables: all rows.
            slots: rows of the features in each batch, (batches, rows).
            numbers: rows of the other arrays in each batch.
            most: number of batches in the longest group. Unused.
        """
        device = next(iter(tables.features.values())).device
        rows = [torch.from_numpy(array.astype(np.int64)).to(device) for array in (slots, numbers)]
        self._follow_changes()
        with torch.no_grad():
            for place, (places, of_others) in enumerate(zip(*rows, strict=True)):
                batch = tables.batch(places, of_others, _take)
                result = self._step(batch, is_last=place + 1 == len(slots))
        return result

    def _follow_changes(self) -> None:
        """Records the step again if its code would decide in another way."""
        if self.objects is None:
            self.objects = step_objects(self.lighter.model, self.layers)
        settings = settings_of(self.objects)
        if self.replay is not None:
            same = settings == self.settings and self.replay.record.holds()
            self.replay = self.replay if same else None
        self.settings = settings

    def _step(self, batch: Any, *, is_last: bool) -> Any:
        tensors = [leaf for leaf in keras.tree.flatten(batch) if leaf is not None]
        if self.is_plain:
            return self._plain(batch)
        if self.replay is None:
            return self._record(batch, tensors)
        if not self.replay.is_proven:
            return self._prove(batch, tensors)
        return self.replay.run(tensors, results=is_last)

    def _plain(self, batch: Any) -> Any:
        with torch.enable_grad():
            return self.lighter.step(self.function, (), [batch])

    def _record(self, batch: Any, tensors: Sequence[Tensor]) -> Any:
        structure = batch

        def run(*leaves: Tensor) -> Any:
            rest = iter(leaves)
            flat = [None if leaf is None else next(rest) for leaf in keras.tree.flatten(structure)]
            return self._plain(keras.tree.pack_sequence_as(structure, flat))

        result, record = record_step(run, tensors)
        self.is_plain = record is None
        self.replay = None if record is None else _Replay(record)
        return result

    def _prove(self, batch: Any, tensors: Sequence[Tensor]) -> Any:
        """Runs a step both ways, and keeps the effect of Keras' own."""
        assert self.replay is not None
        changed = self.replay.record.changed
        before, drawn = _copies(changed), random_generators.states()
        replayed = [self.replay.run(tensors, results=True), _copies(changed)]
        draws = random_generators.states()
        for tensor, value in zip(changed, before, strict=True):
            tensor.copy_(value)
        random_generators.set_states(drawn)
        result = self._plain(batch)
        same = _are_same(replayed, [result, changed])
        self.replay.is_proven = same and _are_same(draws, random_generators.states())
        self.is_plain = not self.replay.is_proven
        return result


class _Replay:
    """Runs a recorded step.

    Args:
        record: the step.
    """

    def __init__(self, record: StepRecord):
        self.record = record
        self.is_proven = False
        nothing: list[Any] = []
        results = {True: record.outputs, False: nothing}
        self.graphs = {
            read: to_graph(record.needed(results=read), record.inputs, outputs)
            for read, outputs in results.items()
        }

    def run(self, tensors: Sequence[Tensor], *, results: bool) -> Any:
        """Runs the step on the tensors of a batch.

        Args:
            tensors: the tensors, with the recorded shapes and dtypes.
            results: whether to compute the step's result.
        """
        return self.graphs[results](*tensors)


def _take(table: Tensor, rows: Tensor) -> Tensor:
    return table.index_select(0, rows)


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def _are_same(one: Any, other: Any) -> bool:
    pairs = zip(keras.tree.flatten(one), keras.tree.flatten(other), strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def can_loop(model: Any, layers: list[Any]) -> bool:
    """Returns True if steps are faster in a loop.

    Args:
        model: the model that is fitted.
        layers: the layers and models that may run in a step.
    """
    # Other code may read values that change from step to step, without an operation that shows it.
    is_known = is_all_of_keras(step_objects(model, layers))
    return is_known and not model.run_eagerly and not model.jit_compile
