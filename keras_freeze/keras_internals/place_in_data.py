"""Continues the data of a `fit` where an earlier process stopped.

The order of the rows follows from random generators (see `random_states`), or from how often the
data were read. So a later process can read to the same place, if the order is reproducible.

Private names used here were tried on Keras 3.12.0 and 3.15.1: `EpochIterator._enumerate_iterator`,
`_num_batches`; `ArrayDataAdapter._shuffle`; `TFDatasetAdapter._dataset`;
`TFEpochIterator._distributed_dataset`; `PyDatasetAdapter.py_dataset`, `enqueuer`, `shuffle`; of
TensorFlow 2.21: `Dataset._inputs`, and `_reshuffle_each_iteration`, `_seed`, `_seed2` of a shuffled
dataset.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_freeze.keras_internals.copy_to_numpy import to_numpy
from keras_freeze.keras_internals.group_batches import Group
from keras_freeze.keras_internals.replayed_batches import end_broken_off
from keras_freeze.keras_internals.row_numbers_instead_of_rows import FedBatches

_END = object()
SEED = "Call keras.utils.set_random_seed before"


def not_reproducible(iterator: Any) -> str:
    """Returns why the order of an epoch can't be repeated in another process; "" if it can."""
    adapter = iterator.data_adapter
    if getattr(adapter, "_shuffle", False) and hasattr(iterator, "_distributed_dataset"):
        order = f"{__package__}.epoch_order.on_tensorflow"
        if not importlib.import_module(order).has_seed():
            return f"TensorFlow shuffles the arrays without a seed. {SEED} the model is built."
    if getattr(adapter, "enqueuer", None) is not None and _changes(adapter):
        return "the workers of a PyDataset read some batches of the next epoch ahead."
    dataset = getattr(adapter, "_dataset", None)
    if dataset is not None and "tensorflow" in sys.modules and _is_shuffled_unseeded(dataset):
        return f"the pipeline's shuffle() has no seed. {SEED} it is made, or pass `seed` to it."
    return ""


def _changes(adapter: Any) -> bool:
    """True if a PyDataset has other batches, or another order of them, in each epoch."""
    own, plain = type(adapter.py_dataset), keras.utils.PyDataset
    hooks = ("on_epoch_begin", "on_epoch_end")
    return adapter.shuffle or any(getattr(own, hook) is not getattr(plain, hook) for hook in hooks)


def _is_shuffled_unseeded(dataset: Any) -> bool:
    """True if a tf.data pipeline contains a shuffle that begins anew with each process."""
    if not hasattr(dataset, "_inputs"):
        return False
    seeds = [getattr(dataset, name, None) for name in ("_seed", "_seed2")]
    shuffles = hasattr(dataset, "_reshuffle_each_iteration") and None not in seeds
    if shuffles and not any(int(to_numpy(seed)) for seed in seeds):
        return True
    return any(map(_is_shuffled_unseeded, dataset._inputs()))


def is_stream(iterator: Any) -> bool:
    """True if an epoch continues the iteration of the one before, with `steps_per_epoch`."""
    return iterator.steps_per_epoch is not None


def pass_epochs(iterator: Any, epochs: int) -> None:
    """Brings data to the state after some epochs, without reading them. Not for streams.

    A tf.data pipeline shuffles differently each time it is iterated over, a PyDataset may change
    in `on_epoch_end`. Keras' own orders depend on random generators only.

    Args:
        iterator: Keras' epoch iterator.
        epochs: number of epochs that an earlier process has trained.
    """
    adapter = iterator.data_adapter
    for _ in range(epochs if hasattr(adapter, "py_dataset") else 0):
        adapter.py_dataset.on_epoch_begin()
        adapter.py_dataset.on_epoch_end()
    if type(adapter).__name__ != "TFDatasetAdapter":
        return
    dataset = getattr(iterator, "_distributed_dataset", None)
    times = epochs
    if dataset is None:
        dataset = adapter._dataset
    else:  # TensorFlow's trainer begins a second iteration at the end of an epoch of known length
        times = 2 * epochs - (adapter.num_batches is None)
    for _ in range(times):
        iter(dataset)


def begin_later(iterator: Any, steps: int, epochs: list[int], then: Callable[[], None]) -> None:
    """Makes the next epoch begin after some steps.

    Args:
        iterator: Keras' epoch iterator, as it is used by a cache, if there is one.
        steps: steps of the epoch that are done.
        epochs: of a stream, the steps of each epoch to read first.
        then: called after the last batch that is skipped.
    """
    begin = iterator._enumerate_iterator

    def rest() -> Iterator[tuple[int, int, Any]]:
        if vars(iterator).get("_enumerate_iterator") is rest:
            put_back(iterator)
        for count in epochs:
            _read_epoch(iterator, count)
        return _rest(begin(), steps, then)

    iterator._enumerate_iterator = rest


def _read_epoch(iterator: Any, steps: int) -> None:
    """Reads an epoch of a stream, or the steps of one that was ended early."""
    for item in type(iterator)._enumerate_iterator(iterator):
        _skipped(item, steps)
        if item[1] + 1 >= steps and steps < iterator.steps_per_epoch:
            break
    end_broken_off(iterator)


def put_back(iterator: Any) -> None:
    """Undoes `begin_later`, if the epoch didn't begin."""
    vars(iterator).pop("_enumerate_iterator", None)


def _rest(
    items: Iterator[tuple[int, int, Any]], steps: int, then: Callable[[], None]
) -> Iterator[tuple[int, int, Any]]:
    """Yields the items of an epoch without its first steps."""
    if not steps:
        then()
    for item in items:
        left: tuple[int, int, Any] | None = item
        if item[0] < steps:
            left = _skipped(item, steps)
            if item[1] + 1 >= steps:
                then()  # before Keras draws random numbers at the end of the data
        if left is not None:
            yield left


def _skipped(item: tuple[int, int, Any], steps: int) -> tuple[int, int, Any] | None:
    """Returns what is left of the data of a call after the first steps of the epoch."""
    begin, end, data = item
    last = min(end + 1, steps)
    if isinstance(data, Group):
        left = data.numbers[last - begin :]
        return (last, end, Group(data.feed, left)) if len(left) else None
    batches = data.numbered if isinstance(data, FedBatches) else data
    for _ in range(last - begin):
        if next(batches, _END) is _END:
            break
    return (last, end, data) if last <= end else None
