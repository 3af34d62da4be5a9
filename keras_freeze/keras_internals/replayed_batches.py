"""Makes the epoch iterator of a `fit` yield row numbers of a recording, without asking for data.

Private names used here were tried on Keras 3.12.0 and 3.15.1: `EpochIterator._enumerate_iterator`,
`_get_iterator`, `_current_iterator`; `PyDatasetAdapter.enqueuer`, `_within_epoch`;
`TFEpochIterator._distributed_dataset`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_freeze.errors import FreezeError

Array = np.ndarray[Any, Any]


class ReplayedBatches(Iterator[Any]):
    """The data of one call of a train function: row numbers of a recording.

    Args:
        numbers: the row numbers of each batch.
        iterator: Keras' epoch iterator.
    """

    def __init__(self, numbers: list[Array], iterator: Any):
        self.numbers = numbers
        dataset = getattr(iterator, "_distributed_dataset", None)
        self.element_spec = getattr(dataset, "element_spec", None)  # on TensorFlow

    def __next__(self) -> Any:
        raise FreezeError(
            "A callback replaced the model's `train_function` within an epoch in which "
            "BottleneckCache(views=...) replays a recording. Replace it in `on_epoch_begin`, or "
            "train without `views`."
        )


def put(
    iterator: Any, groups: Callable[[], Iterator[list[Array]]], draw: Callable[[], None]
) -> None:
    """Makes an epoch iterator yield a recording when it is next iterated over, which `fit` does.

    Anybody else who iterates over it later gets batches.

    Args:
        iterator: Keras' epoch iterator.
        groups: returns the row numbers of the batches of each call, in order.
        draw: draws random numbers as an iteration over the user's data does.
    """

    def replay() -> Iterator[tuple[int, int, Any]]:
        put_back(iterator)
        return _calls(iterator, groups(), draw)

    iterator._enumerate_iterator = replay


def put_back(iterator: Any) -> None:
    """Undoes `put`."""
    vars(iterator).pop("_enumerate_iterator", None)


def _calls(
    iterator: Any, groups: Iterator[list[Array]], draw: Callable[[], None]
) -> Iterator[tuple[int, int, Any]]:
    """Yields (first step, last step, data of the call) as Keras' iterator does."""
    on_torch = keras.backend.backend() == "torch"  # Keras takes one item of the data there
    step = 0
    if iterator.steps_per_epoch is None:
        draw()
    for numbers in groups:
        steps = max(len(numbers), iterator.steps_per_execution)
        batches = ReplayedBatches(numbers, iterator)
        yield step, step + steps - 1, iter([batches]) if on_torch else batches
        step += steps
    if iterator.steps_per_epoch is None and iterator.num_batches:
        draw()  # Keras begins a second iteration, which it doesn't use


def replayed(args: tuple[Any, ...]) -> ReplayedBatches | None:
    """Returns the row numbers, if Keras called its train function with these arguments for them."""
    data = args[-1][0] if isinstance(args[-1], list) and args[-1] else args[-1]
    return data if isinstance(data, ReplayedBatches) else None


def live_batches(iterator: Any) -> Iterator[Any]:
    """Yields the batches that the user's data give; `end_live_batches` must follow.

    Raises:
        FreezeError: there are no more data.
    """
    current = iterator._current_iterator
    yield from iter(iterator._get_iterator() if current is None else current)
    raise FreezeError(
        "Something changed within an epoch in which BottleneckCache(views=...) replays a "
        "recording, so that the rest of the epoch needs new data, but the data have ended. Change "
        "it at the beginning of an epoch, or pass data for more epochs."
    )


def end_broken_off(iterator: Any) -> None:
    """Ends an epoch that a callback broke off, after which `fit` goes on.

    Keras would raise an error when the next epoch of a PyDataset begins.
    """
    if getattr(iterator.data_adapter, "_within_epoch", False):
        end_live_batches(iterator)


def end_live_batches(iterator: Any) -> None:
    """Ends an iteration over the user's data in the middle, so that the next epoch begins anew."""
    adapter = iterator.data_adapter
    adapter.on_epoch_end()
    enqueuer = getattr(adapter, "enqueuer", None)  # of a PyDataset with workers
    while enqueuer is not None and not enqueuer.ready_queue.empty():
        enqueuer.ready_queue.get()
    if iterator.steps_per_epoch is None:
        iterator._current_iterator = None
