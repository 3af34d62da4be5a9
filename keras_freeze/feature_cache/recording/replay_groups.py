"""Runs the steps of a replayed epoch in groups, each group in one compiled call."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import takewhile
from typing import Any

import numpy as np

from keras_freeze.feature_cache.backends.step_loops.batch_tables import Tables
from keras_freeze.feature_cache.recording.batch_layout import column_of, is_input
from keras_freeze.feature_cache.recording.view import View
from keras_freeze.feature_cache.serving.group_sizes import GroupSizes, GroupTimer
from keras_freeze.feature_cache.serving.grouped_steps import INPUTS
from keras_freeze.feature_cache.serving.stage_server import StageServer

Array = np.ndarray[Any, Any]


class ReplayGroups:
    """Runs groups of the steps of a recording.

    Args:
        backend: the module of the backend.

    Attributes:
        alone: whether no other callback acts on training batches.
        sizes: decides how many steps a group has.
        is_on: whether the running epoch has groups.
    """

    def __init__(self, backend: Any):
        self.backend = backend
        self.alone = False
        self.sizes = GroupSizes()
        self.timer = GroupTimer(self.sizes)
        self.forget()

    def forget(self) -> None:
        """Frees the tables. The rest of a running epoch has no groups."""
        self.is_on = False
        self.of_view: dict[int, Tables] = {}
        self.rows: int | None = None  # in each batch of a group

    def begin_epoch(
        self, served: StageServer | None, view: View, per_call: int, epochs: int
    ) -> None:
        """Decides whether the next epoch has groups.

        Args:
            served: serves the running stage, if anything is frozen in it.
            view: the recording.
            per_call: steps in each call of Keras' train function.
            epochs: number of epochs until the end of the stage.
        """
        self.timer.begin_epoch()
        steps = len(view.sizes)
        self.sizes.begin_epoch("train", steps)
        self.is_on = (
            self.alone
            and per_call == 1
            and served is not None
            and steps > 1
            and self.sizes.is_worth_it("train", steps, epochs)
            and served.can_loop
            and self._has_tables(served, view)
        )

    def _has_tables(self, served: StageServer, view: View) -> bool:
        if id(view) not in self.of_view:
            names = served.part.columns
            tables = view.tables.columns(0, names) if view.can_be_tables else None
            if tables is None or view.layout is None:
                return False
            place = {name: chunks[0][: view.rows] for name, chunks in view.others.columns.items()}
            read = [column_of(number) for number in served.shown(view.inputs[0])]
            others = [name for name in place if not is_input(name)]
            sizes = [place[name].nbytes for name in (*read, *others)]
            if sum(sizes) > (INPUTS if view.tables.on_device else math.inf):
                return False
            inputs = {
                str(number): self.backend.to_table(place[column_of(number)])
                for number in served.shown(view.inputs[0])
            }
            targets = {name: self.backend.to_table(place[name]) for name in others}
            self.of_view[id(view)] = Tables(tables, inputs, view.layout.tables_of(targets))
        return True

    def batches(self, numbers: list[Array], per_call: int) -> Iterator[list[Array]]:
        """Yields the row numbers of the batches of each call.

        Args:
            numbers: the row numbers of each batch of the epoch.
            per_call: steps in each call of Keras' train function.
        """
        step = 0
        while step < len(numbers):
            end = step + (max(1, self.sizes.size("train")) if self.is_on else per_call)
            group = _alike(numbers[step:end]) if self.is_on else numbers[step:end]
            yield group
            step += len(group)

    def can_run(self, view: View, numbers: list[Array]) -> bool:
        """Returns True if these batches of a recording run in one call: not if one is smaller."""
        self.rows = self.rows or max(view.sizes)
        is_regular = {len(rows) for rows in numbers} == {self.rows}
        return self.is_on and is_regular and not self.sizes.times["train"].is_off

    def run(
        self, served: StageServer, view: View, state: tuple[Any, ...], numbers: list[Array]
    ) -> Any:
        """Runs the steps of a group; returns what the step function returns for the last one.

        Raises:
            CannotLoopError: the steps can't run in a loop. Nothing has changed.
        """
        self.timer.begin_group("train", len(numbers), served.lighter.wait)
        rows = np.stack(numbers)
        tables = self.of_view[id(view)]
        return served.loop("train").run(state, tables, rows, rows, len(view.sizes))


def _alike(numbers: list[Array]) -> list[Array]:
    """Returns the first batches, as many as have the same number of rows."""
    return list(takewhile(lambda rows: len(rows) == len(numbers[0]), numbers))
