"""BackupAndRestore: continues a `fit` that was interrupted, exactly, across stages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from keras_freeze.errors import FreezeError, check_choice, names_unknown
from keras_freeze.fit_engine.first_and_last_callbacks import PublicCallback

ON_CHANGE = ("error", "restart_stage")


class BackupAndRestore(PublicCallback):
    """Saves the state of a `fit`, and continues from it if the run was interrupted.

    Replaces `keras.callbacks.BackupAndRestore`, which can't restore a stage: the base would be
    frozen again, and the optimizer would lose its state. Run the same script again after a crash,
    and the run continues as if nothing had happened, with the same weights and the same History.

    Restored are the weights, the optimizer, the stage with its learning rates and warm-ups, what
    `Plateau` and `PerStage` have counted, the best epoch for `restore_best`, the attributes of
    other callbacks that are plain numbers, texts or arrays (so EarlyStopping, ReduceLROnPlateau and
    ModelCheckpoint go on counting), the History, and the random state of Python, NumPy, PyTorch and
    Keras. The model must be built the same way, by the same code. Call
    `keras.utils.set_random_seed` before, so that data are shuffled in the same order.

    A file is written under another name first, so that a run that is killed while it writes keeps
    the last backup.

    Args:
        backup_dir: a directory for this run alone.
        save_freq: `"epoch"` = at the end of each epoch; an integer = after as many batches. Within
            an epoch, the run continues with the next batch if the order of the data can be
            repeated. If not, backups are made at the end of an epoch only, and a warning says so.
        double_checkpoint: whether to keep the last two backups. If the last one is damaged, the
            run continues from the one before it.
        delete_checkpoint: whether to remove the backup at the end of `fit`.
        on_change: what to do if the schedule or the optimizer has changed since the backup, or,
            within an epoch, its number of steps. `"error"` = raises an error that says what
            differs; `"restart_stage"` = continues with the new ones from the beginning of the stage
            that was running.
        verbose: 0 = silent, 1 = prints where a run continues.

    Raises:
        FreezeError: an argument is invalid; in `fit`, before the first step: the backup is damaged,
            or from another model or another plan. The backup stays as it is.

    Examples:
        >>> import tempfile
        >>> def train(epochs):
        ...     base = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)], name="base")
        ...     model = keras.Sequential([base, keras.layers.Dense(1)])
        ...     model.compile("adam", "mse")
        ...     backup = BackupAndRestore(directory, delete_checkpoint=False, verbose=0)
        ...     callbacks = [FreezeBase("base"), GradualUnfreeze({2: "all"}, verbose=0), backup]
        ...     x, y = np.ones((8, 4)), np.ones((8, 1))
        ...     return model.fit(x, y, epochs=epochs, verbose=0, callbacks=callbacks)
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     before, after = train(epochs=3), train(epochs=4)
        >>> len(after.history["loss"]), after.history["loss"][:3] == before.history["loss"]
        (4, True)
    """

    role = "backup"

    @names_unknown()
    def __init__(
        self,
        backup_dir: Any,
        save_freq: Any = "epoch",
        double_checkpoint: bool = False,
        delete_checkpoint: bool = True,
        *,
        on_change: str = "error",
        verbose: int = 1,
    ):
        super().__init__()
        self.backup_dir = backup_dir
        self.path = _checked_path(backup_dir)
        self.save_freq = _checked_frequency(save_freq)
        check_choice("on_change", on_change, ON_CHANGE)
        self.double_checkpoint = double_checkpoint
        self.delete_checkpoint = delete_checkpoint
        self.on_change = on_change
        self.verbose = verbose
        if save_freq != "epoch":
            # A hook after each batch: Keras then doesn't call the hooks from another thread.
            self.on_train_batch_end = self._nothing

    def _nothing(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Is called after each batch; the work is done after the hooks of all callbacks."""


def _checked_path(backup_dir: Any) -> Path:
    if not isinstance(backup_dir, (str, os.PathLike)) or not os.fspath(backup_dir):
        raise FreezeError(
            "`backup_dir` of BackupAndRestore must be the path of a directory. "
            f"Received: backup_dir={backup_dir!r}"
        )
    if "://" in str(backup_dir):
        raise FreezeError(
            "`backup_dir` of BackupAndRestore must be on a disk of this computer, or mounted. "
            f"Received: backup_dir={backup_dir!r}"
        )
    return Path(backup_dir).expanduser()


def _checked_frequency(save_freq: Any) -> Any:
    is_number = isinstance(save_freq, int) and not isinstance(save_freq, bool) and save_freq > 0
    if save_freq != "epoch" and not is_number:
        raise FreezeError(
            "`save_freq` of BackupAndRestore must be 'epoch' or a number of batches, at least 1. "
            f"Received: save_freq={save_freq!r}"
        )
    return save_freq
