"""C3 for any source of rows, drawn by hypothesis: results with the cache and without are equal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_freeze import BottleneckCache, FreezeBase
from tests import builders
from tests.builders import BACKEND
from tests.reference.cached import Run, check
from tests.reference.search import examples
from tests.test_cache_parity import two_inputs

DIFFERENT = 9  # number of rows to pick from
OWN = {"tensorflow": ["tf.data"], "torch": ["DataLoader"], "jax": []}[BACKEND]
SOURCES = ["arrays", "PyDataset", "PyDataset, workers", "generator", *OWN]


class Batches(keras.utils.PyDataset):
    """Batches of arrays, in order. The last one may be smaller."""

    def __init__(self, arrays: tuple[Any, ...], batch: int, **options: Any):
        super().__init__(**options)
        self.arrays, self.batch = arrays, batch

    def __len__(self) -> int:
        return -(-len(self.arrays[1]) // self.batch)

    def __getitem__(self, index: int) -> Any:
        rows = slice(index * self.batch, (index + 1) * self.batch)
        return keras.tree.map_structure(lambda array: array[rows], self.arrays)


@dataclass(frozen=True)
class Feed:
    """One way to pass rows to `fit`.

    Attributes:
        source: one of SOURCES.
        picks: which of the different rows each training row is.
        held: the same for the validation rows; if empty, there is no validation.
        split: whether the validation rows are the last third of the training arrays instead.
        batch: batch sizes of training and validation.
        shuffle: as in `fit`, or whether the loader shuffles.
        weighted: whether there are sample weights.
        nested: whether `x` is a dict of two inputs, of which the base reads one.
        dtype: dtype of the images.
        epochs: number of epochs.
        freq: validation frequency.
        thaws: whether a stage begins at epoch 1.
        stepped: whether `steps_per_epoch` is set.
        traced: whether steps are traced.
    """

    source: str
    picks: list[int]
    held: list[int]
    split: bool
    batch: tuple[int, int]
    shuffle: Any
    weighted: bool
    nested: bool
    dtype: str
    epochs: int
    freq: int
    thaws: bool
    stepped: bool
    traced: bool

    @property
    def steps(self) -> int:
        return -(-len(self.picks) // self.batch[0])

    @property
    def splits(self) -> bool:
        return self.split and self.source == "arrays" and len(self.picks) >= 6

    @property
    def trained(self) -> list[int]:
        """The training rows without the validation split."""
        rows = len(self.picks)
        return self.picks[: math.floor(rows * (1 - 1 / 3)) if self.splits else rows]

    @property
    def exact(self) -> bool:
        """Whether results are exact: kernels round differently for different batch sizes."""
        train, held = (self.trained, self.picks[len(self.trained) :] or self.held)
        sizes = {len(train) % self.batch[0], len(held) % self.batch[1]}
        return sizes == {0} and (not held or self.batch[0] == self.batch[1])

    def arrays(self, picks: list[int]) -> tuple[Any, ...]:
        images, targets = builders.data(DIFFERENT)
        images = (100 * images).astype(self.dtype)[picks]
        numbers = builders.data(DIFFERENT, 3, seed=1)[0][picks]
        x = {"image": images, "numbers": numbers} if self.nested else images
        weights = (np.linspace(0.5, 1.5, len(picks)).astype("float32"),) if self.weighted else ()
        return x, targets[picks], *weights

    def data(self) -> tuple[Any, ...]:
        """Returns the data arguments of `fit`."""
        arrays = self.arrays(self.picks)
        if self.source == "arrays":
            return arrays[:2]
        if self.source.startswith("PyDataset"):
            workers = {"workers": 2, "max_queue_size": 3} if "workers" in self.source else {}
            return (Batches(arrays, self.batch[0], **workers),)
        if self.source == "generator":
            return (self._endless(Batches(arrays, self.batch[0])),)
        return (self._loader(arrays),)

    def _endless(self, batches: Batches) -> Iterator[Any]:
        while True:
            yield from (batches[index] for index in range(len(batches)))

    def _loader(self, arrays: tuple[Any, ...]) -> Any:
        if self.source == "tf.data":
            import tensorflow as tf

            dataset = tf.data.Dataset.from_tensor_slices(arrays)
            dataset = dataset.shuffle(32, seed=1) if self.shuffle else dataset
            return dataset.batch(self.batch[0])
        import torch

        def collate(rows: list[int]) -> Any:
            return keras.tree.map_structure(lambda array: torch.tensor(array[rows]), arrays)

        return torch.utils.data.DataLoader(
            range(len(self.picks)),
            batch_size=self.batch[0],
            shuffle=bool(self.shuffle),
            collate_fn=collate,
        )

    def run(self) -> Run:
        options: dict[str, Any] = {"epochs": self.epochs, "batch_size": None}
        arrays = self.arrays(self.picks)
        if self.source == "arrays":
            options |= {"batch_size": self.batch[0], "shuffle": self.shuffle}
            options |= {"sample_weight": arrays[2]} if self.weighted else {}
        if self.source == "generator" or (self.stepped and not self.splits):
            options["steps_per_epoch"] = self.steps
        if self.splits:
            options |= {"validation_split": 1 / 3, "validation_batch_size": self.batch[1]}
        elif self.held:
            options |= {"validation_data": self.arrays(self.held)}
            options |= {"validation_batch_size": self.batch[1], "validation_freq": self.freq}
        stages = {1: "b3"} if self.thaws else None
        metrics = {"metrics": [], "weighted_metrics": ["mae"]} if self.weighted else {}
        make = two_inputs if self.nested else builders.nested
        return Run(make, self.data, stages, options, metrics, traced=self.traced)


@st.composite
def feeds(draw: Any) -> Feed:
    picks = st.integers(0, DIFFERENT - 1)
    batch = st.integers(1, 5)
    return Feed(
        source=draw(st.sampled_from(SOURCES)),
        picks=draw(st.lists(picks, min_size=2, max_size=14)),
        held=draw(st.lists(picks, max_size=7)),
        split=draw(st.booleans()),
        batch=(draw(batch), draw(batch)),
        shuffle=draw(st.sampled_from([True, False, "batch"])),
        weighted=draw(st.booleans()),
        nested=draw(st.booleans()),
        dtype=draw(st.sampled_from(["float32", "float64", "float16", "int32", "uint8"])),
        epochs=draw(st.integers(2, 4)),
        freq=draw(st.integers(1, 2)),
        thaws=draw(st.booleans()),
        stepped=draw(st.booleans()),
        traced=draw(st.integers(0, 4)) == 0,
    )


@given(feeds())
@examples(12)
def test_random_feeds(feed: Feed):
    """Repeated rows, shuffling, dicts, weights, loaders, all validation kinds, partial batches."""
    stats = check(feed.run(), exact=feed.exact)
    trained = _distinct(feed, feed.trained, in_arrays=feed.source == "arrays")
    held = _distinct(feed, feed.picks if feed.splits else feed.held, in_arrays=True)
    assert stats.misses == len(trained | held)


def _distinct(feed: Feed, picks: list[int], *, in_arrays: bool) -> set[bytes]:
    """Returns the different rows as the base gets them: it reads only the image.

    Keras converts float arrays to float32, but leaves a dataset's values as they are.
    """
    x = feed.arrays(sorted(set(picks)))[0]
    images = x["image"] if feed.nested else x
    if in_arrays and images.dtype.kind == "f":
        images = images.astype("float32")
    return {image.tobytes() for image in images}


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_a_row_is_the_same_by_number_and_in_a_batch(dtype: str):
    """Keras converts float arrays to float32, and the cache must do the same."""
    x, y = builders.data(8)
    x = x.astype("float16").astype(dtype)
    model = builders.compiled(builders.nested())
    cache = BottleneckCache(verbose=0)
    model.fit(
        x,
        y,
        batch_size=4,
        epochs=2,
        validation_data=Batches((x.astype("float32"), y), 4),
        verbose=0,
        callbacks=[FreezeBase("base"), cache],
    )
    assert cache.stats.enabled
    assert (cache.stats.rows, cache.stats.misses) == (8, 8)
