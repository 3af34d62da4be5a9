"""The cache's parts: cuts, keys, the store, budgets, what it reports and what it leaves behind."""

from __future__ import annotations

import contextlib
import gc
import re
import weakref
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_freeze import BottleneckCache, CacheWarning, FreezeBase, GradualUnfreeze
from keras_freeze.feature_cache.cutting.deterministic_layers import DeterministicLayers
from keras_freeze.feature_cache.cutting.tensors_to_cache import cut_names, cuts_of_stages
from keras_freeze.feature_cache.storage import row_hashes
from keras_freeze.feature_cache.storage.memory_limit_and_dtype import (
    check_dtype,
    check_max_bytes,
    free_memory,
)
from keras_freeze.feature_cache.storage.memory_store import MemoryStore
from keras_freeze.feature_cache.storage.row_hashes import row_keys
from keras_freeze.graph.layer_calls import read_program
from keras_freeze.graph.layer_tree import LayerTree
from tests import builders
from tests.builders import L
from tests.reference.cached import X, Y
from tests.test_cache_parity import VAL
from tests.test_cache_sources import Batches
from tests.test_no_trace import raise_in, traces

pytestmark = pytest.mark.one_backend(
    but=["test_rows_are_freed_when_fit_ends", "on_epoch_end-3", "on_test_batch_end-1"]
)


def cuts(model: keras.Model, *thawed: set[str]) -> list[list[str]]:
    """Returns what the first stage caches, given the names of the layers each stage trains."""
    program, tree = read_program(model), LayerTree(model)
    flags = [{id(leaf): leaf.name in names for leaf in tree.leaves} for names in thawed]
    base = {id(leaf) for leaf in tree.leaves}
    layout = cuts_of_stages(
        program, lambda f: DeterministicLayers(tree, base, f), flags[0], flags[1:]
    )
    return cut_names(program, layout.cut.values), cut_names(program, layout.values)


def vgg(size: int = 32, **kwargs: Any) -> keras.Model:
    base = keras.applications.VGG16(
        weights=None, include_top=False, input_shape=(size, size, 3), name="vgg", **kwargs
    )
    return keras.Sequential([base, L.Flatten(), L.Dense(1, name="head")])


def test_the_cut_of_vgg():
    block5 = {f"block5_conv{number}" for number in (1, 2, 3)} | {"head"}
    now, kept = cuts(vgg(), {"head"}, block5)
    assert re.fullmatch(r"flatten(_\d+)?", now[0])
    assert kept == ["block4_pool", now[0]]
    assert cuts(vgg(), block5, {"head"}) == (["block4_pool"], ["block4_pool"])


def test_a_skip_across_the_cut_gives_several_tensors():
    first = keras.Input((6,))
    one = L.Dense(6, name="one")(first)
    two = L.Dense(6, name="two")(one)
    three = L.Dense(6, name="three")(two)
    model = keras.Model(first, L.Dense(1, name="head")(L.Concatenate()([one, three, first])))
    assert cuts(model, {"three", "head"})[0] == ["one", "two"]
    names = cuts(model, {"head"})[0]
    assert [name.split("_")[0] for name in names] == ["concatenate"]


def test_what_has_no_weights_in_front_is_not_kept():
    inputs = keras.Input((6,))
    scaled = L.Rescaling(2.0, name="scaled")(inputs)
    both = L.Concatenate()([L.Dense(4, name="one")(scaled), scaled])
    model = keras.Model(inputs, L.Dense(1, name="head")(L.Dense(4, name="two")(both)))
    assert cuts(model, {"two", "head"})[0][0].startswith("concatenate")
    assert cuts(model, {"one", "two", "head"})[0] == []


def test_what_trains_in_between_is_computed_afterwards():
    model = builders.nested()
    assert cuts(model, {"head"}, {"b3", "head"}, {"head"}) == (["b3"], ["b2", "b3"])
    assert cuts(model, {"b3", "head"}, {"head"}) == (["b2"], ["b2"])


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=12),
    st.sampled_from(["uint8", "float32", "float16", "int64", "bool"]),
    st.integers(1, 2),
)
def test_keys_are_equal_for_equal_rows_alone(numbers: list[int], dtype: str, arrays: int):
    rows = np.random.default_rng(0).integers(0, 2, (6, 40)).astype(dtype)
    keys = row_keys([rows[numbers].reshape(-1, 5, 8)] * arrays)
    assert [a == b for a in keys for b in keys] == [a == b for a in numbers for b in numbers]


