"""Makes the epoch iterator of a `fit` over arrays yield groups of batches in place of single ones.

Keras calls the step function once for each item of its epoch iterator, and the callbacks around
each call. With a group as the item, one call runs many steps. Keras' own option for that,
`steps_per_execution`, still gathers each batch on the host.

The rows of each batch are those that Keras would choose.

Private names used here were tried on Keras 3.12.0 and 3.15.1: `EpochIterator._enumerate_iterator`;
`ArrayDataAdapter._shuffle`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_freeze.errors import FreezeError
from keras_freeze.keras_internals.row_numbers_instead_of_rows import (
    ArrayFeed,
    Batch,
    FedBatches,
)

Array = np.ndarray[Any, Any]


class Group:
    """Batches of equal size, for one call of a train or test function.

    Args:
        feed: the arrays.
        numbers: the row numbers of each batch, (batches, rows).
    """

    def __init__(self, feed: ArrayFeed, numbers: Array):
        self.feed = feed
        self.numbers = numbers
        self.element_spec = getattr(feed.dataset, "element_spec", None)  # on TensorFlow

    def __len__(self) -> int:
        return len(self.numbers)

    def one_by_one(self) -> Iterator[FedBatches]:
        """Yields each batch as the data of a call of its own."""
        for rows in self.numbers:
            yield FedBatches(self.feed, iter([(rows, *self.feed.others_of(rows))]))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        # A step function of Keras would train on the first batch of the group, and skip the others.
        raise FreezeError(
            "A callback replaced the model's `train_function` or `test_function` within an epoch, "
            "in which keras_freeze runs several steps in one call. Replace it in `on_epoch_begin`."
        )


def can_group(feed: ArrayFeed) -> bool:
    """Returns True if the batches of an epoch can be made from row numbers alone."""
    iterator = feed.epoch_iterator
    return (
        iterator.steps_per_epoch is None
        and iterator.steps_per_execution == 1
        and feed.adapter._shuffle in (True, False)
        and feed.has_numbers
        and len(feed) >= 2 * feed.adapter.batch_size
    )


def put_groups(feed: ArrayFeed, size: Callable[[], int]) -> None:
    """Makes the feed's iterator yield groups when it is next iterated over, which `fit` does.

    Anybody else who iterates over it later gets batches.

    Args:
        feed: a feed that Keras' iterator already uses.
        size: returns how many batches the next group should have.
    """

    def groups() -> Iterator[tuple[int, int, Group]]:
        take_groups_back(feed)
        return _groups(feed, size)

    feed.epoch_iterator._enumerate_iterator = groups
    feed.wake()


def take_groups_back(feed: ArrayFeed) -> None:
    """Undoes `put_groups`."""
    vars(feed.epoch_iterator).pop("_enumerate_iterator", None)


def _groups(feed: ArrayFeed, size: Callable[[], int]) -> Iterator[tuple[int, int, Group]]:
    """Yields (first step, last step, group); a smaller last batch is a group of its own."""
    feed.adapter.on_epoch_begin()
    numbers, rows = feed.order(), feed.adapter.batch_size
    full, step = len(feed) // rows, 0
    batches = numbers[: full * rows].reshape(full, rows)
    while step < full:
        end = min(full, step + max(1, size()))
        yield step, end - 1, Group(feed, batches[step:end])
        step = end
    if len(feed) % rows:
        yield full, full, Group(feed, numbers[None, full * rows :])
    if keras.backend.backend() == "torch":
        iter(feed.adapter.get_torch_dataloader())  # as Keras does: it draws a number
    feed.adapter.on_epoch_end()
