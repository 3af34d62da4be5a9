"""Keeps a cache honest: looks for what must not change, and for what isn't worth it."""

from __future__ import annotations

import time
from typing import Any

import keras
import numpy as np

from keras_freeze.feature_cache.backends.protocol import Backend
from keras_freeze.feature_cache.not_cacheable import NotCacheableError, moved
from keras_freeze.feature_cache.storage.row_hashes import Key, row_keys
from keras_freeze.graph.layer_tree import Layer, own_states, seed_states
from keras_freeze.keras_internals.row_number_feed import ArrayFeed
from keras_freeze.keras_internals.variable_values import to_numpy

Array = np.ndarray[Any, Any]
CHECKED = 2  # rows that are computed again in an epoch
COMPARED = 64  # rows of an array that are hashed again in an epoch,
COMPARED_BYTES = 1 << 21  # or fewer, but at least 8
CHEAP = 0.01  # share of a run that checks may take
ENOUGH = 0.5  # share of an epoch after which its hits are judged: known rows may come late
LEAST_HITS = 0.1  # share of an epoch's rows below which a cache isn't worth it
RTOL = {"float16": 1e-2, "bfloat16": 5e-2}  # else 1e-3: another batch size rounds differently


class ConsistencyChecks:
    """What a cache remembers from epoch to epoch.

    Args:
        backend: how tensors are read.

    Attributes:
        kind: of the steps whose rows are judged: "train", or "test" where only these are served.
    """

    def __init__(self, backend: Backend):
        self.backend = backend
        self.kind = "train"
        self.random = np.random.default_rng(0)  # of its own: Keras' draws must not change
        self.told: set[str] = set()
        self.variables: list[Any] = []
        self.prints: list[Key] = []
        self.began = time.perf_counter()
        self.check_seconds = 0.0  # of all checks
        self.prefix_seconds = 0.0  # of the prefix for the last batch
        self.counts: dict[str, list[int]] = {}
        self.last_rows = 0  # that are judged, in the last epoch that had any
        self.poor = 0  # epochs in a row with hardly a hit
        self.patience = 1  # poor epochs that are nothing unusual: the first one
        self.looked_at: set[str] = set()  # kinds of known rows, in this epoch
        self.quiet = True

    def once(self, what: str) -> bool:
        """True the first time."""
        first = what not in self.told
        self.told.add(what)
        return first

    def begin_epoch(self) -> None:
        self.last_rows = self.counts.get(self.kind, [0])[0] or self.last_rows
        self.counts = {"train": [0, 0], "test": [0, 0]}
        self.looked_at = set()

    # Weights

    def look_at(self, layers: list[Layer], around: list[Any], *, training: bool = True) -> None:
        """Remembers the weights of the prefix.

        Args:
            layers: all that the prefix runs, as far as that is known.
            around: further variables that code in front of them might move.
            training: False = train steps aren't served. They draw random numbers then; the prefix
                must not.
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
        self.quiet = not self.states  # nothing that could move

    def check_weights(self) -> None:
        """Raises `NotCacheableError` if a weight of the prefix isn't what it was."""
        new = self.fingerprints() if self.variables else []
        for variable, before, now in zip(self.variables, self.prints, new, strict=True):
            if before != now and self.kind == "test" and any(variable is v for v in self.states):
                raise moved([variable])
            if before != now:
                raise NotCacheableError(
                    f"the weights of the frozen part were changed: {variable.path}",
                    "leave frozen weights alone while `fit` runs, or set `trainable`",
                )

    def before_prefix(self) -> None:
        """Remembers states that the prefix might move, the first time that it runs."""
        if not self.quiet:
            self.saved = [to_numpy(v) for v in self._held()]

    def after_prefix(self) -> None:
        """Puts moved states back, and refuses."""
        if changed := self.put_back():
            raise moved(changed)

    def put_back(self) -> list[Any]:
        """Returns the states that the prefix moved; they are what they were before it."""
        held, self.quiet = [] if self.quiet else self._held(), True
        changed = []
        for variable, value in zip(held, self.saved if held else [], strict=True):
            if not np.array_equal(to_numpy(variable), value):
                variable.assign(value)
                changed.append(variable)
        return changed

    def _held(self) -> list[Any]:
        """On JAX variables are empty while `fit` runs, and the prefix can't write to them."""
        return [] if keras.backend.backend() == "jax" else self.states

    # Rows

    def check_rows(self, feed: ArrayFeed, places: list[int]) -> None:
        """Raises `NotCacheableError` if rows of an array aren't what they were the first time."""
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
        """True if known rows should be computed again before they are served.

        In each epoch, and before the first ones are served. Of a prefix of layers that are known to
        be deterministic only as long as all checks take a hundredth of the run.

        Args:
            kind: "train" or "test".
            is_trusted: whether the prefix is of such layers.
        """
        due = kind not in self.looked_at
        self.looked_at.add(kind)
        spent = self.check_seconds + self.prefix_seconds
        cheap = kind == self.kind and spent < CHEAP * (time.perf_counter() - self.began)
        return due and (cheap or not is_trusted)

    def draw(self, known: Array, batch: int) -> Array:
        """Returns positions of a few rows to compute again, in the company of other rows.

        On JAX as many as there are in a batch: it would compile for another shape.
        """
        few = self.random.permutation(known)[:CHECKED]
        return np.resize(few, batch) if keras.backend.backend() == "jax" else few

    def count(self, kind: str, rows: int, missing: int) -> None:
        """Counts the rows of a batch, and those that were never seen before.

        Raises:
            NotCacheableError: a good part of an epoch is over, and it doesn't look worth it.
        """
        self.counts.setdefault(kind, [0, 0])
        self.counts[kind][0] += rows
        self.counts[kind][1] += missing
        seen = self.counts[kind][0] if kind == self.kind else 0
        if self.poor == self.patience and seen > ENOUGH * self.last_rows:
            self.check_hits()

    def check_hits(self) -> None:
        """Raises `NotCacheableError` if, though the data came round, hardly a row was known."""
        rows, missing = self.counts.get(self.kind, [0, 0])
        if not rows:
            return
        self.poor = self.poor + 1 if rows - missing < LEAST_HITS * rows else 0
        if self.poor > self.patience:
            of = "" if self.kind == "train" else " of the validation"
            raise NotCacheableError(
                f"the inputs{of} differ in each epoch, so hardly a row was found again",
                "move random augmentation after the base, or leave the callback out",
            )


def _keys_of(feed: ArrayFeed, places: list[int], numbers: Array) -> list[Key]:
    """Of one row at a time: nothing is copied."""
    rows = ([feed.leaves[place][n : n + 1] for place in places] for n in numbers.tolist())
    return [key for row in rows for key in row_keys(row)]


def agree(kept: Array, fresh: Array) -> bool:
    """True if features are the same but for rounding."""
    if not keras.backend.is_float_dtype(kept.dtype.name):
        return np.array_equal(kept, fresh)
    rtol = RTOL.get(kept.dtype.name, 1e-3)
    old, new = kept.astype("float32"), fresh.astype("float32")
    scale = float(np.abs(old, where=np.isfinite(old), out=np.zeros_like(old)).max(initial=0.0))
    return np.allclose(old, new, rtol=rtol, atol=rtol * scale, equal_nan=True)