def test_several_threads_give_the_same_keys(monkeypatch: pytest.MonkeyPatch):
    rows = np.random.default_rng(0).normal(size=(37, 50)).astype("float32")
    alone = row_keys([rows]), row_keys([rows, rows[:, :3]])
    monkeypatch.setattr(row_hashes, "PARALLEL", 1)
    for threads in (2, 3, 8):
        monkeypatch.setattr(row_hashes, "THREADS", threads)
        assert (row_keys([rows]), row_keys([rows, rows[:, :3]])) == alone
        assert row_keys([rows[:1]]) == alone[0][:1]


def test_keys_know_shape_and_dtype_and_order_of_arrays():
    rows = np.zeros((1, 8), "uint8")
    others = [rows.view("int16"), rows.reshape(1, 2, 4), rows.astype("int8")]
    keys = [row_keys([each])[0] for each in (rows, *others)]
    assert len(set(keys)) == 4
    one, two = np.zeros((2, 1, 4), "float32")[0], np.ones((1, 4), "float32")
    assert row_keys([one, two]) != row_keys([two, one])
    assert row_keys([rows[:, ::2]]) == row_keys([np.ascontiguousarray(rows[:, ::2])])


@given(st.data())
def test_the_store_is_a_dictionary(data: Any):
    """It returns rows by key, in any order, however they were added."""
    room, expected = data.draw(st.integers(0, 300)), data.draw(st.none() | st.integers(1, 200))
    store = MemoryStore(max_bytes=room * 24, rows=expected)
    model: dict[bytes, int] = {}
    for count in data.draw(st.lists(st.integers(0, 90), max_size=5)):
        first = len(model)
        numbers = np.arange(first, first + count)
        columns = {"a": np.stack([numbers] * 4, 1).astype("float32"), "b": numbers.astype("int64")}
        keys = [str(number).encode() for number in numbers]
        kept = store.add(keys, columns)
        assert kept == min(count, room - first)
        model.update(zip(keys[:kept], numbers[:kept].tolist(), strict=True))
        assert store.rows == len(model)
        assert store.nbytes == len(model) * 24 <= room * 24
        if kept < count:
            break
    asked = data.draw(st.permutations(sorted(model)))[:20]
    slots = store.find([*asked, b"unknown"])
    assert slots[-1] == -1
    if asked:
        assert store.take("b", slots[:-1]).tolist() == [model[key] for key in asked]
        assert store.take("a", slots[:-1])[:, 3].tolist() == [model[key] for key in asked]
        store.keep_only(["b"])
        assert store.nbytes == len(model) * 8


@pytest.mark.parametrize(
    ("given_as", "number"),
    [(5, 5), (1e9, 10**9), ("2 GB", 2 * 10**9), ("1.5GiB", 3 << 29), ("700", 700), ("3kb", 3000)],
)
def test_sizes(given_as: Any, number: int):
    assert check_max_bytes(given_as) == number


def test_defaults_of_the_budget():
    assert check_max_bytes("auto") is None
    assert 0 < free_memory() < 1 << 50
    assert check_dtype(np.float16) == "float16"
    assert check_dtype(None) is None


def made(*, traced: bool = False) -> keras.Model:
    return builders.compiled(builders.nested(extras=True), run_eagerly=not traced)


def fit(cache: BottleneckCache, model: Any = None, *more: Any, **options: Any) -> Any:
    model = model or made()
    callbacks = [FreezeBase(), GradualUnfreeze({2: "b3"}, verbose=0), cache, *more]
    defaults = {"epochs": 4, "batch_size": 8, "verbose": 0, "validation_data": VAL}
    model.fit(X, Y, callbacks=callbacks, **(defaults | options))
    return model


def test_what_it_prints(capsys: Any):
    fit(BottleneckCache())
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "BottleneckCache after b3: 64 B a row, 2.0 KB for 32 training rows",
        "BottleneckCache, epoch 1 of 4: 44 rows, 2.8 KB; the base has run 1.0 times",
        "BottleneckCache after b2: 32 B a row, 1.0 KB for 32 training rows",
        "BottleneckCache, epoch 3 of 4: 44 rows, 1.4 KB; the base has run 1.0 times",
    ]
    fit(BottleneckCache(verbose=0))
    assert capsys.readouterr().out == ""


