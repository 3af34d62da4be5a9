"""One stage of a cache: which part of the model is served, and the functions that serve it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from keras_freeze.features.aside import StepAsideError
from keras_freeze.features.cut import Cut
from keras_freeze.features.fixed import TRAINS, Fixed, is_of_keras
from keras_freeze.features.layout import Flags, cut_names, plan_layout
from keras_freeze.features.part import Features, GraphPart, WholePart
from keras_freeze.features.tap import OBSTACLE, Tap
from keras_freeze.graph.program import Program, read_program
from keras_freeze.graph.tree import Layer, LayerTree, hidden_layers
from keras_freeze.training.functions import has_own_functions, make_over
from keras_freeze.training.inference import frozen_calls
from keras_freeze.training.patch import Patch

Model = Any


class Subject:
    """The model as a cache sees it.

    Args:
        model: the model that is fitted.
        tree: all its layers.
        served: the leaves to be served; they decide if the model's own graph can't be read.
        base_leaves: the leaves that run in inference mode while they are frozen.

    Attributes:
        container: whose call is answered: the model, or the smallest layer that holds all served
            leaves and whose graph can be read.
        program: of the container; None if it can't be read.
    """

    def __init__(
        self, model: Model, tree: LayerTree, served: list[Layer], base_leaves: list[Layer]
    ):
        self.model = model
        self.tree = tree
        self.base_leaves = base_leaves
        self.container, self.program = model, read_program(model)
        if self.program is None:
            self.container, self.program = _container(tree, served)

    @property
    def is_readable(self) -> bool:
        """True if the graph from the model's inputs to its outputs is known."""
        return self.container is self.model and self.program is not None

    @property
    def around(self) -> list[Any]:
        """The variables that code may move before it calls the container, seeds included."""
        if self.container is self.model:
            return []
        return [*self.model.variables, *self.model.metrics_variables]

    def check(self) -> None:
        """Raises `StepAsideError` if no layout could ever be served."""
        if self.container is self.model and self.program is None:
            raise StepAsideError(
                "the model is subclassed, so its graph can't be read, and no layer of it holds the "
                "whole base",
                "name a layer that can be cached as a whole, BottleneckCache('name')",
            )
        names = ("make_train_function", "make_test_function")
        for name in _not_of_keras(self.model, names):
            raise StepAsideError(
                f"the model's own `{name}` may read the batches, which hold features",
                "override `train_step` or `test_step` instead",
            )

    def fixed(self, flags: Flags) -> Fixed:
        return Fixed(self.tree, {id(leaf) for leaf in self.base_leaves}, flags)


def _container(tree: LayerTree, served: list[Layer]) -> tuple[Layer, Program | None]:
    """The smallest layer that holds all served leaves, one whose graph can be read before others.

    The root itself if there is none.
    """
    wanted = {id(leaf) for leaf in served if leaf.weights}
    below = {id(layer): {id(leaf) for leaf in tree.below(layer)} for layer in tree}
    inner = [layer for layer in tree if layer is not tree.root and wanted]
    holders = [layer for layer in inner if wanted <= below[id(layer)]]
    holders.sort(key=lambda layer: len(below[id(layer)]))
    programs = ((layer, read_program(layer)) for layer in holders)
    readable = next((found for found in programs if found[1] is not None), None)
    return readable or (holders[0] if holders else tree.root, None)


@dataclass(frozen=True)
class Choice:
    """What a stage keeps.

    Attributes:
        part: what is served; None if this stage serves nothing.
        columns: what is kept, also for later stages; None = what was kept before.
        names: of the layers that give what is served.
        later: whether a later stage serves something.
    """

    part: GraphPart | WholePart | None
    columns: tuple[str, ...] | None
    names: list[str]
    later: bool


def choose(subject: Subject, now: Flags, later: Sequence[Flags]) -> Choice:
    """Finds what is served in a stage.

    Args:
        subject: the model.
        now: `{id(leaf): trainable}` of all leaves.
        later: the same for each stage that will follow, in order.

    Raises:
        StepAsideError: a layer that isn't trained, but changes, keeps frozen ones from it.
    """
    if subject.program is None:
        return _choose_whole(subject, now, later)
    layout = plan_layout(subject.program, subject.fixed, now, later)
    _check_obstacle(layout.cut)
    columns = tuple(str(value) for value in layout.values)
    names = cut_names(subject.program, layout.cut.values)
    part = GraphPart(subject.program, layout.cut, layout.values) if names else None
    return Choice(part, columns, names, layout.later)


