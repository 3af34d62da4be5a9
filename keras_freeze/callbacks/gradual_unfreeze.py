"""GradualUnfreeze: unfreezes layers of the base at given epochs of one `fit`."""

from __future__ import annotations

from typing import Any

from keras_freeze.errors import check_choice, names_unknown
from keras_freeze.fit_engine.first_and_last_callbacks import PublicCallback
from keras_freeze.keras_internals.trainable_flags import BATCH_NORM
from keras_freeze.schedule.schedule import Schedule
from keras_freeze.schedule.unknown_arguments import OF_STAGES

OPTIMIZER = ("carry", "reset")


class GradualUnfreeze(PublicCallback):
    """Unfreezes (and freezes) layers of the base at given epochs, inside one `fit`.

    The base begins frozen. The schedule and the epoch alone decide which layers are trainable, so
    `initial_epoch` and repeated `fit` calls begin in the right stage. Loss, metrics, History and
    the optimizer object stay the same.

    Each epoch's logs contain `stage` (its number, 0 before the first), `trainable_params` (the
    number of trainable scalars) and `learning_rate`.

    Args:
        schedule: `{epoch: selector or Stage}`, a list of `Stage`, a `Schedule`, or the path of a
            YAML, JSON or TOML file (see `Schedule`). Epochs count from 0, as in Keras. Selectors
            are looked up in the base first.
        base: as in `FreezeBase`; `None` = the base of the `FreezeBase` in the same list, or else
            the base that is found.
        optimizer: `"carry"`: a variable that stays trainable keeps its slots (moments). A variable
            that is unfrozen is updated as by a new optimizer, with its own bias correction;
            `iterations` isn't reset. `"reset"`: each stage begins with a new optimizer state and
            the learning rate set by `compile`, as with `compile` and `fit` for each stage.
        batch_norm: `"freeze"` keeps every BatchNormalization of the base in inference mode in all
            stages; `"train"` unfreezes it with its layer.
        verbose: 0 = silent, 1 = prints what each stage changes.

    Attributes:
        begun: `{number: epoch}` of the stages that a `Plateau` or a `PerStage` began. A `fit` with
            `initial_epoch` continues with the stages that began before it. In another process,
            first assign the `begun` of the earlier one.

    A stage after a `Plateau` begins with the epoch after its trigger fired. `EarlyStopping`, or any
    other callback that sets `stop_training`, ends the run, even if a stage would have begun.

    A file (or a `Schedule`) may set `base`, `optimizer` and `batch_norm` too. A `base` given here
    takes precedence, and so do `optimizer="reset"` and `batch_norm="train"`. The defaults,
    `"carry"` and `"freeze"`, don't override the file. To override it with a default, pass it to the
    schedule: `GradualUnfreeze(Schedule("plan.yaml", optimizer="carry"))`.

    Raises:
        ScheduleError: the schedule is invalid; in `fit`, before the first step: a stage leaves
            nothing trainable.
        LayerMatchError: a selector is invalid; in `fit`, before the first step: a selector matches
            no layer.

    Examples:
        >>> base = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, name="block1"),
        ...                          keras.layers.Dense(8, name="block2")], name="base")
        >>> model = keras.Sequential([base, keras.layers.Dense(1)])
        >>> model.compile("adam", "mse")
        >>> x, y = np.ones((8, 4)), np.ones((8, 1))
        >>> unfreeze = GradualUnfreeze({2: "block2"}, verbose=0)
        >>> history = model.fit(x, y, epochs=3, verbose=0, callbacks=[FreezeBase("base"), unfreeze])
        >>> history.history["stage"], history.history["trainable_params"]
        ([0, 0, 1], [9, 9, 81])
    """

    role = "schedule"

    @names_unknown(elsewhere=OF_STAGES)
    def __init__(
        self,
        schedule: Any,
        *,
        base: Any = None,
        optimizer: str = "carry",
        batch_norm: str = "freeze",
        verbose: int = 1,
    ):
        super().__init__()
        check_choice("optimizer", optimizer, OPTIMIZER)
        check_choice("batch_norm", batch_norm, BATCH_NORM)
        self.schedule = Schedule(schedule)
        self.base = self.schedule.base if base is None else base
        self.optimizer = _unless_set(optimizer, "carry", self.schedule.optimizer)
        self.batch_norm = _unless_set(batch_norm, "freeze", self.schedule.batch_norm)
        self.verbose = verbose
        self.begun: dict[int, int] = {}


def _unless_set(argument: str, default: str, of_schedule: str | None) -> str:
    """Returns the argument, or the schedule's value if the argument is the default."""
    return of_schedule if argument == default and of_schedule is not None else argument
