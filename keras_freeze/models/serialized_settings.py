"""Reads TransferModel's `cache` argument, and converts its schedule and cache to plain data."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import keras

from keras_freeze.callbacks.bottleneck_cache import BottleneckCache
from keras_freeze.errors import CacheError, closest
from keras_freeze.graph.layer_tree import Layer, LayerTree, draws_random_numbers
from keras_freeze.schedule.schedule import Schedule
from keras_freeze.schedule.stage import Stage

Plain = Any  # data that JSON can hold
CACHE_ARGUMENTS = (
    "base",
    "views",
    "shuffle",
    "directory",
    "data",
    "dtype",
    "max_bytes",
    "verbose",
)


def read_cache(cache: Any, augment: Sequence[Layer]) -> BottleneckCache | None:
    """Returns the cache for the argument `cache`, or None.

    Args:
        cache: as in `TransferModel`.
        augment: the layers before the base.

    Raises:
        CacheError: `cache` is invalid.
    """
    if cache is None or cache is False:
        return None
    if isinstance(cache, BottleneckCache):
        return cache
    if isinstance(cache, Mapping):
        return BottleneckCache(**cache)
    if cache is True:
        return BottleneckCache()
    if isinstance(cache, str) and cache == "auto":
        return None if _is_random(augment) else BottleneckCache()
    raise CacheError(
        "`cache` must be None (no cache), True, 'auto' (unless the augmentation is random), a dict "
        "of the arguments of BottleneckCache, or a BottleneckCache."
        f"{closest(cache, ['auto']) if isinstance(cache, str) else ''} Received: cache={cache!r}"
    )


def _is_random(layers: Sequence[Layer]) -> bool:
    return any(draws_random_numbers(each) for layer in layers for each in LayerTree(layer))


def follows_fit(cache: Any) -> bool:
    """True if the cache uses the `verbose` of `fit`, as the user hasn't passed another one."""
    return not isinstance(cache, BottleneckCache) and not (
        isinstance(cache, Mapping) and "verbose" in cache
    )


def cache_to_plain(cache: BottleneckCache | None, follows: bool) -> Plain:
    """Returns a cache as a dict of its arguments; a layer as base is replaced by its name."""
    if cache is None:
        return None
    arguments = {name: getattr(cache, name) for name in CACHE_ARGUMENTS}
    if isinstance(cache.base, keras.layers.Layer):
        arguments["base"] = cache.base.name
    if cache.directory is not None:
        arguments["directory"] = os.fspath(cache.directory)
    if follows:
        del arguments["verbose"]
    return arguments


def schedule_to_plain(schedule: Schedule | None, names: Callable[[Any], list[str]]) -> Plain:
    """Returns the config of a schedule.

    Args:
        schedule: the schedule, or None.
        names: returns the names of the layers that a selector matches; used for selectors that
            can't be saved.
    """
    if schedule is None:
        return None
    stages = [_written(stage, names) for stage in schedule]
    base = schedule.base if _is_text(schedule.base) else None  # the model saves its base itself
    settings = {"optimizer": schedule.optimizer, "batch_norm": schedule.batch_norm}
    return Schedule(stages, base=base, **settings).get_config()


def _written(stage: Stage, names: Callable[[Any], list[str]]) -> Stage:
    given = {field.name: getattr(stage, field.name) for field in fields(stage)}
    for key in ("unfreeze", "freeze"):
        if given[key] is not None and not _is_text(given[key]):
            given[key] = names(given[key])
    return Stage(**given)


def schedule_from_plain(config: Plain) -> Schedule | None:
    """Returns the schedule for a config from `schedule_to_plain`."""
    return None if config is None else Schedule.from_config(config)


def _is_text(selector: Any) -> bool:
    if isinstance(selector, (list, tuple)):
        return all(map(_is_text, selector))
    return isinstance(selector, str)
