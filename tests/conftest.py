"""Chooses a backend before Keras is imported, and how hard hypothesis searches."""

from __future__ import annotations

import gc
import importlib.util
import os
import tempfile

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # The same small models are compiled over and over: JAX keeps what it compiled, for this run.
    _COMPILED = tempfile.TemporaryDirectory(prefix="compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if "KERAS_BACKEND" not in os.environ:
    installed = [name for name in ("tensorflow", "jax", "torch") if importlib.util.find_spec(name)]
    os.environ["KERAS_BACKEND"] = installed[0] if installed else "tensorflow"

import keras
import pytest
from hypothesis import HealthCheck, settings

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("ci", derandomize=True, deadline=None, suppress_health_check=SLOW)
settings.register_profile(
    "quick", derandomize=True, deadline=None, suppress_health_check=SLOW, max_examples=10
)
settings.register_profile("search", deadline=None, suppress_health_check=SLOW, max_examples=200)
# What hypothesis looks for hardly ever depends on the backend: PyTorch, which compiles nothing,
# tries the most examples.
DEFAULT = "ci" if os.environ["KERAS_BACKEND"] == "torch" else "quick"
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", DEFAULT))

# What the imports made lives as long as the process. Left out of it, a collection takes a tenth of
# the time, and `keras.backend.clear_session` asks for one.
gc.collect()
gc.freeze()


@pytest.fixture(autouse=True)
def _same_seed():
    """Each test starts from the same seed. (`clear_session` collects garbage: 0.3 s a test.)"""
    keras.utils.set_random_seed(0)


def pytest_report_header() -> str:
    return f"keras {keras.__version__} on {keras.backend.backend()}"
