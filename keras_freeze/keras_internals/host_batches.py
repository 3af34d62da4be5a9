"""Makes the epoch iterator of a `fit` yield batches in host memory, if the device has its own.

Keras sends a batch to the device before the step runs. A batch whose rows are all in the cache is
never needed there, and it would have to come back to be hashed.

Private names used here were tried on Keras 3.12.0 and 3.15.1: `EpochIterator._get_iterator`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras

Batch = Any
AS_THEY_ARE = ("TorchDataLoaderAdapter", "ArrayDataAdapter")


class HostBatches:
    """The batches of an epoch on PyTorch, as tensors in host memory.

    A DataLoader gives such tensors already. Keras' loader of arrays draws the order of the rows
    from PyTorch's generators, and is left as it is.

    Args:
        adapter: Keras' data adapter.
        draw: draws random numbers as an iteration over a DataLoader does.
    """

    def __init__(self, adapter: Any, draw: Callable[[], None]):
        self.adapter = adapter
        self.draw = draw

    def __iter__(self) -> Iterator[Batch]:
        self.draw()
        return map(_on_host, self.adapter.get_numpy_iterator())


def _on_host(batch: Batch) -> Batch:
    with keras.device("cpu"):
        return keras.tree.map_structure(
            lambda leaf: None if leaf is None else keras.ops.convert_to_tensor(leaf), batch
        )


def put(iterator: Any, draw: Callable[[], None]) -> bool:
    """Makes an epoch iterator yield batches in host memory; returns False if it does already.

    On TensorFlow, it does: a step sends them. `put_back` undoes it.

    Args:
        iterator: Keras' epoch iterator.
        draw: draws random numbers as an iteration over a DataLoader does.
    """
    adapter, backend = iterator.data_adapter, keras.backend.backend()
    if backend == "jax":
        iterator._get_iterator = adapter.get_jax_iterator
    elif backend == "torch" and type(adapter).__name__ not in AS_THEY_ARE:
        iterator._get_iterator = lambda: HostBatches(adapter, draw)
    else:
        return False
    return True


def put_back(iterator: Any) -> None:
    """Lets Keras send the batches again."""
    vars(iterator).pop("_get_iterator", None)
