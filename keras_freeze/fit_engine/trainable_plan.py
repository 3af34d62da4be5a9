"""The plan of a `fit`: which layers are trainable in which stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from keras_freeze.graph.find_base import Base
from keras_freeze.graph.layer_tree import Layer, LayerTree, adapters
from keras_freeze.keras_internals.trainable_flags import (
    trained,
)
from keras_freeze.schedule.schedule import Schedule
from keras_freeze.schedule.stage import Stage


@dataclass
class Plan:
    """Which layers are trainable in each stage.

    Attributes:
        tree: the layers of the whole model.
        bases: the bases that begin frozen; empty if no callback freezes one.
        schedule: the stages, or None.
        batch_norm: `"freeze"` or `"train"`.
        flags: for each stage number, `{id: trainable}` of the leaves (layers without sublayers)
            that the base or a stage names, as in `trained`.
    """

    tree: LayerTree
    bases: list[Base]
    schedule: Schedule | None
    batch_norm: str
    flags: list[dict[int, bool]] = field(default_factory=list)

    @property
    def base_leaves(self) -> list[Layer]:
        return [leaf for base in self.bases for leaf in base.leaves]

    @property
    def ruled(self) -> list[Layer]:
        """The leaves that belong to a base or that a stage names."""
        keys = {key for flags in self.flags for key in flags}
        return [
            leaf
            for leaf in self.tree.leaves
            if id(leaf) in keys or any(id(variable) in keys for variable in adapters(leaf))
        ]

    def flags_after(self, number: int, epochs: int | None) -> list[dict[int, bool]]:
        """Returns the flags of the stages after `number` that begin within `epochs`."""
        stages = [(n, stage.at) for n, stage in enumerate(self.schedule or (), start=1)]
        unreached = [n for n, at in stages if epochs and isinstance(at, int) and at >= epochs]
        return [self.flags[n] for n, _ in stages if n > number and n not in unreached]

    def unfrozen(self, number: int, before: int) -> list[Any]:
        """Returns the variables that are trained in stage `number` but not in stage `before`."""
        return [v for leaf in self.ruled for v in self._new(leaf, number, before)]

    def unfrozen_layers(self, number: int, before: int) -> list[Layer]:
        """Returns the layers of these variables."""
        return [leaf for leaf in self.ruled if self._new(leaf, number, before)]

    def _new(self, leaf: Layer, number: int, before: int) -> list[Any]:
        then = {id(variable) for variable in trained(leaf, self.flags[before])}
        return [v for v in trained(leaf, self.flags[number]) if id(v) not in then]

    def stage(self, number: int) -> Stage | None:
        """Returns the stage of that number; None for 0, before the first stage."""
        return self.schedule[number] if self.schedule is not None and number else None

    def title(self, number: int) -> str:
        """Returns the title of a stage in printed lines."""
        stage = self.stage(number)
        return stage.title(number) if stage else "Stage 0 (frozen base)"

    def number_at(self, epoch: int, begun: Mapping[int, int] | None = None) -> int:
        return 0 if self.schedule is None else self.schedule.number_at(epoch, begun)
