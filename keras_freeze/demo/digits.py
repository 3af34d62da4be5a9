"""The data: scikit-learn's handwritten digits, split into a rich task and a poor one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from keras_freeze.demo.extras import load_extra

Examples: TypeAlias = tuple[NDArray[np.float32], NDArray[np.int32]]

TARGET = (5, 6, 7, 8, 9)
PER_CLASS = 10


@dataclass(frozen=True)
class Task:
    """One seed's data; every part holds images (n, 8, 8, 1) in 0..1 and labels (n,) from 0.

    Attributes:
        pretrain: All images of the digits that are not transferred to.
        few: The few labelled images of the target digits.
        test: All other images of the target digits.
    """

    pretrain: Examples
    few: Examples
    test: Examples


def load_task(seed: int, target: Sequence[int] = TARGET, per_class: int = PER_CLASS) -> Task:
    """Splits the digits for one seed.

    Args:
        seed: Chooses which images are labelled.
        target: The digits to transfer to; the base is pretrained on the others.
        per_class: Labelled images for each target digit.

    Returns:
        The three parts.
    """
    images, labels = _load()
    target_rows = np.isin(labels, target)
    few = _draw(labels, target, per_class, np.random.default_rng(seed))
    source = sorted(set(range(10)) - set(target))
    return Task(
        pretrain=_take(images, labels, np.flatnonzero(~target_rows), source),
        few=_take(images, labels, few, target),
        test=_take(images, labels, np.setdiff1d(np.flatnonzero(target_rows), few), target),
    )


def _load() -> Examples:
    bunch: Any = load_extra("sklearn.datasets").load_digits()
    images = (bunch.images / 16.0).astype("float32")[..., None]
    return images, bunch.target.astype("int32")


def _draw(
    labels: NDArray[np.int32], target: Sequence[int], count: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    per_digit = [rng.permutation(np.flatnonzero(labels == digit))[:count] for digit in target]
    return np.concatenate(per_digit)


def _take(
    images: NDArray[np.float32],
    labels: NDArray[np.int32],
    rows: NDArray[np.intp],
    digits: Sequence[int],
) -> Examples:
    # Labels count from 0 within the task: the head has as many classes as the task has digits.
    return images[rows], np.searchsorted(np.asarray(digits), labels[rows]).astype("int32")
