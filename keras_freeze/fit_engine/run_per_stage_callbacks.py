"""Begins and ends the stages of PerStage callbacks, and reads their `stop_training`.

Keras has one flag, `model.stop_training`, and doesn't record who set it. PerStage hides the stop of
its callback from Keras. So a flag that is set comes from another callback, and ends the run.
"""

from __future__ import annotations

from typing import Any, Protocol

from keras_freeze.fit_engine.preconditions import check_has_stages

Model = Any


class Staged(Protocol):
    """The part of PerStage that is used here, as a type."""

    callback: Any
    asked: bool

    def begin_stage(self, number: int) -> None: ...

    def end_stage(self) -> None: ...


class Stops:
    """The PerStage callbacks of one `fit`, and the stops that they ask for.

    Args:
        model: the model that is fitted.
        callbacks: the PerStage callbacks.
        gradual: the GradualUnfreeze whose stages they follow.

    Raises:
        FreezeError: there are PerStage callbacks but no GradualUnfreeze.
    """

    def __init__(self, model: Model, callbacks: list[Staged], gradual: Any):
        check_has_stages(callbacks, gradual)
        self.model = model
        self.callbacks = callbacks
        self.broke_off = False
        self.ended_early = False  # the running epoch

    def __bool__(self) -> bool:
        return bool(self.callbacks)

    def end_stage(self) -> None:
        """Ends the stage of each callback, before the next stage changes anything."""
        for callback in self.callbacks:
            callback.end_stage()

    def begin_stage(self, number: int) -> None:
        """Begins a stage of each callback, after flags and optimizer were set."""
        for callback in self.callbacks:
            callback.begin_stage(number)

    def break_off(self) -> None:
        """Sets Keras' flag after a step if a callback asked to stop, so that the epoch ends."""
        if self.askers() and not self.model.stop_training:
            self.model.stop_training = self.broke_off = self.ended_early = True

    def go_on(self) -> None:
        """Clears Keras' flag once the epoch's steps have ended, for other callbacks."""
        if self.broke_off:
            self.model.stop_training = self.broke_off = False

    def begin_epoch(self) -> None:
        """Clears the stops of the last epoch."""
        self.ended_early = False
        for callback in self.callbacks:
            callback.asked = False

    def askers(self) -> list[str]:
        """Returns the class names of callbacks that asked to stop in this epoch."""
        return [type(each.callback).__name__ for each in self.callbacks if each.asked]
