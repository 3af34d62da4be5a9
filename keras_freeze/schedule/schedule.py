"""Stages in order; which one holds in an epoch is a pure function of the schedule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from keras_freeze.errors import ScheduleError
from keras_freeze.schedule.stage import KEYS, Stage, check_epoch, stage_from


class Schedule:
    """An ordered list of stages, each at its own epoch.

    Args:
        stages: `{epoch: selector or Stage}`, a list of `Stage` (or of mappings of `Stage`'s
            arguments), or another `Schedule`. It isn't changed, and its order doesn't matter.

    Raises:
        ScheduleError: there is no stage, two begin at the same epoch, or one is malformed.
        LayerMatchError: a selector can't be meant, whatever the model.

    Examples:
        >>> schedule = Schedule({10: "block5_*", 15: "block4_*"})
        >>> [schedule.number_at(epoch) for epoch in (0, 9, 10, 14, 15)]
        [0, 0, 1, 1, 2]
    """

    def __init__(self, stages: Any):
        self.stages: tuple[Stage, ...] = tuple(sorted(_read(stages), key=lambda stage: stage.at))
        if not self.stages:
            raise ScheduleError(
                "`schedule` must hold at least one stage, for example {10: 'block5_*'}. "
                f"Received: {stages!r}"
            )
        for stage, following in zip(self.stages, self.stages[1:], strict=False):
            if stage.at == following.at:
                raise ScheduleError(
                    f"`schedule` has two stages at epoch {stage.at}: {stage!r} and {following!r}. "
                    "Join them (a list of selectors is a selector), or move one."
                )

    def number_at(self, epoch: int) -> int:
        """Returns the number of the stage that holds in `epoch`; 0 is before the first."""
        return sum(stage.at <= epoch for stage in self.stages)

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
        return stage_from(check_epoch(item["at"]), item)
    raise ScheduleError(
        "`schedule` as a list must hold Stage objects, or mappings with the keys "
        f"{', '.join(KEYS)} (`at` is needed). Received: {item!r}"
    )
