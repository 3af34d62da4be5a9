"""FreezeBase: freezes the base of a model in `fit`, so that only the head is trained."""

from __future__ import annotations

from typing import Any

from keras_freeze.errors import check_choice, names_unknown
from keras_freeze.fit_engine.first_and_last_callbacks import PublicCallback
from keras_freeze.keras_internals.trainable_flags import BATCH_NORM


class FreezeBase(PublicCallback):
    """Freezes the base when `fit` begins: stage 0, feature extraction.

    Inside the base, a layer that isn't trainable runs in inference mode: no dropout, and no update
    of moving statistics. (In stock Keras, frozen dropout stays on, and an unfrozen
    BatchNormalization updates its statistics.) `GradualUnfreeze` in the same list unfreezes the
    base again, in stages. LoRA adapters of the base (`enable_lora`) stay trainable; a stage names
    them by `"lora"`.

    Each epoch's logs contain `stage` (0 before the first), `trainable_params` (the number of
    trainable scalars) and `learning_rate`.

    Args:
        base: a layer or model, a layer's name, a selector (see `select_layers`), a list of these,
            or `None` = find the base: the model's `backbone`, else the nested model that reads the
            inputs and feeds the other layers, else such layers of a flat model. The base ends with
            a pooling or Flatten layer through which all data pass. If several bases are possible,
            an error lists them. The first line that is printed names the base that was found. If
            the model was built from layers of another model, that model stands for these layers.
        batch_norm: `"freeze"` keeps every BatchNormalization of the base in inference mode in all
            stages, with unchanged statistics and frozen weights; `"train"` unfreezes it with its
            layer.
        verbose: 0 = silent, 1 = prints the frozen and trainable parameters at the start.

    Raises:
        LayerMatchError: in `fit`, before the first step: the base isn't found, is ambiguous, or
            isn't in the model.
        ScheduleError: in `fit`, before the first step: nothing is left trainable.

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
