"""Runs a prefix whose first layers are random: these as they are, those after them compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from keras_freeze.feature_cache.cutting.prefix_and_tail import GraphPrefix
from keras_freeze.graph.layer_calls import LayerCall, Value, mask_of, run, set_mask

Tensor = Any
Outputs = dict[str, Tensor]  # by number of the value, or its number and ".mask"
Compiled = Callable[[list[Tensor]], Outputs]


class CompiledRest:
    """Runs the layer calls of a prefix. Those that come after random ones are compiled.

    Keras compiles no step of a model that holds a layer such as RandomRotation.

    Args:
        part: the prefix.
        draws: returns whether a layer is random.
        compile: compiles a function of a list of tensors, which calls some layers.
    """

    def __init__(
        self,
        part: GraphPrefix,
        draws: Callable[[Any], bool],
        compile: Callable[[Compiled, list[Any]], Compiled],
    ):
        self.front, self.rest = _split(part.calls, draws)
        known = {number for call in self.rest for number in call.writes}
        self.reads = sorted({n for call in self.rest for n in call.reads.values()} - known)
        self.gives = [number for number in part.values if number in known]
        self.training: Any = None
        self.run_rest = compile(self._outputs, [call.operation for call in self.rest])

    def __call__(self, values: dict[Value, Tensor], training: Any) -> None:
        """Runs all calls, and adds the values that are to be cached to `values`."""
        run(self.front, values, training)
        given = [values[number] for number in self.reads]
        if any(mask_of(tensor) is not None for tensor in given):
            run(self.rest, values, training)  # a mask is an attribute, which is lost in compiling
            return
        self.training = training
        outputs = self.run_rest(given)
        for number in self.gives:
            values[number] = outputs[str(number)]
            if f"{number}.mask" in outputs:
                set_mask(values[number], outputs[f"{number}.mask"])

    def _outputs(self, given: list[Tensor]) -> Outputs:
        values = dict(zip(self.reads, given, strict=True))
        run(self.rest, values, self.training)
        outputs = {str(number): values[number] for number in self.gives}
        masks = {f"{number}.mask": mask_of(values[number]) for number in self.gives}
        return outputs | {name: mask for name, mask in masks.items() if mask is not None}


def _split(
    calls: Iterable[LayerCall], draws: Callable[[Any], bool]
) -> tuple[list[LayerCall], list[LayerCall]]:
    """Returns the calls up to random ones, with all that these depend on, and the others."""
    needed, front, rest = set[Value](), list[LayerCall](), list[LayerCall]()
    for call in reversed(list(calls)):
        is_random = not call.enters and draws(call.operation)
        if is_random or not needed.isdisjoint(call.writes):
            front.append(call)
            needed.update(call.reads.values())
        else:
            rest.append(call)
    return front[::-1], rest[::-1]
