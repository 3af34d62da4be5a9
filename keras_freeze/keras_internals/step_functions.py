"""Rebuilds the compiled step functions of a model after a change of `trainable` flags.

Private names of `keras.Model` used here were tried on Keras 3.12.0 and 3.15.1:
`_loss_tracker` (each `compile` makes a new one), `_flatten_layers`, `_jax_state` and
`_jax_state_synced` (JAX only),
`_distribute_strategy` (TensorFlow only), `_symbolic_build`, `tf.Variable._trainable`,
`_compiled_trainable_state` (not in 3.12.0), `_compile_metrics` and its `_user_metrics`,
`_user_weighted_metrics`, `_fn` of a metric.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import keras

from keras_freeze.keras_internals import optimizer_rebuild
from keras_freeze.keras_internals.temporary_attributes import attribute

Model = Any


def is_in_step(model: Model) -> bool:
    """True if optimizer and step functions match the current `trainable` flags of the layers."""
    compiled = getattr(model, "_compiled_trainable_state", None) or {}
    fits = optimizer_rebuild.is_built_on(model.optimizer, model.trainable_variables)
    return fits and all(layer.trainable == flag for layer, flag in compiled.items())


def is_built(model: Model) -> bool:
    """True if every layer has its weights."""
    return all(layer.built for layer in model._flatten_layers())


def build(model: Model, batch: Any) -> None:
    """Builds a model from the shapes and dtypes of a batch, as Keras does on JAX and PyTorch.

    On TensorFlow, Keras builds a subclassed model in the first step: too late to freeze it.
    """
    if not is_built(model) and batch is not None:
        model._symbolic_build(data_batch=batch)


def check_carry(model: Model) -> None:
    """Raises `FreezeError` if `"carry"` can't match the optimizer's state to its variables."""
    if not model.optimizer.built:  # TensorFlow would build it in the first step
        with _scope(model):
            model.optimizer.build(model.trainable_variables)
    optimizer_rebuild.check_carry(model.optimizer)


def take_effect(model: Model, mode: str, *, in_fit: bool = True) -> None:
    """Makes a change of `trainable` flags take effect inside `fit`, without `compile`.

    Loss, metrics, `stop_training` and History don't change.

    Args:
        model: a compiled model; on JAX its variables hold their values (call `sync` before).
        mode: `"carry"` or `"reset"`.
        in_fit: False before the first training step of a `fit`.
    """
    _watch(model)
    undo: Callable[[], None] | None = None
    try:
        with _scope(model):
            variables = model.trainable_variables
            undo = optimizer_rebuild.rebuild(model.optimizer, variables, mode, in_fit=in_fit)
        _make_functions(model)
    except BaseException:
        if undo is not None:
            undo()
        raise
    if hasattr(model, "_compiled_trainable_state"):
        layers = model._flatten_layers()
        model._compiled_trainable_state = {layer: layer.trainable for layer in layers}
    _renew_state(model)


def _watch(model: Model) -> None:
    """On TensorFlow, makes the gradient tape watch every trainable variable.

    The tape never watches the variables of a layer that was frozen before it was built. In plain
    Keras they can't be trained any more, with a warning about missing gradients.
    """
    if hasattr(model, "_distribute_strategy"):
        for variable in model.trainable_variables:
            for part in getattr(variable.value, "values", [variable.value]):
                part._trainable = True


def _make_functions(model: Model) -> None:
    make_train_function(model)
    if model.test_function is not None:
        with _new_trace(model, "test_step"):
            model.make_test_function(force=True)
    if model.predict_function is not None:
        model.make_predict_function(force=True)


def _renew_state(model: Model) -> None:
    """On JAX, replaces the state that `fit` restores if a training step raises.

    `fit` restores it by position, so it must be in the current order of variables.
    """
    if hasattr(model, "jax_state_sync"):
        kinds = ("trainable_variables", "non_trainable_variables", "metrics_variables")
        state = {kind: [v.value for v in getattr(model, kind)] for kind in kinds}
        state["optimizer_variables"] = [v.value for v in model.optimizer.variables]
        model._jax_state = state


def has_own_functions(model: Model) -> bool:
    """True if a loss or metric isn't from Keras; it may call layers of the model."""
    metrics = model._compile_metrics
    given = [model.loss]
    if metrics is not None:
        given += [metrics._user_metrics, metrics._user_weighted_metrics]
    flat = [one for one in keras.tree.flatten(given) if not (one is None or isinstance(one, str))]
    flat += [one.fn for one in flat if hasattr(one, "fn")]
    flat += [one._fn for one in flat if hasattr(one, "_fn")]
    modules = [getattr(one, "__module__", None) or type(one).__module__ for one in flat]
    return any(module.split(".")[0] != "keras" for module in modules)


