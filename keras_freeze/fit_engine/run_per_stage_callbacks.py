"""The PerStage callbacks of one fit: when their stages begin and end, and what a stop does.

Keras has one flag, `model.stop_training`, and doesn't say who set it. A PerStage keeps to itself
what its callback asks for; whatever stands in the flag then comes from others, and ends the run.
"""

from __future__ import annotations

from typing import Any, Protocol

from keras_freeze.fit_engine.preconditions import check_has_stages

Model = Any


class Staged(Protocol):
    """What is asked of a PerStage."""

    callback: Any
    asked: bool

    def begin_stage(self, number: int) -> None: ...

    def end_stage(self) -> None: ...


class Stops:
    """What the PerStage callbacks of one `fit` ask for.

    Args:
        model: the model that is fitted.
        callbacks: the PerStage callbacks.
        gradual: the GradualUnfreeze whose stages they follow.

    Raises:
        FreezeError: there is none.
    """

    def __init__(self, model: Model, callbacks: list[Staged], gradual: Any):
        check_has_stages(callbacks, gradual)
        self.model = model
        self.callbacks = callbacks
        self.broke_off = False

    def __bool__(self) -> bool:
        return bool(self.callbacks)

    def end_stage(self) -> None:
        """Before the next stage changes anything."""
        for callback in self.callbacks:
            callback.end_stage()

    def begin_stage(self, number: int) -> None:
        """The flags and the optimizer are those of the stage."""
        for callback in self.callbacks:
            callback.begin_stage(number)

    def break_off(self) -> None:
        """After a training step: with Keras' flag set, the epoch ends here."""
        if self.askers() and not self.model.stop_training:
            self.model.stop_training = self.broke_off = True

    def go_on(self) -> None:
        """The steps of the epoch are over: the flag is there for other callbacks again."""
        if self.broke_off:
            self.model.stop_training = self.broke_off = False

    def begin_epoch(self) -> None:
        """A stop that was asked for has had its effect."""
        for callback in self.callbacks:
            callback.asked = False

    def askers(self) -> list[str]:
        """Returns the kinds of callbacks that have asked for a stop in this epoch."""
        return [type(each.callback).__name__ for each in self.callbacks if each.asked]
