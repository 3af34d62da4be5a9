"""Describes a run, so that a backup of another one is recognized."""

from __future__ import annotations

import warnings
from typing import Any

import keras

from keras_freeze.fit_engine.trainable_plan import Plan
from keras_freeze.graph.layer_tree import Layer, own_states, own_variables
from keras_freeze.keras_internals.optimizer_rebuild import family
from keras_freeze.keras_internals.trainable_flags import trained
from keras_freeze.schedule.stage import Stage

# Names differ from process to process, rates from stage to stage; wrapped optimizers are described
# themselves.
NOT_COMPARED = ("name", "learning_rate", "inner_optimizer", "optimizer", "optimizers")
OF_STAGE = ("base_learning_rate", "layer_decay", "warmup_steps", "optimizer", "restore_best")


def describe_model(plan: Plan) -> list[str]:
    """Returns the layers with weights, in order: class, and shapes and dtypes of the weights."""
    held = [(leaf, [*own_variables(leaf), *own_states(leaf)]) for leaf in plan.tree.leaves]
    return [_layer(leaf, variables) for leaf, variables in held if variables]


def _layer(leaf: Layer, variables: list[Any]) -> str:
    shapes = [f"{variable.dtype} {tuple(variable.shape)}" for variable in variables]
    return f"{type(leaf).__name__}: {', '.join(shapes)}"


def describe_run(
    model: Any, plan: Plan, rates: list[Any], modes: Any, cache: Any
) -> dict[str, Any]:
    """Returns the optimizer and the plan of a run, as plain values.

    Args:
        model: the model that is fitted.
        plan: which layers are trainable in which stage.
        rates: the learning rates that `compile` set.
        modes: returns how a stage treats the optimizer.
        cache: the BottleneckCache, or None.
    """
    described: dict[str, Any] = {
        f"optimizer {number}" if number else "optimizer": _optimizer(member)
        for number, member in enumerate(family(model.optimizer))
    }
    described["learning_rate of compile"] = [_rate(rate) for rate in rates]
    described["layers that are trained first"] = _trained(plan, 0)
    for number, stage in enumerate(plan.schedule or (), start=1):
        own = _stage(stage, modes(stage)) | {"trained layers": _trained(plan, number)}
        described[f"Stage {number}"] = own
    if cache is not None and cache.views is not None:
        views = {name: getattr(cache, name) for name in ("views", "shuffle", "data", "dtype")}
        described["BottleneckCache"] = {name: _plain(value) for name, value in views.items()}
    return described


def _optimizer(optimizer: Any) -> dict[str, Any]:
    kept = {name: value for name, value in _config(optimizer).items() if name not in NOT_COMPARED}
    return {"class": type(optimizer).__name__, **kept}


def _config(owner: Any) -> dict[str, Any]:
    """Returns the arguments of an optimizer or a schedule of rates, if it tells them."""
    with warnings.catch_warnings():  # Keras converts the rate in a way that NumPy 2 warns of
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            config = owner.get_config()
        except (NotImplementedError, AttributeError, TypeError, ValueError):
            return {}
    return {str(name): _plain(value) for name, value in config.items()}


def _stage(stage: Stage, mode: str) -> dict[str, Any]:
    values = {name: _plain(getattr(stage, name)) for name in OF_STAGE}
    own = {"at": repr(stage.at), "learning_rate": _rate(stage.learning_rate)}
    return own | values | {"optimizer": mode}


def _trained(plan: Plan, number: int) -> str:
    """Returns the places of the trained layers of a stage among all layers, such as "3-5, 8"."""
    flags = plan.flags[number]
    places = [place for place, leaf in enumerate(plan.tree.leaves) if trained(leaf, flags)]
    runs: list[list[int]] = []
    for place in places if plan.flags else ():
        if runs and runs[-1][-1] == place - 1:
            runs[-1][1:] = [place]
        else:
            runs.append([place])
    return ", ".join("-".join(map(str, run)) for run in runs) or "none"


def _rate(rate: Any) -> Any:
    """Returns a learning rate, or the class and arguments of a schedule of rates."""
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        return {"class": type(rate).__name__, **_config(rate)}
    return _plain(rate)


def _plain(value: Any) -> Any:
    """Returns what JSON gives back equal; of other objects, their class."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, keras.optimizers.schedules.LearningRateSchedule):
        return _rate(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return type(value).__name__
