"""Prints the lines about stages in a `fit`, at times that don't break the progress bar."""

from __future__ import annotations

from typing import Any

from keras_freeze.display.fit_messages import ended_early_line
from keras_freeze.fit_engine.collect_stage_report import describe_base, stage_report
from keras_freeze.fit_engine.trainable_plan import Plan

DID = {"reset": "reset", "carry": "carried over"}


class Announcements:
    """The printed lines of one `fit`.

    Args:
        model: the model that is fitted.
        plan: which layers are trainable in which stage.
        epochs: number of epochs of the fit, if known.
        freezing: its FreezeBase callbacks.
        gradual: its GradualUnfreeze, or None.
        recompile: its RecompileOnTrainableChange, or None.
    """

    def __init__(
        self,
        model: Any,
        plan: Plan,
        epochs: int | None,
        freezing: list[Any],
        gradual: Any,
        recompile: Any,
    ):
        self.model = model
        self.plan = plan
        self.epochs = epochs
        self.freezing = freezing
        self.gradual = gradual
        self.recompile = recompile
        self.changes = 0  # number of changes by other callbacks
        self.waiting: list[str] = []

    def add(self, text: str, *, verbose: bool = True) -> None:
        """Saves a text to print when the progress bar allows it."""
        if text and verbose:
            self.waiting.append(text)

    def show(self) -> None:
        """Prints the saved texts."""
        for text in self.waiting:
            print(text, flush=True)
        self.waiting.clear()

    def stage_begins(
        self,
        number: int,
        epoch: int,
        before: set[int],
        now: set[int],
        rates: dict[str, float],
        optimizer: str | None,
    ) -> None:
        """Prints the lines of a stage immediately.

        Args:
            number: number of the stage.
            epoch: epoch in which it begins.
            before: the trainable layers before it, as `trainable_layers` returns them.
            now: the trainable layers of the stage.
            rates: the learning rates, as in the logs.
            optimizer: "carry" or "reset"; None in the first stage of a fit, whose lines name the
                base.
        """
        stage = self.plan.stage(number)
        if not self._is_shown(stage):
            return
        at = f" (at={stage.at})" if stage is not None else ""
        did = DID[optimizer] if optimizer else ""
        base = "" if optimizer else describe_base(self.plan)
        title, when = f"{self.plan.title(number)}{at}", f"from {self.when(epoch)}"
        args = self.model, self.plan, title, when, before, now, rates, did, base
        print(stage_report(*args), flush=True)

    def _is_shown(self, stage: Any) -> bool:
        by_freezing = stage is None and any(callback.verbose for callback in self.freezing)
        return by_freezing or bool(self.gradual and self.gradual.verbose)

    def others_changed(
        self, when: str, before: set[int], now: set[int], rates: dict[str, float]
    ) -> None:
        """Saves the lines about a change that another callback made."""
        self.changes += 1
        if self.recompile.verbose:
            title, did = f"Change {self.changes} of the trainable layers", DID
            args = self.model, self.plan, title, when, before, now, rates
            self.add(str(stage_report(*args, did[self.recompile.optimizer], "")))

    def stage_ends_early(self, number: int, epoch: int, askers: list[str]) -> None:
        """Saves the line about a stage that PerStage callbacks ended."""
        text = ended_early_line(self.plan.title(number), self.when(epoch), askers)
        self.add(text, verbose=self.gradual.verbose)

    def when(self, epoch: int) -> str:
        """Returns the epoch as the progress bar shows it."""
        return f"epoch {epoch + 1}" + (f"/{self.epochs}" if self.epochs else "")
