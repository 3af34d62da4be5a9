"""Rebuilds an optimizer for a new set of trainable variables, without `compile`.

A slot is a variable that the optimizer keeps for a model variable, such as a moment. `"carry"`: a
variable that stays keeps its slots; a new one gets fresh slots, and its bias correction begins now
(see `variable_ages`). `"reset"`: the optimizer is as new.

Slots are matched by the identity of the model variable, never by index or name. The optimizer's
lists are replaced, never shortened: TensorFlow can't write a checkpoint of a list after a deletion,
and an interrupted rebuild is undone by restoring the old lists.

Private names of `keras.optimizers.Optimizer` used here were tried on Keras 3.12.0 and 3.15.1:
`_variables`, `_tracker` (`config`, `stored_ids`), `_trainable_variables`,
`_trainable_variables_indices`, `_iterations`, `_learning_rate`,
`_model_variables_moving_average`, `_var_key`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_freeze.errors import FreezeError
from keras_freeze.keras_internals import variable_ages

Optimizer = Any
Variable = Any

# Attributes of an optimizer with one item per variable that aren't slots.
NOT_SLOTS = ("_variables", "_trainable_variables")


def family(optimizer: Optimizer) -> list[Optimizer]:
    """Returns the optimizer and all it wraps, for a LossScaleOptimizer or a MultiOptimizer."""
    members = [optimizer]
    for inner in [
        getattr(optimizer, "inner_optimizer", None),
        *(getattr(optimizer, "optimizers", None) or ()),
    ]:
        if isinstance(inner, keras.optimizers.Optimizer):
            members += family(inner)
    return members


def leaves(optimizer: Optimizer) -> list[Optimizer]:
    """Returns the optimizers that update variables themselves."""
    return [member for member in family(optimizer) if len(family(member)) == 1]


def is_loaded(optimizer: Optimizer) -> bool:
    """True for a trained optimizer that no fit of ours has used, as after `load_model`."""
    return any(map(variable_ages.is_unknown, leaves(optimizer)))


def is_built_on(optimizer: Optimizer, variables: list[Variable]) -> bool:
    """True if the optimizer holds exactly `variables`, in this order."""
    held = optimizer._trainable_variables if optimizer.built else []
    return len(held) == len(variables) and all(a is b for a, b in zip(held, variables, strict=True))


def updates_of(optimizer: Optimizer) -> dict[int, int]:
    """Returns the number of updates by each variable's optimizer, by the variable's id."""
    counts: dict[int, int] = {}
    for member in leaves(optimizer):
        done = variable_ages.updates(member) // (member.gradient_accumulation_steps or 1)
        counts |= {id(variable): done for variable in member._trainable_variables}
    return counts


def by_variable(optimizer: Optimizer, values: list[Any]) -> dict[int, Any]:
    """Returns the value of each variable's optimizer, by the variable's id.

    Args:
        optimizer: a built Keras optimizer.
        values: one value for each of `leaves(optimizer)`.
    """
    return {
        id(variable): value
        for member, value in zip(leaves(optimizer), values, strict=True)
        for variable in member._trainable_variables
    }


def rebuild(
    optimizer: Optimizer, variables: list[Variable], mode: str, *, in_fit: bool = True
) -> Callable[[], None]:
    """Rebuilds `optimizer` for exactly `variables`.

    Args:
        optimizer: a Keras optimizer, wrapped or not. Stays the same object.
        variables: the model's trainable variables, in the model's order.
        mode: `"carry"` or `"reset"`.
        in_fit: False before the first training step. The moving averages are then those of an
            earlier `fit`, which has assigned them to the weights at its end already.

    Returns:
        A function that undoes the change. If an exception is raised, the change is undone too.
    """
    saved = [_State(member) for member in family(optimizer)]

    def undo() -> None:
        for state in saved:
            state.undo()

    try:
        if in_fit:
            _finalize_average(optimizer, variables if mode == "carry" else [])
        for state in saved:
            state.clear()
        optimizer.build(variables)
        for state in saved:
            state.restore(mode)
        return undo
    except BaseException:  # also Ctrl-C, so that the optimizer is never left half rebuilt
        undo()
        raise


def check_carry(optimizer: Optimizer) -> None:
    """Raises if the optimizer has state that can't be matched to its variables.

    Raises:
        FreezeError: a built optimizer stores variables differently from Keras' own optimizers.
    """
    for member in leaves(optimizer):
        slots = [slot for _, held in _slot_lists(member) for slot in held]
        known = {id(v) for v in (*slots, *vars(member).values()) if v is not None}
        unknown = [v.name for v in member._variables if id(v) not in known]
        if member.built and unknown:
            raise FreezeError(
                f"`optimizer='carry'` can't carry over the state of {type(member).__name__}: it "
                f"keeps {unknown[:3]} neither in a list with one item per variable nor in a "
                "dictionary by variable. Use optimizer='reset'. Received: optimizer='carry'"
            )


def hold(optimizer: Optimizer, variables: list[Variable]) -> None:
    """Makes `variables` the optimizer's own state, in this order, in a new list."""
    tracker = optimizer.__dict__.pop("_tracker")  # it would wrap the list in a tracked one
    try:
        optimizer._variables = list(variables)
    finally:
        object.__setattr__(optimizer, "_tracker", tracker)
    is_variable, _ = tracker.config["variables"]
    tracker.config = {**tracker.config, "variables": (is_variable, optimizer._variables)}
    tracker.stored_ids["variables"] = set(map(id, variables))


