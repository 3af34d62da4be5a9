"""Stages in order; which one holds in an epoch is a pure function of the schedule."""

from __future__ import annotations

import itertools
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from keras_freeze.errors import FreezeError, ScheduleError, check_choice, names_unknown, nearest
from keras_freeze.graph.selectors import check_selector
from keras_freeze.schedule import plateau, presets
from keras_freeze.schedule.plateau import Plateau
from keras_freeze.schedule.stage import KEYS, Stage, check_at, stage_from
from keras_freeze.schedule.written import check_written, comparable

# What a schedule may say about its use, beside the stages: the arguments of `GradualUnfreeze`.
SETTINGS = {
    "base": None,
    "optimizer": (None, "carry", "reset"),
    "batch_norm": (None, "freeze", "train"),
}
# Arguments of single stages, which a schedule as a whole is given by mistake.
OF_STAGES = {"Stage": KEYS, "Plateau": plateau.KEYS}
PRESETS = ("two_phase", "lp_ft", "ulmfit", "chain_thaw", "auto")
SUFFIXES = (".yaml", ".yml", ".json", ".toml")
known_only = names_unknown(ScheduleError, OF_STAGES)


@keras.saving.register_keras_serializable(package="keras_freeze")
class Schedule:
    """An ordered list of stages, each at its own epoch or after a trigger.

    Args:
        stages: `{epoch: selector or Stage}`, a list of `Stage` (or of mappings of `Stage`'s
            arguments), another `Schedule`, or the path of a YAML, JSON or TOML file. It isn't
            changed. Its order matters only where a `Plateau` is in it, which ends the stage that
            stands before it.
        base: what `GradualUnfreeze` takes as its `base`, unless it is told another; None = what
            the other schedule or the file says, if `stages` is one, or else nothing.
        optimizer: `"carry"` or `"reset"`, in the same way.
        batch_norm: `"freeze"` or `"train"`, in the same way.

    An epoch is kept whatever happens: a stage at epoch 20 begins there even if a `Plateau` that
    stands before it hasn't fired by then; what that stage would have changed is changed with it.

    Raises:
        ScheduleError: there is no stage, two begin at the same epoch, or one is malformed.
        LayerMatchError: a selector can't be meant, whatever the model.

    Examples:
        >>> schedule = Schedule({10: "block5_*", 15: "block4_*"})
        >>> [schedule.number_at(epoch) for epoch in (0, 9, 10, 14, 15)]
        [0, 0, 1, 1, 2]
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     schedule.to_file(pathlib.Path(folder, "plan.json"))
        ...     Schedule.from_file(pathlib.Path(folder, "plan.json")) == schedule
        True
    """

    @known_only
    def __init__(
        self,
        stages: Any,
        *,
        base: Any = None,
        optimizer: str | None = None,
        batch_norm: str | None = None,
    ):
        if isinstance(stages, os.PathLike) or _is_path(stages):
            stages = Schedule.from_file(stages)
        self.stages: tuple[Stage, ...] = tuple(_in_order(_read(stages)))
        given = {"base": base, "optimizer": optimizer, "batch_norm": batch_norm}
        other = stages.settings if isinstance(stages, Schedule) else {}
        self._settings = other | {k: v for k, v in given.items() if v is not None}
        _check_settings(self._settings)
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

    @property
    def base(self) -> Any:
        """The base, where the schedule names one, or None."""
        return self._settings.get("base")

    @property
    def optimizer(self) -> str | None:
        """`"carry"` or `"reset"`, where the schedule says so, or None."""
        return self._settings.get("optimizer")

    @property
    def batch_norm(self) -> str | None:
        """`"freeze"` or `"train"`, where the schedule says so, or None."""
        return self._settings.get("batch_norm")

    @property
    def settings(self) -> dict[str, Any]:
        """Those of `base`, `optimizer` and `batch_norm` that the schedule sets."""
        return dict(self._settings)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Schedule:
        """Reads a schedule from a YAML, JSON or TOML file.

        Args:
            path: ends in `.yaml`, `.yml`, `.json` or `.toml`.

        Raises:
            ScheduleError: the file can't be read or can't be meant; it names file, line where it
                is known, stage and key.
        """
        # Only here: pydantic takes a moment to import, and most schedules are code.
        from keras_freeze.schedule.files import read_schedule

        return read_schedule(path)

    def to_file(self, path: str | os.PathLike[str]) -> None:
        """Writes the schedule to a file, which `from_file` reads back as an equal schedule.

        Args:
            path: ends in `.yaml`, `.yml`, `.json` or `.toml`. A file that is there is replaced.

        Raises:
            ScheduleError: a selector is a function or a layer, a rate isn't a float or one of
                Keras' own schedules, or the file can't be written.
        """
        from keras_freeze.schedule.files import write_schedule

        write_schedule(self, path)

    def get_config(self) -> dict[str, Any]:
        """Returns the stages and settings, as Keras serialises them."""
        check_written(self.base, "`base` of Schedule")
        stages = [keras.saving.serialize_keras_object(stage) for stage in self.stages]
        return {"stages": stages, **self._settings}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Schedule:
        """Returns the schedule with these stages and settings."""
        stages = [keras.saving.deserialize_keras_object(stage) for stage in config["stages"]]
        return cls(**{**config, "stages": stages})

    def number_at(self, epoch: int, begun: Mapping[int, int] | None = None) -> int:
        """Returns the number of the stage that holds in `epoch`; 0 is before the first.

        Args:
            epoch: counted from 0.
            begun: the epochs at which stages after a `Plateau` have begun, by number.
        """
        starts = {n: stage.at for n, stage in enumerate(self, 1) if isinstance(stage.at, int)}
        starts |= begun or {}
        return max((number for number, at in starts.items() if at <= epoch), default=0)

    def waiting_at(self, number: int) -> Stage | None:
        """Returns the stage that waits for a stage to end; None if the next one has its epoch."""
        following = self.stages[number] if number < len(self.stages) else None
        return following if following and isinstance(following.at, Plateau) else None

    @classmethod
    @known_only
    def two_phase(
        cls,
        unfreeze: Any = "all",
        *,
        start: int | Plateau = 10,
        learning_rate: Any = 1e-5,
        base_learning_rate: Any = None,
    ) -> Schedule:
        """Feature extraction on the frozen base, then fine-tuning at a low rate.

        Source: Keras' guide "Transfer learning & fine-tuning" (F. Chollet, 2020).

        Args:
            unfreeze: what is fine-tuned, a selector.
            start: the epoch, or the `Plateau`, at which fine-tuning begins.
            learning_rate: of the fine-tuning, as in `Stage`.
            base_learning_rate: of the base in it, as in `Stage`.

        Examples:
            >>> Schedule.two_phase("block5_*", start=5)
            Schedule([Stage(at=5, unfreeze='block5_*', learning_rate=1e-05, name='fine-tuning')])
        """
        return cls(presets.two_phase(unfreeze, start, learning_rate, base_learning_rate))

    @classmethod
    @known_only
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
    @known_only
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
            start: the epoch at which the uppermost block is unfrozen.
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
    @known_only
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
            model: the whole model, as its head is frozen and unfrozen too.
            base: as in `FreezeBase`.
            start: the epoch at which the first block is unfrozen.
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

    @known_only
    def preview(
        self,
        model: Any,
        *,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        data: Any = None,
        base: Any = None,
        order: str = "stage",
    ) -> Any:
        """Says what each stage will do to a model, before any training.

        What `GradualUnfreeze` is given beside a schedule is to be given to the schedule here:
        `Schedule(stages, optimizer="reset", batch_norm="train").preview(model)`.

        Args:
            model: built, and compiled if rates and the optimizer's memory are to be known.
            epochs: of the fit, for the length of the last stage; a stage that begins after them is
                an error.
            steps_per_epoch: for the number of steps.
            data: the number of images, or arrays as `fit` takes them: for the bytes of a cache.
            base: as in `GradualUnfreeze`.
            order: `"stage"`, or `"memory"`: the stage with the largest optimizer first.

        Returns:
            A list of dicts, one for each stage, that prints itself as a table, in notebooks too;
            `keras_freeze.preview.preview.Preview` says what the keys mean. Floating point
            operations are counted from shapes, a multiply-add as two.

        Raises:
            ScheduleError: a stage is never reached, or leaves nothing trainable.
            LayerMatchError: a selector matches no layer.

        Examples:
            >>> layers = [keras.layers.Dense(4, name=f"block{n}") for n in (1, 2)]
            >>> base = keras.Sequential([keras.Input((4,)), *layers], name="base")
            >>> model = keras.Sequential([base, keras.layers.Dense(1, name="head")])
            >>> model.compile("adam", "mse")
            >>> table = Schedule({2: "block2"}).preview(model, epochs=5, data=100)
            >>> [(row["epochs"], row["trainable_params"], row["cache_bytes"]) for row in table]
            [(2, 5, 3200), (3, 25, 1600)]
        """
        # Only here: a schedule knows nothing of training until it is asked about a model.
        from keras_freeze.preview.preview import preview

        return preview(
            self,
            model,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            data=data,
            base=base,
            order=order,
        )

    def __getitem__(self, number: int) -> Stage:
        """The stage of that number, counted from 1."""
        return self.stages[number - 1]

    def __len__(self) -> int:
        return len(self.stages)

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Schedule):
            return NotImplemented
        mine, its = (
            {key: comparable(value) for key, value in each.settings.items()}
            for each in (self, other)
        )
        return self.stages == other.stages and mine == its

    def __hash__(self) -> int:
        return hash(tuple(stage.at for stage in self.stages))

    def __repr__(self) -> str:
        settings = [f", {key}={value!r}" for key, value in self._settings.items()]
        return f"Schedule([{', '.join(map(repr, self.stages))}]{''.join(settings)})"


