"""Schedule: an ordered list of stages, which says what is trainable in each epoch."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from keras_freeze.errors import ScheduleError
from keras_freeze.schedule.given_stages import check_settings, in_order, is_path, stages_of
from keras_freeze.schedule.plateau import Plateau
from keras_freeze.schedule.presets import Presets
from keras_freeze.schedule.serialize_stage_values import check_written, comparable
from keras_freeze.schedule.stage import Stage
from keras_freeze.schedule.unknown_arguments import known_only


@keras.saving.register_keras_serializable(package="keras_freeze")
class Schedule(Presets):
    """An ordered list of stages, each at its own epoch or after a trigger.

    Args:
        stages: `{epoch: selector or Stage}`, a list of `Stage` (or of mappings of `Stage`'s
            arguments), another `Schedule`, or the path of a YAML, JSON or TOML file. It isn't
            changed. The order only matters if there is a `Plateau`, which ends the stage listed
            before it.
        base: the default for the `base` of `GradualUnfreeze`; None = the one of the other schedule
            or the file, if `stages` is one.
        optimizer: the default for `optimizer`, `"carry"` or `"reset"`; None as for `base`.
        batch_norm: the default for `batch_norm`, `"freeze"` or `"train"`; None as for `base`.

    A stage with an epoch always begins at that epoch. If a `Plateau` listed before it hasn't fired
    by then, the changes of the waiting stage are made at the same time.

    Raises:
        ScheduleError: there is no stage, two begin at the same epoch, or one is invalid.
        LayerMatchError: a selector is invalid for any model.

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
        if isinstance(stages, os.PathLike) or is_path(stages):
            stages = Schedule.from_file(stages)
        self.stages: tuple[Stage, ...] = tuple(
            stages.stages if isinstance(stages, Schedule) else in_order(stages_of(stages))
        )
        given = {"base": base, "optimizer": optimizer, "batch_norm": batch_norm}
        other = stages.settings if isinstance(stages, Schedule) else {}
        self._settings = other | {k: v for k, v in given.items() if v is not None}
        check_settings(self._settings)
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
                    f"`schedule` has a Plateau, so its stages must be in order, but epoch "
                    f"{next_at} comes after {at}: {following!r}. Move it."
                )

    @property
    def base(self) -> Any:
        """The base, if the schedule sets it, or None."""
        return self._settings.get("base")

    @property
    def optimizer(self) -> str | None:
        """`"carry"` or `"reset"`, if the schedule sets it, or None."""
        return self._settings.get("optimizer")

    @property
    def batch_norm(self) -> str | None:
        """`"freeze"` or `"train"`, if the schedule sets it, or None."""
        return self._settings.get("batch_norm")

    @property
    def settings(self) -> dict[str, Any]:
        """A dict with those of `base`, `optimizer` and `batch_norm` that the schedule sets."""
        return dict(self._settings)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Schedule:
        """Reads a schedule from a YAML, JSON or TOML file.

        Args:
            path: ends in `.yaml`, `.yml`, `.json` or `.toml`.

        Raises:
            ScheduleError: the file can't be read or is invalid; the message names the file, the
                line if known, the stage and the key.
        """
        # Imported here, as pydantic is slow to import and most schedules are written in code.
        from keras_freeze.schedule.files.read_and_write import read_schedule

        return read_schedule(path, cls)

    def to_file(self, path: str | os.PathLike[str]) -> None:
        """Writes the schedule to a file, which `from_file` reads back as an equal schedule.

        Args:
            path: ends in `.yaml`, `.yml`, `.json` or `.toml`. An existing file is replaced.

        Raises:
            ScheduleError: a selector is a function or a layer, a rate is neither a float nor one of
                Keras' own schedules, or the file can't be written.
        """
        from keras_freeze.schedule.files.read_and_write import write_schedule

        write_schedule(self.stages, self.settings, path)

    def get_config(self) -> dict[str, Any]:
        """Returns the stages and settings, as Keras serializes them."""
        check_written(self.base, "`base` of Schedule")
        stages = [keras.saving.serialize_keras_object(stage) for stage in self.stages]
        return {"stages": stages, **self._settings}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Schedule:
        """Returns the schedule with these stages and settings."""
        stages = [keras.saving.deserialize_keras_object(stage) for stage in config["stages"]]
        return cls(**{**config, "stages": stages})

    def number_at(self, epoch: int, begun: Mapping[int, int] | None = None) -> int:
        """Returns the number of the stage in `epoch`, from 1; 0 = before the first stage.

        Args:
            epoch: the epoch, counted from 0.
            begun: `{number: epoch}` of stages with a `Plateau` that have begun.
        """
        starts = {n: stage.at for n, stage in enumerate(self, 1) if isinstance(stage.at, int)}
        starts |= begun or {}
        return max((number for number, at in starts.items() if at <= epoch), default=0)

    def waiting_at(self, number: int) -> Stage | None:
        """Returns the stage after `number` if a `Plateau` triggers it; None if it has an epoch."""
        following = self.stages[number] if number < len(self.stages) else None
        return following if following and isinstance(following.at, Plateau) else None

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
        views: Any = None,
    ) -> Any:
        """Shows what each stage will do to a model, before any training.

        Pass arguments of `GradualUnfreeze` to the schedule:
        `Schedule(stages, optimizer="reset", batch_norm="train").preview(model)`.

        Args:
            model: a built model; compiled, for the learning rates and the optimizer's memory.
            epochs: the epochs of the fit, for the length of the last stage. A stage that begins
                after them is an error.
            steps_per_epoch: the training steps per epoch, for the number of steps.
            data: the number of rows (samples), or arrays as for `fit`, for the size of a cache.
            base: as in `GradualUnfreeze`.
            order: `"stage"`, or `"memory"`: the stage with the largest optimizer first.
            views: as in `BottleneckCache`, for the size and the work of that many recorded epochs.

        Returns:
            A list of dicts, one for each stage, which is shown as a table, in notebooks too;
            `keras_freeze.preview.preview_table.Preview` explains the keys. Floating point
            operations are counted from shapes, a multiply-add as two.

        Raises:
            ScheduleError: a stage is never reached, or leaves nothing trainable.
            LayerMatchError: a selector matches no layer.
            CacheError: `views` is invalid.

        Examples:
            >>> layers = [keras.layers.Dense(4, name=f"block{n}") for n in (1, 2)]
            >>> base = keras.Sequential([keras.Input((4,)), *layers], name="base")
            >>> model = keras.Sequential([base, keras.layers.Dense(1, name="head")])
            >>> model.compile("adam", "mse")
            >>> table = Schedule({2: "block2"}).preview(model, epochs=5, data=100)
            >>> [(row["epochs"], row["trainable_params"], row["cache_bytes"]) for row in table]
            [(2, 5, 3200), (3, 25, 1600)]
        """
        # Imported here, as no other part of this package depends on training code.
        from keras_freeze.preview.preview_table import preview

        return preview(
            self,
            model,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            data=data,
            base=base,
            order=order,
            views=views,
        )

    def __getitem__(self, number: int) -> Stage:
        """Returns the stage with this number, counted from 1."""
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
