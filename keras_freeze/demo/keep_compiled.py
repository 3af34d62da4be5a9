"""Lets JAX keep what it compiles while the demo runs: each seed compiles the same programs."""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

import keras


@contextmanager
def keep_compiled() -> Iterator[None]:
    """Sets JAX's compilation cache to a temporary folder, unless you have set one."""
    if keras.backend.backend() != "jax" or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        yield
        return
    config = importlib.import_module("jax").config
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(config, name) for name in names]
    with TemporaryDirectory(prefix="keras_freeze_demo-") as folder:
        for name, value in zip(names, (folder, 0.0), strict=True):
            config.update(name, value)
        try:
            yield
        finally:
            for name, value in zip(names, before, strict=True):
                config.update(name, value)
