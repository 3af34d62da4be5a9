"""Lets a step of a `fit` over arrays take row numbers in place of rows.

Which rows make a batch, and all random draws that decide it, stay Keras' own; but a row whose
features are known is never gathered, converted or moved to a device.

Only `numbered` gives row numbers. Anyone else who takes a batch (Keras, to build a model; a loop or
a callback of the user's) gets rows, gathered at that moment.

Private names used here were tried on Keras 3.12.0 and 3.15.1: `ArrayDataAdapter._inputs`,
`_shuffle`, `EpochIterator._get_iterator`, `_epoch_iterator`;
`TFEpochIterator._distributed_dataset`, `_distribute_strategy`; of 3.12.0 alone,
`JAXEpochIterator._prefetch_numpy_iterator`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import keras
import numpy as np

from keras_freeze.keras_internals.variable_values import to_numpy

Array = np.ndarray[Any, Any]
Batch = Any
IS_3_16 = tuple(map(int, keras.__version__.split(".")[:2])) >= (3, 16)


class ArrayFeed:
    """The arrays that one epoch iterator goes through.

    Args:
        epoch_iterator: of a `fit` or its validation.
        to_tensor: makes of an array what the model's steps take.

    Attributes:
        structure: `x` as it was given.
        leaves: its arrays.
        slots: where each row's features are, -1 = unknown; for whoever keeps them.
        is_new: True for rows whose features nobody asked for yet; for the same.
        sample: what some of the rows were, for whoever compares them.
    """

    def __init__(self, epoch_iterator: Any, to_tensor: Callable[[Array], Any]):
        # On JAX, some versions of Keras put batches on the device before the step. It matters
        # where a step isn't compiled: NumPy rounds differently.
        puts_ahead = hasattr(epoch_iterator, "_prefetch_numpy_iterator") or IS_3_16
        self.to_tensor = keras.ops.convert_to_tensor if puts_ahead else to_tensor
        self.epoch_iterator = epoch_iterator
        self.adapter = epoch_iterator.data_adapter
        self.inputs = self.adapter._inputs
        self.structure = self.inputs[0]
        self.leaves: list[Array] = keras.tree.flatten(self.structure)
        self.slots = np.full(len(self), -1, np.int64)
        self.is_new = np.zeros(len(self), bool)
        self.sample: tuple[Any, ...] | None = None
        self.late: Any = None  # the class of the iterator while it pulls late
        self.others = self.inputs[1:]
        self.dataset = getattr(epoch_iterator, "_distributed_dataset", None)

    def __len__(self) -> int:
        return len(self.leaves[0])

    def put(self, *, rests: bool = False) -> None:
        """From the next epoch on, batches can be taken by row number.

        Args:
            rests: on PyTorch, the iterator is one of ours for one batch at a time (see `wake`). The
                model holds that of the validation, also after a `fit` that raised.
        """
        take = self._in_order if self.has_plain_order else self._as_keras_does()
        if self.has_plain_order and self.dataset is not None:
            # TensorFlow goes on with what the arrays held at first
            self.others = keras.tree.map_structure(_copied, self.inputs[1:])
        self.epoch_iterator._get_iterator = lambda: FedBatches(self, take())
        if keras.backend.backend() == "torch":
            self.late = _pulling_late(type(self.epoch_iterator), rests)
        self.wake()

    def wake(self) -> None:
        """On PyTorch, lets the next batch be taken by row number."""
        if self.late is not None:
            self.epoch_iterator.__class__ = self.late

    @cached_property
    def has_plain_order(self) -> bool:
        """True if the rows come in their order: then no random draw has to be Keras' own."""
        others = [leaf for leaf in keras.tree.flatten(self.inputs[1:]) if leaf is not None]
        return not self.adapter._shuffle and all(map(_is_of_numbers, others))

    def _in_order(self) -> Iterator[Batch]:
        """Yields the same batches as Keras, with row numbers instead of rows."""
        if keras.backend.backend() == "torch":
            iter(self.adapter.get_torch_dataloader())  # draws a number, in whatever order rows come
        return self._batches()

    def _batches(self) -> Iterator[Batch]:
        for start in range(0, len(self), self.adapter.batch_size):
            numbers = np.arange(start, min(start + self.adapter.batch_size, len(self)))
            take = partial(self._taken, numbers)
            yield (numbers, *keras.tree.map_structure(take, self.others))

    def _taken(self, numbers: Array, leaf: Array | None) -> Any:
        return None if leaf is None else self.to_tensor(_as_fed(leaf[numbers]))

    def _as_keras_does(self) -> Callable[[], Iterator[Batch]]:
        """Returns what shuffles row numbers as Keras shuffles rows; its own iterator stays."""
        twin = copy.copy(self.epoch_iterator)
        twin.data_adapter = copy.copy(self.adapter)
        twin.data_adapter._inputs = (np.arange(len(self)), *self.inputs[1:])
        if self.dataset is not None:
            dataset = twin.data_adapter.get_tf_dataset()
            strategy = twin._distribute_strategy
            twin._distributed_dataset = strategy.experimental_distribute_dataset(dataset)
        return lambda: iter(type(twin)._get_iterator(twin))

    def put_back(self) -> None:
        """From the next epoch on, Keras makes the batches."""
        vars(self.epoch_iterator).pop("_get_iterator", None)
        self.late = None
        if isinstance(self.epoch_iterator, _PullsLate):
            self.epoch_iterator.__class__ = self.epoch_iterator.before

    def x(self, numbers: Array) -> Any:
        """Returns the `x` of a batch of rows, as Keras hands it out."""
        places = range(len(self.leaves))
        flat = [self.to_tensor(self.rows(place, numbers)) for place in places]
        return keras.tree.pack_sequence_as(self.structure, flat)

    def rows(self, place: int, numbers: Array) -> Array:
        """Returns rows of an array, in the dtype in which Keras hands them out."""
        return _as_fed(self.leaves[place][numbers])

    def unknown(self, batch: int) -> Array:
        """Returns rows without a slot that come in batches of a size, as far as that is known."""
        end = len(self) - len(self) % batch if self.has_plain_order else len(self)
        return np.flatnonzero(self.slots[:end] < 0)

    @cached_property
    def specs(self) -> list[tuple[tuple[int, ...], str]]:
        """The shape of a row and the dtype of each leaf."""
        first = [_as_fed(leaf[:1]) for leaf in self.leaves]
        return [(row.shape[1:], keras.backend.standardize_dtype(row.dtype)) for row in first]


