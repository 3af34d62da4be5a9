"""Finds the list of callbacks of the running `fit`, and adds a first and a last callback to it.

The result must not depend on the order of the user's callbacks. A stage must begin before any
other callback sees the epoch, changes by other callbacks must be noticed after all of them, and
the logs must be complete before CSVLogger reads them. So the first and the last callback do the
work, and the public callbacks may stand anywhere in the list. Keras gives a callback no reference
to the list; it is the `self` of the frame that calls the hook.

Names used here were tried on Keras 3.12.0 and 3.15.1: `CallbackList.callbacks`, `_async_train`,
`_async_test`, the local variable `epoch_iterator` of `fit`, `TFEpochIterator._distributed_dataset`,
`Trainer._eval_epoch_iterator`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import keras

from keras_freeze.errors import FreezeError

TRAIN_HOOKS = ("on_train_batch_begin", "on_batch_begin")
TRAIN_END_HOOKS = ("on_train_batch_end", "on_batch_end")
TEST_HOOKS = ("on_test_batch_begin",)
TEST_END_HOOKS = ("on_test_batch_end",)


def running_callbacks(callback: Any) -> Any:
    """Returns the `keras.callbacks.CallbackList` of the `fit` that is calling `callback`.

    For a list inside a list it returns the outer one, as that has the logs of `fit`.
    """
    owners = [names.get("self") for names in _locals_below_fit()]
    lists = [owner for owner in owners if isinstance(owner, keras.callbacks.CallbackList)]
    if lists:
        return lists[-1]
    raise FreezeError(
        f"{type(callback).__name__} works inside `model.fit(..., callbacks=[...])`, or in a "
        "`keras.callbacks.CallbackList`. It was called without one."
    )


def batch_specification() -> Any:
    """Returns shapes and dtypes of the batches of the running `fit`, on TensorFlow; else None.

    Taking a batch instead would remove it from training, or change how the next ones are shuffled.
    """
    dataset = getattr(epoch_iterator(), "_distributed_dataset", None)
    return getattr(dataset, "element_spec", None)


def epoch_iterator() -> Any:
    """Returns the iterator over training batches of the running `fit`; None if there is none."""
    *_, names = _locals_below_fit()
    return names.get("epoch_iterator")


def evaluation_iterator(model: Any) -> Any:
    """Returns the iterator over validation batches of the running `fit`; None if there is none."""
    return getattr(model, "_eval_epoch_iterator", None)


def known_logs(model: Any, callback_list: Any) -> set[str] | None:
    """Returns the names that will be in the epoch logs of this `fit`.

    Returns None if they aren't known: custom train steps and callbacks may log anything.
    """
    own = [getattr(type(model), name) for name in ("train_step", "test_step", "compute_metrics")]
    callbacks = [getattr(each, "callback", each) for each in all_callbacks(callback_list)]
    if any(isinstance(each, keras.callbacks.LambdaCallback) for each in callbacks):
        return None
    own += [type(callback) for callback in callbacks]  # PerStage holds another one
    ours = ("keras", __package__.split(".")[0])
    if any(each.__module__.split(".")[0] not in ours for each in own):
        return None
    if model._compile_metrics is not None and not model._compile_metrics.built:
        batch = batch_specification()
        if batch is None:
            return None
        model._symbolic_build(data_batch=batch)  # TensorFlow would do it in the first step
    names = set(model.get_metrics_result())
    if validates():
        names |= {f"val_{name}" for name in names}
    return names


def validates() -> bool:
    """True if the running `fit` has validation data."""
    *_, fit = _locals_below_fit()
    return fit.get("validation_data") is not None or bool(fit.get("validation_split"))


def _locals_below_fit() -> Iterator[dict[str, Any]]:
    """Yields the local variables of the running functions, from the innermost one up to `fit`."""
    frame = inspect.currentframe()
    while frame is not None:
        yield frame.f_locals
        # Not `keras.Model`: a layer of one's own may inherit from Keras' trainer alone.
        if hasattr(type(frame.f_locals.get("self")), "make_train_function"):
            return
        frame = frame.f_back


def all_callbacks(callback_list: Any) -> list[Any]:
    """Returns the callbacks of a list and of the lists inside it."""
    found = []
    for callback in callback_list.callbacks:
        inner = isinstance(callback, keras.callbacks.CallbackList)
        found += all_callbacks(callback) if inner else [callback]
    return found


def enclose(callback_list: Any, first: Any, last: Any) -> None:
    """Adds `first` and `last` around the callbacks. Safe while the list is being called."""
    callback_list.callbacks = [first, *callback_list.callbacks, last]


def take_out(callback_list: Any, *callbacks: Any) -> None:
    """Removes callbacks from the list. Safe while the list is being called."""
    callback_list.callbacks = [c for c in callback_list.callbacks if c not in callbacks]


def acting_hooks(callback_list: Any, known: tuple[type, ...]) -> set[str]:
    """Returns the batch hooks of the callbacks that aren't of a `known` type.

    Hooks that Keras calls from a pool of threads are left out: they must not change the model.
    """
    hooks = [*TRAIN_HOOKS, *(() if callback_list._async_train else TRAIN_END_HOOKS)]
    hooks += [*TEST_HOOKS, *(() if callback_list._async_test else TEST_END_HOOKS)]
    others = [c for c in all_callbacks(callback_list) if not isinstance(c, known)]
    return {hook for hook in hooks if any(overrides(callback, hook) for callback in others)}


def acts_on_batches(callback_list: Any, kind: str) -> bool:
    """Returns True if a callback must be called after each batch.

    Args:
        callback_list: Keras' list of the callbacks of the `fit`.
        kind: "train" or "test".
    """
    hooks = TRAIN_HOOKS + TRAIN_END_HOOKS if kind == "train" else TEST_HOOKS + TEST_END_HOOKS
    acting = [c for c in all_callbacks(callback_list) if any(overrides(c, hook) for hook in hooks)]
    return not all(map(_ignores_batches, acting))


def _ignores_batches(callback: Any) -> bool:
    """Returns True for Keras' callbacks whose batch hooks only show or count, or do nothing."""
    savers = (keras.callbacks.ModelCheckpoint, keras.callbacks.BackupAndRestore)
    if type(callback) in savers:
        return bool(callback.save_freq == "epoch")
    return type(callback) in (keras.callbacks.History, keras.callbacks.ProgbarLogger)


def tests_in_threads(callback_list: Any) -> bool:
    """True if Keras calls the hooks at the end of a validation batch from a pool of threads."""
    return bool(callback_list._async_test)


def overrides(callback: Any, hook: str) -> bool:
    """True if a callback overrides a hook."""
    inherited = getattr(keras.callbacks.Callback, hook)
    return getattr(getattr(callback, hook), "__func__", None) is not inherited