def _is_path(stages: Any) -> bool:
    """A string is never a schedule; one that looks like a file's name is meant as one."""
    suffix = pathlib.PurePath(stages).suffix if isinstance(stages, str) else ""
    return suffix[1:].isalnum()


def _hint(stages: Any) -> str:
    """What may be meant by a string that looks like no file's name."""
    if not isinstance(stages, str) or not stages.strip():
        return ""
    files = [stages + suffix for suffix in SUFFIXES if pathlib.Path(stages + suffix).is_file()]
    if files:
        return f" Did you mean {files[0]!r}?"
    preset = nearest(stages, PRESETS, least=0.75)
    if preset:
        return f" Did you mean Schedule.{preset[0]}(...)?"
    return f" A selector needs its epoch: {{10: {stages!r}}}."


def _check_settings(settings: Mapping[str, Any]) -> None:
    for key, value in settings.items():
        choices = SETTINGS[key]
        if choices is None:
            check_selector(value, f"`{key}` of Schedule")
            continue
        try:
            check_choice(key, value, choices)
        except FreezeError as error:
            raise ScheduleError(f"Schedule: {error}") from None


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
        "`schedule` must be {epoch: selector or Stage}, a list of Stage, a Schedule, or the path "
        f"of a .yaml, .yml, .json or .toml file.{_hint(stages)} "
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
