"""What a stage keeps, and what of it is served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from keras_freeze.feature_cache.cutting.cuts_of_stages import Flags, cut_names, cuts_of_stages
from keras_freeze.feature_cache.cutting.find_cut import Cut
from keras_freeze.feature_cache.cutting.graph_to_cut import CachedModel
from keras_freeze.feature_cache.cutting.prefix_and_tail import GraphPrefix, LayerPrefix
from keras_freeze.feature_cache.not_cacheable import TRAINS, NotCacheableError, obstacle
from keras_freeze.keras_internals.inference_mode import frozen_calls


@dataclass(frozen=True)
class Choice:
    """What a stage keeps.

    Attributes:
        part: what is served; None if this stage serves nothing.
        columns: what is kept, also for later stages; None = what was kept before.
        names: of the layers that give what is served.
        later: whether a later stage serves something.
        training: whether train steps are served; False = those of the validation alone.
    """

    part: GraphPrefix | LayerPrefix | None
    columns: tuple[str, ...] | None
    names: list[str]
    later: bool
    training: bool


def choose(
    subject: CachedModel, now: Flags, later: Sequence[Flags], *, training: bool = True
) -> Choice:
    """Finds what is served in a stage.

    Args:
        subject: the model.
        now: `{id(leaf): trainable}` of all leaves.
        later: the same for each stage that will follow, in order.
        training: False = what can be served to validation, where train steps can't be.

    Raises:
        NotCacheableError: a layer that isn't trained, but changes, keeps frozen ones from it.
    """
    if subject.program is None:
        return _choose_whole(subject, now, later, training)
    judge = partial(subject.fixed, training=training)
    layout = cuts_of_stages(subject.program, judge, now, later)
    _check_obstacle(layout.cut)
    columns = tuple(str(value) for value in layout.values)
    names = cut_names(subject.program, layout.cut.values)
    part = GraphPrefix(subject.program, layout.cut, layout.values) if names else None
    return Choice(part, columns, names, layout.later, training)


def _choose_whole(
    subject: CachedModel, now: Flags, later: Sequence[Flags], training: bool
) -> Choice:
    container = subject.container
    judges = [subject.fixed(flags, training=training) for flags in (now, *later)]
    reasons = [judge.why_not(container) for judge in judges]
    if reasons[0] not in ("", TRAINS):
        raise obstacle(f"{container.name!r} can't be cached", reasons[0], is_inside=True)
    coming = "" in reasons[1:]
    if reasons[0] == TRAINS:
        return Choice(None, (), [], coming, training)
    calls = {id(layer): call for layer, _, call in frozen_calls(subject.tree, subject.base_leaves)}
    part = LayerPrefix(container, calls.get(id(container), container.call))
    return Choice(part, None, [container.name], coming, training)


def _check_obstacle(cut: Cut) -> None:
    if cut.obstacle is not None:
        where = f"{cut.obstacle.name!r} comes before frozen layers"
        raise obstacle(where, cut.reason, is_inside=cut.is_inside)


def symbols_of(part: GraphPrefix | LayerPrefix) -> list[Any] | None:
    """Returns the symbolic tensors of what is kept; None of a container that can't be read."""
    if isinstance(part, LayerPrefix):
        return None
    return [part.program.symbols[value] for value in part.values]


def choose_for_validation(
    subject: CachedModel, now: Flags, later: Sequence[Flags], bar: NotCacheableError
) -> tuple[Choice, NotCacheableError]:
    """Finds what is served to validation alone.

    Args:
        subject: the model.
        now: `{id(leaf): trainable}` of all leaves.
        later: the same for each stage that will follow, in order.
        bar: why train steps aren't served.

    Returns:
        The choice; and `bar`, or a reason that names the layer at fault.

    Raises:
        NotCacheableError: validation can't be served either.
    """
    choice = choose(subject, now, later, training=False)
    judge = subject.fixed(now)
    if choice.part is not None and not bar.in_training:
        for operation in choice.part.operations:
            if why := judge.why_not(operation):
                what = f"{operation.name!r} can't be cached"
                return choice, obstacle(what, why, is_inside=True)
    return choice, bar
