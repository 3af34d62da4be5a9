"""Files written by an earlier version still load, with the same meaning.

`tests/data` was written on JAX, with Keras 3.12, by the version before the package's folders were
rearranged. Each supported version of Keras reads what the oldest one wrote.
"""

from __future__ import annotations

import pathlib

import keras
import numpy as np
import pytest

from keras_freeze import Plateau, Schedule, Stage, TransferModel

DATA = pathlib.Path(__file__).parent / "data"
PLAN = Schedule(
    [
        Stage(1, "b3", learning_rate=1e-4, base_learning_rate={"factor": 0.5}, name="top"),
        Stage(
            Plateau("loss", patience=2),
            "all",
            optimizer="reset",
            warmup_steps=3,
            layer_decay=0.8,
        ),
    ]
)


@pytest.mark.parametrize("kind", ["yaml", "json", "toml"])
def test_a_plan_file(kind: str):
    assert Schedule.from_file(DATA / f"plan.{kind}") == PLAN


def test_a_saved_model():
    model = keras.saving.load_model(DATA / "transfer_model.keras")
    with np.load(DATA / "transfer_model.npz") as before:
        x, outputs = before["x"], before["outputs"]
    assert type(model) is TransferModel
    assert model.schedule == PLAN
    np.testing.assert_allclose(model.predict(x, verbose=0), outputs, rtol=1e-5, atol=1e-6)
    assert int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == 4
    history = model.fit(x, np.arange(16) % 3, epochs=4, initial_epoch=2, verbose=0).history
    assert history["stage"] == [1, 1]
