"""Tells which objects run in a step besides the model: losses, metrics, optimizer, layers.

Private names used here were tried on Keras 3.12.0 and 3.15.1: `Model._compile_loss`,
`CompileLoss._flat_losses`, `_fn` of a metric.
"""

from __future__ import annotations

from typing import Any

PLAIN = (bool, int, float, str, type(None))


def step_objects(model: Any, layers: list[Any]) -> list[Any]:
    """Returns the objects whose code runs in a train or test step.

    Args:
        model: a compiled model whose losses were built.
        layers: the layers that run.
    """
    built = getattr(model, "_compile_loss", None)
    losses = [one.loss for one in getattr(built, "_flat_losses", None) or ()]
    return [model.optimizer, *losses, *model.metrics, *layers]


def is_all_of_keras(objects: list[Any]) -> bool:
    """Returns True if the objects, and the functions that they wrap, are Keras' own or ours."""
    functions = [getattr(one, name, None) for one in objects for name in ("fn", "_fn")]
    modules = [type(one).__module__ for one in objects]
    modules += [str(function.__module__) for function in functions if function is not None]
    ours = __package__.split(".")[0]
    return all(module.split(".")[0] in ("keras", ours) for module in modules)


def settings_of(objects: list[Any]) -> list[Any]:
    """Returns the values of the objects' attributes, by which their code may decide.

    Values that aren't plain are given by their `id`.
    """
    return [
        (name, value if isinstance(value, PLAIN) else id(value))
        for one in objects
        for name, value in vars(one).items()
    ]
