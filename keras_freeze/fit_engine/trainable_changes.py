"""Changes `trainable` within a `fit`; optimizer, learning rates and step functions follow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from keras_freeze.errors import warn
from keras_freeze.fit_engine.ages_after_loading import find_ages
from keras_freeze.fit_engine.cache_lifecycle import CacheLifecycle
from keras_freeze.fit_engine.collect_stage_report import trainable_layers
from keras_freeze.fit_engine.past_stages import find_past
from keras_freeze.fit_engine.rates_after_loading import find_rates
from keras_freeze.fit_engine.stage_clock import StageClock
from keras_freeze.fit_engine.stage_learning_rates import StageLearningRates
from keras_freeze.fit_engine.trainable_plan import Plan
from keras_freeze.keras_internals import learning_rates, step_functions
from keras_freeze.keras_internals.replace_step_functions import GuardedStep, Server
from keras_freeze.keras_internals.trainable_flags import (
    apply_flags,
    differ,
    flags_of,
    open_containers,
    restore_flags,
)


class Entered(NamedTuple):
    """What happened when a stage began.

    Attributes:
        before: the trainable layers before it, as `trainable_layers` returns them.
        optimizer: how the optimizer was treated, "carry" or "reset".
    """

    before: set[int]
    optimizer: str


class TrainableChanges:
    """The trainable state of one `fit`, and how it changes.

    Args:
        model: the model that is fitted.
        plan: which layers are trainable in which stage.
        clock: which stage runs.
        rates: the learning rates of the fit.
        caching: the cache of the fit, or None.

    Attributes:
        trainable: the layers that are trained now, as `trainable_layers` returns them.
        step: replaces the model's train function.
    """

    def __init__(
        self,
        model: Any,
        plan: Plan,
        clock: StageClock,
        rates: StageLearningRates,
        caching: CacheLifecycle | None,
    ):
        self.model = model
        self.plan = plan
        self.clock = clock
        self.rates = rates
        self.caching = caching
        self.flags = flags_of(plan.tree)
        self.trainable = trainable_layers(plan.tree)
        self.step = GuardedStep(model, plan.tree, plan.base_leaves, self._find_server)
        self.order: Any = None  # order of the variables in the values of the running epoch

    def continue_loaded_run(self, *, ends_early: bool) -> None:
        """Finds ages, rates and warm-ups if this fit continues a run of another process.

        Args:
            ends_early: whether other callbacks end stages, see `PerStage`.
        """
        clock, rates = self.clock, self.rates
        past = find_past(self.model, self.plan, clock, rates.mode, ends_early=ends_early)
        if past is None:
            return
        clock.loaded = past.last
        self.step.multipliers = find_ages(self.model, past)
        loaded = learning_rates.rates_of(self.model.optimizer)
        rates.continue_from(*find_rates(self.plan, past.last, loaded, rates.resets))

    def enter_stage(self, *, restored: bool) -> Entered:
        """Changes the model to the stage that begins.

        Args:
            restored: whether the weights of the best epoch were just restored.
        """
        clock, before = self.clock, self.trainable
        number, first = clock.number, clock.is_first
        modes = {self.rates.mode(each) for each in clock.passed()}
        mode = "reset" if "reset" in modes else self.rates.mode(clock.stage)
        step_functions.sync(self.model)
        with self._all_or_nothing():
            trained_before = set(map(id, self.model.trainable_variables))
            changed = apply_flags(self.plan.tree, self.plan.flags[number])
            # A fit that continues in the middle of a stage keeps the state of the optimizer.
            begins = clock.begins() or clock.epoch == 0
            others = trained_before != set(map(id, self.model.trainable_variables))
            due = begins and (others or clock.epoch > 0)
            reset = mode == "reset" and (not first or due)
            new_functions = self.rates.set_rates(number, clock.last)
            # Another callback may have set the flags of this stage already.
            stale = not step_functions.is_in_step(self.model)
            made = changed or reset or new_functions or stale or restored
            if made:
                mode_now = "reset" if reset else "carry"
                step_functions.take_effect(self.model, mode_now, in_fit=clock.last >= 0)
            new_multipliers = self._set_multipliers()
            if made:
                self._note_change()
            elif first or new_multipliers:
                self.refresh(made=False)
        return Entered(before, mode)

    def note_restored(self) -> None:
        """Adapts the step functions to flags and an optimizer that a backup has restored."""
        step_functions.make_train_function(self.model)
        self._note_change()

    def take_up(self, mode: str) -> bool:
        """Makes another callback's change take effect; returns False if there is none.

        Args:
            mode: how the optimizer is treated, "carry" or "reset".
        """
        if not differ(self.flags, flags_of(self.plan.tree)):
            return False
        step_functions.sync(self.model)
        open_containers(self.plan.tree)
        step_functions.take_effect(self.model, mode)
        self._note_change()
        if not self.model.trainable_variables:
            warn("A callback left nothing trainable: no weight will change.")
        return True

    def keep_order(self) -> None:
        """Keeps the order of variables, so that the running epoch's values still belong to them.

        Flags can then be read without writing the values back to the variables.
        """
        step_functions.keep_order(self.model, self.order)

    def refresh(self, *, made: bool) -> None:
        """Adapts the step function to the present flags."""
        self.step.refresh(made=made, server=self._find_server())
        self.order = step_functions.variable_order(self.model)

    def _set_multipliers(self) -> bool:
        """Sets the learning-rate multiplier of each variable; returns True if any changed."""
        clock, now = self.clock, self.step.multipliers
        new = self.rates.multipliers(clock.number, clock.last, now, begins=clock.begins())
        changed, self.step.multipliers = new != now, new
        return changed

    def _note_change(self) -> None:
        self.flags = flags_of(self.plan.tree)
        self.trainable = trainable_layers(self.plan.tree)
        self.refresh(made=True)

    def _find_server(self) -> Server | None:
        if self.caching is None:
            return None
        self.caching.follow(self.clock.number)
        return self.caching.server

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Restores flags and rates if a change is interrupted; `rebuild` restores the optimizer."""
        tree = self.plan.tree
        before = flags_of(tree)
        rates_before = learning_rates.rates_of(self.model.optimizer)
        try:
            yield
        except BaseException:
            restore_flags(tree, before)
            learning_rates.set_rates(self.model.optimizer, rates_before)
            raise
