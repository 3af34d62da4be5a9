"""Finds the tensors to cache in a stage: those of its cut, and what later stages will read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keras_freeze.feature_cache.cutting.deterministic_layers import DeterministicLayers
from keras_freeze.feature_cache.cutting.find_cut import Cut, find_cut
from keras_freeze.graph.layer_calls import Program, Value

Flags = Mapping[int, bool]  # {id(leaf): trainable} of all leaves


@dataclass(frozen=True)
class StageCuts:
    """The cut of the running stage: the place in the graph where its values are cached.

    Attributes:
        cut: the cut.
        values: the values to cache: those of the cut, and those of later stages' cuts that don't
            change until then.
        later: whether a later stage has a cut.
        given: places of the inputs that layers after the cut read, in this stage or a later one.
    """

    cut: Cut
    values: tuple[Value, ...]
    later: bool
    given: tuple[int, ...]


def cuts_of_stages(
    program: Program,
    judge: Callable[[Flags], DeterministicLayers],
    now: Flags,
    later: Sequence[Flags],
    *,
    records: bool = False,
) -> StageCuts:
    """Finds the cuts of the running stage and of later ones.

    Args:
        program: the graph of the container, as a list of layer calls.
        judge: returns which layers are deterministic under given flags.
        now: the flags of the running stage.
        later: the flags of each later stage, in order.
        records: as in `find_cut`.
    """
    cut, *cuts = [_cut(program, judge(flags), records) for flags in (now, *later)]
    kept, lasting = set(cut.values), set(cut.fixed)
    for following in cuts:
        lasting &= following.fixed  # values that change before that stage are computed later
        kept.update(lasting.intersection(following.values))
    given = {place for each in (cut, *cuts) for place in each.given}
    is_later = any(following.values for following in cuts)
    return StageCuts(cut, tuple(sorted(kept)), is_later, tuple(sorted(given)))


def _cut(program: Program, fixed: DeterministicLayers, records: bool) -> Cut:
    return find_cut(program, fixed.why_not, fixed.holds_frozen_weights, records=records)


def cut_names(program: Program, values: Sequence[Value]) -> list[str]:
    """Returns the names of the layers whose outputs are `values`."""
    giver: dict[Value, Any] = {
        number: call.operation for call in program.calls for number in call.writes
    }
    return [giver[number].name for number in values]
