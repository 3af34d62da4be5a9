"""Schedule and cache of a model: read from what was given, and as plain data for its file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import keras

from keras_freeze.callbacks.bottleneck_cache import BottleneckCache
from keras_freeze.errors import CacheError, closest
from keras_freeze.graph.layer_tree import Layer, LayerTree, draws_random_numbers
from keras_freeze.schedule.schedule import Schedule
from keras_freeze.schedule.stage import Stage

Plain = Any  # what JSON holds
CACHE_ARGUMENTS = ("base", "dtype", "max_bytes", "verbose")


def read_cache(cache: Any, augment: Sequence[Layer]) -> BottleneckCache | None:
    """Returns the cache that is meant.

    Args:
        cache: as in `TransferModel`.
        augment: the layers in front of the base.

    Raises:
        CacheError: `cache` can't be meant.
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
    """True if the `verbose` of `fit` is that of the cache: nobody has said another."""
    return not isinstance(cache, BottleneckCache) and not (
        isinstance(cache, Mapping) and "verbose" in cache
    )


def cache_to_plain(cache: BottleneckCache | None, follows: bool) -> Plain:
    """Returns a cache as a dict of its arguments; a base that is a layer becomes its name."""
    if cache is None:
        return None
    arguments = {name: getattr(cache, name) for name in CACHE_ARGUMENTS}
    if isinstance(cache.base, keras.layers.Layer):
        arguments["base"] = cache.base.name
    if follows:
        del arguments["verbose"]
    return arguments


def schedule_to_plain(schedule: Schedule | None, names: Callable[[Any], list[str]]) -> Plain:
    """Returns the config of a schedule.

    Args:
        schedule: the schedule, or None.
        names: gives the names of what a selector means that has no written form.
    """
    if schedule is None:
        return None
    stages = [_written(stage, names) for stage in schedule]
    base = schedule.base if _is_text(schedule.base) else None  # the model knows its base
    settings = {"optimizer": schedule.optimizer, "batch_norm": schedule.batch_norm}
    return Schedule(stages, base=base, **settings).get_config()


def _written(stage: Stage, names: Callable[[Any], list[str]]) -> Stage:
    given = {field.name: getattr(stage, field.name) for field in fields(stage)}
    for key in ("unfreeze", "freeze"):
        if given[key] is not None and not _is_text(given[key]):
            given[key] = names(given[key])
    return Stage(**given)


def schedule_from_plain(config: Plain) -> Schedule | None:
    """Returns what `schedule_to_plain` was given."""
    return None if config is None else Schedule.from_config(config)


def _is_text(selector: Any) -> bool:
    if isinstance(selector, (list, tuple)):
        return all(map(_is_text, selector))
    return isinstance(selector, str)
