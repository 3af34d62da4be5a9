"""Compares a fit with a cache with the same fit without one."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from keras_freeze import BottleneckCache, CacheWarning, FreezeBase, GradualUnfreeze
from tests import builders
from tests.builders import BACKEND

X, Y = builders.data(32)


@dataclass
class Run:
    """A fit, to be run with and without a cache.

    Attributes:
        make: makes the model.
        data: makes the data arguments of each `fit`.
        stages: stages of GradualUnfreeze, or None.
        options: further arguments of `fit`.
        compile: further arguments of `compile`.
        frozen: makes the callbacks that come first.
        traced: whether steps are traced and compiled, which takes longer than a few eager steps.
    """

    make: Any = builders.nested
    data: Any = lambda: (X, Y)
    stages: Any = None
    options: dict[str, Any] = field(default_factory=dict)
    compile: dict[str, Any] = field(default_factory=dict)
    frozen: Any = lambda: [FreezeBase()]
    traced: bool = False

    def fit(self, cache: BottleneckCache | None) -> tuple[dict[str, list[float]], Any]:
        keras.utils.set_random_seed(3)
        compile_as = {"metrics": ["mae"], "run_eagerly": not self.traced and BACKEND != "torch"}
        model = builders.compiled(self.make(), **(compile_as | self.compile))
        callbacks = self.frozen()
        if self.stages is not None:
            callbacks.append(GradualUnfreeze(self.stages, verbose=0))
        keras.utils.set_random_seed(4)
        options = {"batch_size": 8, "epochs": 5, "verbose": 0} | self.options
        callbacks += [] if cache is None else [cache]
        history = model.fit(*self.data(), callbacks=callbacks, **options).history
        return history, builders.weights(model)


def check(run: Run, *, exact: bool = True, passes: float | None = 1.0, **cache: Any) -> Any:
    """Runs with and without a cache and compares. Returns the cache's counts."""
    expected, expected_weights = run.fit(None)
    cached = BottleneckCache(verbose=0, **cache)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CacheWarning)
        history, weights = run.fit(cached)
    assert cached.stats.enabled
    assert cached.stats.hits > 0
    if passes is not None:
        assert cached.stats.base_passes == passes
    compare(history, expected, exact)
    compare(weights, expected_weights, exact)
    return cached.stats


@functools.cache
def place_counts() -> bool:
    """Whether a row's last bits depend on its position in the batch.

    This is the case for TensorFlow's kernels on CPUs with AVX2 but no AVX-512. A cache can't give
    the bits of another order there, so runs are compared within float rounding.
    """
    if keras.backend.backend() != "tensorflow":
        return False
    base = builders.layer(builders.nested(), "base")
    order = np.random.default_rng(1).permutation(8)
    rows = [base.predict(x, batch_size=8, verbose=0) for x in (X[:8], X[:8][order])]
    return not np.array_equal(rows[0][order], rows[1])


def compare(a: dict[str, Any], b: dict[str, Any], exact: bool = True) -> None:
    assert list(a) == list(b)
    exact = exact and not place_counts()
    for key in a:
        if exact:
            assert np.array_equal(a[key], b[key]), key
        else:
            np.testing.assert_allclose(a[key], b[key], rtol=1e-5, atol=1e-5, err_msg=key)
