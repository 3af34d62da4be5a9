"""Users run their tests with `-W error`: our code must use nothing that is deprecated."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import keras
import ml_dtypes
import numpy as np
import pytest

import keras_freeze
from keras_freeze.keras_internals.copy_to_numpy import to_numpy

HOME = Path(keras_freeze.__file__).parent
KINDS = ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning")
DTYPES = ["float32", "float16", "bfloat16", "int32", "bool"]


def test_a_use_of_everything():
    """In a separate process, in which pytest's settings hide nothing."""
    flags = [part for kind in KINDS for part in ("-W", f"error::{kind}")]
    command = [sys.executable, *flags, "-m", "tests.reference.everything"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.endswith("nothing came up\n")


def test_one_place_makes_numpy_arrays_of_variables():
    """NumPy's warning about Keras' conversion names Keras' modules, which the tests ignore."""
    callers = set()
    for path in HOME.rglob("*.py"):
        names = {
            node.attr
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute)
        }
        callers |= {path.name} if names & {"convert_to_numpy", "get_weights"} else set()
    # The demo uses its bases and Keras' augmentation like any user.
    assert callers == {"small_digits.py", "mnist_base.py", "few_labels_task.py"}


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_value_of_a_variable(dtype: str, trainable: bool):
    expected = np.array([[0, 1], [1, 0]]).astype(getattr(ml_dtypes, dtype, dtype))
    variable = keras.Variable(expected, dtype=dtype, trainable=trainable and "float" in dtype)
    value = to_numpy(variable)
    kept = keras.backend.standardize_dtype(variable.dtype)
    assert value.dtype.name == kept
    assert np.array_equal(value.astype("float32"), expected.astype("float32"))
    variable.assign(np.zeros((2, 2)))
    assert value.any(), "a copy"
    assert np.array_equal(to_numpy(variable.value).astype("float32"), np.zeros((2, 2)))


def test_a_rate_that_is_a_plain_number_keeps_its_digits():
    assert float(to_numpy(0.1)) == 0.1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("eager", [False, True], ids=["compiled", "eager"])
@pytest.mark.parametrize("dtype", ["int64", "float64"])
def test_inputs_of_64_bits(dtype: str, eager: bool):
    """Token ids have 64 bits. JAX has 32-bit numbers and warns if others are requested."""
    x = np.arange(96).reshape(16, 6).astype(dtype)
    y = np.zeros((16, 1), "float32")

    class Batches(keras.utils.PyDataset):
        """Arrays that `fit` gets unchanged: it converts its own arguments to 32 bits."""

        def __len__(self) -> int:
            return 2

        def __getitem__(self, place: int) -> tuple[np.ndarray, np.ndarray]:
            return x[place * 8 : place * 8 + 8], y[place * 8 : place * 8 + 8]

    base = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)], name="base")
    model = keras.Sequential([keras.Input((6,)), base, keras.layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=eager)
    cache = keras_freeze.BottleneckCache(verbose=0)
    model.fit(
        Batches(), epochs=2, verbose=0, callbacks=[keras_freeze.FreezeBase(base, verbose=0), cache]
    )
    assert cache.stats.enabled, cache.stats.reason
    assert cache.stats.hits == 16
