"""Writes the backups of a `fit`, and brings a `fit` to the state of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras_freeze.backup.array_files import DamagedError
from keras_freeze.backup.differences import differences, listed
from keras_freeze.backup.folder import STAGE, Folder, Manifest
from keras_freeze.backup.packing import Packer, unpacked
from keras_freeze.errors import FreezeError, warn
from keras_freeze.fit_engine.state_of_fit import Arrays, StateOfFit
from keras_freeze.keras_internals import place_in_data, training_values

Found = tuple[Manifest, Arrays]


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
        self.is_restart = False  # with another plan, from the beginning of a stage
        self.first_epoch: int | None = None  # with which the whole run began
        self.random_first: Any = None  # states of the random generators then
        self.random_of_epoch: Any = None  # and before the data of the running epoch
        self.batches = 0  # since the last backup
        self.done = 0  # steps of the running epoch
        self.can_skip = True

    # Restoring

    def find(self) -> None:
        """Looks for a backup when the `fit` begins; makes Keras begin with its epoch.

        Raises:
            FreezeError: the backup is damaged, or from another run.
        """
        training_values.begin_at(self.model, None)
        found = self.folder.find()
        if found is None:
            self.folder.forget_run()
            return
        found = self._checked(found)
        if found is None:
            return
        self.found = found
        state = found[0].state
        self.first_epoch = state["first_epoch"]
        self.random_first = unpacked(state["random_first"], found[1])
        stopped = state["stop_training"] and not self.is_restart
        epoch = self.epochs if stopped else state["epoch"]
        training_values.begin_at(self.model, epoch)
        self._tell(epoch, state["step"])
        if epoch >= self.epochs:
            self._restore()

    def _checked(self, found: Found) -> Found | None:
        """Returns the backup to continue from; None to begin anew."""
        manifest, _ = found
        before = manifest.about
        models = list(differences({"model": before.get("model")}, {"model": self.about["model"]}))
        if models:
            raise self._changed("another model", models)
        changes = list(differences(before["run"], self.about["run"]))
        if manifest.state["step"] and manifest.state["steps"] != self.steps:
            steps = manifest.state["steps"], self.steps
            changes.append(f"steps in an epoch: {steps[0]} before, {steps[1]} now")
        if not changes:
            return found
        if self.callback.on_change == "error":
            raise self._changed("a run with another plan", changes)
        return self._beginning_of_stage(changes)

    def _beginning_of_stage(self, changes: list[str]) -> Found | None:
        self.is_restart = True
        try:
            found = self.folder.take(STAGE)
        except DamagedError as error:
            raise FreezeError(
                f"The stage can't begin anew, as its beginning is damaged: {error}. Nothing was "
                "changed. To begin the whole run anew, remove the directory "
                f"{str(self.folder.path)!r}."
            ) from error
        self.folder.forget_run()
        self._print(
            f"The plan has changed ({listed(changes)}). Training begins anew"
            + (
                " with the stage that was running."
                if found
                else ", as its first stage was running."
            )
        )
        return found

    def _changed(self, what: str, changes: list[str]) -> FreezeError:
        return FreezeError(
            f"The backup in {str(self.folder.path)!r} is from {what}: {listed(changes)}. Nothing "
            "was changed. Undo the change, pass another `backup_dir`, or remove the directory to "
            "begin anew."
            + (
                ""
                if what == "another model"
                else " To begin the running stage anew with the new plan, pass "
                "on_change='restart_stage'."
            )
        )

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
        manifest, arrays = self.found
        if self.is_restart:
            self._restore_for_new_plan(manifest.state, arrays)
        else:
            self.state.callbacks.follow()
            self.state.restore(manifest.state, arrays)
        self.state.set_random(manifest.state["random"], arrays)

    def _restore_for_new_plan(self, state: dict[str, Any], arrays: Arrays) -> None:
        """Restores what doesn't depend on the plan; the stage begins as in a `fit` from there."""
        self.state.callbacks.follow()
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
        assert self.found is not None and self.first_epoch is not None
        return int(self.found[0].state["epoch"]) - self.first_epoch

    def before_data(self, epoch: int) -> None:
        """Prepares the random generators for the data of an epoch, after all other callbacks."""
        self.done = 0
        if self.first_epoch is None:
            self.first_epoch, self.random_first = epoch, self._random_now()
        if self.found is not None:
            self._continue_epoch(*self.found)
        elif self.callback.save_freq != "epoch":
            self.random_of_epoch = self._random_now()
            self._check_skipping()

    def _random_now(self) -> Any:
        packer = Packer()
        packed = self.state.random(packer)
        return unpacked(packed, [array for _, array in packer.arrays])

    def _continue_epoch(self, manifest: Manifest, arrays: Arrays) -> None:
        state, iterator = manifest.state, self.state.iterator
        self.done = state["step"]
        is_stream = place_in_data.is_stream(iterator)
        if self.done:
            self.state.restore_values(state, arrays)
            self.state.callbacks.restore(state["callbacks"], arrays)
            self.state.set_random(state["random"], arrays)
            self.random_of_epoch = unpacked(state["random_of_epoch"], arrays)
        now = self._random_now()
        if self.done:
            self._set_random(self.random_of_epoch)
        else:
            self.random_of_epoch = now
        if is_stream:
            self._set_random(self.random_first)
        self._after_cache = lambda: self._skip(self.done, now, is_stream=is_stream)

    def _set_random(self, states: Any) -> None:
        packer = Packer()
        packed = packer.plain(states, "")
        self.state.set_random(packed, [array for _, array in packer.arrays])

    _after_cache: Callable[[], None] | None = None

    def after_cache(self) -> None:
        """Continues the data of an epoch, after the cache has prepared them."""
        if self._after_cache is not None:
            self._after_cache()
        self._after_cache = self.found = None

    def _skip(self, steps: int, random_now: Any, *, is_stream: bool) -> None:
        if steps or is_stream:
            epochs = self._epochs_done if is_stream else 0
            then = lambda: self._set_random(random_now)  # noqa: E731
            place_in_data.begin_later(self.state.iterator, steps, epochs, then)

    # Writing

    def _check_skipping(self) -> None:
        """Warns if backups within an epoch would be of no use."""
        if not self.can_skip:
            return
        why = place_in_data.not_reproducible(self.state.iterator)
        if self.keeps_views:
            why = "BottleneckCache(views=...) records and replays whole epochs"
        if why:
            self.can_skip = False
            warn(
                f"BackupAndRestore(save_freq={self.callback.save_freq}) makes backups at the end "
                f"of an epoch only, as an epoch can't be continued in the middle: {why}."
            )

    def end_step(self, batch: int, epoch: int) -> None:
        """Writes a backup after a step, if one is due."""
        self.batches += batch + 1 - self.done
        self.done = batch + 1
        if self.callback.save_freq != "epoch" and self.can_skip and self._is_due:
            self._write(epoch, self.done, ends_stage=False)

    @property
    def _is_due(self) -> bool:
        frequency = self.callback.save_freq
        return frequency == "epoch" or self.batches >= frequency

    def end_epoch(self, epoch: int) -> None:
        """Writes a backup after an epoch, if one is due or the stage ends."""
        ends_stage = self.state.clock.ends_as_planned()
        if self.callback.save_freq == "epoch" or ends_stage or (self._is_due and not self.can_skip):
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
            "random": self.state.random(packer),
            "random_first": packer.plain(self.random_first, "random"),
            "random_of_epoch": packer.plain(self.random_of_epoch, "random") if step else None,
        }
        double = self.callback.double_checkpoint
        try:
            self.folder.write(
                self.about, state, packer.arrays, double=double, ends_stage=ends_stage
            )
        except OSError as error:
            warn(
                f"BackupAndRestore can't write to {str(self.folder.path)!r}: {error}. The last "
                "backup stays, and training goes on."
            )

    def begin_end(self) -> None:
        """Begins the end of the `fit`, before other callbacks do; no epoch may have run."""
        training_values.begin_at(self.model, None)
        if self.found is not None:
            self.state.callbacks.restore(self.found[0].state["callbacks"], self.found[1])

    def end(self) -> None:
        """Ends the `fit`."""
        if self.callback.delete_checkpoint:
            self.folder.remove()
