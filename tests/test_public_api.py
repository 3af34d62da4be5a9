"""The public names, and the examples in their docstrings."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import keras
import numpy as np
import pytest

import keras_freeze
from tests.builders import BACKEND, backend_of

pytestmark = pytest.mark.one_backend

NAMES = [
    "BackupAndRestore",
    "BottleneckCache",
    "CacheError",
    "CacheWarning",
    "FreezeBase",
    "FreezeError",
    "GradualUnfreeze",
    "LayerMatchError",
    "PerStage",
    "Plateau",
    "RecompileOnTrainableChange",
    "Schedule",
    "ScheduleError",
    "Stage",
    "TransferModel",
    "freeze",
    "plot_history",
    "select_layers",
    "unfreeze",
]
PUBLIC = {name: getattr(keras_freeze, name) for name in NAMES}


def modules() -> list:
    found = pkgutil.walk_packages(keras_freeze.__path__, "keras_freeze.")
    names = [each.name for each in found if not each.name.endswith("__main__")]
    ours = [name for name in names if backend_of(name) in ("", BACKEND)]
    return [keras_freeze, *map(importlib.import_module, ours)]


def examples() -> list[doctest.DocTest]:
    """Examples of public names see the user's imports. Others see their module too."""
    finder = doctest.DocTestFinder()
    found = []
    for module in modules():
        for test in finder.find(module):
            if not set(test.name.split(".")) & set(NAMES):
                test.globs |= vars(module)
            else:
                test.globs = {}
            test.globs |= {"keras": keras, "np": np, **PUBLIC}
            found.append(test)
    return [test for test in found if test.examples]


def test_the_public_names():
    assert keras_freeze.__all__ == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_documented_with_examples(name: str):
    text = PUBLIC[name].__doc__ or ""
    assert "Examples:" in text
    assert ">>> " in text


def test_the_examples_run():
    report: list[str] = []
    runner = doctest.DocTestRunner()
    for test in examples():
        runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)
    assert runner.tries > len(NAMES)


def test_every_argument_is_described():
    """An `Args:` block names each argument of a public callable."""
    for name, made in PUBLIC.items():
        if isinstance(made, type) and issubclass(made, BaseException):
            continue
        call = made.__init__ if isinstance(made, type) else made
        arguments = set(call.__annotations__) - {"return", "unknown"}
        text = made.__doc__.split("Args:")[1]
        missing = [argument for argument in arguments if f"{argument}:" not in text]
        assert not missing, f"{name}: {missing}"
