"""PerStage: restarts any Keras callback at each stage of a schedule."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import keras

from keras_freeze.errors import FreezeError, names_unknown
from keras_freeze.fit_engine.first_and_last_callbacks import PublicCallback
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


class PerStage(PublicCallback):
    """Restarts any Keras callback at each stage, as if each stage were a separate `fit`.

    At the beginning of a stage, a new copy of the callback gets `on_train_begin`. At the end of the
    stage, before the next one changes anything, it gets `on_train_end`. So
    `EarlyStopping(restore_best_weights=True)` restores the best weights of the stage that ends. The
    optimizer isn't restored: a learning rate that `ReduceLROnPlateau` reduced stays, unless the
    next stage sets one or begins with `optimizer="reset"`.

    If the callback asks to stop, the stage ends and the next one begins with the next epoch. Later
    stages keep their epochs. In the last stage, a stop ends the run. A stop by a callback outside
    PerStage ends the run, even if PerStage's callback stops in the same epoch.

    The path of a `ModelCheckpoint` may contain `{stage}`, also with a `save_freq` in batches.
    Epochs are those of the run: `EarlyStopping(start_from_epoch=5)` counts from its beginning. A
    later `fit` with `initial_epoch` and the same `GradualUnfreeze` continues with the stages that
    began early. A callback that opens a file does so in each stage: `CSVLogger` keeps only the last
    stage, unless `append=True`.

    Args:
        callback: a Keras callback, which is copied for each stage (without the models, layers,
            weights and optimizers that it refers to). Or, for callbacks that can't be copied, a
            function without arguments that returns one, called for each stage.

    Attributes:
        callback: the copy that runs or ran last; before a `fit`, the given callback.

    Raises:
        FreezeError: `callback` isn't a Keras callback and doesn't return one, is one of
            keras_freeze's, or can't be copied; in `fit`, before the first step: the list has no
            `GradualUnfreeze`.

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
        self.asked = False  # whether it asked to stop in this epoch
        self._number = -1  # number of the running stage
        self._logs: Any = None
        # Define only the hooks of the callback: a batch hook slows down Keras' callback calls.
        for hook in HOOKS:
            if callbacks_of_fit.overrides(self.callback, hook) or hook == "on_epoch_end":
                setattr(self, hook, partial(self._forward, hook))

    def _made(self) -> Any:
        made = self._make()
        _check(made)
        return made

    def begin_stage(self, number: int) -> None:
        """Begins a stage with a new callback, as at the beginning of a `fit`."""
        self.callback = self._made()
        self.callback.set_params(self.params)
        self.callback.set_model(self._model)
        self._number, self._logs, self.asked = number, None, False
        self._forward("on_train_begin")

    def end_stage(self) -> None:
        """Ends a stage, as at the end of a `fit`."""
        self._forward("on_train_end", self._logs)
        self._number = -1

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._number >= 0:  # a `fit` of no epochs begins no stage
            self.end_stage()

    def _forward(self, hook: str, *args: Any, **kwargs: Any) -> None:
        """Calls a hook of the callback, and hides from Keras that it asks to stop."""
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
        if before:  # to set an attribute of a Keras model is slow
            model.stop_training = False
        try:
            getattr(self.callback, hook)(*args, **kwargs)
        finally:
            asks = bool(model.stop_training)
            self.asked |= asks
            if asks != before:
                model.stop_training = before


def _check(callback: Any) -> None:
    ours = isinstance(callback, PublicCallback)
    alone = isinstance(callback, keras.callbacks.Callback) and not isinstance(
        callback, keras.callbacks.CallbackList
    )
    if ours or not alone:
        raise FreezeError(
            "`callback` of PerStage must be one Keras callback, or a function without arguments "
            "that returns one, such as lambda: keras.callbacks.EarlyStopping(patience=3)."
            + (" Callbacks of keras_freeze follow the stages themselves." if ours else "")
            + f" Received: {callback!r} (of type {type(callback).__name__})"
        )


def _copier(callback: Any) -> Callable[[], Any]:
    """Returns a function that copies a callback in its present state, but no part of a model."""
    shared = (keras.Layer, keras.Variable, keras.optimizers.Optimizer)
    held = [one for one in _held_by(callback) if isinstance(one, shared)]

    def copied(original: Any) -> Any:
        return copy.deepcopy(original, {id(one): one for one in held})

    try:
        pristine = copied(callback)
    except Exception as error:
        raise FreezeError(
            f"`callback` of PerStage can't be copied ({type(error).__name__}: {error}). Pass a "
            f"function that returns it: PerStage(lambda: {type(callback).__name__}(...)). "
            f"Received: {callback!r}"
        ) from error
    return partial(copied, pristine)


def _held_by(callback: Any) -> Iterator[Any]:
    """Yields a callback's attributes, and the items of lists, tuples, sets and dicts in them."""
    for value in vars(callback).values():
        yield value
        if isinstance(value, (list, tuple, set)):
            yield from value
        elif isinstance(value, dict):
            yield from value.values()
