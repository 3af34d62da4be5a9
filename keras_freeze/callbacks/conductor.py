"""Runs the plan of one `fit`: the only place where schedule, engine and report meet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

from keras_freeze.callbacks.caching import Caching
from keras_freeze.callbacks.checks import at_most_one, check_built, check_optimizer
from keras_freeze.callbacks.clock import StageClock
from keras_freeze.callbacks.ending import warn_of_stop
from keras_freeze.callbacks.plan import (
    Plan,
    make_plan,
    warn_of_unreached,
    warn_of_untrained_head,
)
from keras_freeze.callbacks.rating import Rating
from keras_freeze.callbacks.reporting import describe_base, stage_report, trainable_layers
from keras_freeze.callbacks.stops import Stops
from keras_freeze.callbacks.triggers import Triggers, check_monitors
from keras_freeze.errors import warn
from keras_freeze.graph.tree import LayerTree, count_params, own_variables
from keras_freeze.report.lines import StageReport, ended_early_line
from keras_freeze.training import ages, functions, guard, loop, optimizer, rates
from keras_freeze.training.trainable import (
    apply_flags,
    differ,
    flags_of,
    open_containers,
    restore_flags,
    trained,
)

UNAWARE = (keras.callbacks.History, keras.callbacks.ProgbarLogger)


class Conductor:
    """The state of one `fit`.

    Args:
        callback_list: the list of callbacks of the `fit`.
        model: the model that is fitted.
        ours: the public callbacks in the list.
    """

    def __init__(self, callback_list: Any, model: Any, ours: list[Any]):
        check_optimizer(model)
        functions.build(model, loop.batch_specification())
        check_built(model, LayerTree(model).leaves)
        self.callback_list = callback_list
        self.model = model
        self.freezing = [c for c in ours if c.role == "freeze"]
        self.gradual: Any = at_most_one([c for c in ours if c.role == "schedule"])
        self.recompile: Any = at_most_one([c for c in ours if c.role == "watch"])
        cache = at_most_one([c for c in ours if c.role == "cache"])
        self.stops = Stops(model, [c for c in ours if c.role == "per_stage"], self.gradual)
        self.stages = bool(self.freezing or self.gradual)
        self.plan = self._make_plan()
        self.clock = StageClock(self.plan, self.gradual)
        self.rating = Rating(model, self.plan, self._mode)
        self.changes = 0  # of other callbacks
        self.pending: list[str] = []  # texts that wait until they don't tear the progress bar
        self.triggers = self._make_triggers()
        self.flags = flags_of(self.plan.tree)
        self.trainable = trainable_layers(self.plan.tree)
        self.step = guard.GuardedStep(
            model, self.plan.tree, self.plan.base_leaves, self._find_server
        )
        self.caching: Caching | None = None
        if cache is not None:
            self.caching = Caching(
                cache,
                model,
                self.plan,
                self.epochs,
                early=bool(self.stops),
                in_threads=loop.tests_in_threads(callback_list),
            )
        # Flags can change between two steps only if another callback has hooks there.
        self.watched = loop.acting_hooks(callback_list, UNAWARE) if self.recompile else set()

    def _make_plan(self) -> Plan:
        schedule = self.gradual.schedule if self.gradual else None
        asked = [c.batch_norm for c in (*self.freezing, self.gradual) if c is not None]
        plan = make_plan(
            self.model,
            [callback.base for callback in self.freezing],
            schedule,
            self.gradual.base if self.gradual else None,
            "train" if "train" in asked else "freeze",
        )
        if schedule is not None and self.epochs is not None and not self.stops:
            warn_of_unreached(schedule, self.epochs)
        return plan

    def _make_triggers(self) -> Triggers | None:
        schedule = self.plan.schedule
        if schedule is None:
            return None
        known = loop.known_logs(self.model, self.callback_list)
        check_monitors(schedule, known and known | set(self.logs()))
        leaves = self.plan.base_leaves if self.recompile is None else []
        fixed = {id(variable) for leaf in leaves for variable in own_variables(leaf)}
        fixed -= {
            id(v) for flags in self.plan.flags for leaf in leaves for v in trained(leaf, flags)
        }
        return Triggers(schedule, self.clock.begun, self.model, fixed)

    def begin_epoch(self, epoch: int) -> None:
        """Brings the model into the stage that holds in `epoch`."""
        self.stops.begin_epoch()
        if not self.clock.begin_epoch(epoch):
            return
        if not self.clock.is_first:
            self.stops.end_stage()
        asked = self.clock.goes_back()
        self._enter(restored=asked and self.triggers is not None and self.triggers.restore())
        self.stops.begin_stage(self.clock.number)
        if self.triggers is not None:
            self.triggers.enter(self.clock.number)

    def see(self, epoch: int, logs: dict[str, Any]) -> None:
        """Looks at the logs of an epoch, which are complete: does the stage end?"""
        if self.triggers is not None:
            text = self.triggers.see(epoch, logs)
            self.pending += [text] if text and self.gradual.verbose else []

    def _enter(self, *, restored: bool) -> None:
        number, before_it = self.clock.number, self.clock.before
        stage, first = self.clock.stage, self.clock.is_first
        modes = {self._mode(each) for each in self.clock.passed()}
        mode = "reset" if "reset" in modes else self._mode(stage)
        if first and stage is not None:
            self._warn_of_untrained_head()
        if first and "carry" in self._modes():
            functions.check_carry(self.model)
        before = self.trainable
        functions.sync(self.model)
        with self._all_or_nothing():
            trained_before = set(map(id, self.model.trainable_variables))
            changed = apply_flags(self.plan.tree, self.plan.flags[number])
            # A fit that goes on in the middle of a stage goes on with the optimizer that it has.
            begins = self.clock.begins() or self.clock.epoch == 0
            others = trained_before != set(map(id, self.model.trainable_variables))
            reset = mode == "reset" and (not first or (begins and others))
            new_functions = self.rating.set_rates(number, before_it)
            # Another callback may have set the flags of this stage before.
            stale = not functions.is_in_step(self.model)
            made = changed or reset or new_functions or stale or restored
            if made:
                mode_now = "reset" if reset else "carry"
                functions.take_effect(self.model, mode_now, in_fit=not first)
            new_paces = self._set_paces()
            if made:
                self._note_change()
            elif first or new_paces:
                self._refresh(made=False)
        if self._is_shown(stage):
            did = {"reset": "reset", "carry": "carried over"}[mode] if not first else ""
            at = f" (at={stage.at})" if stage is not None else ""
            title, when = f"{self.plan.title(number)}{at}", f"from {self.when}"
            base = describe_base(self.plan) if first else ""
            print(self._report(title, when, before, did, base), flush=True)

    def heed_stops(self) -> None:
        """A PerStage's stop ends the stage; the run, if it is the last. Another's ends the run."""
        askers = self.stops.askers()
        if not askers or self.model.stop_training:
            return
        planned = self.clock.epoch + 1 == self.epochs or self.clock.ends_as_planned()
        if not self.clock.end_stage():
            self.model.stop_training = True
        elif self.gradual.verbose and not planned:
            title = self.plan.title(self.clock.number)
            self.pending.append(ended_early_line(title, self.when, askers))

    def _warn_of_untrained_head(self) -> None:
        """Layers of the base are trained from the start, and the optimizer never made a step."""
        stage, flags = self.plan.stage(1), self.plan.flags[1]
        unfrozen = any(flags.get(id(leaf)) for leaf in self.plan.base_leaves)
        untrained = not any(map(ages.updates, optimizer.leaves(self.model.optimizer)))
        if stage is not None and unfrozen and self.clock.epoch == 0 and untrained:
            warn_of_untrained_head(stage)

    def _set_paces(self) -> bool:
        """Sets the share of the rate that each variable gets; True if any changed."""
        clock, now = self.clock, self.step.paces
        paces = self.rating.paces(clock.number, clock.before, now, begins=clock.begins())
        changed, self.step.paces = paces != now, paces
        return changed

    def _mode(self, stage: Any) -> str:
        return (stage and stage.optimizer) or (self.gradual.optimizer if self.gradual else "carry")

    def _modes(self) -> set[str]:
        """How the changes of this run may treat the optimizer."""
        modes = {self._mode(stage) for stage in self.plan.schedule or ()}
        return modes | ({self.recompile.optimizer} if self.recompile else set())

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Puts flags and rates back after an interrupted change, as `rebuild` the optimizer."""
        tree = self.plan.tree
        before = flags_of(tree)
        rates_before = rates.rates_of(self.model.optimizer)
        try:
            yield
        except BaseException:
            restore_flags(tree, before)
            rates.set_rates(self.model.optimizer, rates_before)
            raise

    def acts_in(self, hooks: tuple[str, ...]) -> bool:
        """True if another callback may change flags in one of these hooks."""
        return not self.watched.isdisjoint(hooks)

    def before_others_act(self, hooks: tuple[str, ...]) -> None:
        """If they change flags, the values of the running epoch find their variables all the same.

        The values stay where they are: no sync is needed to look at flags.
        """
        if self.acts_in(hooks):
            functions.keep_order(self.model, self.order)

    def settle(self, when: str) -> None:
        """With RecompileOnTrainableChange: a change by another callback takes effect now."""
        if self.recompile is None or not differ(self.flags, flags_of(self.plan.tree)):
            return
        before = self.trainable
        functions.sync(self.model)
        open_containers(self.plan.tree)
        functions.take_effect(self.model, self.recompile.optimizer)
        self.changes += 1
        self._note_change()
        if not self.model.trainable_variables:
            warn("A callback left nothing trainable: no weight changes.")
        if self.recompile.verbose:
            did = {"reset": "reset", "carry": "carried over"}[self.recompile.optimizer]
            title = f"Change {self.changes} of the trainable layers"
            self.pending.append(str(self._report(title, when, before, did)))

    def _note_change(self) -> None:
        self.flags = flags_of(self.plan.tree)
        self.trainable = trainable_layers(self.plan.tree)
        self._refresh(made=True)

    def _refresh(self, *, made: bool) -> None:
        """The steps follow the flags as they are now."""
        self.step.refresh(made=made, server=self._find_server())
        if self.watched:
            self.order = functions.variable_order(self.model)

    def _find_server(self) -> guard.Server | None:
        if self.caching is None:
            return None
        self.caching.follow(self.clock.number)
        return self.caching.server

    def begin_data(self) -> None:
        """Before the data of an epoch begin to flow, after all that other callbacks did."""
        self.rating.tell_of_others(self.clock.number)
        if self.caching is not None:
            self.pending += filter(None, [self.caching.begin_data(self.step)])

    def end_data(self) -> None:
        """The epoch and its validation are over."""
        if self.caching is not None:
            self.pending += filter(None, [self.caching.end_data(self.clock.epoch)])

    def logs(self) -> dict[str, float]:
        """What every epoch's logs carry: numbers, so that any logger shows them."""
        if not self.stages:
            return {}  # a run without stages looks as it does without us
        return {
            "stage": self.clock.number,
            "trainable_params": count_params(self.model.trainable_variables),
            **self.rating.logs(),
        }

    def show(self) -> None:
        """Prints what waited."""
        for text in self.pending:
            print(text, flush=True)
        self.pending.clear()

    def end(self, logs: dict[str, Any]) -> None:
        """The fit is over; `logs` are those of its last epoch."""
        self.show()
        self.keep_rates()
        callbacks = loop.all_callbacks(self.callback_list)
        stopped = warn_of_stop(self.clock, self.epochs, callbacks, logs)
        if self.triggers is not None and not stopped:
            self.triggers.end()
        if self.caching is not None:
            self.caching.cache.close()

    def keep_rates(self) -> None:
        """Whatever other callbacks make of the rates, the next `fit` begins at the original."""
        self.rating.keep_original()

    def _is_shown(self, stage: Any) -> bool:
        by_freezing = stage is None and any(callback.verbose for callback in self.freezing)
        return by_freezing or bool(self.gradual and self.gradual.verbose)

    @property
    def epochs(self) -> int | None:
        """Of the `fit`, if known."""
        return (self.callback_list.params or {}).get("epochs")

    @property
    def when(self) -> str:
        """The epoch as people count it."""
        return f"epoch {self.clock.epoch + 1}" + (f"/{self.epochs}" if self.epochs else "")

    def _report(
        self, title: str, when: str, before: set[int], optimizer_did: str, base: str = ""
    ) -> StageReport:
        return stage_report(
            self.model,
            self.plan,
            title,
            when,
            before,
            self.trainable,
            self.rating.logs(),
            optimizer_did,
            base,
        )
