"""Writes the backups of a `fit`, and brings a `fit` to the state of one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from keras_freeze.backup.differences import listed
from keras_freeze.backup.folder import Folder
from keras_freeze.backup.packing import Packer, unpacked
from keras_freeze.errors import warn
from keras_freeze.fit_engine.find_backup import Found, find_backup
from keras_freeze.fit_engine.state_of_fit import Arrays, State, StateOfFit
from keras_freeze.keras_internals import place_in_data, training_values
from keras_freeze.keras_internals.random_states import (
    States,
    random_states,
    set_random_states,
)


class Backups:
    """The backups of one `fit`.

    Args:
        callback: the BackupAndRestore.
        state: the parts of the fit that are saved.
        params: Keras' parameters of the fit, with `epochs` and `steps`.
        about: describes the run, see `describe_run`.
        keeps_views: whether the cache records or replays epochs, which can't begin in the middle.
    """

    def __init__(
        self,
        callback: Any,
        state: StateOfFit,
        params: dict[str, Any],
        about: dict[str, Any],
        *,
        keeps_views: bool,
    ):
        self.callback = callback
        self.state = state
        self.model = state.model
        self.epochs: int = params["epochs"]
        self.steps: int | None = params.get("steps")
        self.about = about
        self.keeps_views = keeps_views
        self.folder = Folder(callback.path)
        self.found: Found | None = None  # the backup to continue from
        self.first_epoch: int | None = None  # with which the whole run began
        self.random_first: States = {}  # states of the random generators then
        self.random_of_epoch: States = {}  # and before the data of the running epoch
        self.epoch_steps: list[int] = []  # of each epoch that is done
        self.batches = 0  # since the last backup
        self.done = 0  # steps of the running epoch
        self.can_skip = True
        self.is_new = True  # no epoch has begun

    # Restoring

    def find(self) -> None:
        """Looks for a backup when the `fit` begins; makes Keras begin with its epoch.

        Raises:
            FreezeError: the backup is damaged, or from another run.
        """
        training_values.begin_at(self.model, None)
        on_change = self.callback.on_change
        self.found, changes = find_backup(self.folder, self.about, self.steps, on_change)
        if changes:
            begins = "with the stage that was running" if self.found else "with its first stage"
            self._print(f"The plan has changed: {listed(changes)}. Training begins anew {begins}.")
        if self.found is None:
            if self.state.caching is not None:
                self.state.caching.limit_views(self.folder.views_at_start())
            return
        state = self.found.state
        self.first_epoch = state["first_epoch"]
        self.epoch_steps = list(state["epoch_steps"])
        self.random_first = self._unpacked("random_first")
        stopped = state["stop_training"] and not changes
        epoch = self.epochs if stopped else state["epoch"]
        training_values.begin_at(self.model, epoch)
        self._tell(epoch, state["step"])
        if epoch >= self.epochs:
            self._restore()

    def _tell(self, epoch: int, step: int) -> None:
        where = f"epoch {epoch + 1}/{self.epochs}"
        where += f", after step {step}" + (f"/{self.steps}" if self.steps else "") if step else ""
        if epoch >= self.epochs:
            where = "its end: all epochs are done"
        self._print(f"Training continues from the backup in {str(self.folder.path)!r}: {where}.")

    def _print(self, text: str) -> None:
        if self.callback.verbose:
            print(text, flush=True)

    def _restore(self) -> None:
        assert self.found is not None
        state, arrays = self.found.state, self.found.arrays
        self.state.callbacks.follow()
        if self.found.changes:
            self._restore_for_new_plan(state, arrays)
        else:
            self.state.restore(state, arrays)
        self._set_random(self._unpacked("random"))

    def _unpacked(self, name: str) -> Any:
        assert self.found is not None
        return unpacked(self.found.state[name], self.found.arrays)

    def _restore_for_new_plan(self, state: State, arrays: Arrays) -> None:
        """Restores what doesn't depend on the plan; the stage begins as in a `fit` from there."""
        begun = unpacked(state["clock"]["begun"], arrays)
        gradual, schedule = self.state.clock.gradual, self.state.plan.schedule
        if gradual is not None and schedule is not None:
            gradual.begun = {n: at for n, at in begun.items() if n <= len(schedule)}
        self.state.restore_for_new_plan(state, arrays)

    def begin_epoch(self) -> None:
        """Begins an epoch, before all other callbacks do."""
        training_values.begin_at(self.model, None)
        self.state.callbacks.follow()
        if self.found is None:
            return
        self._restore()
        if not place_in_data.is_stream(self.state.iterator):
            place_in_data.pass_epochs(self.state.iterator, self._epochs_done)

    @property
    def _epochs_done(self) -> int:
        assert self.found is not None
        assert self.first_epoch is not None
        return int(self.found.state["epoch"]) - self.first_epoch

    def before_data(self, epoch: int) -> None:
        """Prepares the random generators for the data of an epoch, after all other callbacks."""
        self.done = 0
        if self.first_epoch is None:
            self.first_epoch, self.random_first = epoch, self._random_now()
        self.random_of_epoch = self._random_now()
        if self.callback.save_freq != "epoch":
            self.state.callbacks.look()
            self._check_skipping()
        if self.found is not None:
            self._continue_epoch(self.found.state, self.found.arrays)
            if why := place_in_data.not_reproducible(self.state.iterator):
                self._print(f"The data come in another order than before the interruption: {why}")

    def _random_now(self) -> States:
        return random_states(self.state.iterator)

    def _set_random(self, states: States) -> None:
        set_random_states(states, self.state.iterator)

    def _continue_epoch(self, state: State, arrays: Arrays) -> None:
        iterator = self.state.iterator
        self.done = state["step"]
        is_stream = place_in_data.is_stream(iterator)
        if self.done:
            self.state.restore_within_epoch(state, arrays)
            self.random_of_epoch = self._unpacked("random_of_epoch")
        now = self._unpacked("random") if self.done else self._random_now()
        self._set_random(self.random_first if is_stream else self.random_of_epoch)
        self._after_cache = lambda: self._skip(self.done, now, is_stream=is_stream)

    _after_cache: Callable[[], None] | None = None

    def after_cache(self) -> None:
        """Continues the data of an epoch, after the cache has prepared them."""
        if self._after_cache is not None:
            self._after_cache()
        elif self.is_new and self.state.caching is not None:
            self._note_views(self.state.caching.stored_views())
        self._after_cache = self.found = None
        self.is_new = False

    def _note_views(self, found: int | None) -> None:
        try:
            if found is not None:
                self.folder.note_views(found)
        except OSError as error:
            self._warn_of_disk(error)

    def _skip(self, steps: int, random_now: States, *, is_stream: bool) -> None:
        if steps or is_stream:
            epochs = self.epoch_steps if is_stream else []
            then = partial(self._set_random, random_now)
            place_in_data.begin_later(self.state.iterator, steps, epochs, then)

    # Writing

    def _check_skipping(self) -> None:
        """Warns if backups within an epoch would be of no use."""
        if not self.can_skip:
            return
        why = place_in_data.not_reproducible(self.state.iterator)
        if self.state.iterator.num_batches is None:
            warn(
                f"BackupAndRestore(save_freq={self.callback.save_freq}) makes no backup within the "
                "first epoch, as the number of batches isn't known. Pass `steps_per_epoch` to fit."
            )
        if self.keeps_views:
            why = "BottleneckCache(views=...) records and replays whole epochs."
        if why:
            self.can_skip = False
            warn(
                f"BackupAndRestore(save_freq={self.callback.save_freq}) makes backups at the end "
                f"of an epoch only, as an epoch can't be continued in the middle: {why}"
            )

    def end_step(self, batch: int, epoch: int) -> None:
        """Writes a backup after a step, if one is due and the epoch doesn't end here."""
        self.batches += batch + 1 - self.done
        self.done = batch + 1
        if self.callback.save_freq == "epoch" or not self.can_skip or not self._is_due:
            return
        steps = self.state.iterator.num_batches
        if steps is not None and self.done < steps and not self.model.stop_training:
            self._write(epoch, self.done, ends_stage=False)

    @property
    def _is_due(self) -> bool:
        frequency = self.callback.save_freq
        return frequency == "epoch" or self.batches >= int(frequency)

    def end_epoch(self, epoch: int) -> None:
        """Writes a backup after an epoch, if one is due or the stage ends."""
        self.epoch_steps.append(self.done)
        ends_stage = self.state.clock.ends_as_planned()
        if self._is_due or ends_stage:
            self._write(epoch + 1, 0, ends_stage=ends_stage)

    def _write(self, epoch: int, step: int, *, ends_stage: bool) -> None:
        self.batches = 0
        packer = Packer()
        if self.state.caching is not None:
            self.state.caching.flush()
        state = self.state.collect(packer, within_epoch=step > 0)
        state |= {
            "epoch": epoch,
            "step": step,
            "steps": self.steps,
            "first_epoch": self.first_epoch,
            "epoch_steps": self.epoch_steps,
            "random": packer.plain(self._random_now(), "random"),
            "random_first": packer.plain(self.random_first, "random"),
            "random_of_epoch": packer.plain(self.random_of_epoch, "random") if step else None,
        }
        double = self.callback.double_checkpoint
        try:
            self.folder.write(
                self.about, state, packer.arrays, double=double, ends_stage=ends_stage
            )
        except OSError as error:
            self._warn_of_disk(error)

    def _warn_of_disk(self, error: OSError) -> None:
        warn(
            f"BackupAndRestore can't write to {str(self.folder.path)!r}: {error}. The last backup "
            "stays, and training goes on."
        )

    def begin_end(self) -> None:
        """Begins the end of the `fit`, before other callbacks do; no epoch may have run."""
        training_values.begin_at(self.model, None)
        if self.found is not None:
            self.state.callbacks.restore(self.found.state["callbacks"], self.found.arrays)
            self.model.stop_training = bool(self.found.state["stop_training"])

    def end(self) -> None:
        """Ends the `fit`."""
        if not self.callback.delete_checkpoint:
            return
        if self.found is not None and self.found.state["epoch"] > self.epochs:
            return  # it has more epochs than this fit asked for
        try:
            self.folder.remove()
        except OSError as error:
            warn(f"BackupAndRestore can't remove its files in {str(self.folder.path)!r}: {error}")
