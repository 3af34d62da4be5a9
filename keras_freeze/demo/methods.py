"""Three ways from a pretrained base to a new task, on the same data, epochs and rates.

The rates were chosen from 1e-4 to 1e-2 on the mirrored task (pretrain on 5-9, transfer to 0-4,
eight other seeds) by the accuracy of both transfers together; training from scratch did best at the
head's rate there, and keeps it throughout. The demo's test images had no part in the choice.
"""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import keras
import numpy as np
from numpy.typing import NDArray

from keras_freeze import FreezeBase, GradualUnfreeze, Schedule, Stage
from keras_freeze.demo.digits import Examples, Task, load_task
from keras_freeze.demo.models import build_base, build_model, compile_model

Weights: TypeAlias = list[NDArray[np.float32]]
History: TypeAlias = dict[str, list[float]]

EPOCHS = 18
FINE_TUNE_AT = 9
WHOLE_BASE_AT = 13
TEST_EVERY = 3  # epochs: testing on 850 images takes longer than training on 50
HEAD_RATE = 3e-3
FINE_TUNE_RATE = 3e-4
BATCH_SIZE = 10


@dataclass(frozen=True)
class Result:
    """What one method did with one seed.

    Attributes:
        method: Its name, a key of `METHODS`.
        seed: The seed of the data and the weights.
        fits: Calls of `compile` and `fit`.
        epochs: Epochs, over all of its `fit` calls.
        seconds: Wall time of building, compiling and fitting, pretraining left out.
        history: Keras' History by epoch; the `val_` entries are of the test images, every
            `TEST_EVERY` epochs.
    """

    method: str
    seed: int
    fits: int
    epochs: int
    seconds: float
    history: History

    @property
    def accuracy(self) -> float:
        """Share of test images classified rightly after the last epoch, 0 to 1."""
        return self.history["val_accuracy"][-1]


def pretrain(examples: Examples, seed: int) -> Weights:
    """Trains a base on the rich task.

    Args:
        examples: Images (n, 8, 8, 1) and labels (n,).
        seed: Makes the weights and the shuffling.

    Returns:
        The base's weights.
    """
    keras.utils.set_random_seed(seed)
    base = build_base()
    model = build_model(base)
    compile_model(model, learning_rate=1e-3)
    # 901 images are 17 batches of 53: JAX would compile again for a smaller last batch.
    model.fit(*examples, batch_size=53, epochs=8, verbose=0)
    weights: Weights = base.get_weights()
    return weights


SCHEDULE = Schedule(
    [
        Stage(FINE_TUNE_AT, "block3_conv:", learning_rate=FINE_TUNE_RATE, name="block3"),
        Stage(WHOLE_BASE_AT, "all", learning_rate=FINE_TUNE_RATE, name="whole base"),
    ]
)


def preview(schedule: Schedule) -> Any:
    """Returns what a schedule will do to the demo's model; raises where it can't be meant."""
    model = build_model(build_base())
    compile_model(model, HEAD_RATE)
    return schedule.preview(model, epochs=EPOCHS, base=schedule.base or "base")


def one_fit(
    weights: Weights, task: Task, verbose: int, schedule: Schedule = SCHEDULE
) -> list[History]:
    """Freezes and unfreezes in the middle of a single `fit`."""
    model = build_model(_pretrained(weights))
    compile_model(model, HEAD_RATE)
    callbacks = [FreezeBase("base", verbose=verbose), GradualUnfreeze(schedule, verbose=verbose)]
    return [_fit(model, task, 0, EPOCHS, callbacks)]


def two_fits(
    weights: Weights, task: Task, verbose: int, schedule: Schedule = SCHEDULE
) -> list[History]:
    """Follows Keras' transfer-learning guide: freeze, compile, fit; unfreeze, compile, fit."""
    base = _pretrained(weights)
    base.trainable = False
    model = build_model(base, training=False)
    compile_model(model, HEAD_RATE)
    first = _fit(model, task, 0, FINE_TUNE_AT)
    base.trainable = True
    compile_model(model, FINE_TUNE_RATE)
    return [first, _fit(model, task, FINE_TUNE_AT, EPOCHS)]


def from_scratch(
    weights: Weights, task: Task, verbose: int, schedule: Schedule = SCHEDULE
) -> list[History]:
    """Trains the same model on the few images alone, from random weights."""
    model = build_model(build_base())
    compile_model(model, HEAD_RATE)
    return [_fit(model, task, 0, EPOCHS)]


Method: TypeAlias = Callable[[Weights, Task, int, Schedule], list[History]]

METHODS: dict[str, Method] = {
    "one fit (keras_freeze)": one_fit,
    "two fits (Keras guide)": two_fits,
    "from scratch": from_scratch,
}
ONE_FIT = next(iter(METHODS))


def run_method(
    name: str,
    weights: Weights,
    task: Task,
    seed: int,
    verbose: int = 0,
    schedule: Schedule = SCHEDULE,
) -> Result:
    """Runs one method from the same random state as the others.

    Args:
        name: A key of `METHODS`.
        weights: The pretrained base's weights.
        task: The data.
        seed: Makes the head's weights and the shuffling.
        verbose: 1 prints the stages of the one-fit method, 0 nothing.
        schedule: Of the one-fit method.

    Returns:
        The result, its histories joined.
    """
    keras.utils.set_random_seed(seed)
    start = time.perf_counter()
    histories = METHODS[name](weights, task, verbose, schedule)
    seconds = time.perf_counter() - start
    joined = {key: list(chain(*(part[key] for part in histories))) for key in histories[0]}
    return Result(name, seed, len(histories), len(joined["loss"]), seconds, joined)


def digits_transfer(seed: int = 0) -> tuple[Any, Examples, Examples]:
    """A small pretrained base and data to transfer it to, for examples: made in seconds, offline.

    Args:
        seed: Makes the base's weights and chooses the labelled images.

    Returns:
        The base, which has learned the digits 0 to 4, a functional model from (8, 8, 1) to
        (4, 4, 64); 50 labelled images of 5 to 9, (50, 8, 8, 1) in 0..1, and their labels from 0;
        and the same of all other images of these digits.

    Examples:
        >>> base, (images, labels), (test_images, test_labels) = digits_transfer()
        >>> base.name, images.shape, len(test_images)
        ('base', (50, 8, 8, 1), 846)
    """
    task = load_task(seed)
    return _pretrained(_pretrained_weights(seed)), task.few, task.test


@functools.cache
def _pretrained_weights(seed: int) -> Weights:
    return pretrain(load_task(seed).pretrain, seed)


def _pretrained(weights: Weights) -> Any:
    base = build_base()
    base.set_weights(weights)
    return base


def _fit(model: Any, task: Task, start: int, end: int, callbacks: Sequence[Any] = ()) -> History:
    # The test images are only watched, for the plot: nothing is chosen by them.
    history: History = model.fit(
        *task.few,
        batch_size=BATCH_SIZE,
        initial_epoch=start,
        epochs=end,
        validation_data=task.test,
        validation_batch_size=len(task.test[0]),
        validation_freq=TEST_EVERY,
        callbacks=list(callbacks),
        verbose=0,
    ).history
    return history
