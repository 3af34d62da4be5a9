"""PerStage: any Keras callback starts afresh at each stage."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import keras

from keras_freeze.errors import FreezeError, names_unknown
from keras_freeze.fit_engine.first_and_last_callbacks import Participant
from keras_freeze.keras_internals import callbacks_of_fit

# The legacy names too: Keras' `on_train_batch_end` calls `on_batch_end`.
BATCH_HOOKS = tuple(
    f"on_{kind}batch_{when}"
    for kind in ("", "train_", "test_", "predict_")
    for when in ("begin", "end")
)
HOOKS = (
    "on_epoch_begin",
    "on_epoch_end",
    "on_test_begin",
    "on_test_end",
    "on_predict_begin",
    "on_predict_end",
    *BATCH_HOOKS,
)
WITH_STAGE = ("on_batch_end", "on_train_batch_end")


class PerStage(Participant):
    """Starts any Keras callback afresh at each stage, as if each stage were a `fit` of its own.

    At the beginning of a stage a fresh copy of the callback gets `on_train_begin`, at its end
    `on_train_end`, before the next stage changes anything: so
    `EarlyStopping(restore_best_weights=True)` goes back to the best weights of the stage that ends.
    The optimizer isn't put back: a learning rate that `ReduceLROnPlateau` has reduced stays, unless
    the next stage has its own or begins with `optimizer="reset"`.

    A stop that the callback asks for ends the stage: the next one begins with the next epoch. Later
    stages keep the epochs that the schedule gives them. In the last stage a stop ends the run. A
    stop by a callback that isn't in a PerStage ends the run too, in the same epoch as well.

    `{stage}` may stand in the path of a `ModelCheckpoint`, with a `save_freq` in batches too.
    Epochs are those of the run: `EarlyStopping(start_from_epoch=5)` counts from its beginning. A
    later `fit` with `initial_epoch` and the same `GradualUnfreeze` goes on from the early ends.
    A callback that opens a file does so in each stage: `CSVLogger` would keep the last stage only,
    unless `append=True`.

    Args:
        callback: a Keras callback, of which each stage runs a copy (models, layers, weights and
            optimizers that it holds are not copied); or a function without arguments that makes
            one, called again for each stage: for callbacks that can't be copied.

    Attributes:
        callback: the copy that runs, or the one that ran last; before a `fit`, what was given.

    Raises:
        FreezeError: `callback` is no Keras callback and makes none, is one of keras_freeze's, or
            can't be copied; in `fit`, before the first step: no `GradualUnfreeze` is in the list.

    Examples:
        >>> base = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)], name="base")
        >>> model = keras.Sequential([base, keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> x, y = np.ones((8, 4)), np.ones((8, 1))
        >>> stop = keras.callbacks.EarlyStopping("loss", patience=1, min_delta=1e9)
        >>> unfreeze = GradualUnfreeze({5: "all"}, verbose=0)
        >>> history = model.fit(x, y, epochs=9, verbose=0,
        ...                     callbacks=[FreezeBase("base"), unfreeze, PerStage(stop)])
        >>> history.history["stage"]  # the first epoch is better than none, the second isn't
        [0, 0, 1, 1]
    """

    role = "per_stage"

    @names_unknown()
    def __init__(self, callback: keras.callbacks.Callback | Callable[[], Any]):
        super().__init__()
        given = callback if isinstance(callback, keras.callbacks.Callback) else None
        if given is not None or not callable(callback):
            _check(callback)
        self._make = callback if given is None else _copier(given)
        self.callback: Any = self._made() if given is None else given
        self.asked = False  # to stop, since the epoch began
        self._number = -1  # of the stage that runs
        self._logs: Any = None
        # A batch hook that Keras sees turns off its asynchronous calls of callbacks.
        for hook in HOOKS:
            if callbacks_of_fit.overrides(self.callback, hook) or hook == "on_epoch_end":
                setattr(self, hook, partial(self._forward, hook))

    def _made(self) -> Any:
        made = self._make()
        _check(made)
        return made

    def begin_stage(self, number: int) -> None:
        """A fresh callback, as at the beginning of a `fit`."""
        self.callback = self._made()
        self.callback.set_params(self.params)
        self.callback.set_model(self._model)
        self._number, self._logs, self.asked = number, None, False
        self._forward("on_train_begin")

    def end_stage(self) -> None:
        """As at the end of a `fit`."""
        self._forward("on_train_end", self._logs)
        self._number = -1

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._number >= 0:  # a `fit` of no epochs begins no stage
            self.end_stage()

    def _forward(self, hook: str, *args: Any, **kwargs: Any) -> None:
        """Calls a hook of the callback, and keeps to itself whether it asks for a stop."""
        if self._number < 0:
            return
        logs = kwargs.get("logs", args[-1] if args else None)
        if hook == "on_epoch_end":
            self._logs = logs
        if hook in WITH_STAGE:
            kwargs["logs"] = {**(logs or {}), "stage": self._number}
            args = args[:1]
        model = self._model
        before = model.stop_training
        if before:  # Keras' models are slow to set
            model.stop_training = False
        try:
            getattr(self.callback, hook)(*args, **kwargs)
        finally:
            asks = bool(model.stop_training)
            self.asked |= asks
            if asks != before:
                model.stop_training = before


def _check(callback: Any) -> None:
    ours = isinstance(callback, Participant)
    alone = isinstance(callback, keras.callbacks.Callback) and not isinstance(
        callback, keras.callbacks.CallbackList
    )
    if ours or not alone:
        raise FreezeError(
            "`callback` of PerStage must be one Keras callback, or a function without arguments "
            "that makes one, such as lambda: keras.callbacks.EarlyStopping(patience=3)."
            + (" Callbacks of keras_freeze follow the stages themselves." if ours else "")
            + f" Received: {callback!r} (of type {type(callback).__name__})"
        )


def _copier(callback: Any) -> Callable[[], Any]:
    """Returns what makes copies of a callback as it is now; what it holds of a model stays one."""
    shared = (keras.Layer, keras.Variable, keras.optimizers.Optimizer)
    held = [one for one in _held_by(callback) if isinstance(one, shared)]

    def copied(original: Any) -> Any:
        return copy.deepcopy(original, {id(one): one for one in held})

    try:
        pristine = copied(callback)
    except Exception as error:
        raise FreezeError(
            f"`callback` of PerStage can't be copied ({type(error).__name__}: {error}). Pass a "
            f"function that makes it: PerStage(lambda: {type(callback).__name__}(...)). "
            f"Received: {callback!r}"
        ) from error
    return partial(copied, pristine)


def _held_by(callback: Any) -> Iterator[Any]:
    """A callback's attributes, and what stands in those that are containers."""
    for value in vars(callback).values():
        yield value
        if isinstance(value, (list, tuple, set)):
            yield from value
        elif isinstance(value, dict):
            yield from value.values()
