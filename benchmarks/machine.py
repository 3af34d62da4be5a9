"""Where a benchmark ran."""

from __future__ import annotations

import os
import platform

import keras


def machine() -> dict[str, object]:
    """Returns the backend, Keras version, Python version, machine type, cores, and device."""
    return {
        "backend": keras.backend.backend(),
        "keras": keras.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "device": _device(),
    }


def _device() -> str:
    if keras.backend.backend() == "jax":
        import jax

        return str(jax.devices()[0])
    return str(getattr(keras.ops.zeros(()), "device", "cpu"))
