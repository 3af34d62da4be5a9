"""Finds the backup from which a `fit` continues, and compares its run with the one that begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from keras_freeze.backup.array_files import DamagedError
from keras_freeze.backup.differences import differences, listed
from keras_freeze.backup.folder import STAGE, Folder
from keras_freeze.errors import FreezeError

State = dict[str, Any]  # as JSON holds it; arrays are numbers


@dataclass
class Found:
    """A backup to continue from.

    Attributes:
        state: the state of the run.
        arrays: its arrays.
        changes: how the plan differs from that of the backup; the stage then begins anew.
    """

    state: State
    arrays: list[Any]
    changes: list[str]


def find_backup(
    folder: Folder, about: dict[str, Any], steps: int | None, on_change: str
) -> tuple[Found | None, list[str]]:
    """Returns the backup to continue from, or None to begin anew; and how the plan has changed.

    Args:
        folder: the folder of the backup.
        about: describes the model and the run, see `describe_run`.
        steps: number of steps of an epoch, if known.
        on_change: what to do if the plan has changed.

    Raises:
        FreezeError: the backup is damaged, or from another model; or from another plan, and
            `on_change` is `"error"`.
    """
    whole = folder.find()
    if whole is None:
        return None, []
    manifest, arrays = whole
    before = manifest.about
    models = list(differences({"model": before["model"]}, {"model": about["model"]}))
    if models:
        raise _error(folder, "another model", models, "")
    changes = list(differences(before["run"], about["run"]))
    if manifest.state["step"] and manifest.state["steps"] != steps:
        changes.append(f"steps in an epoch: {manifest.state['steps']} before, {steps} now")
    if not changes:
        return Found(manifest.state, arrays, []), []
    if on_change == "error":
        remedy = " To begin the running stage anew, pass on_change='restart_stage'."
        raise _error(folder, "a run with another plan", changes, remedy)
    return _beginning_of_stage(folder, changes), changes


def _beginning_of_stage(folder: Folder, changes: list[str]) -> Found | None:
    try:
        whole = folder.take(STAGE)
    except DamagedError as error:
        raise FreezeError(
            f"The stage can't begin anew, as its beginning is damaged: {error}. Nothing was "
            f"changed. To begin the whole run anew, remove the directory {str(folder.path)!r}."
        ) from error
    return None if whole is None else Found(whole[0].state, whole[1], changes)


def _error(folder: Folder, what: str, changes: list[str], remedy: str) -> FreezeError:
    return FreezeError(
        f"The backup in {str(folder.path)!r} is from {what}: {listed(changes)}. Nothing was "
        "changed. Undo the change, pass another `backup_dir`, or remove the directory to begin "
        f"anew.{remedy}"
    )
