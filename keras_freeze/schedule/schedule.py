"""Stages in order; which one holds in an epoch is a pure function of the schedule."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from keras_freeze.errors import ScheduleError
from keras_freeze.schedule.plateau import Plateau
from keras_freeze.schedule.stage import KEYS, Stage, check_at, stage_from


class Schedule:
    """An ordered list of stages, each at its own epoch or behind a trigger.

    Args:
        stages: `{epoch: selector or Stage}`, a list of `Stage` (or of mappings of `Stage`'s
            arguments), or another `Schedule`. It isn't changed. Its order matters only where a
            `Plateau` is in it, which ends the stage that stands before it.

    An epoch is kept whatever happens: a stage at epoch 20 begins there even if a `Plateau` that
    stands before it hasn't fired by then; what that stage would have changed is changed with it.

    Raises:
        ScheduleError: there is no stage, two begin at the same epoch, or one is malformed.
        LayerMatchError: a selector can't be meant, whatever the model.

    Examples:
        >>> schedule = Schedule({10: "block5_*", 15: "block4_*"})
        >>> [schedule.number_at(epoch) for epoch in (0, 9, 10, 14, 15)]
        [0, 0, 1, 1, 2]
    """

    def __init__(self, stages: Any):
        self.stages: tuple[Stage, ...] = tuple(_in_order(_read(stages)))
        if not self.stages:
            raise ScheduleError(
                "`schedule` must hold at least one stage, for example {10: 'block5_*'}. "
                f"Received: {stages!r}"
            )
        fixed = [(stage.at, stage) for stage in self.stages if isinstance(stage.at, int)]
        for (at, stage), (next_at, following) in itertools.pairwise(fixed):
            if at == next_at:
                raise ScheduleError(
                    f"`schedule` has two stages at epoch {at}: {stage!r} and {following!r}. "
                    "Join them (a list of selectors is a selector), or move one."
                )
            if at > next_at:
                raise ScheduleError(
                    f"`schedule` has a Plateau, so its stages must stand in order, but epoch "
                    f"{next_at} comes after {at}: {following!r}. Move it."
                )

    def number_at(self, epoch: int, begun: Mapping[int, int] | None = None) -> int:
        """Returns the number of the stage that holds in `epoch`; 0 is before the first.

        Args:
            epoch: counted from 0.
            begun: the epochs at which stages behind a `Plateau` have begun, by number.
        """
        starts = {n: stage.at for n, stage in enumerate(self, 1) if isinstance(stage.at, int)}
        starts |= begun or {}
        return max((number for number, at in starts.items() if at <= epoch), default=0)

    def waiting_at(self, number: int) -> Stage | None:
        """Returns the stage that waits for a stage to end; None if the next one has its epoch."""
        following = self.stages[number] if number < len(self.stages) else None
        return following if following and isinstance(following.at, Plateau) else None

    def __getitem__(self, number: int) -> Stage:
        """The stage of that number, counted from 1."""
        return self.stages[number - 1]

    def __len__(self) -> int:
        return len(self.stages)

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self.stages == other.stages

    def __hash__(self) -> int:
        return hash(tuple(stage.at for stage in self.stages))

    def __repr__(self) -> str:
        return f"Schedule([{', '.join(map(repr, self.stages))}])"


def _in_order(stages: list[Stage]) -> list[Stage]:
    """By epoch; as they stand where one has none."""
    epochs = [stage.at for stage in stages if isinstance(stage.at, int)]
    if len(epochs) < len(stages):
        return stages
    return [stages[place] for place in sorted(range(len(stages)), key=epochs.__getitem__)]


def _read(stages: Any) -> list[Stage]:
    if isinstance(stages, Schedule):
        return list(stages.stages)
    if isinstance(stages, Mapping):
        return [stage_from(at, value) for at, value in stages.items()]
    if isinstance(stages, Stage):
        return [stages]
    if isinstance(stages, (list, tuple)):
        return [_from_list(item) for item in stages]
    raise ScheduleError(
        "`schedule` must be {epoch: selector or Stage}, a list of Stage, or a Schedule. "
        f"Received: {stages!r} (of type {type(stages).__name__})"
    )


def _from_list(item: Any) -> Stage:
    if isinstance(item, Stage):
        return item
    if isinstance(item, Mapping) and "at" in item:
        return stage_from(check_at(item["at"]), item)
    raise ScheduleError(
        "`schedule` as a list must hold Stage objects, or mappings with the keys "
        f"{', '.join(KEYS)} (`at` is needed). Received: {item!r}"
    )
