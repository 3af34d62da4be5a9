"""Prepares a model for `BottleneckCache.features`: which of its layers count as frozen."""

from __future__ import annotations

from typing import Any

from keras_freeze.errors import FreezeError, LayerMatchError, shown
from keras_freeze.feature_cache.cache_stats import CacheStats
from keras_freeze.feature_cache.cutting.graph_to_cut import CachedModel
from keras_freeze.feature_cache.extract_features import extract_features
from keras_freeze.feature_cache.storage.memory_limit_and_dtype import numpy_dtype
from keras_freeze.fit_engine.cache_lifecycle import stored_rows
from keras_freeze.fit_engine.preconditions import check_built
from keras_freeze.graph.find_base import find_base
from keras_freeze.graph.layer_tree import Layer, LayerTree, own_variables
from keras_freeze.keras_internals.trainable_flags import flags_now


def features_of(callback: Any, model: Any, data: Any, batch_size: int) -> Any:
    """Returns the features of `data`; the arguments are those of `BottleneckCache.features`."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise FreezeError(f"`batch_size` must be 1 or more. Received: {shown(batch_size)}")
    tree = LayerTree(model)
    check_built(model, tree.leaves)
    frozen = _frozen(callback.base, model, tree)
    cached_model = CachedModel(model, tree, frozen, frozen)
    flags = flags_now(tree) | {id(leaf): False for leaf in frozen}
    callback.stats = CacheStats()
    return extract_features(
        cached_model,
        flags,
        data,
        batch_size,
        callback.stats,
        max_bytes=None if callback.path is not None else callback.byte_limit,
        dtype=numpy_dtype(callback.dtype) if callback.dtype else None,
        stored=None if callback.path is None else stored_rows(callback, model.name),
    )


def _frozen(base: Any, model: Any, tree: LayerTree) -> list[Layer]:
    """Returns the layers of `base`, or those that are frozen now, or those of the base found."""
    if base is not None:
        return find_base(model, base).leaves
    frozen = [leaf for leaf in tree.leaves if own_variables(leaf) and not leaf.trainable]
    if frozen and len(frozen) == len([leaf for leaf in tree.leaves if own_variables(leaf)]):
        return list(tree.leaves)  # with its dropout
    try:
        return find_base(model).leaves
    except LayerMatchError:
        return frozen
