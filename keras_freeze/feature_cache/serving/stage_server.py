"""One stage of a cache: which part of the model is served, and the functions that serve it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_freeze.feature_cache.cutting.cuts_of_stages import Flags
from keras_freeze.feature_cache.cutting.deterministic_layers import is_of_keras
from keras_freeze.feature_cache.cutting.graph_to_cut import CachedModel, overridden_methods
from keras_freeze.feature_cache.cutting.prefix_and_tail import Features, GraphPrefix, LayerPrefix
from keras_freeze.feature_cache.not_cacheable import NotCacheableError, not_told, obstacle
from keras_freeze.feature_cache.serving.layer_call_override import CallOverride, Wire
from keras_freeze.graph.layer_tree import Layer, LayerTree, hidden_layers
from keras_freeze.keras_internals.inference_mode import frozen_calls
from keras_freeze.keras_internals.step_functions import has_own_functions, make_over
from keras_freeze.keras_internals.temporary_attributes import Patch

Model = Any


class Served:
    """The functions of a stage.

    Args:
        subject: the model.
        part: what is served.
        now: `{id(leaf): trainable}` of all leaves.
        backend: the module of the backend.
        dtype: in which float features are kept; None = as they are.
        training: False = only the steps of the validation are served.
    """

    def __init__(
        self,
        subject: CachedModel,
        part: GraphPrefix | LayerPrefix,
        now: Flags,
        backend: Any,
        dtype: Any,
        *,
        training: bool = True,
    ):
        self.subject = subject
        self.training = training
        self.dtype = dtype
        self.part = part
        self.backend = backend
        # The graph of a whole model gives the same in training and validation; a subclassed model
        # may do something else in front of its base.
        self.alike = subject.is_readable
        # Asked now, as while a step runs the model's steps are ours.
        self.has_own_steps = not _is_of_keras(subject.model)
        frozen = frozen_calls(subject.tree, subject.base_leaves)
        calls = {id(layer): call for layer, _, call in frozen}
        container = subject.container
        wires = _tripwires(subject, now, calls, training)
        call = calls.get(id(container), container.call)
        told = [] if training else _told(subject, now, part)
        self.override = CallOverride(subject.model, container, part, call, wires, told)
        self.patches = [*frozen, *self.override.patches]
        self.lighter = backend.UsedStateStep(subject.model, self._hidden())
        self.is_trusted = self.alike and all(map(_is_row_by_row, part.operations))
        self.is_faster_together = self.is_trusted and backend.is_faster_together(subject.model)
        self._prefixes: dict[str, Callable[..., Any]] = {}
        self._functions: dict[str, Callable[..., Any]] = {}

    def _hidden(self) -> list[Patch]:
        """What hides the prefix from Keras while a step is served, if nothing else runs it."""
        if not isinstance(self.part, GraphPrefix) or not self.alike or self.has_own_steps:
            return []
        if has_own_functions(self.subject.model):
            return []
        called = [call.operation for call in self.part.cut.tail if not call.enters]
        tree = self.subject.tree
        busy = {id(leaf) for layer in called if layer in tree for leaf in tree.below(layer)}
        return hidden_layers(tree, busy)

    def prefix(self, kind: str) -> Callable[..., Any]:
        """Returns the prefix for "train" or "test": (state, inputs) -> features, of batches."""
        kind = "train" if self.alike and self.training else kind
        if kind not in self._prefixes:
            override, training = self.override, kind == "train"
            self._prefixes[kind] = self.backend.compiled(
                self.subject.model,
                lambda x: self._narrowed(override.features(x, training)),
                is_trusted=self.is_trusted,
            )
        return self._prefixes[kind]

    def _narrowed(self, features: Features) -> Features:
        """Converted where they are computed, so that less leaves the device."""
        if self.dtype is None:
            return features
        return {name: _cast(tensor, self.dtype.name) for name, tensor in features.items()}

    def function(self, kind: str) -> Callable[..., Any]:
        """Returns the model's train or test function over batches that bring their features."""
        if kind not in self._functions:
            step = self.override.served_steps[kind]
            self._functions[kind] = make_over(self.subject.model, kind, step)
        return self._functions[kind]

    def salt(self, kind: str) -> bytes:
        """What tells apart equal rows whose features may differ."""
        return b"" if self.alike else kind.encode()

    def places(self, x: Any) -> list[int]:
        """Returns the leaves of `x` that the prefix reads."""
        return self._leaves(x, self.part.places)

    def shown(self, x: Any) -> list[int]:
        """Returns the leaves of `x` that something after the cut reads."""
        if isinstance(self.part, GraphPrefix) and not self.has_own_steps:
            return self._leaves(x, self.part.cut.given)
        return self._leaves(x, None)

    def _leaves(self, x: Any, places: Sequence[int] | None) -> list[int]:
        program = self.subject.program
        order = program.place_of_inputs(x) if self.alike and program is not None else None
        if places is None or order is None:
            return list(range(len(keras.tree.flatten(x))))
        return [order[place] for place in places]


def _cast(tensor: Any, dtype: str) -> Any:
    is_float = keras.backend.is_float_dtype(keras.backend.standardize_dtype(tensor.dtype))
    return keras.ops.cast(tensor, dtype) if is_float else tensor


def _tripwires(
    subject: CachedModel, now: Flags, calls: dict[int, Any], training: bool
) -> list[Wire]:
    """The layers that must not be called before the container, or not as in training, and why."""
    fixed, in_training = subject.fixed(now, training=training), subject.fixed(now)
    inside = {id(layer) for layer in LayerTree(subject.container)}
    wires = []
    for leaf in subject.tree.leaves:
        why = "" if id(leaf) in inside else fixed.why_not(leaf)
        if why and leaf is subject.model:
            raise NotCacheableError(
                f"{leaf.name!r} has weights of its own, and may use them before its base",
                "hold these weights in a layer",
            )
        before = "" if id(leaf) in inside else f" before {subject.container.name!r}"
        what = f"{leaf.name!r} is called{before}"
        call = calls.get(id(leaf), leaf.call)
        if why:
            wires.append(Wire(leaf, call, obstacle(what, why, is_inside=False)))
        elif not training and in_training.why_not(leaf) and not fixed.why_not(leaf):
            wires.append(Wire(leaf, call, not_told(what), spares_inference=True))
    return wires


def _told(subject: CachedModel, now: Flags, part: GraphPrefix | LayerPrefix) -> list[Layer]:
    """What must be called with `training=False` where only validation is served."""
    changing = any(map(subject.fixed(now).why_not, part.operations))
    return [subject.model, *([subject.container] if changing else [])]


def _is_row_by_row(operation: Any) -> bool:
    """True for what is known to treat each image alone, and the same each time: Keras' own layers.

    Not so functions on whole tensors, a Lambda, a layer of the user's, or one along the batch.
    """
    axes = keras.tree.flatten(getattr(operation, "axis", None))
    is_plain = is_of_keras(operation) and not isinstance(operation, keras.layers.Lambda)
    return _is_layer(operation) and is_plain and 0 not in axes


def _is_layer(operation: Any) -> bool:
    return isinstance(operation, keras.layers.Layer)


def _is_of_keras(model: Model) -> bool:
    """True if the steps are Keras' own: they call the model once, and read its inputs no more."""
    names = ("train_step", "test_step", "compute_loss", "compute_metrics", "__call__")
    return not overridden_methods(model, names)
