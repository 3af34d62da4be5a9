"""The lines that are printed when a stage begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class StageReport:
    """What a stage changed.

    Attributes:
        title: "Stage 1 'fine-tune'".
        when: "from epoch 11/20".
        thawed: names of the layers with weights that became trainable.
        frozen: names of the layers with weights that were frozen.
        trainable_params: number of trainable scalars now.
        frozen_params: number of the other scalars.
        rates: `{"learning_rate": rate}`.
        optimizer: what happened to the optimizer, "" if nothing.
    """

    title: str
    when: str
    thawed: Sequence[str]
    frozen: Sequence[str]
    trainable_params: int
    frozen_params: int
    rates: dict[str, float]
    optimizer: str = ""

    def __str__(self) -> str:
        lines = [f"{self.title} {self.when}"]
        if self.thawed:
            lines.append(f"  thawed         {shorten(self.thawed)}")
        if self.frozen:
            lines.append(f"  frozen         {shorten(self.frozen)}")
        lines.append(
            f"  parameters     {self.trainable_params:,} trainable, {self.frozen_params:,} frozen"
        )
        for name, rate in self.rates.items():
            lines.append(f"  {name.replace('_', ' '):<14} {rate:.6g}")
        if self.optimizer:
            lines.append(f"  optimizer      {self.optimizer}")
        return "\n".join(lines)


def shorten(names: Sequence[str]) -> str:
    """Returns at most four names, and how many there are.

    Examples:
        >>> shorten(["a", "b"])
        'a, b'
        >>> shorten(["a", "b", "c", "d", "e", "f"])
        'a, b, ..., f (6 layers)'
    """
    if len(names) <= 4:
        return ", ".join(names)
    return f"{names[0]}, {names[1]}, ..., {names[-1]} ({len(names)} layers)"
