"""Feeds row numbers instead of rows to the training steps of a `fit` over arrays.

A row is one sample of the data, such as an image or a text. Keras still decides which rows make a
batch, with its own random draws. But a row whose features are known is never gathered, converted or
moved to a device.

Only `numbered` returns row numbers. Other code that takes a batch (Keras, to build a model; a
custom loop or callback) gets rows, which are gathered at that moment.

Private names used here were tried on Keras 3.12.0 and 3.15.1: `ArrayDataAdapter._inputs`,
`_shuffle`, `EpochIterator._get_iterator`, `_epoch_iterator`;
`TFEpochIterator._distributed_dataset`, `_distribute_strategy`; in 3.12.0 only,
`JAXEpochIterator._prefetch_numpy_iterator`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import keras
import numpy as np

from keras_freeze.keras_internals.copy_to_numpy import to_numpy
from keras_freeze.keras_internals.epoch_order.draw_order import epoch_order
from keras_freeze.keras_internals.next_batch import one_ahead

Array = np.ndarray[Any, Any]
Batch = Any
VERSION = tuple(map(int, keras.__version__.split(".")[:2]))


class ArrayFeed:
    """The arrays that one epoch iterator yields batches of.

    Args:
        epoch_iterator: the epoch iterator of a `fit` or its validation.
        to_tensor: converts an array to the kind of tensor that the model's steps take.

    Attributes:
        structure: `x` as the user passed it.
        leaves: its arrays.
        slots: the place of each row's features in a cache, -1 = unknown; set by the cache.
        is_new: True for rows whose features haven't been requested yet; set by the cache.
        sample: a copy of some rows, used by the consistency checks.
        order: draws the row numbers of an epoch, if Keras shuffles rows or nothing.
        on_next_batch: called with the row numbers of each next batch, one ahead; set by the cache.
    """

    def __init__(self, epoch_iterator: Any, to_tensor: Callable[[Array], Any]):
        # On JAX, some versions of Keras put batches on the device before the step. It matters
        # where a step isn't compiled: NumPy rounds differently.
        is_new = keras.backend.backend() == "jax" and VERSION >= (3, 16)
        puts_ahead = is_new or hasattr(epoch_iterator, "_prefetch_numpy_iterator")
        self.to_tensor = keras.ops.convert_to_tensor if puts_ahead else to_tensor
        self.epoch_iterator = epoch_iterator
        self.adapter = epoch_iterator.data_adapter
        self.inputs = self.adapter._inputs
        self.structure = self.inputs[0]
        self.leaves: list[Array] = keras.tree.flatten(self.structure)
        self.slots = np.full(len(self), -1, np.int64)
        self.is_new = np.zeros(len(self), bool)
        self.sample: tuple[Any, ...] | None = None
        self.late: Any = None  # the iterator's class while batches are taken by row number
        self.on_next_batch: Callable[[Array], None] | None = None
        self.others = self.inputs[1:]
        self.dataset = getattr(epoch_iterator, "_distributed_dataset", None)

    def __len__(self) -> int:
        return len(self.leaves[0])

    def put(self, *, rests: bool = False) -> None:
        """Makes batches available by row number, from the next epoch on.

        Args:
            rests: on PyTorch, changes the iterator for one batch at a time only (see `wake`). The
                model keeps its validation iterator, even after a `fit` that raised.
        """
        take = self._in_order if self.has_plain_order else self._as_keras_does()
        if self.has_numbers and self.dataset is not None:
            # TensorFlow uses the arrays' values from the beginning of `fit`, even if they change.
            self.others = keras.tree.map_structure(_copied, self.inputs[1:])
        self.epoch_iterator._get_iterator = lambda: FedBatches(
            self, one_ahead(take(), lambda: self.on_next_batch)
        )
        self.order = epoch_order(self.adapter)
        if keras.backend.backend() == "torch":
            self.late = _pulling_late(type(self.epoch_iterator), rests)
        self.wake()

    def wake(self) -> None:
        """On PyTorch, lets the next batch be taken by row number."""
        if self.late is not None:
            self.epoch_iterator.__class__ = self.late

    @cached_property
    def has_plain_order(self) -> bool:
        """True if batches can be made here: no shuffling, and numeric arrays beside `x`."""
        return not self.adapter._shuffle and self.has_numbers

    @cached_property
    def has_numbers(self) -> bool:
        """True if all arrays beside `x` are of numbers."""
        others = [leaf for leaf in keras.tree.flatten(self.inputs[1:]) if leaf is not None]
        return all(map(_is_of_numbers, others))

    def _in_order(self) -> Iterator[Batch]:
        """Yields the same batches as Keras, with row numbers instead of rows."""
        if keras.backend.backend() == "torch":
            iter(self.adapter.get_torch_dataloader())  # draws a number, even without shuffling
        return self._batches()

    def _batches(self) -> Iterator[Batch]:
        for start in range(0, len(self), self.adapter.batch_size):
            numbers = np.arange(start, min(start + self.adapter.batch_size, len(self)))
            yield (numbers, *self.others_of(numbers))

    def others_of(self, numbers: Array | slice) -> tuple[Any, ...]:
        """Returns targets and sample weights of rows, as Keras would pass them."""
        take = partial(self._taken, numbers)
        return tuple(keras.tree.map_structure(take, self.others))

    def _taken(self, numbers: Array | slice, leaf: Array | None) -> Any:
        return None if leaf is None else self.to_tensor(as_fed(leaf[numbers]))

    def _as_keras_does(self) -> Callable[[], Iterator[Batch]]:
        """Returns a function whose batches are row numbers, shuffled as Keras shuffles the rows.

        Keras' own iterator isn't changed.
        """
        twin = copy.copy(self.epoch_iterator)
        twin.data_adapter = copy.copy(self.adapter)
        twin.data_adapter._inputs = (np.arange(len(self)), *self.inputs[1:])
        if self.dataset is not None:
            dataset = twin.data_adapter.get_tf_dataset()
            strategy = twin._distribute_strategy
            twin._distributed_dataset = strategy.experimental_distribute_dataset(dataset)
        return lambda: iter(type(twin)._get_iterator(twin))

    def put_back(self) -> None:
        """Undoes `put`: from the next epoch on, Keras makes the batches."""
        for name in ("_get_iterator", "_enumerate_iterator"):
            vars(self.epoch_iterator).pop(name, None)
        self.late = None
        if isinstance(self.epoch_iterator, _PullsLate):
            self.epoch_iterator.__class__ = self.epoch_iterator.before

    def x(self, numbers: Array) -> Any:
        """Returns the `x` of a batch of rows, as Keras would pass it."""
        places = range(len(self.leaves))
        flat = [self.to_tensor(self.rows(place, numbers)) for place in places]
        return keras.tree.pack_sequence_as(self.structure, flat)

    def rows(self, place: int, numbers: Array) -> Array:
        """Returns rows of an array, in the dtype in which Keras would pass them."""
        return as_fed(self.leaves[place][numbers])

    def unknown(self, batch: int) -> Array:
        """Returns the rows without a slot; if the order is known, only those in full batches."""
        end = len(self) - len(self) % batch if self.has_plain_order else len(self)
        return np.flatnonzero(self.slots[:end] < 0)

    @cached_property
    def specs(self) -> list[tuple[tuple[int, ...], str]]:
        """The shape of a row and the dtype, for each array."""
        first = [as_fed(leaf[:1]) for leaf in self.leaves]
        return [(row.shape[1:], keras.backend.standardize_dtype(row.dtype)) for row in first]


def as_fed(rows: Array) -> Array:
    """Returns rows in the dtype in which Keras would pass them."""
    dtype = keras.backend.standardize_dtype(rows.dtype)
    if keras.backend.is_float_dtype(dtype) and dtype != keras.backend.floatx():
        return rows.astype(keras.backend.floatx())
    return rows


def _is_of_numbers(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biuf"


def _copied(leaf: Array | None) -> Array | None:
    return None if leaf is None else leaf.copy()


class Numbers:
    """Replaces the `x` of a batch whose rows aren't gathered.

    Args:
        feed: the arrays.
        numbers: the row numbers.
    """

    def __init__(self, feed: ArrayFeed, numbers: Any):
        self.feed = feed
        self.numbers: Array = to_numpy(numbers)


def restored(batch: Batch) -> Batch:
    """Returns a batch as Keras would have passed it."""
    x, *others = batch if isinstance(batch, tuple) else (batch,)
    return (x.feed.x(x.numbers), *others) if isinstance(x, Numbers) else batch


class FedBatches(Iterator[Batch]):
    """The batches of an epoch, with rows.

    Args:
        feed: the arrays.
        taken: the batches, with row numbers.

    Attributes:
        numbered: the same batches, with `Numbers`; a batch taken here isn't yielded again.
        element_spec: shapes and dtypes, on TensorFlow.
    """

    def __init__(self, feed: ArrayFeed, taken: Iterator[Batch]):
        self.numbered = ((Numbers(feed, numbers), *others) for numbers, *others in taken)
        self.element_spec = getattr(feed.dataset, "element_spec", None)

    def __next__(self) -> Batch:
        return restored(next(self.numbered))


class _LateList(list[Batch]):
    """The batches for one call of a train or test function on PyTorch.

    Keras takes the batches before the call; their rows are gathered when the list is read.
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
    """Overrides `__next__` of a PyTorch epoch iterator: gathers rows only when they are read."""

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
            is_group = hasattr(batches, "one_by_one")  # see `group_batches`
            return begin, end, batches if is_group else [next(batches)]
        raise StopIteration


def _pulling_late(kind: Any, rests: bool) -> Any:
    if issubclass(kind, _PullsLate):  # left over from a `fit` that raised
        return kind
    return type(kind.__name__, (_PullsLate, kind), {"before": kind, "rests": rests})


def numbered(data: Any) -> Iterator[Batch]:
    """Returns the batches for a call of a train or test function, with `Numbers` if possible.

    Args:
        data: the argument with which Keras calls the function.
    """
    return data.numbered if isinstance(data, FedBatches | _LateList) else iter(data)


def array_feed(epoch_iterator: Any, to_tensor: Callable[[Array], Any]) -> ArrayFeed | None:
    """Returns the feed of an epoch iterator over arrays; None for any other iterator."""
    adapter = getattr(epoch_iterator, "data_adapter", None)
    inputs = getattr(adapter, "_inputs", None)
    if type(adapter).__name__ != "ArrayDataAdapter" or not isinstance(inputs, tuple):
        return None
    if len(inputs) < 2 or inputs[1] is None:
        return None
    leaves = keras.tree.flatten(inputs[0])
    plain = all(map(_is_of_numbers, leaves))
    return ArrayFeed(epoch_iterator, to_tensor) if leaves and plain else None
