"""Replaces the `call` of the base or the model, so that a step runs on cached features.

The model's own `train_step`, loss, metrics and optimizer run, with the layers after the cut (the
place where features are cached). The container is the layer whose `call` is replaced: the model
itself if its graph can be read, else its base.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_freeze.feature_cache.cutting.prefix_and_tail import Features, GraphPrefix, LayerPrefix
from keras_freeze.feature_cache.not_cacheable import NotCacheableError, not_told
from keras_freeze.graph.layer_calls import as_called, is_keras_code, version_of
from keras_freeze.graph.layer_tree import has_added_losses

Model = Any
Tensor = Any


class Reached(BaseException):
    """Raised to leave the model's code once the container's features are computed.

    It isn't an `Exception`, which Keras would wrap with a report about the call.
    """

    def __init__(self, features: Features):
        super().__init__()
        self.features = features


@dataclass(frozen=True)
class Wire:
    """A layer whose output changes, so that it must not be called before the container.

    Attributes:
        layer: the layer.
        call: its `call` as it runs in a step.
        error: raised if it is called.
        spares_inference: whether calls with `training=False` are allowed.
    """

    layer: Any
    call: Callable[..., Any]
    error: NotCacheableError
    spares_inference: bool = False


@dataclass
class _Job:
    """What the container does in the running step.

    Attributes:
        x: the inputs of the batch.
        versions: version counters of these tensors, if they can be changed in place.
        features: the features of the batch; None = compute them.
        is_open: True while the model is called on the batch.
    """

    x: Any
    versions: list[Any]
    features: Features | None
    is_open: bool


class CallOverride:
    """Replaces the `call` of a container and the model's train and test steps.

    Args:
        model: the model that is fitted.
        container: the layer whose `call` is replaced.
        part: the part of the container that is served.
        call: the container's `call` as it runs in a step.
        tripwires: the layers that must not be called before the container.
        told: layers that must be called with `training=False`, if their `call` takes it.
    """

    def __init__(
        self,
        model: Model,
        container: Any,
        part: GraphPrefix | LayerPrefix,
        call: Callable[..., Any],
        tripwires: list[Wire],
        told: list[Any],
    ):
        self.model = model
        self.container = container
        self.part = part
        self.call = call
        self.knows_training = "training" in inspect.signature(model.call).parameters
        self.told = {
            id(layer): inspect.signature(layer.call)
            for layer in told
            if layer is not model or self.knows_training
        }
        self.served_steps = {kind: self._step(kind) for kind in ("train", "test")}
        self._now = threading.local()
        self.is_used = True  # until a step shows otherwise
        self.enters: Callable[[], None] = lambda: None  # called before features are computed
        self.patches: list[tuple[Any, str, Any]] = [
            (wire.layer, "call", self._wire(wire)) for wire in tripwires
        ]
        if container is not model:
            self.patches.append((model, "call", self._watch(model.call)))
        self.patches.append((container, "call", self._answer))
        for kind, step in self.served_steps.items():
            self.patches.append((model, f"{kind}_step", step))

    def _job(self, x: Any, features: Features | None) -> _Job:
        return _Job(x, _versions(x), features, is_open=self.container is self.model)

    def features(self, x: Any, training: bool) -> Features:
        """Runs the model up to the container, then the container's layers before the cut."""
        x = as_called(self.model, x)
        self._now.job, self._now.computes = self._job(x, None), True
        try:
            self.model(x, **({"training": training} if self.knows_training else {}))
        except Reached as reached:
            self._check_losses()
            return reached.features
        finally:
            self._now.job, self._now.computes = None, False
        name = self.container.name
        raise NotCacheableError(f"the model's code doesn't call {name!r}", "name another base")

    def check_used(self) -> None:
        """Raises `NotCacheableError` if the last step didn't call the container."""
        if not self.is_used:
            raise NotCacheableError(
                f"the model's own step doesn't call {self.model.name!r} on the batch",
                "call the model in that step, not its layers",
            )

    def _check_losses(self) -> None:
        """Raises if a cached layer adds to the loss, since a served step would lack that."""
        for layer in self.part.layers:
            if has_added_losses(layer):
                raise NotCacheableError(
                    f"{layer.name!r} of the frozen part adds to the loss",
                    "unfreeze that layer, or remove its loss",
                )

    def _answer(self, *args: Any, **kwargs: Any) -> Any:
        """The container's `call`. Serves the first call in a step; others run the layers."""
        job = getattr(self._now, "job", None)
        if job is None or not job.is_open:
            return self.call(*args, **kwargs)
        self._now.job = None
        self._check_told(self.container, args, kwargs)
        if self.container is self.model:
            _check_same(args, kwargs, job)  # on JAX, the step doesn't use the model's `__call__`
        if job.features is None:
            self.enters()
            raise Reached(self.part.prefix(*args, **kwargs))
        return self.part.tail(job.features, *args, **kwargs)

    def _watch(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps `call` of a model that holds the container: it must be called on the batch."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            job = getattr(self._now, "job", None)
            if job is None:
                return call(*args, **kwargs)
            _check_same(args, kwargs, job)
            self._check_told(self.model, args, kwargs)
            job.is_open = True
            try:
                return call(*args, **kwargs)
            finally:
                job.is_open = False

        return watched

    def _check_told(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raises if the call isn't in inference mode, as the cached features are."""
        signature = self.told.get(id(layer))
        if signature is not None and not _is_inference(signature, args, kwargs):
            raise not_told(f"{layer.name!r} is called")

    def _wire(self, wire: Wire) -> Callable[..., Any]:
        signature = inspect.signature(wire.call)

        def wired(*args: Any, **kwargs: Any) -> Any:
            job = getattr(self._now, "job", None)
            computes = getattr(self._now, "computes", False)
            if wire.spares_inference:
                trips = (job or computes) and not _is_inference(signature, args, kwargs)
            else:
                trips = job is not None and job.features is None
            if trips:
                raise wire.error
            return wire.call(*args, **kwargs)

        return wired

    def _step(self, kind: str) -> Callable[..., Any]:
        """Returns the model's own step for batches that contain features."""
        step = getattr(self.model, f"{kind}_step")
        is_stock = is_keras_code(step)

        def served(*arguments: Any) -> Any:
            *state, (features, x, y, sample_weight) = arguments
            x = self.shown(features, x)
            if is_stock:
                x = as_called(self.model, x)  # a custom step gets the batch unchanged
            self._now.job = self._job(x, features)
            try:
                done = step(*state, keras.utils.pack_x_y_sample_weight(x, y, sample_weight))
                self.is_used = self._now.job is None
                return done
            finally:
                self._now.job = None

        return served

    def show(self, structure: Any, shapes: list[tuple[tuple[int, ...], str]]) -> None:
        """Saves the specs of the inputs. Those that the step doesn't read are left out of it.

        Args:
            structure: the structure of `x`.
            shapes: the row shape and the dtype of each tensor in it.
        """
        self._looks = (structure, shapes)

    def shown(self, features: Features, leaves: dict[str, Tensor]) -> Any:
        """Returns `x` with zeros in place of the tensors that are left out, which aren't read."""
        structure, shapes = self._looks
        rows = keras.ops.shape(next(iter(features.values())))[0]
        flat = [
            leaves[str(place)]
            if str(place) in leaves
            else keras.ops.broadcast_to(
                # JAX warns if 64-bit zeros are requested, but not if an array is converted.
                keras.ops.convert_to_tensor(np.zeros((1,) * (len(shape) + 1), dtype)),
                (rows, *shape),
            )
            for place, (shape, dtype) in enumerate(shapes)
        ]
        return keras.tree.pack_sequence_as(structure, flat)


def _is_inference(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    """Returns True for a call with `training=False`."""
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments.get("training") is False


def _versions(x: Any) -> list[Any]:
    return [version_of(leaf) for leaf in keras.tree.flatten(x)]


def _check_same(args: tuple[Any, ...], kwargs: dict[str, Any], job: _Job) -> None:
    """Raises if the model isn't called on the unchanged batch, whose features are served."""
    called_on = args[0] if args else next(iter(kwargs.values()))
    one, other = keras.tree.flatten(called_on), keras.tree.flatten(job.x)
    same = len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))
    if not same or _versions(job.x) != job.versions:
        raise NotCacheableError(
            "the model's own step calls the model on other inputs than those of the batch",
            "call the model on the batch as it is",
        )
