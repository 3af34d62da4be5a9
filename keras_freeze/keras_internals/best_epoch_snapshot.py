"""Copies weights and optimizer state at one moment of a `fit`, and restores them later.

Private names of `keras.optimizers.Optimizer` used here were tried on Keras 3.12.0 and 3.15.1:
`_iterations`, `_learning_rate`, `_trainable_variables`, `_accumulated_gradients`, `_var_key`.
"""

from __future__ import annotations

from typing import Any

from keras_freeze.keras_internals import variable_ages
from keras_freeze.keras_internals.copy_to_numpy import to_numpy
from keras_freeze.keras_internals.optimizer_rebuild import leaves
from keras_freeze.keras_internals.step_functions import sync

Model = Any
Variable = Any


class Snapshot:
    """A copy, in host memory, of all variables that training changes.

    Random seeds aren't copied: after `restore`, training shouldn't repeat the same random draws.

    Args:
        model: a compiled model, between two training steps.
        fixed: ids of variables that can't change, and needn't be copied.
    """

    def __init__(self, model: Model, fixed: set[int]):
        sync(model)
        self.model = model
        self.weights = [(v, to_numpy(v)) for v in _weights(model) if id(v) not in fixed]
        self.slots = {id(v): (v, to_numpy(v)) for v in _slots(model)}
        self.updates = [variable_ages.updates(member) for member in leaves(model.optimizer)]

    def restore(self) -> None:
        """Restores the copy. `iterations` isn't reset; the ages are (see `variable_ages`)."""
        sync(self.model)
        for variable, value in self.weights:
            variable.assign(value)
        slots = _slots(self.model)
        if {id(variable) for variable in slots} != set(self.slots):
            return  # `compile` or a change of `trainable` has replaced them since: keep the new
        members = zip(leaves(self.model.optimizer), self.updates, strict=True)
        since = [(member, variable_ages.updates(member) - before) for member, before in members]
        running = {id(v) for member, steps in since for v in _window(member, steps)}
        for variable in slots:
            if id(variable) not in running:
                variable.assign(self.slots[id(variable)][1])
        for member, steps in since:
            _grow_younger(member, steps)

    def state(self, places: dict[int, int]) -> dict[str, Any]:
        """Returns the copy as plain values and arrays, for a backup.

        Args:
            places: the place of each weight, by the id of the variable.
        """
        slots = _slots(self.model)
        known = {id(variable) for variable in slots} == set(self.slots)
        return {
            "weights": [(places[id(variable)], value) for variable, value in self.weights],
            "slots": [self.slots[id(variable)][1] for variable in slots] if known else None,
            "updates": self.updates,
        }


def snapshot_of(model: Model, weights: list[Variable], state: dict[str, Any]) -> Snapshot:
    """Returns the copy whose `state` this is; `weights` are those of the model, in its order."""
    snapshot = Snapshot(model, set(map(id, model.variables)))
    snapshot.weights = [(weights[place], value) for place, value in state["weights"]]
    snapshot.updates = list(state["updates"])
    slots = _slots(model) if state["slots"] is not None else []
    values = zip(slots, state["slots"] or (), strict=True)
    snapshot.slots = {id(variable): (variable, value) for variable, value in values}
    return snapshot


def _window(optimizer: Any, steps: int) -> list[Variable]:
    """Returns the accumulated gradients, if the snapshot was taken elsewhere in its window.

    A window is the training steps between two updates with gradient accumulation.
    """
    each = optimizer.gradient_accumulation_steps or 1
    return list(optimizer._accumulated_gradients) if steps % each else []


def _grow_younger(optimizer: Any, steps: int) -> None:
    """Discounts the updates since the snapshot: slots of step s get the bias correction of step s.

    See `variable_ages`.
    """
    steps -= steps % (optimizer.gradient_accumulation_steps or 1)
    births = variable_ages.births_of(optimizer)
    keys = [optimizer._var_key(variable) for variable in optimizer._trainable_variables]
    variable_ages.set_births(optimizer, {key: births.get(key, 0) + steps for key in keys})


def _weights(model: Model) -> list[Variable]:
    return [v for v in model.variables if not _is_seed(v)]


def _is_seed(variable: Variable) -> bool:
    return bool(variable.path.endswith("seed_generator_state"))


def _slots(model: Model) -> list[Variable]:
    """Returns the optimizers' variables without `iterations` and learning rates."""
    kept = []
    for member in leaves(model.optimizer):
        others = {id(member._iterations), id(member._learning_rate)}
        kept += [v for v in member.variables if id(v) not in others]
    return kept
