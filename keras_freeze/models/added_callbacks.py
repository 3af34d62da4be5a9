"""Adds the callbacks of a `TransferModel` to those that the user passes to `fit`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras

from keras_freeze.fit_engine.first_and_last_callbacks import PublicCallback
from keras_freeze.keras_internals import callbacks_of_fit


def add_ours(callbacks: Any, ours: Iterable[PublicCallback], model: Any) -> Any:
    """Returns the callbacks of a `fit` with ours after them; `callbacks` isn't changed.

    Args:
        callbacks: the argument of `fit`: None, a callback, a list, or a
            `keras.callbacks.CallbackList`.
        ours: callbacks with different roles; skipped if the user passes one with the same role.
        model: the model that is fitted.
    """
    ready = isinstance(callbacks, keras.callbacks.CallbackList)
    given = callbacks if ready else keras.callbacks.CallbackList(callbacks)
    known = [
        each for each in callbacks_of_fit.all_callbacks(given) if isinstance(each, PublicCallback)
    ]
    roles = {callback.role for callback in known}
    joined = [*given.callbacks, *(mine for mine in ours if mine.role not in roles)]
    if not ready:
        return joined
    # Keras doesn't set model and parameters of the callbacks in a CallbackList.
    return keras.callbacks.CallbackList(joined, model=model, **(given.params or {}))
