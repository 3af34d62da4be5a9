"""Chooses a backend before Keras is imported, and selects the tests for it.

Tests that don't depend on the backend are marked `one_backend`. They run on PyTorch, which is the
fastest because it compiles nothing. `pytest` without arguments skips them on JAX and TensorFlow.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import tempfile

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # The same small models are compiled many times: JAX caches the compiled code during this run.
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

BACKEND = keras.backend.backend()
# Settings for hypothesis.
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
COMMON = {"deadline": None, "suppress_health_check": SLOW}
settings.register_profile("ci", derandomize=True, max_examples=40, **COMMON)
settings.register_profile("quick", derandomize=True, max_examples=10, **COMMON)
settings.register_profile("search", max_examples=200, **COMMON)
# Its results rarely depend on the backend, so PyTorch, which compiles nothing, tries the most
# examples.
DEFAULT = "ci" if BACKEND == "torch" else "quick"
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", DEFAULT))

# Imported objects live as long as the process. Without them, garbage collection takes a tenth of
# the time, and `keras.backend.clear_session` collects on each call.
gc.collect()
gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "run tests on this backend too that don't depend on it"
    parser.addoption("--every-test", action="store_true", help=text)
    text = "run steps in groups wherever possible, although small models don't gain by it"
    parser.addoption("--in-groups", action="store_true", help=text)


def pytest_configure(config: pytest.Config) -> None:
    text = "one_backend(but=[]): runs on PyTorch alone, except these tests, or ids of parameters"
    config.addinivalue_line("markers", text)
    is_worker = hasattr(config, "workerinput")  # a pytest-xdist worker; it always gets file names
    if not is_worker and config.args_source is pytest.Config.ArgsSource.ARGS:
        config.option.every_test = True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if BACKEND == "torch" or config.option.every_test:
        return
    left_out = [item for item in items if not _runs_here(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if _runs_here(item)]


def _runs_here(item: pytest.Item) -> bool:
    mark = item.get_closest_marker("one_backend")
    callspec = getattr(item, "callspec", None)
    names = {getattr(item, "originalname", item.name), callspec.id if callspec else item.name}
    return mark is None or bool(names & set(mark.kwargs.get("but", ())))


@pytest.fixture(autouse=True)
def _same_seed():
    """Each test starts from the same seed. (`clear_session` collects garbage: 0.3 s per test.)"""
    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _in_groups(pytestconfig: pytest.Config):
    if not pytestconfig.option.in_groups:
        yield
        return
    from tests.in_groups import always_in_groups

    with pytest.MonkeyPatch.context() as patch:
        always_in_groups(patch)
        yield


def pytest_report_header() -> str:
    return f"keras {keras.__version__} on {BACKEND}"