def _choose_whole(subject: Subject, now: Flags, later: Sequence[Flags]) -> Choice:
    container = subject.container
    reasons = [subject.fixed(flags).why_not(container) for flags in (now, *later)]
    if reasons[0] not in ("", TRAINS):
        raise StepAsideError(f"{container.name!r} can't be cached: {reasons[0]}", OBSTACLE)
    coming = "" in reasons[1:]
    if reasons[0] == TRAINS:
        return Choice(None, (), [], coming)
    calls = {id(layer): call for layer, _, call in frozen_calls(subject.tree, subject.base_leaves)}
    part = WholePart(container, calls.get(id(container), container.call))
    return Choice(part, None, [container.name], coming)


def _check_obstacle(cut: Cut) -> None:
    if cut.obstacle is not None:
        name = cut.obstacle.name
        raise StepAsideError(f"{name!r} comes before frozen layers, and {cut.reason}", OBSTACLE)


class Served:
    """The functions of a stage.

    Args:
        subject: the model.
        part: what is served.
        now: `{id(leaf): trainable}` of all leaves.
        backend: the module of the backend.
        dtype: in which float features are kept; None = as they are.
    """

    def __init__(
        self, subject: Subject, part: GraphPart | WholePart, now: Flags, backend: Any, dtype: Any
    ):
        self.subject = subject
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
        wires = [] if container is subject.model else _tripwires(subject, now, calls)
        call = calls.get(id(container), container.call)
        self.tap = Tap(subject.model, container, part, call, wires)
        self.patches = [*frozen, *self.tap.patches]
        self.lighter = backend.Lighter(subject.model, self._hidden())
        self.is_trusted = self.alike and all(map(_is_row_by_row, part.operations))
        self.is_faster_together = self.is_trusted and backend.is_faster_together(subject.model)
        self._prefixes: dict[str, Callable[..., Any]] = {}
        self._functions: dict[str, Callable[..., Any]] = {}

    def _hidden(self) -> list[Patch]:
        """What hides the prefix from Keras while a step is served, if nothing else runs it."""
        if not isinstance(self.part, GraphPart) or not self.alike or self.has_own_steps:
            return []
        if has_own_functions(self.subject.model):
            return []
        called = [step.operation for step in self.part.cut.tail if not step.enters]
        tree = self.subject.tree
        busy = {id(leaf) for layer in called if layer in tree for leaf in tree.below(layer)}
        return hidden_layers(tree, busy)

    def prefix(self, kind: str) -> Callable[..., Any]:
        """Returns the prefix for "train" or "test": (state, inputs) -> features, of batches."""
        kind = "train" if self.alike else kind
        if kind not in self._prefixes:
            tap, training = self.tap, kind == "train"
            self._prefixes[kind] = self.backend.compiled(
                self.subject.model,
                lambda x: self._narrowed(tap.features(x, training)),
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
            step = self.tap.served_steps[kind]
            self._functions[kind] = make_over(self.subject.model, kind, step)
        return self._functions[kind]

    def salt(self, kind: str) -> bytes:
        """What tells apart equal rows whose features may differ."""
        return b"" if self.alike else kind.encode()

    def places(self, x: Any) -> list[int]:
        """Returns the leaves of `x` that the prefix reads."""
        return self._leaves(x, self.part.places)

    def shown(self, x: Any) -> list[int]:
        """Returns the leaves of `x` that something behind the cut reads."""
        if isinstance(self.part, GraphPart) and not self.has_own_steps:
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
    subject: Subject, now: Flags, calls: dict[int, Any]
) -> list[tuple[Layer, Callable[..., Any], str]]:
    """The layers outside the container that must not be called before it, and why."""
    fixed = subject.fixed(now)
    inside = {id(layer) for layer in LayerTree(subject.container)}
    outside = [leaf for leaf in subject.tree.leaves if id(leaf) not in inside]
    reasons = [(leaf, fixed.why_not(leaf)) for leaf in outside]
    for leaf, reason in reasons:
        if reason and leaf is subject.model:
            raise StepAsideError(
                f"{leaf.name!r} has weights of its own, and may use them before its base",
                "hold these weights in a layer",
            )
    return [(leaf, calls.get(id(leaf), leaf.call), reason) for leaf, reason in reasons if reason]


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
    return not _not_of_keras(model, names)


def _not_of_keras(model: Model, names: Sequence[str]) -> list[str]:
    """Returns the methods that the model's class, or the model itself, overrides."""
    modules = [getattr(type(model), name).__module__.split(".")[0] for name in names]
    pairs = zip(names, modules, strict=True)
    return [name for name, module in pairs if name in vars(model) or module != "keras"]


def symbols_of(part: GraphPart | WholePart) -> list[Any] | None:
    """Returns the symbolic tensors of what is kept; None of a container that can't be read."""
    if isinstance(part, WholePart):
        return None
    return [part.program.symbols[value] for value in part.values]
