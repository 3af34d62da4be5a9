"""The hooks of one `fit`: where in the list of callbacks the conductor is called.

The public callbacks hold arguments. The first of them that `fit` calls puts two hooks into the
running list of callbacks, one before and one after all others, and one conductor behind both. So
the callbacks may stand in any order, any number of them share one engine, and an instance can be
used in a second `fit`: nothing of a run is kept on it, nor on the model.
"""

from __future__ import annotations

from typing import Any

import keras

from keras_freeze.fit_engine.conductor import Conductor
from keras_freeze.keras_internals import callbacks_of_fit


class Participant(keras.callbacks.Callback):
    """What the public callbacks share: the first one called sets up the run for all.

    Attributes:
        role: which of the conductor's parts the callback's arguments are for.
    """

    role = ""

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        callback_list = callbacks_of_fit.running_callbacks(self)
        if not any(isinstance(callback, First) for callback in callback_list.callbacks):
            ours = [
                c
                for c in callbacks_of_fit.all_callbacks(callback_list)
                if isinstance(c, Participant)
            ]
            conductor = Conductor(callback_list, self.model, ours)
            callbacks_of_fit.enclose(callback_list, First(conductor), Last(conductor))


class First(keras.callbacks.Callback):
    """Before every other callback: the stage begins, the logs are completed."""

    def __init__(self, conductor: Conductor):
        super().__init__()
        self.conductor = conductor

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        # A fit that raised has left this hook over, in a CallbackList of the user's.
        _leave(self.conductor.callback_list)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.conductor.begin_epoch(epoch)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
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


class Last(keras.callbacks.Callback):
    """Behind every other callback: sees what they changed, right before the step."""

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
        self.conductor.rates.keep_original()  # now: a `fit` that raises never comes to its end
        self.conductor.announcements.show()  # the bar is done

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.conductor.settle("from the end of the fit")
        self.conductor.end(logs or {})
        _leave(self.conductor.callback_list)


def _leave(callback_list: Any) -> None:
    """Takes the hooks out of the list of callbacks."""
    hooks = [c for c in callback_list.callbacks if isinstance(c, (First, Last))]
    callbacks_of_fit.take_out(callback_list, *hooks)
