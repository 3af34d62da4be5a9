"""Serves a step: while it runs, a container answers its call with features that are known already.

Nothing is copied: the model's own `train_step`, loss, metrics and optimizer run, on the layers
behind the cut. The container is the model itself if its graph can be read, else its base.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras

from keras_freeze.features.aside import StepAsideError
from keras_freeze.features.cut import Cut, prefix_of
from keras_freeze.graph.program import Program, Value, mask_of, run, set_mask, version_of
from keras_freeze.graph.tree import LayerTree, has_added_losses

Model = Any
Tensor = Any
OBSTACLE = (
    "let FreezeBase() freeze it with the base, so that it runs in inference mode, or take it out; "
    "behind random augmentation there is nothing to cache"
)
Features = dict[str, Tensor]  # by column: a value of the program, or the mask of one


class Reached(BaseException):
    """Leaves the user's code when the container is reached: its features are known.

    Not an `Exception`, which Keras would wrap with a report about the call.
    """

    def __init__(self, features: Features):
        super().__init__()
        self.features = features


class GraphPart:
    """The part of a container whose graph is known.

    Args:
        program: of the container.
        cut: where it is cut now.
        values: all that is to be computed, also for the cuts of later stages.

    Attributes:
        places: of the inputs by which rows are told apart; None = all.
    """

    def __init__(self, program: Program, cut: Cut, values: tuple[Value, ...]):
        self.program = program
        self.cut = cut
        self.values = values
        self.steps, places = prefix_of(program, values)
        self.places: list[int] | None = places

    def follow(self, part: Any) -> None:
        """Goes on with the rows of an earlier stage: they were told apart by these inputs."""
        self.places = part.places

    @property
    def layers(self) -> list[Any]:
        """All layers that the prefix runs."""
        layers = [one for one in self.operations if isinstance(one, keras.layers.Layer)]
        return list({id(below): below for layer in layers for below in LayerTree(layer)}.values())

    @property
    def operations(self) -> list[Any]:
        """All that the prefix calls, each once."""
        called = {id(step.operation): step.operation for step in self.steps if not step.enters}
        return list(called.values())

    @property
    def columns(self) -> list[str]:
        """The columns of the cut that is served now."""
        return [str(value) for value in self.cut.values]

    def prefix(self, inputs: Any, training: Any = None, mask: Any = None, **_: Any) -> Features:
        values = self._enter(inputs, mask)
        run(self.steps, values, training)
        features = {str(number): values[number] for number in self.values}
        masks = {f"{number}.mask": mask_of(values[number]) for number in self.values}
        return features | {column: mask for column, mask in masks.items() if mask is not None}

    def tail(
        self, features: Features, inputs: Any, training: Any = None, mask: Any = None, **_: Any
    ) -> Any:
        values = self._enter(inputs, mask) if self.cut.given else {}
        for number in self.cut.values:
            symbol = self.program.symbols[number]
            values[number] = keras.ops.cast(features[str(number)], symbol.dtype)
            if f"{number}.mask" in features:
                set_mask(values[number], features[f"{number}.mask"])
        run(self.cut.tail, values, training)
        return self.program.leave(values)

    def _enter(self, inputs: Any, mask: Any) -> dict[Value, Tensor]:
        values = self.program.enter(inputs)
        for tensor, of_tensor in zip(values.values(), keras.tree.flatten(mask), strict=False):
            if of_tensor is not None:
                set_mask(tensor, of_tensor)
        return values


class WholePart:
    """A container whose inside can't be read: all of it, or nothing.

    Args:
        container: the layer or model.
        call: its `call`, as it runs in a step.
    """

    def __init__(self, container: Any, call: Callable[..., Any]):
        self.layers = list(LayerTree(container))
        self.operations = [container]
        self.places: list[int] | None = None
        self.call = call
        self.structure: Any = None
        self.dtypes: list[str] = []

    def follow(self, part: Any) -> None:
        """Goes on with the rows of an earlier stage."""
        self.structure, self.dtypes = part.structure, part.dtypes

    @property
    def columns(self) -> list[str]:
        return [str(number) for number in range(len(self.dtypes))]

    def prefix(self, *args: Any, **kwargs: Any) -> Features:
        outputs = self.call(*args, **kwargs)
        self.structure = keras.tree.map_structure(lambda _: None, outputs)
        flat = keras.tree.flatten(outputs)
        if any(mask_of(tensor) is not None for tensor in flat):
            raise StepAsideError(
                f"the outputs of {self.layers[0].name!r} carry masks, and its graph can't be read",
                "use a functional base",
            )
        self.dtypes = [keras.backend.standardize_dtype(tensor.dtype) for tensor in flat]
        return {str(number): tensor for number, tensor in enumerate(flat)}

    def tail(self, features: Features, *_: Any, **__: Any) -> Any:
        columns = zip(self.columns, self.dtypes, strict=True)
        flat = [keras.ops.cast(features[column], dtype) for column, dtype in columns]
        return keras.tree.pack_sequence_as(self.structure, flat)


@dataclass
class _Job:
    """What the container is asked in the step that runs: its features if `features` is None.

    Attributes:
        x: the inputs of the batch.
        versions: of these, where they can be changed.
        features: of the batch.
        is_open: True while a call of the container is one of the model's on the batch.
    """

    x: Any
    versions: list[Any]
    features: Features | None
    is_open: bool


class Tap:
    """Stands in for `call` of a container, and for the model's steps.

    Args:
        model: the model that is fitted.
        container: whose `call` is answered.
        part: what is served.
        call: the container's `call` as it runs in a step.
        tripwires: `(layer, call, reason)` of layers that change and may be called before a
            container that isn't the model itself.
    """

    def __init__(
        self,
        model: Model,
        container: Any,
        part: GraphPart | WholePart,
        call: Callable[..., Any],
        tripwires: list[tuple[Any, Callable[..., Any], str]],
    ):
        self.model = model
        self.container = container
        self.part = part
        self.call = call
        self.knows_training = "training" in inspect.signature(model.call).parameters
        self.served_steps = {kind: self._step(kind) for kind in ("train", "test")}
        self._now = threading.local()
        self.is_used = True  # as far as is known
        self.patches: list[tuple[Any, str, Any]] = [
            (layer, "call", self._wire(layer, call, reason)) for layer, call, reason in tripwires
        ]
        if container is not model:
            self.patches.append((model, "call", self._watch(model.call)))
        self.patches.append((container, "call", self._answer))
        for kind, step in self.served_steps.items():
            self.patches.append((model, f"{kind}_step", step))

    def _job(self, x: Any, features: Features | None) -> _Job:
        return _Job(x, _versions(x), features, is_open=self.container is self.model)

    def features(self, x: Any, training: bool) -> Features:
        """Runs the model up to the container, and the prefix in it."""
        self._now.job = self._job(x, None)
        try:
            self.model(x, **({"training": training} if self.knows_training else {}))
        except Reached as reached:
            self._check_losses()
            return reached.features
        finally:
            self._now.job = None
        name = self.container.name
        raise StepAsideError(f"the model's code doesn't call {name!r}", "name another base")

    def check_used(self) -> None:
        """Raises `StepAsideError` if the last step went by the container."""
        if not self.is_used:
            raise StepAsideError(
                f"the model's own step doesn't call {self.model.name!r} on the batch",
                "call the model in it, not its layers",
            )

    def _check_losses(self) -> None:
        """What a layer of the prefix adds to the loss would be missing in the step."""
        for layer in self.part.layers:
            if has_added_losses(layer):
                raise StepAsideError(
                    f"{layer.name!r} of the frozen part adds to the loss",
                    "thaw that layer, or take its loss away",
                )

    def _answer(self, *args: Any, **kwargs: Any) -> Any:
        """`call` of the container. It is served once a step: a second call runs as it is."""
        job = getattr(self._now, "job", None)
        if job is None or not job.is_open:
            return self.call(*args, **kwargs)
        self._now.job = None
        if job.features is None:
            raise Reached(self.part.prefix(*args, **kwargs))
        if self.container is self.model:
            _check_same(args, kwargs, job)
        return self.part.tail(job.features, *args, **kwargs)

    def _watch(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call` of a model that holds the container: what it is called on must be the batch."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            job = getattr(self._now, "job", None)
            if job is None:
                return call(*args, **kwargs)
            if job.features is not None:
                _check_same(args, kwargs, job)
            job.is_open = True
            try:
                return call(*args, **kwargs)
            finally:
                job.is_open = False

        return watched

    def _wire(self, layer: Any, call: Callable[..., Any], reason: str) -> Callable[..., Any]:
        def wired(*args: Any, **kwargs: Any) -> Any:
            job = getattr(self._now, "job", None)
            if job is not None and job.features is None:
                name = self.container.name
                raise StepAsideError(
                    f"{layer.name!r} is called before {name!r}, and {reason}",
                    OBSTACLE,
                )
            return call(*args, **kwargs)

        return wired

    def _step(self, kind: str) -> Callable[..., Any]:
        """The model's own step, on a batch that brings its features along."""
        step = getattr(self.model, f"{kind}_step")

        def served(*arguments: Any) -> Any:
            *state, (features, x, y, sample_weight) = arguments
            x = self.shown(features, x)
            self._now.job = self._job(x, features)
            try:
                done = step(*state, keras.utils.pack_x_y_sample_weight(x, y, sample_weight))
                self.is_used = self._now.job is None
                return done
            finally:
                self._now.job = None

        return served

    def show(self, structure: Any, shapes: list[tuple[tuple[int, ...], str]]) -> None:
        """Notes what inputs look like: those that no one reads are left out of the step.

        Args:
            structure: of `x`.
            shapes: of a row of each leaf, and its dtype.
        """
        self._looks = (structure, shapes)

    def shown(self, features: Features, leaves: dict[str, Tensor]) -> Any:
        """Returns `x` with stand-ins for the leaves that are left out: only their shape counts."""
        structure, shapes = self._looks
        rows = keras.ops.shape(next(iter(features.values())))[0]
        flat = [
            leaves[str(place)]
            if str(place) in leaves
            else keras.ops.broadcast_to(
                keras.ops.zeros((1,) * (len(shape) + 1), dtype), (rows, *shape)
            )
            for place, (shape, dtype) in enumerate(shapes)
        ]
        return keras.tree.pack_sequence_as(structure, flat)


def _versions(x: Any) -> list[Any]:
    return [version_of(leaf) for leaf in keras.tree.flatten(x)]


def _check_same(args: tuple[Any, ...], kwargs: dict[str, Any], job: _Job) -> None:
    """The features are those of the batch, so the model must be called on the batch."""
    called_on = args[0] if args else next(iter(kwargs.values()))
    one, other = keras.tree.flatten(called_on), keras.tree.flatten(job.x)
    same = len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))
    if not same or _versions(job.x) != job.versions:
        raise StepAsideError(
            "the model's own step calls it on other inputs than those of the batch",
            "call the model on the batch as it is",
        )
