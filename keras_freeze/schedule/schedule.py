"""Stages in order; which one holds in an epoch is a pure function of the schedule."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from keras_freeze.errors import ScheduleError
from keras_freeze.schedule import presets
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

    @classmethod
    def two_phase(
        cls, unfreeze: Any = "all", *, start: int | Plateau = 10, learning_rate: Any = 1e-5
    ) -> Schedule:
        """Feature extraction on the frozen base, then fine-tuning at a low rate.

        Source: Keras' guide "Transfer learning & fine-tuning" (F. Chollet, 2020).

        Args:
            unfreeze: what is fine-tuned, a selector.
            start: the epoch, or the `Plateau`, at which fine-tuning begins.
            learning_rate: of the fine-tuning, as in `Stage`.

        Examples:
            >>> Schedule.two_phase("block5_*", start=5)
            Schedule([Stage(at=5, unfreeze='block5_*', learning_rate=1e-05, name='fine-tuning')])
        """
        return cls(presets.two_phase(unfreeze, start, learning_rate))

    @classmethod
    def lp_ft(cls, *, start: int | Plateau | None = None, learning_rate: Any = None) -> Schedule:
        """Linear probing, then fine-tuning of everything (LP-FT).

        The head is trained until it no longer improves and put back to its best, so that the first
        gradients of the fine-tuning don't distort the pretrained features.

        Source: Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform
        Out-of-Distribution" (ICLR, arXiv 2202.10054).

        Args:
            start: when the fine-tuning begins; None = `Plateau("val_loss", patience=3)`.
            learning_rate: of the fine-tuning; None = a tenth of the rate before.

        Examples:
            >>> Schedule.lp_ft(start=8, learning_rate=1e-4)
            Schedule([Stage(at=8, unfreeze='all', learning_rate=0.0001, name='fine-tuning')])
        """
        rate = {"factor": 0.1} if learning_rate is None else learning_rate
        return cls(presets.lp_ft(Plateau() if start is None else start, rate))

    @classmethod
    def ulmfit(
        cls,
        base: Any,
        *,
        start: int = 1,
        every: int = 1,
        learning_rate: Any = None,
        layer_decay: float = 1 / 2.6,
    ) -> Schedule:
        """Gradual unfreezing from the head down, with a lower rate for each block below.

        Source: Howard & Ruder 2018, "Universal Language Model Fine-tuning for Text
        Classification" (ACL, arXiv 1801.06146), sections 3.2 and 3.3: a layer an epoch, and rates
        that shrink by 2.6 from layer to layer. Here a block is what lies between two articulation
        points of the base's graph, so that no residual block is split.

        Args:
            base: the base itself, whose graph is read.
            start: the epoch at which the uppermost block is thawed.
            every: the number of epochs from block to block.
            learning_rate: from the first stage on; None leaves it alone.
            layer_decay: as in `Stage`.

        Examples:
            >>> layers = [keras.layers.Dense(4, name=f"block{n}") for n in (1, 2)]
            >>> schedule = Schedule.ulmfit(keras.Sequential([keras.Input((4,)), *layers]))
            >>> [(stage.at, stage.unfreeze) for stage in schedule]
            [(1, 'block2:'), (2, 'all')]
        """
        return cls(presets.ulmfit(base, start, every, learning_rate, layer_decay))

    @classmethod
    def chain_thaw(
        cls,
        model: Any,
        base: Any = None,
        *,
        start: int = 2,
        every: int = 2,
        learning_rate: Any = None,
    ) -> Schedule:
        """The head, then each block alone from the first to the last, then everything.

        Source: Felbo et al. 2017, "Using millions of emoji occurrences to learn any-domain
        representations for detecting sentiment, emotion and sarcasm" (EMNLP, arXiv 1708.00524).

        Args:
            model: the whole model, as its head is frozen and thawed too.
            base: as in `FreezeBase`.
            start: the epoch at which the first block is thawed.
            every: the number of epochs for each block.
            learning_rate: of the last stage, as in `Stage`.

        Examples:
            >>> layers = [keras.layers.Dense(4, name=f"block{n}") for n in (1, 2)]
            >>> base = keras.Sequential([keras.Input((4,)), *layers], name="base")
            >>> model = keras.Sequential([base, keras.layers.Dense(1, name="head")])
            >>> for stage in Schedule.chain_thaw(model):
            ...     print(stage.at, stage.unfreeze, stage.freeze)
            2 ['block1'] ['head']
            4 ['block2'] ['block1']
            6 ['all', 'head'] None
        """
        return cls(presets.chain_thaw(model, base, start, every, learning_rate))

    @classmethod
    def auto(
        cls,
        base: Any,
        *,
        stages: int = 4,
        start: int = 5,
        every: int = 5,
        learning_rate: Any = None,
        layer_decay: float | None = None,
    ) -> Schedule:
        """The base in a few stages, from the head down, each with about as many parameters.

        It is cut where its graph allows it: no residual block is split.

        Args:
            base: the base itself, whose graph is read.
            stages: their number.
            start: the epoch at which the first one begins.
            every: the number of epochs from stage to stage.
            learning_rate: from the first stage on; None leaves it alone.
            layer_decay: as in `Stage`.

        Examples:
            >>> layers = [keras.layers.Dense(4, name=f"block{n}") for n in (1, 2, 3, 4)]
            >>> base = keras.Sequential([keras.Input((4,)), *layers])
            >>> [(stage.at, stage.unfreeze) for stage in Schedule.auto(base, stages=2)]
            [(5, 'block3:'), (10, 'all')]
        """
        found = presets.auto(base, stages, start, every, learning_rate, layer_decay)
        return cls(found)

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
