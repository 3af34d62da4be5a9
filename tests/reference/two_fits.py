"""The workflow without keras_freeze: set flags by hand, then `compile` and `fit` for each stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import keras

from keras_freeze import Stage

Logs = dict[str, list[float]]


@dataclass(frozen=True)
class Part:
    """One of the fits.

    Attributes:
        number: number of the stage, 0 before the first.
        begin: its first epoch.
        end: the epoch after its last.
        trainable: the names of the trainable layers.
        rate: the learning rate, or None for the compiled one.
    """

    number: int
    begin: int
    end: int
    trainable: frozenset[str]
    rate: Any

    def since(self, epoch: int) -> Part:
        """Returns the rest of the part if a run begins at `epoch`."""
        return replace(self, begin=max(self.begin, epoch))


def parts(stages: list[Stage], trainable: Iterable[str], epochs: int) -> Iterator[Part]:
    """Splits a run at its stages, which name single layers. A part may be empty.

    Args:
        stages: the stages in order. Their selectors are lists of names.
        trainable: the names of the layers that are trainable before the first stage.
        epochs: number of epochs of the whole run.
    """
    now, begins = set(trainable), [0, *(stage.at for stage in stages)]
    for number, (begin, end) in enumerate(zip(begins, [*begins[1:], epochs], strict=True)):
        rate = None
        if number:
            stage = stages[number - 1]
            now = (now | set(stage.unfreeze or ())) - set(stage.freeze or ())
            rate = stage.learning_rate
        yield Part(number, begin, end, frozenset(now), rate)


def fit_by_hand(
    model: keras.Model,
    base: list[str],
    run: Iterable[Part],
    compile_model: Callable[[keras.Model, Any], None],
    callbacks: list[keras.callbacks.Callback],
    *data: Any,
    **kwargs: Any,
) -> Logs:
    """Trains the parts of a run one by one. Returns their histories as one.

    Args:
        model: a model that was never compiled.
        base: the names of all layers whose flags the schedule sets.
        run: the parts.
        compile_model: compiles the model with a fresh optimizer of a given rate.
        callbacks: as `fit` takes them.
        *data: data arguments of `fit`.
        **kwargs: further arguments of `fit`.
    """
    logs: Logs = {}
    for part in (part for part in run if part.begin < part.end):
        set_flags(model, base, part.trainable)
        compile_model(model, part.rate)
        kwargs |= {"initial_epoch": part.begin, "epochs": part.end, "verbose": 0}
        done = model.fit(*data, callbacks=[*callbacks, StageLogs(part.number)], **kwargs)
        for key, values in done.history.items():
            logs.setdefault(key, []).extend(values)
    return logs


def set_flags(model: keras.Model, base: list[str], trainable: frozenset[str]) -> None:
    """Sets the layers' flags, and turns off a frozen Dropout, which Keras leaves on."""
    for layer in model._flatten_layers():
        if layer.name in base:
            layer.trainable = layer.name in trainable
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.5 if layer.trainable else 0.0


class StageLogs(keras.callbacks.Callback):
    """Adds keras_freeze's logs to those of a plain `fit`."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number

    def on_epoch_end(self, epoch, logs=None):
        logs["stage"] = self.number
        shapes = [variable.shape for variable in self.model.trainable_variables]
        logs["trainable_params"] = sum(int(keras.ops.prod(shape)) for shape in shapes)
        logs.update(learning_rates(self.model.optimizer))


def learning_rates(optimizer: keras.optimizers.Optimizer) -> dict[str, float]:
    """Returns the learning rates by the names in the logs."""
    members = getattr(optimizer, "optimizers", None)
    named = {f"learning_rate_{member.name}": member for member in members or ()}
    named = named or {"learning_rate": optimizer}
    return {
        name: float(keras.ops.convert_to_numpy(one.learning_rate)) for name, one in named.items()
    }