def _as_fed(rows: Array) -> Array:
    """Rows in the dtype in which Keras hands them out."""
    dtype = keras.backend.standardize_dtype(rows.dtype)
    if keras.backend.is_float_dtype(dtype) and dtype != keras.backend.floatx():
        return rows.astype(keras.backend.floatx())
    return rows


def _is_of_numbers(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biuf"


def _copied(leaf: Array | None) -> Array | None:
    return None if leaf is None else leaf.copy()


class Numbers:
    """Stands for the `x` of a batch whose rows aren't gathered.

    Args:
        feed: the arrays.
        numbers: of the rows.
    """

    def __init__(self, feed: ArrayFeed, numbers: Any):
        self.feed = feed
        self.numbers: Array = to_numpy(numbers)


def restored(batch: Batch) -> Batch:
    """Returns a batch as Keras would have handed it out."""
    x, *others = batch if isinstance(batch, tuple) else (batch,)
    return (x.feed.x(x.numbers), *others) if isinstance(x, Numbers) else batch


class FedBatches(Iterator[Batch]):
    """The batches of an epoch, with rows.

    Args:
        feed: the arrays.
        taken: the batches, with row numbers.

    Attributes:
        numbered: the same batches, with `Numbers`; each batch comes from one of the two.
        element_spec: shapes and dtypes, on TensorFlow.
    """

    def __init__(self, feed: ArrayFeed, taken: Iterator[Batch]):
        self.numbered = ((Numbers(feed, numbers), *others) for numbers, *others in taken)
        self.element_spec = getattr(feed.dataset, "element_spec", None)

    def __next__(self) -> Batch:
        return restored(next(self.numbered))


class _LateList(list[Batch]):
    """The batches of one step on PyTorch, where Keras takes them before it calls the step.

    Rows are gathered when someone reads the list.
    """

    def __init__(self, numbered: list[Batch]):
        super().__init__(numbered)
        self.numbered = iter(numbered)
        self.given = numbered

    @cached_property
    def rows(self) -> list[Batch]:
        return [restored(batch) for batch in self.given]

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.rows)


class _PullsLate:
    """What a fed epoch iterator of PyTorch does in place of Keras'."""

    before: type
    rests: bool
    _epoch_iterator: Iterator[Any]
    catch_stop_iteration: Callable[[], Any]

    def __next__(self) -> tuple[int, int, list[Batch]]:
        if self.rests:
            self.__class__ = self.before
        begin, end, batches = next(self._epoch_iterator)
        with self.catch_stop_iteration():
            if isinstance(batches, FedBatches):
                return begin, end, _LateList([next(batches.numbered)])
            return begin, end, [next(batches)]
        raise StopIteration


def _pulling_late(kind: Any, rests: bool) -> Any:
    if issubclass(kind, _PullsLate):  # a `fit` that raised has left it so
        return kind
    return type(kind.__name__, (_PullsLate, kind), {"before": kind, "rests": rests})


def numbered(data: Any) -> Iterator[Batch]:
    """Returns the batches of a step, by row number (`Numbers`) where that is possible.

    Args:
        data: what Keras calls a train or test function with.
    """
    return data.numbered if isinstance(data, FedBatches | _LateList) else iter(data)


def array_feed(epoch_iterator: Any, to_tensor: Callable[[Array], Any]) -> ArrayFeed | None:
    """Returns the feed of an epoch iterator over arrays; None of any other."""
    adapter = getattr(epoch_iterator, "data_adapter", None)
    inputs = getattr(adapter, "_inputs", None)
    if type(adapter).__name__ != "ArrayDataAdapter" or not isinstance(inputs, tuple):
        return None
    if len(inputs) < 2 or inputs[1] is None:
        return None
    leaves = keras.tree.flatten(inputs[0])
    plain = all(map(_is_of_numbers, leaves))
    return ArrayFeed(epoch_iterator, to_tensor) if leaves and plain else None
