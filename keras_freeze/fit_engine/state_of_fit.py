"""Collects the state of a running `fit`, and brings another `fit` to the same state.

The state is what a backup holds: the stage, the flags, the values of all variables, what triggers,
PerStage and other callbacks count.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from keras_freeze.backup.packing import Packer, unpacked
from keras_freeze.errors import warn
from keras_freeze.fit_engine.cache_lifecycle import CacheLifecycle
from keras_freeze.fit_engine.callback_states import CallbackStates
from keras_freeze.fit_engine.plateau_stage_starts import Triggers
from keras_freeze.fit_engine.run_per_stage_callbacks import Stops
from keras_freeze.fit_engine.stage_clock import StageClock
from keras_freeze.fit_engine.stage_learning_rates import StageLearningRates
from keras_freeze.fit_engine.trainable_changes import TrainableChanges
from keras_freeze.fit_engine.trainable_plan import Plan
from keras_freeze.keras_internals import training_values
from keras_freeze.keras_internals.apply_learning_rate_multipliers import Multiplier
from keras_freeze.keras_internals.best_epoch_snapshot import snapshot_of
from keras_freeze.keras_internals.step_functions import sync
from keras_freeze.keras_internals.trainable_flags import flags_of, restore_flags

State = dict[str, Any]  # as JSON holds it; arrays are numbers
Arrays = list[Any]


@dataclass
class StateOfFit:
    """The parts of a `fit` that a backup saves.

    Attributes:
        model: the model that is fitted.
        plan: which layers are trainable in which stage.
        clock: which stage runs.
        rates: the learning rates.
        changes: the trainable state.
        triggers: the triggers of stages, or None.
        stops: the PerStage callbacks.
        caching: the cache, or None.
        callbacks: the states of the other callbacks.
        iterator: Keras' epoch iterator.
    """

    model: Any
    plan: Plan
    clock: StageClock
    rates: StageLearningRates
    changes: TrainableChanges
    triggers: Triggers | None
    stops: Stops
    caching: CacheLifecycle | None
    callbacks: CallbackStates
    iterator: Any

    def collect(self, packer: Packer, *, within_epoch: bool) -> State:
        """Returns the state.

        Args:
            packer: gets the arrays.
            within_epoch: whether an epoch has begun; the sums of its metrics are saved too.
        """
        sync(self.model)
        caching = self.caching.state() if self.caching is not None else None
        return {
            "clock": {
                "epoch": self.clock.epoch,
                "number": self.clock.number,
                "before": self.clock.before,
                "begun": packer.plain(dict(self.clock.begun), ""),
            },
            "flags": list(flags_of(self.plan.tree).values()),
            "births": training_values.births(self.model),
            "rates": self.rates.state(),
            "multipliers": self._multipliers(),
            "values": self._values(packer, within_epoch=within_epoch),
            "triggers": self._triggers(packer),
            "caching": packer.plain(caching, "random"),
            "callbacks": self.callbacks.packed(packer),
            "stop_training": bool(self.model.stop_training),
        }

    def _values(self, packer: Packer, *, within_epoch: bool) -> dict[str, list[int]]:
        still = training_values.frozen(self.plan.tree)
        weights = training_values.weights(self.model)
        groups = ["frozen" if id(variable) in still else "trained" for variable in weights]
        values = training_values.values(weights)
        slots = training_values.optimizer_state(self.model)
        sums = training_values.metrics(self.model) if within_epoch else []
        return {
            "weights": list(map(packer.array, values, groups)),
            "optimizer": [packer.array(a, "trained") for a in training_values.values(slots)],
            "metrics": [packer.array(a, "trained") for a in training_values.values(sums)],
        }

    def _multipliers(self) -> list[list[Any]]:
        places = self._places()
        held = self.changes.step.multipliers.items()
        return [[places[key], asdict(value)] for key, value in held if key in places]

    def _places(self) -> dict[int, int]:
        """Returns the place of each variable among all weights, by its id."""
        return {id(v): place for place, v in enumerate(training_values.weights(self.model))}

    def _triggers(self, packer: Packer) -> Any:
        """Returns what the triggers have seen, with the best epoch."""
        if self.triggers is None:
            return None
        state = self.triggers.state()
        best = self.triggers.best
        state["best"] = None if best is None else best.state(self._places())
        return packer.plain(state, "best")

    def restore(self, state: State, arrays: Arrays) -> None:
        """Brings the `fit` to a state, before an epoch begins."""
        clock = state["clock"]
        self.clock.continue_from(
            clock["epoch"], clock["number"], clock["before"], unpacked(clock["begun"], arrays)
        )
        self._restore_flags(state)
        training_values.set_births(self.model, state["births"])
        self.rates.restore(self.clock.number, state["rates"])
        self._restore_multipliers(state)
        self.restore_values(state, arrays)
        self.changes.note_restored()
        self.stops.begin_stage(self.clock.number)
        if self.triggers is not None and state["triggers"] is not None:
            self._restore_triggers(unpacked(state["triggers"], arrays))
        if self.caching is not None:
            self.caching.restore(unpacked(state["caching"], arrays))
        self.callbacks.follow()
        self.callbacks.restore(state["callbacks"], arrays)

    def restore_for_new_plan(self, state: State, arrays: Arrays) -> None:
        """Restores what another plan can continue from: the model and what callbacks count."""
        self._restore_flags(state)
        slots = [arrays[number] for number in state["values"]["optimizer"]]
        held = training_values.optimizer_state(self.model)
        if [array.shape for array in slots] == [tuple(variable.shape) for variable in held]:
            training_values.set_births(self.model, state["births"])
            training_values.assign(held, slots)
        else:
            warn("The new plan has another optimizer, so its state in the backup isn't used.")
        self._assign("weights", training_values.weights(self.model), state, arrays)
        self.changes.note_restored()
        self.callbacks.restore(state["callbacks"], arrays)

    def _restore_flags(self, state: State) -> None:
        """Restores the flags, and builds the optimizer: its slots depend on them."""
        tree = self.plan.tree
        restore_flags(tree, dict(zip(flags_of(tree), state["flags"], strict=True)))
        training_values.build_optimizer(self.model)

    def _restore_multipliers(self, state: State) -> None:
        weights = training_values.weights(self.model)
        self.changes.step.multipliers = {
            id(weights[place]): Multiplier(**given) for place, given in state["multipliers"]
        }

    def restore_within_epoch(self, state: State, arrays: Arrays) -> None:
        """Restores again what other callbacks' hooks at the beginning of the epoch have changed."""
        others = list(flags_of(self.plan.tree).values()) != state["flags"]
        if others:
            self._restore_flags(state)
            training_values.set_births(self.model, state["births"])
            self._restore_multipliers(state)
        self.restore_values(state, arrays)
        if others:
            self.changes.note_restored()
        self.callbacks.restore(state["callbacks"], arrays)

    def restore_values(self, state: State, arrays: Arrays) -> None:
        """Assigns all values that training changes."""
        self._assign("weights", training_values.weights(self.model), state, arrays)
        self._assign("optimizer", training_values.optimizer_state(self.model), state, arrays)
        if state["values"]["metrics"]:
            self._assign("metrics", training_values.metrics(self.model), state, arrays)
        self.rates.assign(state["rates"])

    def _assign(self, name: str, variables: list[Any], state: State, arrays: Arrays) -> None:
        training_values.assign(variables, [arrays[number] for number in state["values"][name]])

    def _restore_triggers(self, given: dict[str, Any]) -> None:
        assert self.triggers is not None
        best = given.pop("best")
        self.triggers.enter(self.clock.number)
        self.triggers.restore_state(**given)
        if best is not None:
            weights = training_values.weights(self.model)
            self.triggers.best = snapshot_of(self.model, weights, best)
