"""Schedules from papers and Keras' guides: the class methods of `Schedule`."""

from __future__ import annotations

from typing import Any, Self

from keras_freeze.schedule import preset_stages
from keras_freeze.schedule.plateau import Plateau
from keras_freeze.schedule.unknown_arguments import known_only


class Presets:
    """Class methods that return a ready-made schedule; each one names its source."""

    def __init__(self, stages: Any):
        raise NotImplementedError

    @classmethod
    @known_only
    def two_phase(
        cls,
        unfreeze: Any = "all",
        *,
        start: int | Plateau = 10,
        learning_rate: Any = 1e-5,
        base_learning_rate: Any = None,
    ) -> Self:
        """Feature extraction on the frozen base, then fine-tuning at a low rate.

        Source: Keras' guide "Transfer learning & fine-tuning" (F. Chollet, 2020).

        Args:
            unfreeze: a selector of the layers to fine-tune.
            start: the epoch, or the `Plateau`, at which fine-tuning begins.
            learning_rate: the rate of the fine-tuning, as in `Stage`.
            base_learning_rate: the rate of the base in the fine-tuning, as in `Stage`.

        Examples:
            >>> Schedule.two_phase("block5_*", start=5)
            Schedule([Stage(at=5, unfreeze='block5_*', learning_rate=1e-05, name='fine-tuning')])
        """
        return cls(preset_stages.two_phase(unfreeze, start, learning_rate, base_learning_rate))

    @classmethod
    @known_only
    def lp_ft(cls, *, start: int | Plateau | None = None, learning_rate: Any = None) -> Self:
        """Linear probing, then fine-tuning of everything (LP-FT).

        The head is trained until it stops improving, and restored to its best epoch. So the first
        gradients of the fine-tuning don't distort the pretrained features.

        Source: Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform
        Out-of-Distribution" (ICLR, arXiv 2202.10054).

        Args:
            start: the epoch or the `Plateau` at which the fine-tuning begins; None =
                `Plateau("val_loss", patience=3)`.
            learning_rate: the rate of the fine-tuning; None = a tenth of the rate before.

        Examples:
            >>> Schedule.lp_ft(start=8, learning_rate=1e-4)
            Schedule([Stage(at=8, unfreeze='all', learning_rate=0.0001, name='fine-tuning')])
        """
        rate = {"factor": 0.1} if learning_rate is None else learning_rate
        return cls(preset_stages.lp_ft(Plateau() if start is None else start, rate))

    @classmethod
    @known_only
    def ulmfit(
        cls,
        base: Any,
        *,
        start: int = 1,
        every: int = 1,
        learning_rate: Any = None,
        layer_decay: float = 1 / 2.6,
    ) -> Self:
        """Gradual unfreezing from the head down, with a lower rate for each block below.

        Source: Howard & Ruder 2018, "Universal Language Model Fine-tuning for Text
        Classification" (ACL, arXiv 1801.06146), sections 3.2 and 3.3: one more layer each epoch,
        and a rate that is divided by 2.6 from layer to layer. Here a block is the part between two
        articulation points of the base's graph, so no residual block is split.

        Args:
            base: the base itself; its blocks are read from its graph.
            start: the epoch at which the last block is unfrozen.
            every: the number of epochs from one block to the next.
            learning_rate: the rate from the first stage on; None = unchanged.
            layer_decay: as in `Stage`.

        Examples:
            >>> layers = [keras.layers.Dense(4, name=f"block{n}") for n in (1, 2)]
            >>> schedule = Schedule.ulmfit(keras.Sequential([keras.Input((4,)), *layers]))
            >>> [(stage.at, stage.unfreeze) for stage in schedule]
            [(1, 'block2:'), (2, 'all')]
        """
        return cls(preset_stages.ulmfit(base, start, every, learning_rate, layer_decay))

    @classmethod
    @known_only
    def chain_thaw(
        cls,
        model: Any,
        base: Any = None,
        *,
        start: int = 2,
        every: int = 2,
        learning_rate: Any = None,
    ) -> Self:
        """The head, then each block alone from the first to the last, then everything.

        Source: Felbo et al. 2017, "Using millions of emoji occurrences to learn any-domain
        representations for detecting sentiment, emotion and sarcasm" (EMNLP, arXiv 1708.00524).

        Args:
            model: the whole model, as its head is frozen and unfrozen too.
            base: as in `FreezeBase`.
            start: the epoch at which the first block is unfrozen.
            every: the number of epochs for each block.
            learning_rate: the rate of the last stage, as in `Stage`.

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
        return cls(preset_stages.chain_thaw(model, base, start, every, learning_rate))

    @classmethod
    @known_only
    def auto(
        cls,
        base: Any,
        *,
        stages: int = 4,
        start: int = 5,
        every: int = 5,
        learning_rate: Any = None,
        layer_decay: float | None = None,
    ) -> Self:
        """Unfreezes the base in a few stages, from the head down, of about as many parameters each.

        No residual block is split.

        Args:
            base: the base itself; its blocks are read from its graph.
            stages: the number of stages.
            start: the epoch at which the first stage begins.
            every: the number of epochs from one stage to the next.
            learning_rate: the rate from the first stage on; None = unchanged.
            layer_decay: as in `Stage`.

        Examples:
            >>> layers = [keras.layers.Dense(4, name=f"block{n}") for n in (1, 2, 3, 4)]
            >>> base = keras.Sequential([keras.Input((4,)), *layers])
            >>> [(stage.at, stage.unfreeze) for stage in Schedule.auto(base, stages=2)]
            [(5, 'block3:'), (10, 'all')]
        """
        found = preset_stages.auto(base, stages, start, every, learning_rate, layer_decay)
        return cls(found)
