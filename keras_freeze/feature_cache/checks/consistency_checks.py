"""Checks within `fit` that cached features are still correct, and that there are enough hits."""

from __future__ import annotations

import time
from typing import Any

import keras
import numpy as np

from keras_freeze.feature_cache.backends.protocol import Backend
from keras_freeze.feature_cache.not_cacheable import NotCacheableError, moved
from keras_freeze.feature_cache.storage.row_hashes import Key, row_keys
from keras_freeze.graph.layer_tree import Layer, own_states, seed_states
from keras_freeze.keras_internals.copy_to_numpy import to_numpy
from keras_freeze.keras_internals.row_numbers_instead_of_rows import ArrayFeed

Array = np.ndarray[Any, Any]
CHECKED = 2  # rows computed again in each epoch
COMPARED = 64  # rows of an array hashed again in each epoch,
COMPARED_BYTES = 1 << 21  # or as many as fit in this, but at least 8
CHEAP = 0.01  # share of the run's time that checks may take
ENOUGH = 0.5  # share of an epoch after which hits are counted: known rows may come late
LEAST_HITS = 0.1  # share of hits in an epoch below which the cache gives up
RTOL = {"float16": 1e-2, "bfloat16": 5e-2}  # else 1e-3: rounding depends on the batch size


class ConsistencyChecks:
    """Consistency checks of a cache, with their state between epochs.

    The prefix is the part of the model whose outputs are cached.

    Args:
        backend: module of the backend; reads tensors.

    Attributes:
        kind: the steps whose hits count: "train", or "test" if only validation is served.
    """

    def __init__(self, backend: Backend):
        self.backend = backend
        self.kind = "train"
        self.random = np.random.default_rng(0)  # its own, so that Keras' draws stay the same
        self.told: set[str] = set()
        self.variables: list[Any] = []
        self.prints: list[Key] = []
        self.began = time.perf_counter()
        self.check_seconds = 0.0  # time of all checks
        self.prefix_seconds = 0.0  # time of the prefix for the last batch
        self.counts: dict[str, list[int]] = {}
        self.last_rows = 0  # rows of `kind` in the last epoch that had any
        self.poor = 0  # consecutive epochs with almost no hits
        self.patience = 1  # poor epochs that are normal: the first one
        self.looked_at: set[str] = set()  # kinds of steps that were checked in this epoch
        self.quiet = True

    def once(self, what: str) -> bool:
        """Returns True the first time that it is called with `what`."""
        first = what not in self.told
        self.told.add(what)
        return first

    def begin_epoch(self) -> None:
        self.last_rows = self.counts.get(self.kind, [0])[0] or self.last_rows
        self.counts = {"train": [0, 0], "test": [0, 0]}
        self.looked_at = set()

    # Weights

    def look_at(self, layers: list[Layer], around: list[Any], *, training: bool = True) -> None:
        """Saves fingerprints of the prefix's weights.

        Args:
            layers: the layers that the prefix runs, if known.
            around: other variables that code before these layers might change.
            training: False if train steps aren't served. They may draw random numbers then, but
                the prefix must not.
        """
        kind = "train" if training else "test"
        if kind != self.kind:
            self.kind, self.poor, self.last_rows = kind, 0, 0
        seeds = [v for layer in layers for v in seed_states(layer)]
        variables = {id(v): v for layer in layers for v in layer.variables}
        for seed in seeds if not training else []:
            variables.pop(id(seed), None)
        self.variables = list(variables.values())
        self.fingerprints = self.backend.fingerprints(self.variables)
        self.prints = self.fingerprints()
        own = [*seeds, *(v for layer in layers for v in own_states(layer))]
        frozen = (keras.layers.BatchNormalization, keras.layers.Normalization)
        known = {id(v) for layer in layers if isinstance(layer, frozen) for v in layer.variables}
        self.states = [v for v in own if id(v) not in known]
        self.states += [v for v in around if id(v) not in variables]
        self.quiet = not self.states  # no state can change

    def check_weights(self) -> None:
        """Raises `NotCacheableError` if a weight of the prefix has changed."""
        new = self.fingerprints() if self.variables else []
        for variable, before, now in zip(self.variables, self.prints, new, strict=True):
            if before != now and self.kind == "test" and any(variable is v for v in self.states):
                raise moved([variable])
            if before != now:
                raise NotCacheableError(
                    f"the weights of the frozen part were changed: {variable.path}",
                    "don't change frozen weights while `fit` runs, or make their layers trainable",
                )

    def before_prefix(self) -> None:
        """Saves the state that the prefix might change, before its first run."""
        if not self.quiet:
            self.saved = [to_numpy(v) for v in self._held()]

    def after_prefix(self) -> None:
        """Raises `NotCacheableError` if the prefix changed state, which is restored."""
        if changed := self.put_back():
            raise moved(changed)

    def put_back(self) -> list[Any]:
        """Restores the state from before the prefix ran; returns the variables that it changed."""
        held, self.quiet = [] if self.quiet else self._held(), True
        changed = []
        for variable, value in zip(held, self.saved if held else [], strict=True):
            if not np.array_equal(to_numpy(variable), value):
                variable.assign(value)
                changed.append(variable)
        return changed

    def _held(self) -> list[Any]:
        """None on JAX: variables are empty while `fit` runs, so the prefix can't change them."""
        return [] if keras.backend.backend() == "jax" else self.states

    # Rows

    def check_rows(self, feed: ArrayFeed, places: list[int]) -> None:
        """Raises `NotCacheableError` if an array was changed in place; compares some rows."""
        if feed.sample is None or feed.sample[0] != places:
            size = sum(feed.leaves[place][:1].nbytes for place in places)
            count = min(COMPARED, max(8, COMPARED_BYTES // max(1, size)))
            numbers = self.random.permutation(len(feed))[:count]
            feed.sample = (places, numbers, _keys_of(feed, places, numbers))
        _, numbers, keys = feed.sample
        if _keys_of(feed, places, numbers) != keys:
            raise NotCacheableError(
                "the arrays that were passed to `fit` were changed in place",
                "pass a generator or a PyDataset that makes the rows of each epoch",
            )

    def wants_check(self, kind: str, is_trusted: bool) -> bool:
        """Returns True if known rows should be computed again before they are served.

        That is once in each epoch, the first time before any known row is served. For a trusted
        prefix it is skipped if the checks would take more than 1 % of the run's time, or if the
        prefix hasn't run: all rows came from disk, and it would have to be compiled.

        Args:
            kind: "train" or "test".
            is_trusted: whether the prefix has only layers known to be deterministic.
        """
        due = kind not in self.looked_at
        self.looked_at.add(kind)
        spent = self.check_seconds + self.prefix_seconds
        has_run = self.prefix_seconds > 0
        cheap = has_run and spent < CHEAP * (time.perf_counter() - self.began)
        cheap = cheap and kind == self.kind
        return due and (cheap or not is_trusted)

    def draw(self, known: Array, batch: int) -> Array:
        """Returns the positions of a few known rows to compute again.

        On JAX they are repeated to a full batch, since a new shape would be compiled again.
        """
        few = self.random.permutation(known)[:CHECKED]
        return np.resize(few, batch) if keras.backend.backend() == "jax" else few

    def count(self, kind: str, rows: int, missing: int) -> None:
        """Counts the rows of a batch, and those that were never seen before.

        Raises:
            NotCacheableError: half of an epoch is over, and almost no row was found in the cache.
        """
        self.counts.setdefault(kind, [0, 0])
        self.counts[kind][0] += rows
        self.counts[kind][1] += missing
        seen = self.counts[kind][0] if kind == self.kind else 0
        if self.poor == self.patience and seen > ENOUGH * self.last_rows:
            self.check_hits()

    def check_hits(self) -> None:
        """Raises `NotCacheableError` if almost no row was found after the first epoch."""
        rows, missing = self.counts.get(self.kind, [0, 0])
        if not rows:
            return
        self.poor = self.poor + 1 if rows - missing < LEAST_HITS * rows else 0
        if self.poor > self.patience:
            of = "" if self.kind == "train" else " of validation"
            record = "record a few augmented epochs with views=8"
            remedy = "move random augmentation after the base" if of else record
            raise NotCacheableError(
                f"the inputs{of} differ in each epoch, so almost no row was found in the cache",
                f"{remedy}, or remove the callback",
            )


def _keys_of(feed: ArrayFeed, places: list[int], numbers: Array) -> list[Key]:
    """Returns the keys of rows. Takes one row at a time, which copies nothing."""
    rows = ([feed.leaves[place][n : n + 1] for place in places] for n in numbers.tolist())
    return [key for row in rows for key in row_keys(row)]


def agree(kept: Array, fresh: Array) -> bool:
    """Returns True if features are equal up to rounding."""
    if not keras.backend.is_float_dtype(kept.dtype.name):
        return np.array_equal(kept, fresh)
    rtol = RTOL.get(kept.dtype.name, 1e-3)
    old, new = kept.astype("float32"), fresh.astype("float32")
    scale = float(np.abs(old, where=np.isfinite(old), out=np.zeros_like(old)).max(initial=0.0))
    return np.allclose(old, new, rtol=rtol, atol=rtol * scale, equal_nan=True)
