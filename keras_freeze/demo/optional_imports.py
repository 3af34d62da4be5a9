"""Loads what only the demo needs, with an error that says how to install it."""

import importlib
from typing import Any


def load_extra(module: str) -> Any:
    """Imports a module of the ``demo`` extra.

    Args:
        module: Its dotted name, e.g. `"sklearn.datasets"`.

    Returns:
        The module.

    Raises:
        ImportError: If the package is not installed.
    """
    package = module.partition(".")[0]
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise  # installed, but something it needs is missing: let that be said instead
        raise ImportError(
            f"The demo needs `{package}`, which is not installed. "
            'Run: pip install "keras_freeze[demo]"',
            name=package,
        ) from error
    return importlib.import_module(module)
