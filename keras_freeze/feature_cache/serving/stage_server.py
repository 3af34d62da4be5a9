"""Builds the prefix function and the train and test functions of a stage that is cached."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any, cast

import keras

from keras_freeze.feature_cache.cutting.deterministic_layers import is_row_by_row
from keras_freeze.feature_cache.cutting.graph_to_cut import CachedModel, overridden_methods
from keras_freeze.feature_cache.cutting.prefix_and_tail import Features, GraphPrefix, LayerPrefix
from keras_freeze.feature_cache.cutting.tensors_to_cache import Flags
from keras_freeze.feature_cache.not_cacheable import (
    VARIES,
    NotCacheableError,
    not_told,
    obstacle,
)
from keras_freeze.feature_cache.serving.compiled_rest import CompiledRest
from keras_freeze.feature_cache.serving.layer_call_override import CallOverride, Wire
from keras_freeze.graph.layer_calls import LayerCall
from keras_freeze.graph.layer_tree import Layer, LayerTree, hidden_layers
from keras_freeze.keras_internals.inference_mode import frozen_calls
from keras_freeze.keras_internals.step_functions import compiling, has_own_functions, make_over
from keras_freeze.keras_internals.temporary_attributes import Patch

Model = Any


class StageServer:
    """Serves the steps of one stage: prepares the prefix and the train and test functions.

    The prefix is the frozen layers before the cut, whose outputs (the features) are cached.

    Args:
        cached_model: the model.
        part: the part of the model that is served.
        now: `{id(leaf): trainable}` of all leaves, the layers without sublayers.
        backend: the module of the backend.
        dtype: dtype in which float features are kept; None = their own.
        training: False = only validation steps are served.
        records: whether epochs are recorded as they run, so that the prefix may be random.
    """

    def __init__(
        self,
        cached_model: CachedModel,
        part: GraphPrefix | LayerPrefix,
        now: Flags,
        backend: Any,
        dtype: Any,
        *,
        training: bool = True,
        records: bool = False,
    ):
        self.cached_model = cached_model
        self.training = training
        self.dtype = dtype
        self.part = part
        self.backend = backend
        # A graph gives the same features in training and validation; a subclassed model may do
        # something different before its base.
        self.alike = cached_model.is_readable
        # Read now, because the model's steps are replaced while a step runs.
        self.has_own_steps = has_own_steps(cached_model.model)
        frozen = frozen_calls(cached_model.tree, cached_model.base_leaves)
        calls = {id(layer): call for layer, _, call in frozen}
        container = cached_model.container
        wires = _tripwires(cached_model, now, calls, training, VARIES if records else ())
        call = calls.get(id(container), container.call)
        told = [] if training else _told(cached_model, now, part)
        self.override = CallOverride(cached_model.model, container, part, call, wires, told)
        self.patches = [*frozen, *self.override.patches]
        self.lighter = backend.UsedStateStep(cached_model.model, self._hidden())
        self.records = records
        self.step_loops, self.recorded_prefix = map(_of_backend, ("step_loops", "recorded_prefix"))
        draws = records and self._compile_rest(now)
        self.is_trusted = self.alike and not draws and all(map(is_row_by_row, part.operations))
        self.is_faster_together = self.is_trusted and backend.is_faster_together(cached_model.model)
        self._prefixes: dict[str, Callable[..., Any]] = {}
        self._functions: dict[str, Callable[..., Any]] = {}
        self._loops: dict[str, Any] = {}

    def _compile_rest(self, now: Flags) -> bool:
        """Compiles what comes after random layers of the prefix; False if none is random."""
        judge, model = self.cached_model.fixed(now), self.cached_model.model

        def draws(operation: Any) -> bool:
            return judge.why_not(operation) in VARIES

        if not any(map(draws, self.part.operations)):
            return False
        compiler = self.recorded_prefix.rest_compiler(model, is_row_by_row)
        if compiler is not None and isinstance(self.part, GraphPrefix):
            self.part.run_calls = CompiledRest(self.part, draws, compiler)
        return True

    def _hidden(self) -> list[Patch]:
        """Patches that hide the prefix from Keras in a step, if nothing else calls its layers."""
        if not isinstance(self.part, GraphPrefix) or not self.alike or self.has_own_steps:
            return []
        if has_own_functions(self.cached_model.model):
            return []
        called = [call.operation for call in self.part.cut.tail if not call.enters]
        tree = self.cached_model.tree
        busy = {id(leaf) for layer in called if layer in tree for leaf in tree.below(layer)}
        return hidden_layers(tree, busy)

    def prefix(self, kind: str) -> Callable[..., Any]:
        """Returns the prefix for "train" or "test": (state, inputs of batches) -> features."""
        kind = "train" if self.alike and self.training else kind
        if kind not in self._prefixes:
            override, training = self.override, kind == "train"
            self._prefixes[kind] = self.backend.compiled(
                self.cached_model.model,
                lambda x: self._narrowed(override.features(x, training)),
                is_trusted=self.is_trusted,
            )
        return self._prefixes[kind]

    def continued(self, calls: Sequence[LayerCall]) -> Callable[..., Any]:
        """Returns a function that continues from an earlier cut.

        Args:
            calls: the layer calls in between; always the same in a stage.

        Returns:
            (state, features of batches at the earlier cut) -> features.
        """
        if "continued" not in self._prefixes:
            part, training = cast(GraphPrefix, self.part), self.training
            self._prefixes["continued"] = self.backend.compiled(
                self.cached_model.model,
                lambda known: self._narrowed(part.continued(calls, known, training)),
                is_trusted=self.is_trusted,
            )
        return self._prefixes["continued"]

    @cached_property
    def recorded(self) -> Callable[..., Any]:
        """Runs the prefix as a train step does: (state, inputs) -> (features, new state)."""
        model, layers = self.cached_model.model, self.part.layers
        inside = [variable for layer in layers for variable in layer.variables]
        return cast(
            Callable[..., Any],
            self.recorded_prefix.recorded(
                model,
                lambda x: self._narrowed(self.override.features(x, True)),
                inside,
                is_trusted=self.is_trusted,
                around=None if self.cached_model.container is model else self.override,
            ),
        )

    def _narrowed(self, features: Features) -> Features:
        """Converts features on the device, so that fewer bytes are copied from it."""
        if self.dtype is None:
            return features
        return {name: _cast(tensor, self.dtype.name) for name, tensor in features.items()}

    def function(self, kind: str) -> Callable[..., Any]:
        """Returns the model's train or test function for batches that contain features."""
        if kind not in self._functions:
            step = self.override.served_steps[kind]
            model = self.cached_model.model
            with compiling(model) if self.compiles_step else nullcontext():
                self._functions[kind] = make_over(model, kind, step)
        return self._functions[kind]

    @cached_property
    def compiles_step(self) -> bool:
        """True if steps are compiled although Keras doesn't compile those of the whole model."""
        model = self.cached_model.model
        prefix, others = self.part.layers, self._others()
        is_free = self.records and bool(self._hidden())
        return is_free and bool(self.recorded_prefix.compiles_step(model, prefix, others))

    @cached_property
    def can_loop(self) -> bool:
        """True if many steps can run in one compiled call, as fast as one by one."""
        model = self.cached_model.model
        with compiling(model) if self.compiles_step else nullcontext():
            can_loop = self.step_loops.can_loop(model, self._others())
        return can_loop and not has_own_functions(model)

    def _others(self) -> list[Layer]:
        """Returns the layers and models that aren't part of the prefix."""
        prefix = {id(layer) for layer in self.part.layers}
        return [layer for layer in self.cached_model.tree if id(layer) not in prefix]

    def loop(self, kind: str) -> Any:
        """Returns the `StepLoop` that runs groups of train or test steps."""
        if kind not in self._loops:
            arguments = self.function(kind), self.lighter, self._others()
            self._loops[kind] = self.step_loops.StepLoop(*arguments)
        return self._loops[kind]

    def salt(self, kind: str) -> bytes:
        """Returns bytes for the keys, if training and validation features of a row may differ."""
        return b"" if self.alike else kind.encode()

    def places(self, x: Any) -> list[int]:
        """Returns the positions of the tensors in `x` that the prefix reads."""
        return self._leaves(x, self.part.places)

    def shown(self, x: Any) -> list[int]:
        """Returns the positions of the tensors in `x` that layers after the cut read."""
        if isinstance(self.part, GraphPrefix) and not self.has_own_steps:
            return self._leaves(x, self.part.cut.given)
        return self._leaves(x, None)

    def _leaves(self, x: Any, places: Sequence[int] | None) -> list[int]:
        return positions_of_inputs(self.cached_model, x, places)


