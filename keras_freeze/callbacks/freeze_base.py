"""FreezeBase: the base is frozen while the head learns."""

from __future__ import annotations

from typing import Any

from keras_freeze.errors import check_choice, names_unknown
from keras_freeze.fit_engine.first_and_last_callbacks import Participant
from keras_freeze.keras_internals.trainable_flags import BATCH_NORM


class FreezeBase(Participant):
    """Freezes the base when `fit` begins: stage 0, feature extraction.

    Inside the base, a layer that isn't trainable runs in inference mode: no dropout, no moving
    statistics (stock Keras leaves frozen dropout on, and moves the statistics of an unfrozen
    BatchNormalization). With `GradualUnfreeze` in the same list, its stages unfreeze the base
    again. LoRA adapters of the base (`enable_lora`) stay trainable: a stage names them by `"lora"`.

    Each epoch's logs carry `stage` (0 before the first), `trainable_params` (a number of scalars)
    and `learning_rate`.

    Args:
        base: a layer or model, a layer's name, a selector (see `select_layers`), a list of these,
            or `None` = find it by how data flow: the model's `backbone`; else the nested model, or
            the layers of a flat one, that read the inputs and feed the rest. A pooling or Flatten
            through which all data pass ends the base. If two answers are possible, an error lists
            them. The first line that is printed says which base was found. A model some of whose
            layers were built into this one stands for these layers.
        batch_norm: `"freeze"` keeps every BatchNormalization of the base in inference mode in all
            stages, its statistics bit-identical and its weights frozen; `"train"` lets it follow
            its layer.
        verbose: 0 = silent, 1 = prints the frozen and trainable parameters at the start.

    Raises:
        LayerMatchError: in `fit`, before the first step: the base isn't found, is ambiguous, or
            isn't in the model.
        ScheduleError: likewise: nothing is left trainable.

    Examples:
        >>> base = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)], name="base")
        >>> model = keras.Sequential([base, keras.layers.Dense(1)])
        >>> model.compile("adam", "mse")
        >>> x, y = np.ones((8, 4)), np.ones((8, 1))
        >>> history = model.fit(x, y, verbose=0, callbacks=[FreezeBase("base")])
        >>> history.history["trainable_params"]
        [9]
    """

    role = "freeze"

    @names_unknown(elsewhere={"GradualUnfreeze": ("schedule", "optimizer")})
    def __init__(self, base: Any = None, *, batch_norm: str = "freeze", verbose: int = 0):
        super().__init__()
        check_choice("batch_norm", batch_norm, BATCH_NORM)
        self.base = base
        self.batch_norm = batch_norm
        self.verbose = verbose
