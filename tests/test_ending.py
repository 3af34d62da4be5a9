"""If a run ends before all stages have begun, a warning says what ended it, and what to do."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import pytest

from keras_freeze import FreezeBase, GradualUnfreeze, PerStage, Plateau, Stage
from tests import builders as B

pytestmark = pytest.mark.one_backend(but=["test_terminate_on_nan"])

STAGES = {4: "b3", 5: "b2"}


def fit(*callbacks: Any, stages: Any = STAGES, epochs: int = 8, rate: float = B.RATE) -> Any:
    """Returns the stage of each epoch, and the warnings of the fit."""
    model = B.compiled(B.nested(), keras.optimizers.SGD(rate))
    plan = [FreezeBase(), GradualUnfreeze(stages, verbose=0)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        options = {"epochs": epochs, "verbose": 0, "callbacks": [*plan, *callbacks]}
        history = model.fit(*B.data(8), **options).history
    told = [str(each.message) for each in caught if each.category is UserWarning]
    return history["stage"], [text for text in told if "ended the run" in text or "never" in text]


def stopping(patience: int = 2, **options: Any) -> keras.callbacks.Callback:
    return keras.callbacks.EarlyStopping("loss", patience=patience, min_delta=1e9, **options)


def test_a_bare_early_stopping():
    stages, [text] = fit(stopping())
    assert stages == [0, 0, 0]
    assert text == (
        "EarlyStopping(monitor='loss') ended the run after epoch 3/8, before Stage 1 (at=4), "
        "Stage 2 (at=5) began. Replace it with PerStage(EarlyStopping(...)), which ends the "
        "stage, so that the next one begins. Or raise its patience."
    )


def test_its_remedies_applied():
    """The warning is gone, and every stage begins."""
    stages, told = fit(PerStage(stopping(1)))
    assert stages == [0, 0, 1, 1, 2, 2]
    assert told == []
    stages, told = fit(stopping(patience=99))
    assert stages == [0, 0, 0, 0, 1, 2, 2, 2]
    assert told == []


def test_beside_a_plateau_it_is_not_the_trigger_that_is_blamed():
    stages = [Stage(Plateau("loss", patience=2, min_delta=1e9), "b3")]
    seen, [text] = fit(stopping(), stages=stages)
    assert seen == [0, 0, 0]
    assert "EarlyStopping(monitor='loss') ended the run after epoch 3/8" in text
    assert "Train for more epochs" not in text
    seen, told = fit(PerStage(stopping()), stages=stages)
    assert 1 in seen
    assert told == []


def test_terminate_on_nan():
    stages, [text] = fit(keras.callbacks.TerminateOnNaN(), rate=1e30)
    assert "TerminateOnNaN ended the run after epoch" in text
    assert "lower the learning rate" in text
    stages, told = fit(keras.callbacks.TerminateOnNaN())
    assert stages == [0, 0, 0, 0, 1, 2, 2, 2]
    assert told == []


def test_any_other_callback():
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == self.last

    stop = Stop()
    stop.last = 4
    stages, [text] = fit(stop)
    assert stages == [0, 0, 0, 0, 1]
    assert "A callback ended the run after epoch 5/8, before Stage 2 (at=5) began" in text
    stop.last = 5
    assert fit(stop) == ([0, 0, 0, 0, 1, 2], [])


@pytest.mark.parametrize("stages", [{1: "b3"}, [Stage(1, "b3"), Stage(7, "b2")]])
def test_what_was_never_planned_is_not_missed(stages: Any):
    """A stage after the last epoch has its own warning when `fit` begins."""
    seen, told = fit(stopping(), stages=stages, epochs=5)
    assert seen == [0, 1, 1]
    assert not [text for text in told if "ended the run" in text]


def test_a_run_that_ends_as_planned_says_nothing():
    assert fit(stopping(patience=7)) == ([0, 0, 0, 0, 1, 2, 2, 2], [])
