"""Runs a method and measures accuracy, seconds, runs of the base per image, lines of code."""

import ast
import contextlib
import inspect
import io
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import keras

from keras_freeze import Schedule
from keras_freeze.demo.compared_methods import (
    BATCH_SIZE,
    History,
    Trained,
    features_by_hand,
    from_scratch,
    one_fit,
    own_schedule,
    two_fits,
)
from keras_freeze.demo.few_labels_task import Task
from keras_freeze.demo.mnist_base import RowCounter, Weights, build_base, set_pretrained

Code = Callable[..., Any]

ONE_FIT = "one fit (keras_freeze)"
TWO_FITS = "two fits (Keras' guide)"
SCRATCH = "from scratch"
# What a user would write for each; the first function is the one that is called.
METHODS: dict[str, tuple[Code, ...]] = {
    ONE_FIT: (one_fit, own_schedule),
    TWO_FITS: (two_fits,),
    "features by hand (Keras' blog)": (features_by_hand,),
    SCRATCH: (from_scratch,),
}


@dataclass(frozen=True)
class Result:
    """What one method did with one seed.

    Attributes:
        method: Its name, a key of `METHODS`.
        seed: The seed of the data and the head's weights.
        accuracy: Share of the test images classified rightly at the end, 0 to 1.
        seconds: Wall time of building, compiling and fitting.
        base_passes: How often the base ran for each image of training and validation.
        lines: Lines of its code, without signature, docstring and blank lines.
        history: Keras' History by epoch, over all of its `fit` calls.
    """

    method: str
    seed: int
    accuracy: float
    seconds: float
    base_passes: float
    lines: int
    history: History


def run_method(
    name: str,
    weights: Weights,
    task: Task,
    seed: int,
    verbose: int = 0,
    schedule: Schedule | None = None,
) -> Result:
    """Runs one method from the same random state as the others.

    Args:
        name: A key of `METHODS`.
        weights: The pretrained base's.
        task: The data.
        seed: Makes the head's weights, and those of a base that isn't pretrained.
        verbose: 1 shows what the method prints, 0 doesn't.
        schedule: Of the one-fit method; None = its own.

    Returns:
        What was measured.
    """
    base, counter = _prepare(name, weights, seed)
    method = METHODS[name][0]
    extra = [schedule] if name == ONE_FIT else []
    start = time.perf_counter()
    with contextlib.nullcontext() if verbose else contextlib.redirect_stdout(io.StringIO()):
        trained = method(base, task.train, task.watched, *extra)
    seconds = time.perf_counter() - start
    passes = _passes(trained, counter, task)
    accuracy = _test(trained.model, task)
    return Result(name, seed, accuracy, seconds, passes, LINES[name], _joined(trained.histories))


def _prepare(name: str, weights: Weights, seed: int) -> tuple[Any, RowCounter | None]:
    keras.utils.set_random_seed(seed)
    # A layer whose state moves can't stand in what a cache serves: the cache counts itself.
    counter = None if name == ONE_FIT else RowCounter()
    base = build_base(counter)
    if name != SCRATCH:
        set_pretrained(base, weights)
    keras.utils.set_random_seed(seed)
    return base, counter


def _passes(trained: Trained, counter: RowCounter | None, task: Task) -> float:
    if trained.base_passes is not None:
        return trained.base_passes
    assert counter is not None
    return counter.counted() / (len(task.train[0]) + len(task.watched[0]))


def _test(model: Any, task: Task) -> float:
    _, accuracy = model.evaluate(*task.test, batch_size=BATCH_SIZE, verbose=0)
    return float(accuracy)


def _joined(histories: list[History]) -> History:
    return {key: list(chain(*(part[key] for part in histories))) for key in histories[0]}


def count_lines(function: Code) -> int:
    """Counts the lines of a function's body, without docstring, comments and blank lines.

    Args:
        function: One that was defined in a file.

    Returns:
        The number of lines.
    """
    source = textwrap.dedent(inspect.getsource(function))
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.FunctionDef)
    has_docstring = ast.get_docstring(definition) is not None
    body = definition.body[1:] if has_docstring else definition.body
    lines = source.splitlines()[body[0].lineno - 1 :]
    return sum(1 for line in lines if line.strip() and not line.strip().startswith("#"))


# Counted when this is imported: a file that is edited during a run has other lines.
LINES = {name: sum(map(count_lines, code)) for name, code in METHODS.items()}
