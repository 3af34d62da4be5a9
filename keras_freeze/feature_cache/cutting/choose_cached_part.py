"""Chooses what a stage caches and which part of the model it serves from the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from keras_freeze.feature_cache.cutting.find_cut import Cut
from keras_freeze.feature_cache.cutting.graph_to_cut import CachedModel
from keras_freeze.feature_cache.cutting.prefix_and_tail import GraphPrefix, LayerPrefix
from keras_freeze.feature_cache.cutting.tensors_to_cache import Flags, cut_names, cuts_of_stages
from keras_freeze.feature_cache.not_cacheable import (
    TRAINS,
    VARIES,
    NotCacheableError,
    nothing_frozen,
    obstacle,
)
from keras_freeze.keras_internals.inference_mode import frozen_calls


@dataclass(frozen=True)
class ChosenCut:
    """What a stage caches. The cut is the place in the graph where its values are cached.

    Attributes:
        part: the part of the model that is served; None if this stage serves nothing.
        columns: the cached values, with those for later stages; None = the same as before.
        names: names of the layers whose outputs are served.
        later: whether a later stage serves something.
        training: whether train steps are served; False = only validation steps.
        given: the places of the inputs that layers after the cut read, in this stage or a later
            one; None = all may be read.
    """

    part: GraphPrefix | LayerPrefix | None
    columns: tuple[str, ...] | None
    names: list[str]
    later: bool
    training: bool
    given: tuple[int, ...] | None = None


def choose(
    cached_model: CachedModel,
    now: Flags,
    later: Sequence[Flags],
    *,
    training: bool = True,
    records: bool = False,
) -> ChosenCut:
    """Finds what a stage serves.

    Args:
        cached_model: the model.
        now: `{id(leaf): trainable}` of all leaves.
        later: the same for each later stage, in order.
        training: False = find what validation can be served, if train steps can't be.
        records: whether epochs are recorded as they run, so that random layers may come before
            frozen ones.

    Raises:
        NotCacheableError: an untrained layer whose output changes comes before frozen layers.
    """
    if cached_model.program is None:
        return _choose_whole(cached_model, now, later, training, records)
    judge = partial(cached_model.fixed, training=training)
    layout = cuts_of_stages(cached_model.program, judge, now, later, records=records)
    _check_obstacle(layout.cut)
    columns = tuple(str(value) for value in layout.values)
    names = cut_names(cached_model.program, layout.cut.values)
    part = GraphPrefix(cached_model.program, layout.cut, layout.values) if names else None
    given = layout.given if cached_model.is_readable else None
    return ChosenCut(part, columns, names, layout.later, training, given)


def _choose_whole(
    cached_model: CachedModel, now: Flags, later: Sequence[Flags], training: bool, records: bool
) -> ChosenCut:
    container = cached_model.container
    judges = [cached_model.fixed(flags, training=training) for flags in (now, *later)]
    reasons = [judge.why_not(container) for judge in judges]
    reasons = ["" if records and reason in VARIES else reason for reason in reasons]
    if reasons[0] not in ("", TRAINS):
        raise obstacle(f"{container.name!r} is to be cached", reasons[0], is_inside=True)
    coming = "" in reasons[1:]
    if reasons[0] == TRAINS:
        return ChosenCut(None, (), [], coming, training)
    calls = {
        id(layer): call
        for layer, _, call in frozen_calls(cached_model.tree, cached_model.base_leaves)
    }
    part = LayerPrefix(container, calls.get(id(container), container.call))
    return ChosenCut(part, None, [container.name], coming, training)


def _check_obstacle(cut: Cut) -> None:
    if cut.obstacle is not None:
        where = f"{cut.obstacle.name!r} comes before frozen layers"
        raise obstacle(where, cut.reason, is_inside=cut.is_inside)


def symbols_of(part: GraphPrefix | LayerPrefix) -> list[Any] | None:
    """Returns the symbolic tensors of the cached values; None if the graph can't be read."""
    if isinstance(part, LayerPrefix):
        return None
    return [part.program.symbols[value] for value in part.values]


def choose_for_both(
    cached_model: CachedModel,
    now: Flags,
    later: Sequence[Flags],
    bar: NotCacheableError | None,
    validates: bool,
    begins: bool,
) -> tuple[ChosenCut, NotCacheableError | None]:
    """Finds what is served to training and validation, or to validation only.

    Args:
        cached_model: the model.
        now: `{id(leaf): trainable}` of all leaves.
        later: the same for each later stage, in order.
        bar: why training can't be served in any stage; None if it may be.
        validates: whether there are validation data.
        begins: whether no stage was served yet.

    Returns:
        The choice, and why train steps aren't served; None if they are, or if nothing is.

    Raises:
        NotCacheableError: nothing can be served.
    """
    if bar is None:
        try:
            choice = choose(cached_model, now, later)
            _check_worth(choice, cached_model, begins)
            return choice, None
        except NotCacheableError as error:
            bar = error
    if not validates:
        raise bar
    choice, bar = choose_for_validation(cached_model, now, later, bar)
    _check_worth(choice, cached_model, begins)
    return choice, None if choice.part is None else bar


def _check_worth(choice: ChosenCut, cached_model: CachedModel, begins: bool) -> None:
    if choice.part is None and not choice.later and begins:
        raise nothing_frozen(bool(cached_model.base_leaves))


def choose_for_validation(
    cached_model: CachedModel, now: Flags, later: Sequence[Flags], bar: NotCacheableError
) -> tuple[ChosenCut, NotCacheableError]:
    """Finds what is served if only validation is.

    Args:
        cached_model: the model.
        now: `{id(leaf): trainable}` of all leaves.
        later: the same for each later stage, in order.
        bar: why train steps aren't served.

    Returns:
        The choice, and why train steps aren't served: `bar`, or an error that names the layer.

    Raises:
        NotCacheableError: validation can't be served either.
    """
    choice = choose(cached_model, now, later, training=False)
    judge = cached_model.fixed(now)
    if choice.part is not None and not bar.in_training:
        for operation in choice.part.operations:
            if why := judge.why_not(operation):
                what = f"{operation.name!r} is to be cached"
                return choice, obstacle(what, why, is_inside=True)
    return choice, bar
