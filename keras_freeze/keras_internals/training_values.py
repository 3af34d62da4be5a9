"""Lists all variables that a training run changes, in an order that another process finds again.

Private names used here were tried on Keras 3.12.0 and 3.15.1: `_variables`, `_learning_rate`,
`_trainable_variables`, `_var_key` of an optimizer; `_compile_metrics`, `_compile_loss`,
`_symbolic_build`,
`_initial_epoch` of a model.
"""

from __future__ import annotations

from typing import Any

from keras_freeze.graph.layer_tree import LayerTree, own_states, own_variables
from keras_freeze.keras_internals import step_functions, variable_ages
from keras_freeze.keras_internals.callbacks_of_fit import batch_specification
from keras_freeze.keras_internals.copy_to_numpy import as_numpy
from keras_freeze.keras_internals.optimizer_rebuild import family, leaves

Model = Any
Variable = Any


def weights(model: Model) -> list[Variable]:
    """Returns weights, statistics and states of random generators."""
    return list({id(variable): variable for variable in model.variables}.values())


def frozen(tree: LayerTree) -> set[int]:
    """Returns the ids of the variables of frozen layers, which don't change while they are."""
    still = [leaf for leaf in tree.leaves if not leaf.trainable]
    return {id(v) for leaf in still for v in (*own_variables(leaf), *own_states(leaf))}


def optimizer_state(model: Model) -> list[Variable]:
    """Returns slots and counts of the optimizer and all it wraps, without learning rates."""
    members = family(model.optimizer)
    rates = {id(member._learning_rate) for member in members if hasattr(member, "_learning_rate")}
    held = {id(v): v for member in members for v in member._variables}
    return [variable for key, variable in held.items() if key not in rates]


def metrics(model: Model) -> list[Variable]:
    """Returns the running sums of the metrics, which are built if need be."""
    parts = model._compile_metrics, model._compile_loss  # which sums up each output's loss
    if any(part is not None and not part.built for part in parts):
        batch = batch_specification()
        if batch is not None:  # TensorFlow would build them in the first step
            model._symbolic_build(data_batch=batch)
    return list(model.metrics_variables)


def build_optimizer(model: Model) -> None:
    """Builds the optimizer for the variables that are trainable now, with empty slots."""
    if not step_functions.is_in_step(model):
        step_functions.take_effect(model, "reset", in_fit=False)


def births(model: Model) -> list[list[int]]:
    """Returns for each optimizer the births of its variables, in its order (`variable_ages`)."""
    found = []
    for member in leaves(model.optimizer):
        by_key = variable_ages.births_of(member)
        held = member._trainable_variables if member.built else []
        found.append([by_key.get(member._var_key(variable), 0) for variable in held])
    return found


def set_births(model: Model, found: list[list[int]]) -> None:
    """Sets the births to what `births` returned."""
    members = leaves(model.optimizer)
    variable_ages.know(members)
    for member, of_member in zip(members, found, strict=True):
        pairs = zip(member._trainable_variables, of_member, strict=True)
        variable_ages.set_births(member, {member._var_key(v): birth for v, birth in pairs})


def values(variables: list[Variable]) -> list[Any]:
    """Returns the values as NumPy arrays, which may share the variables' memory."""
    return [as_numpy(variable) for variable in variables]


def assign(variables: list[Variable], arrays: list[Any]) -> None:
    """Assigns values. The shapes have been compared before."""
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


def begin_at(model: Model, epoch: int | None) -> None:
    """Makes the `fit` that begins start at an epoch; None = at its `initial_epoch`."""
    model._initial_epoch = epoch
