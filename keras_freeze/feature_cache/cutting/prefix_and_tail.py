"""Runs the two parts of a model: the frozen layers that are cached, and the layers after them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import keras

from keras_freeze.feature_cache.cutting.find_cut import Cut, prefix_of
from keras_freeze.feature_cache.not_cacheable import NotCacheableError
from keras_freeze.graph.flops import total_flops
from keras_freeze.graph.layer_calls import LayerCall, Program, Value, mask_of, run, set_mask
from keras_freeze.graph.layer_tree import LayerTree, layers_of

Tensor = Any
Features = dict[str, Tensor]  # by column: a tensor of the program, or its mask


class GraphPrefix:
    """The cached part of a container (a layer that holds layers) whose graph can be read.

    The prefix is the layers before the cut, whose outputs are cached. The tail runs after it in
    each step.

    Args:
        program: the graph of the container, as a list of layer calls.
        cut: the cut of the running stage.
        values: all tensors to compute, with those for later stages' cuts.

    Attributes:
        places: the inputs from which the keys of rows are made; None = all.
        run_calls: runs the layer calls: (values, training) -> None, adds to the values.
    """

    def __init__(self, program: Program, cut: Cut, values: tuple[Value, ...]):
        self.program = program
        self.cut = cut
        self.values = values
        self.calls, places = prefix_of(program, values)
        self.run_calls: Callable[[dict[Value, Tensor], Any], None] = partial(run, self.calls)
        self.places: list[int] | None = places

    def follow(self, part: Any) -> None:
        """Uses the rows of an earlier stage, whose keys were made from its inputs."""
        self.places = part.places

    @property
    def layers(self) -> list[Any]:
        """All layers that the prefix runs."""
        return layers_of(self.operations)

    @property
    def operations(self) -> list[Any]:
        """All layers and operations that the prefix calls, each once."""
        called = {id(call.operation): call.operation for call in self.calls if not call.enters}
        return list(called.values())

    @property
    def flops(self) -> float:
        """Floating point operations of the prefix for one row."""
        return total_flops(self.program, self.calls)

    @property
    def columns(self) -> list[str]:
        """The columns of the running stage's cut."""
        return [str(value) for value in self.cut.values]

    def prefix(self, inputs: Any, training: Any = None, mask: Any = None, **_: Any) -> Features:
        values = self._enter(inputs, mask)
        self.run_calls(values, training)
        return self._features(values)

    def continued(self, calls: Sequence[LayerCall], known: Features, training: bool) -> Features:
        """Computes the features from those of an earlier cut.

        Args:
            calls: the layer calls in between.
            known: the features of the earlier cut.
            training: the `training` argument of the model's `call`.
        """
        values: dict[Value, Tensor] = {}
        for column, tensor in known.items():
            if column.isdecimal():
                values[int(column)] = tensor
                if f"{column}.mask" in known:
                    set_mask(tensor, known[f"{column}.mask"])
        run(calls, values, training)
        return self._features(values)

    def _features(self, values: dict[Value, Tensor]) -> Features:
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


class LayerPrefix:
    """A container whose graph can't be read, cached as a whole.

    Args:
        container: the layer or model.
        call: its `call` as it runs in a step.
    """

    def __init__(self, container: Any, call: Callable[..., Any]):
        self.layers = list(LayerTree(container))
        self.operations = [container]
        self.places: list[int] | None = None
        self.flops: float | None = None  # unknown
        self.call = call
        self.structure: Any = None
        self.dtypes: list[str] = []

    def follow(self, part: Any) -> None:
        """Uses the rows of an earlier stage."""
        self.structure, self.dtypes = part.structure, part.dtypes

    @property
    def columns(self) -> list[str]:
        return [str(number) for number in range(len(self.dtypes))]

    def prefix(self, *args: Any, **kwargs: Any) -> Features:
        outputs = self.call(*args, **kwargs)
        self.structure = keras.tree.map_structure(lambda _: None, outputs)
        flat = keras.tree.flatten(outputs)
        if any(mask_of(tensor) is not None for tensor in flat):
            raise NotCacheableError(
                f"the outputs of {self.layers[0].name!r} carry masks, and its graph can't be read",
                "use a functional base",
            )
        self.dtypes = [keras.backend.standardize_dtype(tensor.dtype) for tensor in flat]
        return {str(number): tensor for number, tensor in enumerate(flat)}

    def tail(self, features: Features, *_: Any, **__: Any) -> Any:
        columns = zip(self.columns, self.dtypes, strict=True)
        flat = [keras.ops.cast(features[column], dtype) for column, dtype in columns]
        return keras.tree.pack_sequence_as(self.structure, flat)
