"""Schedule and cache of a model: read from what was given, and as plain data for its file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import keras

from keras_freeze.callbacks.bottleneck_cache import BottleneckCache
from keras_freeze.errors import CacheError
from keras_freeze.graph.tree import Layer, LayerTree, draws_random_numbers
from keras_freeze.schedule.plateau import Plateau
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
        f"of the arguments of BottleneckCache, or a BottleneckCache. Received: cache={cache!r}"
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
    """Returns a schedule as a list of dicts of the arguments of `Stage`.

    Args:
        schedule: the schedule, or None.
        names: gives the names of what a selector means that JSON can't hold.
    """
    if schedule is None:
        return None
    stages = []
    for stage in schedule:
        given = {field.name: getattr(stage, field.name) for field in fields(stage)}
        given = {
            key: value for key, value in given.items() if value is not None and value is not False
        }
        for key in {"unfreeze", "freeze"} & set(given):
            given[key] = _listed(given[key]) if _is_text(given[key]) else names(given[key])
        if isinstance(stage.at, Plateau):
            given["at"] = stage.at.get_config()
        if isinstance(stage.learning_rate, keras.optimizers.schedules.LearningRateSchedule):
            given["learning_rate"] = keras.saving.serialize_keras_object(stage.learning_rate)
        stages.append(given)
    return stages


def schedule_from_plain(stages: Plain) -> Schedule | None:
    """Returns what `schedule_to_plain` was given."""
    return None if stages is None else Schedule([_stage(**given) for given in stages])


def _stage(at: Plain, learning_rate: Plain = None, **given: Plain) -> Stage:
    if isinstance(at, Mapping):
        at = Plateau.from_config(at)
    if isinstance(learning_rate, Mapping):
        learning_rate = keras.saving.deserialize_keras_object(learning_rate)
    return Stage(at, learning_rate=learning_rate, **given)


def _is_text(selector: Any) -> bool:
    if isinstance(selector, (list, tuple)):
        return all(map(_is_text, selector))
    return isinstance(selector, str)


def _listed(selector: Any) -> Plain:
    """JSON has no tuples."""
    return selector if isinstance(selector, str) else [_listed(item) for item in selector]
