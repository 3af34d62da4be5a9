"""The model as the cache sees it: which layer is served from the cache, and its graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras_freeze.feature_cache.cutting.cuts_of_stages import Flags
from keras_freeze.feature_cache.cutting.deterministic_layers import DeterministicLayers
from keras_freeze.feature_cache.not_cacheable import NotCacheableError
from keras_freeze.graph.layer_calls import Program, read_program
from keras_freeze.graph.layer_tree import Layer, LayerTree

Model = Any


class CachedModel:
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
        """Raises `NotCacheableError` if no layout could ever be served."""
        if self.container is self.model and self.program is None:
            raise NotCacheableError(
                "the model is subclassed, so its graph can't be read, and no layer of it holds the "
                "whole base",
                "name a layer that can be cached as a whole, BottleneckCache('name')",
            )
        names = ("make_train_function", "make_test_function")
        for name in overridden_methods(self.model, names):
            raise NotCacheableError(
                f"the model's own `{name}` may read the batches, which hold features",
                "override `train_step` or `test_step` instead",
            )

    def fixed(self, flags: Flags, *, training: bool = True) -> DeterministicLayers:
        inside = {id(leaf) for leaf in self.base_leaves}
        return DeterministicLayers(self.tree, inside, flags, training=training)


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


def overridden_methods(model: Model, names: Sequence[str]) -> list[str]:
    """Returns the methods that the model's class, or the model itself, overrides."""
    modules = [getattr(type(model), name).__module__.split(".")[0] for name in names]
    pairs = zip(names, modules, strict=True)
    return [name for name, module in pairs if name in vars(model) or module != "keras"]
