"""A script that uses the whole public API once, to find warnings under `python -W error`.

KERAS_BACKEND=torch python -W error::DeprecationWarning -m tests.reference.everything
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import warnings

with warnings.catch_warnings():  # warnings of backends at import don't count
    warnings.simplefilter("ignore")
    import keras
    import numpy as np

    if importlib.util.find_spec("matplotlib"):
        import matplotlib.figure  # noqa: F401

from keras_freeze import (
    BackupAndRestore,
    BottleneckCache,
    FreezeBase,
    GradualUnfreeze,
    PerStage,
    Plateau,
    RecompileOnTrainableChange,
    Schedule,
    Stage,
    TransferModel,
    freeze,
    plot_history,
    select_layers,
    unfreeze,
)
from tests import builders

C = keras.callbacks
X, Y = builders.data(16)
OPTIMIZERS = keras.optimizers


def fit(optimizer: keras.Optimizer, *callbacks: C.Callback, **options: object) -> C.History:
    model = builders.compiled(builders.nested(extras=True), optimizer, metrics=["mae"])
    options = {"batch_size": 8, "epochs": 5, "verbose": 0} | options
    return model.fit(X, Y, validation_split=0.5, callbacks=list(callbacks), **options)


def schedules(folder: str) -> None:
    """Uses each kind of stage and file, the preview, and the plot of a run."""
    late = Stage(Plateau("loss", patience=0, min_delta=1e9), "b2", restore_best=True)
    plan = Schedule([Stage(1, "b3", learning_rate={"factor": 0.5}), late])
    kinds = [
        kind
        for kind, needs in (("json", "json"), ("yaml", "yaml"), ("toml", "tomli_w"))
        if importlib.util.find_spec(needs)
    ]
    for kind in kinds:
        path = os.path.join(folder, f"plan.{kind}")
        plan.to_file(path)
        assert Schedule.from_file(path) == plan
    model = builders.compiled(builders.nested())
    str(plan.preview(model, epochs=5, steps_per_epoch=2, data=16))
    each = PerStage(lambda: C.EarlyStopping("loss", patience=1))
    told = fit(OPTIMIZERS.Adam(0.1), FreezeBase(), GradualUnfreeze(plan), BottleneckCache())
    fit(OPTIMIZERS.SGD(0.1, momentum=0.9), FreezeBase(), GradualUnfreeze({2: "b3"}), each)
    for _ in range(2):  # the second begins after the last epoch of the first
        kept = BackupAndRestore(os.path.join(folder, "run"), save_freq=3, delete_checkpoint=False)
        fit(OPTIMIZERS.Adam(0.1), FreezeBase(), GradualUnfreeze({2: "b3"}), kept)
    if importlib.util.find_spec("matplotlib"):
        plot_history(told).savefig(os.path.join(folder, "run.png"))


def optimizers() -> None:
    """Carries and resets optimizers, with averages, accumulated gradients, decays and warm-ups."""
    decay = OPTIMIZERS.schedules.CosineDecay(0.1, 100)
    makes = [
        lambda: OPTIMIZERS.Adam(0.1, gradient_accumulation_steps=2),
        lambda: OPTIMIZERS.AdamW(decay, use_ema=True),
        lambda: OPTIMIZERS.Adam(0.1),
    ]
    for make in makes:
        for mode in ("carry", "reset"):
            stages = [
                Stage(1, "b3", warmup_steps=2, layer_decay=0.5),
                Stage(2, "b2", learning_rate=0.01),
            ]
            fit(make(), FreezeBase(), GradualUnfreeze(stages, optimizer=mode, verbose=0))


class Thaws(C.Callback):
    """Changes a flag as another callback would."""

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        if epoch == 1:
            unfreeze(select_layers(self.model, "b3"))


def models() -> None:
    """Uses TransferModel and its clone, and flags set by hand, in a fit and outside."""
    model = TransferModel(builders.functional_base(), 3, schedule={1: "b3"}, cache=True)
    keras.models.clone_model(model)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(X, np.arange(16) % 3, epochs=3, verbose=0)
    plain = builders.compiled(builders.nested())
    freeze(plain.get_layer("base"))
    assert select_layers(plain, "b1")
    plain.fit(X, Y, epochs=3, verbose=0, callbacks=[RecompileOnTrainableChange(), Thaws()])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        schedules(folder)
        optimizers()
        models()
    print("nothing came up")
