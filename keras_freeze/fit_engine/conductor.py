"""Controls one `fit`: decides at each event what happens in which order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras

from keras_freeze.fit_engine.announcements import Announcements
from keras_freeze.fit_engine.cache_lifecycle import CacheLifecycle
from keras_freeze.fit_engine.early_stop_warning import warn_of_stop
from keras_freeze.fit_engine.make_plan import plan_of_callbacks
from keras_freeze.fit_engine.plan_checks import warn_of_untrained_head
from keras_freeze.fit_engine.plateau_stage_starts import Triggers, make_triggers
from keras_freeze.fit_engine.preconditions import (
    at_most_one,
    check_built,
    check_no_keras_backup,
    check_optimizer,
)
from keras_freeze.fit_engine.reading_time import ReadingTime
from keras_freeze.fit_engine.run_per_stage_callbacks import Stops
from keras_freeze.fit_engine.stage_clock import StageClock
from keras_freeze.fit_engine.stage_learning_rates import StageLearningRates
from keras_freeze.fit_engine.trainable_changes import TrainableChanges
from keras_freeze.graph.layer_tree import LayerTree, count_params
from keras_freeze.keras_internals import (
    callbacks_of_fit,
    optimizer_rebuild,
    replayed_batches,
    step_functions,
    variable_ages,
)

if TYPE_CHECKING:
    from keras_freeze.fit_engine.backups import Backups

UNAWARE = (keras.callbacks.History, keras.callbacks.ProgbarLogger)


class Conductor:
    """Controls one `fit`: calls its parts in the right order.

    It decides when a stage begins or ends, when a change by another callback takes effect, and
    what the logs contain. Its parts do the work and hold the state: the plan (which layers are
    trainable in which stage), the clock (which stage runs), the triggers and the PerStage callbacks
    (when a stage ends), the changes (flags, optimizer, rates and step functions), the cache, and
    the announcements.

    Args:
        callback_list: Keras' list of the callbacks of the `fit`.
        model: the model that is fitted.
        ours: the public callbacks in the list.
    """

    def __init__(self, callback_list: Any, model: Any, ours: list[Any]):
        check_optimizer(model)
        check_no_keras_backup(model, callbacks_of_fit.all_callbacks(callback_list), ours)
        step_functions.build(model, callbacks_of_fit.batch_specification())
        check_built(model, LayerTree(model).leaves)
        self.callback_list = callback_list
        self.model = model
        self.epochs: int | None = (callback_list.params or {}).get("epochs")
        self.freezing = [c for c in ours if c.role == "freeze"]
        self.gradual: Any = at_most_one([c for c in ours if c.role == "schedule"])
        self.recompile: Any = at_most_one([c for c in ours if c.role == "watch"])
        cache = at_most_one([c for c in ours if c.role == "cache"])
        self.stops = Stops(model, [c for c in ours if c.role == "per_stage"], self.gradual)
        epochs = None if self.stops else self.epochs  # stages may begin earlier than planned
        self.plan = plan_of_callbacks(model, self.freezing, self.gradual, epochs)
        self.clock = StageClock(self.plan, self.gradual)
        self.rates = StageLearningRates(model, self.plan, self._mode)
        self.triggers = self._make_triggers()
        self.caching = self._make_caching(cache)
        self.reading = ReadingTime()
        self.changes = TrainableChanges(model, self.plan, self.clock, self.rates, self.caching)
        told_by = self.freezing, self.gradual, self.recompile
        self.announcements = Announcements(model, self.plan, self.epochs, *told_by)
        # Flags can change between two steps only in the hooks of other callbacks.
        acting = callbacks_of_fit.acting_hooks(callback_list, UNAWARE)
        self.watched = acting if self.recompile else set()
        self.backups = self._make_backups(ours)

    def _make_triggers(self) -> Triggers | None:
        known = callbacks_of_fit.known_logs(self.model, self.callback_list)
        known = known and known | set(self.logs())
        # With RecompileOnTrainableChange, other callbacks may train any layer.
        is_final = self.recompile is None
        return make_triggers(self.model, self.plan, self.clock.begun, known, is_final=is_final)

    def _make_caching(self, callback: Any) -> CacheLifecycle | None:
        if callback is None:
            return None
        in_threads = callbacks_of_fit.tests_in_threads(self.callback_list)
        early = bool(self.stops)
        acts = callbacks_of_fit.acts_on_batches
        alone = {kind: not acts(self.callback_list, kind) for kind in ("train", "test")}
        args = callback, self.model, self.plan, self.epochs
        return CacheLifecycle(*args, early=early, in_threads=in_threads, alone=alone)

    def _make_backups(self, ours: list[Any]) -> Backups | None:
        callback = at_most_one([c for c in ours if c.role == "backup"])
        if callback is None:
            return None
        from keras_freeze.fit_engine.make_backups import make_backups  # pydantic takes long

        return make_backups(callback, self, ours)

    def begin_epoch(self, epoch: int) -> None:
        """Changes the model to the stage of this epoch."""
        if self.backups is not None:
            self.backups.begin_epoch()
        self.stops.begin_epoch()
        if not self.clock.begin_epoch(epoch):
            return
        if self.clock.is_first:
            self._check_first_stage()
        else:
            self.stops.end_stage()
        asked = self.clock.goes_back()
        restored = asked and self.triggers is not None and self.triggers.restore()
        before, mode = self.changes.enter_stage(restored=restored)
        optimizer = None if self.clock.is_first else mode
        layers = before, self.changes.trainable
        self.announcements.stage_begins(
            self.clock.number, epoch, *layers, self.rates.logs(), optimizer
        )
        self.stops.begin_stage(self.clock.number)
        if self.backups is not None:
            self.backups.state.callbacks.follow()
        if self.triggers is not None:
            self.triggers.enter(self.clock.number)

    def _check_first_stage(self) -> None:
        self.changes.continue_loaded_run(ends_early=bool(self.stops))
        if self.clock.stage is not None:
            self._warn_of_untrained_head()
        if "carry" in self._modes():
            step_functions.check_carry(self.model)

    def _warn_of_untrained_head(self) -> None:
        """Warns if the base is trained from the start, before the optimizer made any update."""
        stage, flags = self.plan.stage(1), self.plan.flags[1]
        unfrozen = any(flags.get(id(leaf)) for leaf in self.plan.base_leaves)
        optimizers = optimizer_rebuild.leaves(self.model.optimizer)
        untrained = not any(map(variable_ages.updates, optimizers))
        if stage is not None and unfrozen and self.clock.epoch == 0 and untrained:
            warn_of_untrained_head(stage)

    def _mode(self, stage: Any) -> str:
        """Returns how a stage treats the optimizer: "carry" or "reset"."""
        return (stage and stage.optimizer) or (self.gradual.optimizer if self.gradual else "carry")

    def _modes(self) -> set[str]:
        """Returns all ways in which this run may treat the optimizer."""
        modes = {self._mode(stage) for stage in self.plan.schedule or ()}
        return modes | ({self.recompile.optimizer} if self.recompile else set())

    def acts_in(self, hooks: tuple[str, ...]) -> bool:
        """Returns True if another callback may change flags in one of these hooks."""
        return not self.watched.isdisjoint(hooks)

    def before_others_act(self, hooks: tuple[str, ...]) -> None:
        """Prepares for other callbacks' hooks, in which flags may change."""
        if self.acts_in(hooks):
            self.changes.keep_order()

    def settle(self, when: str) -> None:
        """With RecompileOnTrainableChange, makes another callback's change take effect."""
        before = self.changes.trainable
        if self.recompile is not None and self.changes.take_up(self.recompile.optimizer):
            now = self.changes.trainable
            self.announcements.others_changed(when, before, now, self.rates.logs())

    def begin_data(self) -> None:
        """Prepares the batches of an epoch, after the hooks of other callbacks."""
        self.rates.tell_of_others(self.clock.number)
        if self.backups is not None:
            self.backups.before_data(self.clock.epoch)
        self.announcements.add(self._begin_cache())
        if self.backups is not None:
            self.backups.after_cache()
        self.reading.begin_epoch()

    def _begin_cache(self) -> str:
        epochs = self.clock.epochs_left(self.epochs)
        arguments = self.changes.step, self.clock.epoch, epochs
        return self.caching.begin_data(*arguments) if self.caching else ""

    def end_step(self, batch: int) -> None:
        """Ends a training step."""
        if self.backups is not None:
            self.backups.end_step(batch, self.clock.epoch)
        self.reading.end_step(self.caching.pulled() if self.caching is not None else 0.0)

    def end_data(self) -> None:
        """Ends an epoch and its validation."""
        if self.stops.ended_early:
            replayed_batches.end_broken_off(callbacks_of_fit.epoch_iterator())
        if self.caching is not None:
            is_complete = not self.stops.ended_early
            line = self.caching.end_data(self.clock.epoch, is_complete=is_complete)
            self.announcements.add(line)

    def begin_validation(self) -> None:
        """Begins a validation within the fit."""
        if self.caching is not None:
            self.caching.begin_test(self.changes.step)

    def see(self, epoch: int, logs: dict[str, Any]) -> None:
        """Reads the complete logs of an epoch; a trigger may end the stage."""
        if self.triggers is not None:
            text = self.triggers.see(epoch, logs)
            self.announcements.add(text, verbose=self.gradual.verbose)

    def heed_stops(self) -> None:
        """Ends the stage if a PerStage callback asked to stop, or the run in the last stage."""
        askers = self.stops.askers()
        if not askers or self.model.stop_training:
            return
        planned = self.clock.epoch + 1 == self.epochs or self.clock.ends_as_planned()
        if not self.clock.end_stage():
            self.model.stop_training = True
        elif not planned:
            self.announcements.stage_ends_early(self.clock.number, self.clock.epoch, askers)

    def logs(self) -> dict[str, float]:
        """Returns what is added to each epoch's logs: numbers, which any logger can show."""
        if not self.freezing and not self.gradual:
            return {}  # without stages, the logs stay unchanged
        return {
            "stage": self.clock.number,
            "trainable_params": count_params(self.model.trainable_variables),
            **self.rates.logs(),
        }

    def back_up(self) -> None:
        """Writes a backup after an epoch, if one is due."""
        if self.backups is not None:
            self.backups.end_epoch(self.clock.epoch)

    def end(self, logs: dict[str, Any]) -> None:
        """Ends the fit. `logs` are those of the last epoch."""
        if self.caching is not None:
            self.announcements.add(self.caching.lines.end(self.reading))
        self.announcements.show()
        self.rates.keep_original()
        callbacks = callbacks_of_fit.all_callbacks(self.callback_list)
        stopped = warn_of_stop(self.clock, self.epochs, callbacks, logs)
        if self.triggers is not None and not stopped:
            self.triggers.end()
        if self.caching is not None:
            self.caching.cache.close()
        if self.backups is not None:
            self.backups.end()
