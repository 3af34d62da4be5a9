"""Replaces the model's step functions during a `fit`, so that stages and cache take part.

Private names of `keras.Model` used here were tried on Keras 3.12.0 and 3.15.1: `_loss_tracker`
(each `compile` makes a new one); of `keras.optimizers.Optimizer`: `_trainable_variables`,
`_var_key`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from keras_freeze.graph.layer_tree import Layer, LayerTree
from keras_freeze.keras_internals import optimizer_rebuild, variable_ages
from keras_freeze.keras_internals.apply_learning_rate_multipliers import FULL, Multiplier
from keras_freeze.keras_internals.inference_mode import frozen_calls
from keras_freeze.keras_internals.step_functions import make_train_function, sync, take_effect
from keras_freeze.keras_internals.temporary_attributes import attributes

Model = Any


class Server(Protocol):
    """Runs training and validation batches in place of the model's functions, as a cache does."""

    def step(
        self, kind: str, args: tuple[Any, ...], plain: Callable[[], Callable[..., Any]]
    ) -> Any: ...


class GuardedStep:
    """A train function for one `fit`.

    While a training step runs, it keeps frozen layers in inference mode, and gives each variable
    its own bias correction (see `variable_ages`) and learning-rate multiplier. A server may run
    the step. A function traced this way must not be used after the fit, so `model.train_function`
    is set to it for one call at a time (`arm`). Between steps it is None, as after `compile`; a
    `fit` that raises leaves nothing behind.

    Args:
        model: the model that is fitted.
        tree: all its layers.
        base: the layers that run in inference mode while they are frozen.
        find_server: returns the server that runs the training steps now, or None.
    """

    def __init__(
        self,
        model: Model,
        tree: LayerTree,
        base: list[Layer],
        find_server: Callable[[], Server | None],
    ):
        self.find_server = find_server
        self.model = model
        self.tree = tree
        self.base = base
        self.multipliers: dict[int, Multiplier] = {}  # by the id of the variable
        self.server: Server | None = None
        self.train: Callable[..., Any] | None = None

    def refresh(self, *, made: bool, server: Server | None = None) -> None:
        """Reads the current `trainable` flags, births and multipliers.

        Args:
            made: True if the model's train function was made with these flags and never called.
            server: runs the training steps, if given.
        """
        self.patches = frozen_calls(self.tree, self.base)
        for member in optimizer_rebuild.leaves(self.model.optimizer):
            births = variable_ages.births_of(member)
            held = member._trainable_variables if member.built else []
            self._end_warm_ups(held, variable_ages.updates(member) // _window(member))
            paced = [(member._var_key(v), self.multipliers.get(id(v), FULL)) for v in held]
            multipliers = {key: multiplier for key, multiplier in paced if multiplier != FULL}
            if births or multipliers:
                self.patches += variable_ages.own_ages(member, births, multipliers)
        self.compiled = self.model._loss_tracker
        self.server = server
        self.train = None
        if self.patches or server is not None:
            if made:
                self.train = self.model.train_function
            self._put(None)

    def _end_warm_ups(self, held: list[Any], updates: int) -> None:
        """Ends warm-ups that began by an older update count, after an optimizer was reset."""
        for variable in held:
            multiplier = self.multipliers.get(id(variable), FULL)
            if multiplier.steps and multiplier.start > updates:
                self.multipliers[id(variable)] = replace(multiplier, start=0, steps=0)

    def arm(self) -> None:
        """Makes the next training step, and only that one, run through this function."""
        self.follow_compile()
        if self.patches or self.server is not None:
            self.fit = getattr(self.model, "history", None)
            self._put(self)
        elif self.model.train_function is None:
            self.model.make_train_function()

    def follow_compile(self) -> None:
        """Uses the new loss and metrics if another callback has compiled the model."""
        if self.model._loss_tracker is not self.compiled:
            sync(self.model)
            take_effect(self.model, "carry")
            self.refresh(made=True, server=self.find_server())

    def _put(self, function: Callable[..., Any] | None) -> None:
        object.__setattr__(self.model, "train_function", function)

    def plain(self) -> Callable[..., Any]:
        """Returns the model's own train function, traced with the patches."""
        if self.train is None:
            make_train_function(self.model)
            self.train = self.model.train_function
            self._put(None)
        return self.train

    def __call__(self, *args: Any) -> Any:
        self._put(None)
        if getattr(self.model, "history", None) is not self.fit:
            # A Ctrl-C interrupted the last fit before this step ran: use a fresh train function.
            self.model.make_train_function()
            return self.model.train_function(*args)
        with attributes(self.patches):
            if self.server is not None:
                return self.server.step("train", args, self.plain)
            return self.plain()(*args)


def _window(optimizer: Any) -> int:
    """Returns the number of training steps per update."""
    return optimizer.gradient_accumulation_steps or 1


class ServedTest:
    """A test function for one validation batch during `fit`.

    Args:
        model: the model that is fitted.
        server: runs the batch.
        then: called after the batch.
    """

    def __init__(self, model: Model, server: Server, then: Callable[[], None]):
        self.model = model
        self.server = server
        self.then = then

    def arm(self) -> None:
        """Makes the server run the next validation batch, and only that one."""
        self.own = self.model.test_function
        self.fit = getattr(self.model, "history", None)
        object.__setattr__(self.model, "test_function", self)

    def __call__(self, *args: Any) -> Any:
        object.__setattr__(self.model, "test_function", self.own)
        if getattr(self.model, "history", None) is not self.fit:  # as in GuardedStep
            return self.own(*args)
        logs = self.server.step("test", args, lambda: self.own)
        self.then()
        return logs