def _finalize_average(optimizer: Optimizer, staying: list[Variable]) -> None:
    """With `use_ema`, assigns the average to a removed variable, as Keras does at the end."""
    kept = {id(variable) for variable in staying}
    for member in leaves(optimizer):
        if not (member.use_ema and member.built and variable_ages.updates(member)):
            continue
        averages = member._model_variables_moving_average
        for variable, average in zip(member._trainable_variables, averages, strict=True):
            if average is not None and id(variable) not in kept:
                variable.assign(keras.ops.copy(average))


class _State:
    """The state of one optimizer before the rebuild."""

    def __init__(self, optimizer: Optimizer):
        self.optimizer = optimizer
        self.attributes = dict(vars(optimizer))
        # One of these is TensorFlow's record of dependencies, the only one changed in place.
        plain = [value for value in self.attributes.values() if type(value) in (list, dict)]
        self.contents = [(value, value.copy()) for value in plain]
        self.config = dict(optimizer._tracker.config)
        self.tracked = list(optimizer._variables)
        self.variables = list(optimizer._trainable_variables) if optimizer.built else []
        self.slots = dict(_slot_lists(optimizer)) if optimizer.built else {}
        self.births = variable_ages.births_of(optimizer)
        self.count = variable_ages.updates(optimizer)
        averaged = optimizer.use_ema and len(family(optimizer)) == 1
        self.values = [keras.ops.copy(v) for v in self.variables] if averaged else []

    def clear(self) -> None:
        """Makes the optimizer unbuilt; keeps the update count and the learning rate."""
        stays = (id(self.optimizer._iterations), id(self.optimizer._learning_rate))
        hold(self.optimizer, [variable for variable in self.tracked if id(variable) in stays])
        self.optimizer._trainable_variables_indices = {}
        self.optimizer._trainable_variables = []
        self.optimizer.built = False

    def restore(self, mode: str) -> None:
        """Restores the state that the mode keeps; called after `build`."""
        self._track_what_build_left()
        _start_averages(self.optimizer)
        if mode == "carry":
            self._carry_slots()
            self._carry_shared()
            self._carry_births()
        else:
            variable_ages.set_births(self.optimizer, {})
            self.optimizer._iterations.assign(0)

    def _track_what_build_left(self) -> None:
        """Tracks variables from `__init__` again, which `build` doesn't create."""
        for name, value in self.attributes.items():
            if _is_variable(value) and vars(self.optimizer).get(name) is value:
                self.optimizer._tracker.track(value)

    def _carry_slots(self) -> None:
        old = {id(variable): index for index, variable in enumerate(self.variables)}
        for name, slots in _slot_lists(self.optimizer):
            for variable, slot in zip(self.optimizer._trainable_variables, slots, strict=True):
                if slot is not None and id(variable) in old and name in self.slots:
                    slot.assign(keras.ops.copy(self.slots[name][old[id(variable)]]))

    def _carry_shared(self) -> None:
        """Carries state that belongs to no single variable: dynamic loss scale, Nadam's product."""
        for name, value in self.attributes.items():
            new: Any = vars(self.optimizer).get(name)
            if _is_variable(value) and _is_variable(new) and new is not value:
                new.assign(keras.ops.copy(value))

    def _carry_births(self) -> None:
        now = variable_ages.updates(self.optimizer)
        old = {self.optimizer._var_key(variable) for variable in self.variables}
        keys = [self.optimizer._var_key(v) for v in self.optimizer._trainable_variables]
        births = {key: self.births.get(key, 0) if key in old else now for key in keys}
        variable_ages.set_births(self.optimizer, births)

    def undo(self) -> None:
        """Restores everything to the state before the rebuild."""
        for name in vars(self.optimizer).keys() - self.attributes.keys():
            object.__delattr__(self.optimizer, name)
        for name, value in self.attributes.items():
            object.__setattr__(self.optimizer, name, value)
        for value, content in self.contents:
            value.clear()
            (value.extend if isinstance(value, list) else value.update)(content)
        self.optimizer._tracker.config = self.config
        self.optimizer._tracker.stored_ids["variables"] = set(map(id, self.tracked))
        self.optimizer._iterations.assign(self.count)
        for variable, value in zip(self.variables, self.values, strict=False):
            variable.assign(value)
        variable_ages.set_births(self.optimizer, self.births)


def _slot_lists(optimizer: Optimizer) -> Iterator[tuple[str, list[Variable | None]]]:
    """Yields the attributes that hold one variable (or None) for each model variable.

    Keras' own optimizers use lists. A custom optimizer, and Muon in Keras 3.12, may use a
    dictionary by `_var_key` or by path.
    """
    if len(family(optimizer)) > 1:
        return
    variables = optimizer._trainable_variables
    count = len(variables)
    for name, value in list(vars(optimizer).items()):
        if isinstance(value, dict) and value and all(map(_is_variable, value.values())):
            yield name, [value.get(optimizer._var_key(v), value.get(v.path)) for v in variables]
        if name in NOT_SLOTS or not isinstance(value, list) or len(value) != count or not count:
            continue
        if all(slot is None or _is_variable(slot) for slot in value):
            yield name, list(value)


def _start_averages(optimizer: Optimizer) -> None:
    """Starts new moving averages at the variables' values; copies, as JAX donates buffers."""
    if optimizer.use_ema and optimizer.built and len(family(optimizer)) == 1:
        averages = optimizer._model_variables_moving_average
        for variable, average in zip(optimizer._trainable_variables, averages, strict=True):
            if average is not None:
                average.assign(keras.ops.copy(variable))


def _is_variable(value: Any) -> bool:
    return isinstance(value, keras.Variable)