def make_train_function(model: Model) -> None:
    """Rebuilds `model.train_function`, with a new trace."""
    with _new_trace(model, "train_step"):
        model.make_train_function(force=True)


def make_over(model: Model, kind: str, step: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a train or test function with another step; the model's own doesn't change.

    Args:
        model: a compiled model.
        kind: `"train"` or `"test"`.
        step: replaces `train_step` or `test_step`.
    """
    name = f"{kind}_function"
    with attribute(model, name, None), attribute(model, f"{kind}_step", step):
        getattr(model, f"make_{name}")(force=True)
        function: Callable[..., Any] = vars(model)[name]
    return function


def compiling(model: Model) -> AbstractContextManager[None]:
    """Within it, the model's step functions are made as with `jit_compile=True`."""
    return attribute(model, "_jit_compile", True)  # tried on Keras 3.12.0 and 3.15.1


def _new_trace(model: Model, step: str) -> AbstractContextManager[None]:
    """Makes `model.train_step` (or `test_step`) unequal to earlier ones, to force a new trace.

    `jax.jit` reuses the trace of an equal function, and bound methods of a model are equal. For
    weights of the same shapes, the old trace would then train the new layers' weights in place of
    the old layers'.
    """
    if not hasattr(model, "jax_state_sync"):
        return nullcontext()
    bound = getattr(model, step)
    return attribute(model, step, lambda *arguments: bound(*arguments))


def sync(model: Model) -> None:
    """On JAX, writes the values of the training state back to the variables, within an epoch."""
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()


def variable_order(model: Model) -> dict[str, list[Any]]:
    """Returns the variables of a model in the order of their values in a step's state."""
    kinds = ("trainable_variables", "non_trainable_variables")
    return {kind: list(getattr(model, kind)) for kind in kinds}


def keep_order(model: Model, order: dict[str, list[Any]]) -> None:
    """On JAX, makes the next sync of a running epoch give each variable its own value.

    Keras assigns the values by position among the variables that are trainable now; after a change
    of flags these positions are wrong. The replacement stays on the model until the next sync,
    which Keras makes when `fit` ends or raises, if not before.

    Args:
        model: the model that is fitted.
        order: what `variable_order` returned for the last training step.
    """
    if not hasattr(model, "jax_state_sync"):
        return

    def sync_in_order() -> None:
        model.__dict__.pop("jax_state_sync", None)
        state = getattr(model, "_jax_state", None)  # none before the first step
        if state and not model._jax_state_synced:
            for kind, variables in order.items():
                for variable, value in zip(variables, state.get(kind) or (), strict=False):
                    variable.assign(value)
            model._jax_state = {kind: state[kind] for kind in state if kind not in order}
            model._jax_state_synced = not model._jax_state
            model.jax_state_sync()
            model._jax_state = state

    object.__setattr__(model, "jax_state_sync", sync_in_order)


def _scope(model: Model) -> AbstractContextManager[Any]:
    """Returns the scope of a `tf.distribute` strategy, in which variables must be created."""
    strategy = getattr(model, "_distribute_strategy", None)
    return nullcontext() if strategy is None else strategy.scope()