def test_what_it_prints_of_data_that_come_in_batches(capsys: Any):
    callbacks = [FreezeBase(), GradualUnfreeze({2: "b3"}, verbose=0), BottleneckCache()]
    made().fit(Batches((X[:30], Y[:30]), 8), epochs=3, verbose=0, callbacks=callbacks)
    assert capsys.readouterr().out.splitlines() == [
        "BottleneckCache after b3: 64 B a row, in 4 training batches",
        "BottleneckCache, epoch 1 of 3: 30 rows, 1.9 KB; the base has run 1.0 times",
        "BottleneckCache after b2: 32 B a row, 960 B for 30 training rows",
        "BottleneckCache, epoch 3 of 3: 30 rows, 960 B; the base has run 1.0 times",
    ]


@pytest.mark.parametrize("data", [(X, Y), (Batches((X, Y), 8),)], ids=["arrays", "batches"])
def test_a_full_cache_says_what_it_would_need(data: Any):
    callbacks = [FreezeBase(), BottleneckCache(verbose=0, max_bytes=20 * 32)]
    need = r"`max_bytes`, 640 B, holds 20 rows of 32 B\..*; 32 training rows need 1\.0 KB\. Raise"
    with pytest.warns(CacheWarning, match=need):
        made().fit(*data, batch_size=8, epochs=1, verbose=0, callbacks=callbacks)


def test_the_counts():
    cache = BottleneckCache(verbose=0)
    fit(cache)
    stats = cache.stats
    assert (stats.hits, stats.misses, stats.rows, stats.bytes) == (132, 44, 44, 44 * 32)
    assert (stats.base_passes, stats.cuts) == (1.0, {0: ["b3"], 1: ["b2"]})
    assert (stats.enabled, stats.reason) == (True, "")
    fit(cache)  # an instance can be used again, and counts from zero
    assert (cache.stats.hits, cache.stats.misses, cache.stats.base_passes) == (132, 44, 1.0)


def test_a_cache_alone_is_not_seen_in_the_history():
    model = builders.compiled(builders.nested())
    builders.layer(model, "base").trainable = False
    model.compile("adam", "mse")
    history = model.fit(X, Y, epochs=2, verbose=0, callbacks=[BottleneckCache(verbose=0)])
    assert list(history.history) == ["loss"]


@pytest.mark.parametrize("call", [1, 3, 9])
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_test_batch_end", "on_epoch_end"])
def test_nothing_is_left_on_the_model(hook: str, call: int):
    """Even if another callback raises during `fit`. The next fit and evaluate are correct."""
    model = made(traced=call == 3)
    with contextlib.suppress(KeyboardInterrupt):  # the last calls may not happen
        fit(BottleneckCache(verbose=0), model, raise_in(hook, KeyboardInterrupt, call))
    assert traces(model) == []
    assert builders.layer(model, "base").get_layer("b1") in model._flatten_layers()
    expected = keras.ops.mean(keras.ops.square(model.predict(X, verbose=0) - Y))
    assert abs(model.evaluate(X, Y, verbose=0) - float(expected)) < 1e-5
    fit(BottleneckCache(verbose=0), model)
    assert traces(model) == []


def test_rows_are_freed_when_fit_ends():
    kept: list[Any] = []

    class Keep(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            stores = [each for each in gc.get_objects() if type(each) is MemoryStore]
            kept.extend(
                weakref.ref(chunk) for s in stores for c in s.columns.values() for chunk in c
            )

    gc.collect()
    fit(BottleneckCache(verbose=0), None, Keep())
    gc.collect()
    assert kept
    assert not any(reference() is not None for reference in kept)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_place_in_the_list_does_not_matter(place: int):
    model, cache = made(), BottleneckCache(verbose=0)
    callbacks = [FreezeBase(), GradualUnfreeze({1: "b3"}, verbose=0)]
    callbacks.insert(place, cache)
    callbacks += [keras.callbacks.EarlyStopping("loss", patience=9, restore_best_weights=True)]
    model.fit(X, Y, epochs=3, batch_size=8, verbose=0, callbacks=callbacks)
    assert cache.stats.base_passes == 1.0
    assert list(cache.stats.cuts) == [0, 1]
