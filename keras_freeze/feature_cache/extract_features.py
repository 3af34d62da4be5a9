"""Returns the features of a data set as arrays, row by row in its order, outside of `fit`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import keras
import numpy as np

from keras_freeze.errors import CacheError
from keras_freeze.feature_cache.cache import FeatureCache
from keras_freeze.feature_cache.cache_stats import CacheStats
from keras_freeze.feature_cache.cutting.choose_cached_part import ChosenCut, choose
from keras_freeze.feature_cache.cutting.graph_to_cut import CachedModel
from keras_freeze.feature_cache.cutting.tensors_to_cache import Flags
from keras_freeze.feature_cache.not_cacheable import NotCacheableError
from keras_freeze.feature_cache.serving.batch_rows import HashedRows
from keras_freeze.feature_cache.serving.stage_server import StageServer
from keras_freeze.keras_internals.row_numbers_instead_of_rows import as_fed
from keras_freeze.keras_internals.temporary_attributes import attributes

Array = np.ndarray[Any, Any]


def extract_features(
    cached_model: CachedModel,
    flags: Flags,
    data: Any,
    batch_size: int,
    stats: CacheStats,
    *,
    max_bytes: int | None,
    dtype: Any,
    stored: Callable[[Any], Any] | None,
) -> Array | dict[str, Array]:
    """Returns the outputs of the frozen layers for each row of `data`.

    Args:
        cached_model: the model.
        flags: `{id(leaf): trainable}` of all its leaves.
        data: as `x` of `predict`.
        batch_size: rows of a batch, if `data` are arrays.
        stats: statistics that are updated.
        max_bytes: memory limit of the cache; None = half of the free memory.
        dtype: dtype in which float features are kept; None = their own.
        stored: opens the directory, given the rows in memory; None = there is none.

    Returns:
        An array (rows, ...), or a dict of arrays by layer name if outputs of several layers
        are cached.

    Raises:
        CacheError: nothing is frozen, or the features can't be cached.
    """
    names = _check(cached_model, flags).names
    cache = FeatureCache(
        cached_model,
        stats,
        max_bytes,
        dtype,
        validates=False,
        trains=False,  # layers run in inference mode, whatever their flags are now
        stored=stored,
    )
    try:
        cache.follow(0, flags, [])
        if cache.served is None:
            raise CacheError(f"The features can't be cached: {stats.reason}.")
        parts = list(_parts(cache, cache.served, data, batch_size))
    except NotCacheableError as error:
        raise CacheError(f"The features can't be cached: {error.reason}.") from None
    finally:
        cache.close()
    if not parts:
        raise CacheError("`data` has no rows.")
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    arrays = [array for name, array in columns.items() if name.isdecimal()]
    return arrays[0] if len(arrays) == 1 else dict(zip(names, arrays, strict=True))


def _check(cached_model: CachedModel, flags: Flags) -> ChosenCut:
    """Finds the cut, or raises `CacheError`."""
    try:
        cached_model.check()
        choice = choose(cached_model, flags, [], training=False)
    except NotCacheableError as error:
        raise CacheError(f"The features can't be cached: {error.reason}.") from None
    if choice.part is None:
        raise CacheError(
            "The model has no frozen layers whose outputs could be cached. Freeze the base: "
            "`base.trainable = False`."
        )
    return choice


def _parts(
    cache: FeatureCache, served: StageServer, data: Any, batch_size: int
) -> Iterator[dict[str, Array]]:
    """Yields the features of each batch by column."""
    model, backend = cache.cached_model.model, cache.backend
    state = backend.state_outside_fit(model)
    wanted = served.part.columns
    with attributes(served.patches):
        for x in _batches(data, batch_size):
            x = keras.tree.map_structure(partial(_tensor, backend), x)
            rows = HashedRows(x, served.places(x), cache.store, backend, served.salt("test"))
            features = cache.features.of(rows, served, "test", state)
            columns = wanted or served.part.columns
            yield {name: np.array(backend.to_numpy(features[name])) for name in columns}


def _batches(data: Any, size: int) -> Iterator[Any]:
    """Yields the inputs of each batch."""
    if isinstance(data, keras.utils.PyDataset):
        if data.num_batches is None:
            raise CacheError("`data` is a PyDataset without an end: its `num_batches` is None.")
        for number in range(data.num_batches):
            yield _inputs(data[number])
        return
    leaves = keras.tree.flatten(data)
    if all(hasattr(leaf, "shape") and hasattr(leaf, "__getitem__") for leaf in leaves):
        for start in range(0, len(leaves[0]), size):
            end = start + size
            yield keras.tree.map_structure(lambda leaf: leaf[start:end], data)  # noqa: B023
        return
    for batch in data:
        yield _inputs(batch)


def _tensor(backend: Any, leaf: Any) -> Any:
    """Returns inputs as tensors, in the dtype in which `fit` would pass them."""
    return leaf if keras.ops.is_tensor(leaf) else backend.to_tensor(as_fed(np.asarray(leaf)))


def _inputs(batch: Any) -> Any:
    return keras.utils.unpack_x_y_sample_weight(batch)[0]
