"""Adds two callbacks to a running `fit`, the first and the last, that call its Conductor.

The public callbacks only hold arguments. The first one that `fit` calls adds the two callbacks and
makes the Conductor for all of them. So the public callbacks may be in any order, and an instance
can be used in a second `fit`: no state of a run is kept on it or on the model.
"""

from __future__ import annotations

from typing import Any

import keras

from keras_freeze.fit_engine.conductor import Conductor
from keras_freeze.keras_internals import callbacks_of_fit


class PublicCallback(keras.callbacks.Callback):
    """Base class of the public callbacks. The first one that is called sets up the run.

    Attributes:
        role: the part of the conductor that uses the callback's arguments.
    """

    role = ""

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        callback_list = callbacks_of_fit.running_callbacks(self)
        if not any(isinstance(callback, First) for callback in callback_list.callbacks):
            ours = [
                c
                for c in callbacks_of_fit.all_callbacks(callback_list)
                if isinstance(c, PublicCallback)
            ]
            conductor = Conductor(callback_list, self.model, ours)
            callbacks_of_fit.enclose(callback_list, First(conductor), Last(conductor))


class First(keras.callbacks.Callback):
    """Runs before all other callbacks: begins stages and completes the logs."""

    def __init__(self, conductor: Conductor):
        super().__init__()
        self.conductor = conductor

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        # If the user passed a CallbackList, a fit that raised left its hooks in it.
        _leave(self.conductor.callback_list)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.conductor.begin_epoch(epoch)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.conductor.reading.begin_step()
        self.conductor.before_others_act(callbacks_of_fit.TRAIN_HOOKS)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.conductor.before_others_act(callbacks_of_fit.TRAIN_END_HOOKS)

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.conductor.stops.go_on()

    def on_test_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.conductor.before_others_act(callbacks_of_fit.TEST_HOOKS)

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.conductor.before_others_act(callbacks_of_fit.TEST_END_HOOKS)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.conductor.stops.go_on()
        if logs is not None:
            logs.update(self.conductor.logs())

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self.conductor.backups is not None:
            self.conductor.backups.begin_end()


class Last(keras.callbacks.Callback):
    """Runs after all other callbacks: their changes take effect right before the step."""

    def __init__(self, conductor: Conductor):
        super().__init__()
        self.conductor = conductor

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.conductor.settle(f"from epoch {epoch + 1}")
        self.conductor.begin_data()
        self.conductor.announcements.show()  # below "Epoch 3/20", above the bar

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if batch == 0 or self.conductor.acts_in(callbacks_of_fit.TRAIN_HOOKS):
            self.conductor.settle(
                f"from step {batch + 1} of epoch {self.conductor.clock.epoch + 1}"
            )
        self.conductor.changes.step.arm()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self.conductor.acts_in(callbacks_of_fit.TRAIN_END_HOOKS):
            self.conductor.settle(
                f"from step {batch + 2} of epoch {self.conductor.clock.epoch + 1}"
            )
        if self.conductor.stops:
            self.conductor.stops.break_off()
        self.conductor.end_step(batch)

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.conductor.settle(f"from the validation of epoch {self.conductor.clock.epoch + 1}")
        self.conductor.begin_validation()

    def on_test_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._settle_in_validation(callbacks_of_fit.TEST_HOOKS)
        if self.conductor.caching is not None:
            self.conductor.caching.arm_test()

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._settle_in_validation(callbacks_of_fit.TEST_END_HOOKS)
        caching = self.conductor.caching
        if caching is not None and not caching.in_threads:
            caching.wake_test_feed()

    def _settle_in_validation(self, hooks: tuple[str, ...]) -> None:
        if self.conductor.acts_in(hooks):
            self.conductor.settle(
                f"within the validation of epoch {self.conductor.clock.epoch + 1}"
            )

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.conductor.settle(f"from the end of epoch {epoch + 1}")
        self.conductor.see(epoch, logs or {})
        self.conductor.end_data()
        self.conductor.heed_stops()
        self.conductor.rates.keep_original()  # here: a `fit` that raises skips `on_train_end`
        self.conductor.back_up()
        self.conductor.announcements.show()  # the progress bar is complete

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.conductor.settle("from the end of the fit")
        self.conductor.end(logs or {})
        _leave(self.conductor.callback_list)


def _leave(callback_list: Any) -> None:
    """Removes First and Last from the list of callbacks."""
    hooks = [c for c in callback_list.callbacks if isinstance(c, (First, Last))]
    callbacks_of_fit.take_out(callback_list, *hooks)