def _of_backend(room: str) -> Any:
    """Returns the module of the running backend in a folder of `backends`."""
    name = f"keras_freeze.feature_cache.backends.{room}.on_{keras.backend.backend()}"
    return importlib.import_module(name)


def positions_of_inputs(
    cached_model: CachedModel, x: Any, places: Sequence[int] | None
) -> list[int]:
    """Returns the positions of inputs among the tensors of `x`; all, if they can't be told."""
    program = cached_model.program
    is_known = cached_model.is_readable and program is not None
    order = program.place_of_inputs(x) if is_known and program is not None else None
    if places is None or order is None:
        return list(range(len(keras.tree.flatten(x))))
    return [order[place] for place in places]


def _cast(tensor: Any, dtype: str) -> Any:
    is_float = keras.backend.is_float_dtype(keras.backend.standardize_dtype(tensor.dtype))
    return keras.ops.cast(tensor, dtype) if is_float else tensor


def _tripwires(
    cached_model: CachedModel,
    now: Flags,
    calls: dict[int, Any],
    training: bool,
    allowed: Sequence[str],
) -> list[Wire]:
    """Returns the layers that must not be called before the container (in training mode).

    The reasons in `allowed` don't count.
    """
    fixed, in_training = cached_model.fixed(now, training=training), cached_model.fixed(now)
    inside = {id(layer) for layer in LayerTree(cached_model.container)}
    wires = []
    for leaf in cached_model.tree.leaves:
        why = "" if id(leaf) in inside else fixed.why_not(leaf)
        if why and leaf is cached_model.model:
            raise NotCacheableError(
                f"{leaf.name!r} has weights of its own, and may use them before its base",
                "put these weights into a layer",
            )
        before = "" if id(leaf) in inside else f" before {cached_model.container.name!r}"
        what = f"{leaf.name!r} is called{before}"
        call = calls.get(id(leaf), leaf.call)
        if why and why not in allowed:
            wires.append(Wire(leaf, call, obstacle(what, why, is_inside=False)))
        elif not training and in_training.why_not(leaf) and not fixed.why_not(leaf):
            wires.append(Wire(leaf, call, not_told(what), spares_inference=True))
    return wires


def _told(cached_model: CachedModel, now: Flags, part: GraphPrefix | LayerPrefix) -> list[Layer]:
    """Returns the layers that must get `training=False` if only validation is served."""
    changing = any(map(cached_model.fixed(now).why_not, part.operations))
    return [cached_model.model, *([cached_model.container] if changing else [])]


def has_own_steps(model: Model) -> bool:
    """Returns True if the steps aren't Keras' own, which read the inputs only to call the model."""
    names = ("train_step", "test_step", "compute_loss", "compute_metrics", "__call__")
    return bool(overridden_methods(model, names))
