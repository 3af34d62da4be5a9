"""A model of the zoo: how to build it, and what is correct for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

ROWS = 8
CLASSES = 3


@dataclass
class Built:
    """A model with its data.

    Attributes:
        model: the model, not compiled.
        x: its inputs, `ROWS` rows.
        y: targets for `loss`.
        base: the model or the layers that are its base. A fit must freeze these and nothing else.
        loss: as in `compile`.
        named: the `base` argument; None if the base must be found.
        asks: whether it can't be found, so that an error must ask for it.
        blocks: number of blocks of the base, if known.
        aside: part of the reason why a cache steps aside; "" if it must not.
        not_two: why two fits by hand differ from one of ours; "" if they must not.
    """

    model: Any
    x: Any
    y: Any
    base: Any
    loss: Any = "mse"
    named: Any = None
    asks: bool = False
    blocks: int | None = None
    aside: str = ""
    not_two: str = ""


@dataclass(frozen=True)
class Member:
    """A model of the zoo.

    Attributes:
        name: its name, e.g. "VGG16, flat".
        make: builds it, with the same weights after the same seed.
        backends: the backends on which it can be built; () = all.
        sample: whether the tests run it.
    """

    name: str
    make: Callable[[], Built]
    backends: tuple[str, ...] = ()
    sample: bool = False


@dataclass
class Zoo:
    """All members, in the order in which they were added."""

    members: list[Member] = field(default_factory=list)

    def add(self, name: str, make: Callable[[], Built], **options: Any) -> None:
        self.members.append(Member(name, make, **options))


def random() -> np.random.Generator:
    return np.random.default_rng(0)


def images(size: int, rows: int = ROWS) -> Any:
    return random().uniform(0, 255, (rows, size, size, 3)).astype("float32")


def classes(rows: int = ROWS) -> Any:
    return random().integers(0, CLASSES, rows)


def softmax(name: str = "predictions") -> keras.layers.Layer:
    return keras.layers.Dense(CLASSES, activation="softmax", name=name)


SPARSE = "sparse_categorical_crossentropy"
LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
