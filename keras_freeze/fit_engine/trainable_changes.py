"""Changes what is trainable within a `fit`: flags, optimizer, learning rates, step functions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from keras_freeze.errors import warn
from keras_freeze.feature_cache.cache import FeatureCache
from keras_freeze.fit_engine.cache_lifecycle import Caching
from keras_freeze.fit_engine.describe_stage import trainable_layers
from keras_freeze.fit_engine.stage_clock import StageClock
from keras_freeze.fit_engine.stage_learning_rates import StageLearningRates
from keras_freeze.fit_engine.trainable_plan import Plan
from keras_freeze.keras_internals import learning_rates, step_functions
from keras_freeze.keras_internals.guarded_step_functions import GuardedStep
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
        before: the trainable layers before it, as `trainable_layers` gives them.
        optimizer: how the optimizer was treated, "carry" or "reset".
    """

    before: set[int]
    optimizer: str


class TrainableChanges:
    """The trainable state of one `fit`, and how it changes.

    Args:
        model: the model that is fitted.
        plan: of the fit.
        clock: which stage runs.
        rates: its learning rates.
        caching: its cache, or None.

    Attributes:
        trainable: the layers that train now, as `trainable_layers` gives them.
        step: what Keras calls in place of the model's train function.
    """

    def __init__(
        self,
        model: Any,
        plan: Plan,
        clock: StageClock,
        rates: StageLearningRates,
        caching: Caching | None,
    ):
        self.model = model
        self.plan = plan
        self.clock = clock
        self.rates = rates
        self.caching = caching
        self.flags = flags_of(plan.tree)
        self.trainable = trainable_layers(plan.tree)
        self.step = GuardedStep(model, plan.tree, plan.base_leaves, self._find_server)
        self.order: Any = None  # of the variables, as the values of the running epoch have it

    def enter_stage(self, *, restored: bool) -> Entered:
        """Brings the model into the stage that begins.

        Args:
            restored: the weights were just put back to those of the best epoch.
        """
        clock, before = self.clock, self.trainable
        number, first = clock.number, clock.is_first
        modes = {self.rates.mode(each) for each in clock.passed()}
        mode = "reset" if "reset" in modes else self.rates.mode(clock.stage)
        step_functions.sync(self.model)
        with self._all_or_nothing():
            trained_before = set(map(id, self.model.trainable_variables))
            changed = apply_flags(self.plan.tree, self.plan.flags[number])
            # A fit that goes on in the middle of a stage goes on with the optimizer that it has.
            begins = clock.begins() or clock.epoch == 0
            others = trained_before != set(map(id, self.model.trainable_variables))
            reset = mode == "reset" and (not first or (begins and others))
            new_functions = self.rates.set_rates(number, clock.before)
            # Another callback may have set the flags of this stage before.
            stale = not step_functions.is_in_step(self.model)
            made = changed or reset or new_functions or stale or restored
            if made:
                mode_now = "reset" if reset else "carry"
                step_functions.take_effect(self.model, mode_now, in_fit=not first)
            new_multipliers = self._set_multipliers()
            if made:
                self._note_change()
            elif first or new_multipliers:
                self.refresh(made=False)
        return Entered(before, mode)

    def take_up(self, mode: str) -> bool:
        """A change by another callback takes effect now; False if there is none.

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
            warn("A callback left nothing trainable: no weight changes.")
        return True

    def keep_order(self) -> None:
        """If others change flags, the values of the running epoch still find their variables.

        The values stay where they are: no sync is needed to look at flags.
        """
        step_functions.keep_order(self.model, self.order)

    def refresh(self, *, made: bool) -> None:
        """The steps follow the flags as they are now."""
        self.step.refresh(made=made, server=self._find_server())
        self.order = step_functions.variable_order(self.model)

    def _set_multipliers(self) -> bool:
        """Sets the learning-rate multiplier of each variable; True if any changed."""
        clock, now = self.clock, self.step.multipliers
        new = self.rates.multipliers(clock.number, clock.before, now, begins=clock.begins())
        changed, self.step.multipliers = new != now, new
        return changed

    def _note_change(self) -> None:
        self.flags = flags_of(self.plan.tree)
        self.trainable = trainable_layers(self.plan.tree)
        self.refresh(made=True)

    def _find_server(self) -> FeatureCache | None:
        if self.caching is None:
            return None
        self.caching.follow(self.clock.number)
        return self.caching.server

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Puts flags and rates back after an interrupted change, as `rebuild` the optimizer."""
        tree = self.plan.tree
        before = flags_of(tree)
        rates_before = learning_rates.rates_of(self.model.optimizer)
        try:
            yield
        except BaseException:
            restore_flags(tree, before)
            learning_rates.set_rates(self.model.optimizer, rates_before)
            raise
