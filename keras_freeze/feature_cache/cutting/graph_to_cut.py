"""Finds the graph of layers that the cache cuts: that of the model, or of its base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras_freeze.feature_cache.cutting.deterministic_layers import DeterministicLayers
from keras_freeze.feature_cache.cutting.tensors_to_cache import Flags
from keras_freeze.feature_cache.not_cacheable import NotCacheableError
from keras_freeze.graph.layer_calls import Program, read_program
from keras_freeze.graph.layer_tree import Layer, LayerTree

Model = Any


class CachedModel:
    """The model that is fitted, and the layer in it whose outputs come from the cache.

    A leaf is a layer without sublayers; a container holds layers. A model's graph can be read if it
    is functional or sequential.

    Args:
        model: the model that is fitted.
        tree: all its layers.
        served: the leaves to cache. They choose the container if the model's graph can't be read.
        base_leaves: the leaves that run in inference mode while they are frozen.

    Attributes:
        container: the layer whose `call` is replaced: the model, or the smallest layer that holds
            all served leaves, preferably with a graph that can be read.
        program: the container's graph as a list of layer calls; None if it can't be read.
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
        """The variables that code before the container may change, with seeds."""
        if self.container is self.model:
            return []
        return [*self.model.variables, *self.model.metrics_variables]

    def check(self) -> None:
        """Raises `NotCacheableError` if the model can't be cached in any stage."""
        if self.container is self.model and self.program is None:
            raise NotCacheableError(
                "the model is subclassed, so its graph can't be read, and none of its layers holds "
                "the whole base",
                "name a layer to cache as a whole: BottleneckCache('name')",
            )
        names = ("make_train_function", "make_test_function")
        for name in overridden_methods(self.model, names):
            raise NotCacheableError(
                f"the model overrides `{name}`, which may read batches, but these hold features",
                "override `train_step` or `test_step` instead",
            )

    def fixed(self, flags: Flags, *, training: bool = True) -> DeterministicLayers:
        inside = {id(leaf) for leaf in self.base_leaves}
        return DeterministicLayers(self.tree, inside, flags, training=training)


def _container(tree: LayerTree, served: list[Layer]) -> tuple[Layer, Program | None]:
    """Returns the smallest layer that holds all served leaves, and its graph.

    Prefers layers whose graph can be read. Returns the root if no layer holds them all.
    """
    wanted = {id(leaf) for leaf in served if leaf.weights}
    below = {id(layer): {id(leaf) for leaf in tree.below(layer)} for layer in tree}
    inner = [layer for layer in tree if layer is not tree.root and wanted]
    holders = [layer for layer in inner if wanted <= below[id(layer)]]
    holders.sort(key=lambda layer: len(below[id(layer)]))
    programs = ((layer, read_program(layer)) for layer in holders)
    readable = next((found for found in programs if found[1] is not None), None)
    return readable or (holders[0] if holders else tree.root, None)


def overridden_methods(model: Model, names: Sequence[str]) -> list[str]:
    """Returns the methods that the model's class or the model object overrides."""
    modules = [getattr(type(model), name).__module__.split(".")[0] for name in names]
    pairs = zip(names, modules, strict=True)
    return [name for name, module in pairs if name in vars(model) or module != "keras"]
