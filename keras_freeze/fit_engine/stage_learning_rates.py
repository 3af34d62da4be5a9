"""Sets the learning rate of each stage and the multiplier of each variable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras_freeze.errors import warn
from keras_freeze.fit_engine.learning_rate_multipliers import (
    Multipliers,
    multipliers_of,
    still_rising,
    warmed_up,
)
from keras_freeze.fit_engine.trainable_plan import Plan
from keras_freeze.keras_internals import learning_rates, optimizer_rebuild
from keras_freeze.schedule.stage import Stage


class StageLearningRates:
    """The learning rates of one fit.

    Args:
        model: the model that is fitted.
        plan: which layers are trainable in which stage.
        mode: returns how a stage treats the optimizer, "carry" or "reset".

    Raises:
        ScheduleError: a stage divides or multiplies a learning rate that isn't a number.
    """

    def __init__(self, model: Any, plan: Plan, mode: Callable[[Any], str]):
        self.model = model
        self.plan = plan
        self.mode = mode
        self.rated: Any = None  # the optimizer whose rates are in `_original`
        self.set_now: Any = None  # rates of the stage that begins, until other callbacks ran
        self.has_told = False
        compiled = learning_rates.original_rates(model.optimizer)
        self.shares: learning_rates.Shares = [None] * len(compiled)
        self.has_base_rates = any(
            stage.base_learning_rate is not None for stage in plan.schedule or ()
        )
        if not optimizer_rebuild.is_loaded(model.optimizer):
            self._check(compiled)

    def set_rates(self, number: int, before: int) -> bool:
        """Sets the rate of a stage.

        Args:
            number: number of the stage.
            before: number of the stage that ends, -1 at the beginning of a fit. The rates of
                skipped stages between the two count too.

        Returns:
            True if the step functions must be rebuilt.
        """
        original = self.original()
        if before < 0:  # a callback may have replaced the optimizer
            self.shares = [None] * len(original)
            self._check(original)
        now = original if before < 0 else learning_rates.rates_of(self.model.optimizer)
        wanted, self.shares = self._after(range(max(before, 0) + 1, number + 1), now, original)
        made = learning_rates.rates_of(self.model.optimizer) != wanted
        made = made and learning_rates.set_rates(self.model.optimizer, wanted)
        stage = self.plan.stage(number)
        if stage is not None and stage.learning_rate is not None:
            self.set_now = learning_rates.rates_of(self.model.optimizer)
        return made

    def _after(
        self, numbers: range, now: list[Any], original: list[Any]
    ) -> tuple[list[Any], learning_rates.Shares]:
        """Returns the rates after some stages, and the base's shares of them."""
        shares = self.shares
        for number in numbers:
            stage = self.plan.stage(number)
            if stage is not None:
                now, shares = stage_rates(
                    stage, number, now, shares, original, resets=self.resets(stage)
                )
                now = list(map(learning_rates.stored, now))
        return now, shares

    def _check(self, compiled: list[Any]) -> None:
        """Raises if the rates of a stage can't be computed."""
        self._after(range(1, len(self.plan.schedule or ()) + 1), compiled, compiled)

    def resets(self, stage: Stage) -> bool:
        """Returns True if a stage resets the optimizer."""
        return self.mode(stage) == "reset"

    def continue_from(self, original: list[Any], shares: learning_rates.Shares) -> None:
        """Continues a loaded run, whose optimizer has the rates of the stage that ran last.

        Args:
            original: the compiled rates.
            shares: the base's shares in that stage.
        """
        self.rated, self._original, self.shares = self.model.optimizer, original, shares
        learning_rates.set_original(self.rated, original)

    def logs(self) -> dict[str, float]:
        """Returns the rates now, with the base's if any stage sets one for it."""
        return learning_rates.log_rates(
            self.model.optimizer, self.shares if self.has_base_rates else None
        )

    def original(self) -> list[Any]:
        """Returns the rates set by `compile` or since then; read after all `on_train_begin`."""
        if self.rated is not self.model.optimizer:
            self.rated = self.model.optimizer
            self._original = learning_rates.original_rates(self.rated)
        return self._original

    def keep_original(self) -> None:
        """Saves the original rates, so that the next `fit` begins with them."""
        learning_rates.keep_original(self.model.optimizer, self.original())

    def state(self) -> dict[str, list[Any]]:
        """Returns the rates for a backup; those that aren't numbers follow from the plan."""
        now = learning_rates.rates_of(self.model.optimizer)
        return {
            "original": [rate if isinstance(rate, float) else None for rate in self.original()],
            "now": [rate if isinstance(rate, float) else None for rate in now],
            "shares": list(self.shares),
        }

    def restore(self, number: int, state: dict[str, list[Any]]) -> None:
        """Continues with what `state` returned, in the stage of that number."""
        given = zip(self.original(), state["original"], strict=True)
        self._original = [now if rate is None else rate for now, rate in given]
        self.set_rates(number, -1)  # rates that aren't numbers
        self.shares = list(state["shares"])
        self.set_now = None
        self.assign(state)

    def assign(self, state: dict[str, list[Any]]) -> None:
        """Assigns the rates that are numbers."""
        rates = zip(learning_rates.rates_of(self.model.optimizer), state["now"], strict=True)
        learning_rates.set_rates(
            self.model.optimizer, [now if rate is None else rate for now, rate in rates]
        )

    def tell_of_others(self, number: int) -> None:
        """Warns once if another callback set the rate in the same epoch as a stage."""
        ours, self.set_now = self.set_now, None
        now = learning_rates.rates_of(self.model.optimizer)
        if ours is not None and ours != now and not self.has_told:
            self.has_told = True
            warn(
                f"Another callback has set the learning rate to {_shown(now)} in the epoch in "
                f"which Stage {number} set it to {_shown(ours)}. The callback's rate is used. "
                "Remove one of the two.",
            )

    def multipliers(
        self, number: int, before: int, now: Multipliers, *, begins: bool
    ) -> Multipliers:
        """Returns the multipliers of a stage.

        Args:
            number: number of the stage.
            before: number of the stage that ends, -1 at the beginning of a fit.
            now: the present multipliers.
            begins: False if a fit continues in the middle of the stage.
        """
        if self.plan.schedule is None:
            return {}
        shares = optimizer_rebuild.by_variable(self.model.optimizer, self.shares)
        multipliers = multipliers_of(
            self.plan,
            number,
            self.resets,
            lambda variable: shares.get(id(variable)),
        )
        passed = range(before + 1 if before >= 0 else number, number + 1)
        if before >= 0 and all(self.mode(self.plan.stage(each)) == "carry" for each in passed):
            multipliers = still_rising(multipliers, now)
        for each in passed if begins else ():
            stage = self.plan.stage(each)
            if stage is not None and stage.warmup_steps:
                unfrozen = self.plan.unfrozen(each, each - 1)
                updates = optimizer_rebuild.updates_of(self.model.optimizer)
                multipliers = warmed_up(multipliers, unfrozen, stage.warmup_steps, updates)
        return multipliers


def stage_rates(
    stage: Stage,
    number: int,
    now: list[Any],
    shares: learning_rates.Shares,
    original: list[Any],
    *,
    resets: bool,
) -> tuple[list[Any], learning_rates.Shares]:
    """Returns the learning rates of a stage, and the base's shares of them.

    Args:
        stage: the stage.
        number: its number.
        now: the rates before it.
        shares: the base's shares before it: its rates divided by the optimizer's.
        original: the rates set by `compile`.
        resets: whether the stage resets the optimizer.

    Raises:
        ScheduleError: the stage divides or multiplies a rate that isn't a number, or sets a rate of
            the base while the optimizer's rate begins at 0.
    """
    title = f"{stage.title(number)}: {stage!r}"
    if resets:
        now, shares = original, [None] * len(original)
    now = learning_rates.changed(now, stage.learning_rate, title)
    return now, learning_rates.base_shares(shares, stage.base_learning_rate, now, title)


def _shown(rates_now: list[Any]) -> str:
    return ", ".join(f"{rate:.4g}" if isinstance(rate, float) else repr(rate) for rate in rates_now)
