"""Batches on a device with memory of its own. The CPU stands in for it, as if it were a GPU."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_freeze import BottleneckCache, FreezeBase, GradualUnfreeze
from tests import builders
from tests.builders import BACKEND

X, Y = builders.data(28)
backend = importlib.import_module(f"keras_freeze.feature_cache.backends.on_{BACKEND}")


class Batches(keras.utils.PyDataset):
    """The same rows in each epoch; it remembers the kinds of the arrays it gave."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        rows = slice(8 * index, 8 * index + 8)
        return X[rows], Y[rows]


def generator() -> Any:
    while True:
        for index in range(4):
            yield Batches()[index]


def fitted(data: Any, cache: Any, stages: Any = None, **options: Any) -> Any:
    keras.utils.set_random_seed(3)
    model = builders.compiled(builders.nested(), metrics=["mae"])
    callbacks = [FreezeBase(), *([cache] if cache else [])]
    callbacks += [GradualUnfreeze(stages, verbose=0)] if stages else []
    keras.utils.set_random_seed(4)
    options = {"epochs": 5, "verbose": 0, "shuffle": False} | options
    history = model.fit(data, callbacks=callbacks, **options).history
    return history, builders.weights(model), model


@pytest.fixture
def as_a_gpu(monkeypatch: pytest.MonkeyPatch):
    """Memory of the device is known, and Keras sends batches ahead, as it does on a GPU."""
    monkeypatch.setattr(backend, "free_device_memory", lambda: 10**9)
    if BACKEND == "jax":
        import jax

        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    sent: list[Any] = []
    to_tensor = backend.to_tensor

    def counted(array: Any) -> Any:
        sent.append(array)
        return to_tensor(array)

    monkeypatch.setattr(backend, "to_tensor", counted)
    return sent


@pytest.mark.parametrize("data", [Batches, generator], ids=["PyDataset", "generator"])
@pytest.mark.parametrize("stages", [None, {3: "b3"}])
def test_batches_are_hashed_before_they_are_sent(as_a_gpu: Any, data: Any, stages: Any):
    options = {"steps_per_epoch": 4} if data is generator else {}
    validated = {"validation_data": Batches()} if data is Batches else {}
    expected = fitted(data(), None, stages, **options, **validated)
    cache = BottleneckCache(verbose=0)
    del as_a_gpu[:]
    history, weights, model = fitted(data(), cache, stages, **options, **validated)
    assert cache.stats.enabled
    assert cache.stats.base_passes == 1.0
    for name, losses in expected[0].items():
        np.testing.assert_allclose(history[name], losses, rtol=1e-6)
    for name, value in expected[1].items():
        np.testing.assert_allclose(weights[name], value, rtol=1e-5, atol=1e-6)
    images = [array for array in as_a_gpu if np.shape(array)[1:] == (6,)]
    if BACKEND == "jax":  # elsewhere, Keras or the step sends them
        assert 4 <= len(images) <= 6, "images are sent in the first pass, and to be checked"
    assert "_get_iterator" not in vars(getattr(model, "_eval_epoch_iterator", None) or object)


def test_the_run_goes_on_when_the_cache_steps_aside(as_a_gpu: Any):
    class Changing(Batches):
        def __getitem__(self, index: int) -> Any:
            x, y = super().__getitem__(index)
            return x + np.random.default_rng().normal(size=x.shape).astype("float32"), y

    cache = BottleneckCache(verbose=0)
    with pytest.warns(UserWarning, match="the inputs differ in each epoch"):
        history, _, model = fitted(Changing(), cache)
    assert not cache.stats.enabled
    assert np.isfinite(history["loss"]).all()
    assert len(history["loss"]) == 5
    model.fit(Batches(), verbose=0)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow sends batches in the step")
def test_batches_are_in_host_memory(as_a_gpu: Any):
    from keras_freeze.keras_internals import host_batches

    class Adapter:
        def get_numpy_iterator(self) -> Any:
            yield X[:8], Y[:8], None

        get_jax_iterator = get_numpy_iterator

    class Iterator:
        data_adapter = Adapter()

    iterator: Any = Iterator()
    assert host_batches.put(iterator, lambda: None)
    x, y, weights = next(iter(iterator._get_iterator()))
    assert weights is None
    assert isinstance(x, np.ndarray) == isinstance(y, np.ndarray) == (BACKEND == "jax")
    np.testing.assert_array_equal(np.asarray(x), X[:8])
    host_batches.put_back(iterator)
    assert not vars(iterator)


def test_views_on_a_device_of_its_own(as_a_gpu: Any):
    plain = fitted(Batches(), BottleneckCache(views=2, shuffle=False, verbose=0), {3: "b3"})
    expected = fitted(Batches(), None, {3: "b3"})
    for name, losses in expected[0].items():
        np.testing.assert_allclose(plain[0][name], losses, rtol=1e-6)


def test_rows_from_disk_go_to_the_device_once(as_a_gpu: Any, tmp_path: Path):
    pytest.importorskip("lmdb")
    expected = fitted(X, None, y=Y, batch_size=8)
    for passes in (1.0, 0.0):
        cache = BottleneckCache(directory=tmp_path / "features", verbose=0)
        del as_a_gpu[:]
        history, _, _ = fitted(X, cache, y=Y, batch_size=8)
        assert cache.stats.base_passes == passes
        for name, losses in expected[0].items():
            np.testing.assert_allclose(history[name], losses, rtol=1e-6)
    features = [array for array in as_a_gpu if np.shape(array)[1:] == (8,)]
    assert len(features) <= 1  # the table of all rows
