"""Block boundaries: where one single tensor passes, and that shares are cut only there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import keras
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from keras_freeze import select_layers
from keras_freeze.graph.blocks import block_starts

L = keras.layers
WIDTH = 2
FEW = settings(max_examples=max(1, settings().max_examples // 4))


def dense(name: str | None = None) -> Any:
    return L.Dense(WIDTH, kernel_initializer="zeros", name=name)  # quick to build


class Graph:
    """Builds a functional model and keeps a record of its own of what was called on what.

    `calls` holds (leaf, input tensors, output tensor) in the order of the calls, nested models
    expanded: their leaves are called on tensors of this graph.
    """

    def __init__(self, inputs: int = 1):
        self.calls: list[tuple[Any, list[Any], Any]] = []
        self.inputs = [keras.Input((WIDTH,)) for _ in range(inputs)]
        self.tensors = list(self.inputs)

    def call(self, layer: Any, *inputs: Any) -> None:
        output = layer(list(inputs) if len(inputs) > 1 else inputs[0])
        self.calls.append((layer, list(inputs), output))
        self.tensors.append(output)

    def call_model(self, inner: Graph, model: keras.Model, *inputs: Any) -> None:
        output = model(list(inputs) if len(inputs) > 1 else inputs[0])
        own = {id(tensor): given for tensor, given in zip(model.inputs, inputs, strict=True)}
        for leaf, read, made in inner.calls_for(model.outputs):
            own[id(made)] = output if made is model.outputs[0] else object()
            self.calls.append((leaf, [own[id(tensor)] for tensor in read], own[id(made)]))
        self.tensors.append(output)

    def calls_for(self, ends: list[Any]) -> list[tuple[Any, list[Any], Any]]:
        """The calls that the tensors `ends` depend on."""
        needed = {id(tensor) for tensor in ends}
        used = []
        for call in reversed(self.calls):
            if id(call[2]) in needed:
                needed |= {id(tensor) for tensor in call[1]}
                used.append(call)
        return used[::-1]

    def model(self, outputs: int = 1) -> keras.Model:
        """A model of the last results, with those inputs that they depend on."""
        ends = self.tensors[len(self.inputs) :][-outputs:]
        read = {id(tensor) for call in self.calls_for(ends) for tensor in call[1]}
        inputs = [tensor for tensor in self.inputs if id(tensor) in read]
        return keras.Model(inputs, ends[0] if len(ends) == 1 else ends)


def build(recipe: dict[str, Any]) -> tuple[Graph, keras.Model]:
    """Makes a model of a recipe; each step reads tensors counted from the last one back."""
    graph = Graph(recipe["inputs"])
    shared = dense()
    twin = build(recipe["nested"]) if recipe["nested"] else None
    for kind, first, second in recipe["steps"]:
        a = graph.tensors[-1 - first % len(graph.tensors)]
        b = graph.tensors[-1 - second % len(graph.tensors)]
        if kind == "dense":
            graph.call(dense(), a)
        elif kind == "add":
            graph.call(L.Add(), a, b)
        elif kind == "concatenate":
            graph.call(L.Concatenate(), a, b)
            graph.call(dense(), graph.tensors[-1])
            del graph.tensors[-2]  # all tensors that steps read have the same width
        elif kind == "shared":
            graph.call(shared, a)
        else:
            nested = twin if kind == "twin" else None
            inner, model = nested or build(recipe["nested"] or PLAIN)
            graph.call_model(inner, model, *[a, b][: len(model.inputs)])
    return graph, graph.model(recipe["outputs"])


PLAIN = {"inputs": 1, "outputs": 1, "nested": None, "steps": [("dense", 0, 0), ("add", 0, 1)]}
TWO_ENDS = {"inputs": 2, "outputs": 2, "nested": None, "steps": [("dense", 0, 0), ("add", 2, 0)]}
SKIP = {"inputs": 2, "outputs": 1, "nested": None, "steps": [("dense", 0, 0), ("add", 0, 2)]}
KINDS = ["dense", "dense", "dense", "add", "add", "concatenate", "shared", "nested", "twin"]


def recipes(nested: Any, inputs: int, outputs: int) -> st.SearchStrategy[dict[str, Any]]:
    step = st.tuples(st.sampled_from(KINDS), st.integers(0, 2), st.integers(0, 3))
    return st.fixed_dictionaries(
        {
            "inputs": st.integers(1, inputs),
            "outputs": st.integers(1, outputs),
            "nested": nested,
            "steps": st.lists(step, min_size=1, max_size=8),
        }
    )


INNER = recipes(st.none() | recipes(st.none(), 1, 1), 1, 1)
RECIPES = recipes(st.none() | INNER, 1, 2)


def leaves_of(model: keras.Model) -> list[Any]:
    """The layers that have no layers, depth first, each once."""
    found: dict[int, Any] = {}
    for layer in _walk(model):
        found.setdefault(id(layer), layer)
    return list(found.values())


def _walk(model: keras.Model) -> Iterator[Any]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _walk(layer)
        else:
            yield layer


def is_start(graph: Graph, model: keras.Model, cut: int) -> bool:
    """By definition: one tensor passes, and no layer is called on both sides of the cut."""
    place = {id(leaf): index for index, leaf in enumerate(leaves_of(model))}
    inputs = [(leaf, [], leaf.output) for leaf in model.layers if isinstance(leaf, L.InputLayer)]
    behind: set[int] = set()
    passing: set[int] = set()
    sides: dict[int, set[bool]] = {}
    for leaf, read, made in [*inputs, *graph.calls_for(model.outputs)]:
        before = {id(tensor) for tensor in read} - behind
        is_behind = place[id(leaf)] >= cut or len(before) < len({id(t) for t in read})
        sides.setdefault(id(leaf), set()).add(is_behind)
        if is_behind:
            behind.add(id(made))
            passing |= before
    passing |= {id(tensor) for tensor in model.outputs} - behind
    return len(passing) == 1 and all(len(side) == 1 for side in sides.values())


def starts_by_definition(graph: Graph, model: keras.Model) -> set[int]:
    leaves = leaves_of(model)
    cuts = {0, *(cut for cut in range(1, len(leaves)) if is_start(graph, model, cut))}
    return {len(without_inputs(leaves[:cut])) for cut in cuts}


def starts(model: keras.Model) -> set[int]:
    """As positions among the layers that can be chosen, without the one behind them all."""
    leaves = leaves_of(model)
    found = {len(without_inputs(leaves[:start])) for start in block_starts(model)}
    return found - {len(without_inputs(leaves))}


@FEW
@given(RECIPES)
def test_block_starts_are_those_of_the_definition(recipe: dict[str, Any]):
    graph, model = build(recipe)
    assert starts(model) == starts_by_definition(graph, model)


@FEW
@given(recipes(st.none() | recipes(st.none(), 1, 1), 3, 2))
@example(TWO_ENDS)
def test_block_starts_of_models_with_several_inputs(recipe: dict[str, Any]):
    graph, model = build(recipe)
    assert starts(model) == starts_by_definition(graph, model)


@FEW
@given(recipes(recipes(st.none(), 2, 1), 1, 1))
@example({"inputs": 1, "outputs": 1, "nested": SKIP, "steps": [("nested", 0, 0)]})
def test_a_nested_model_with_several_inputs_is_not_split(recipe: dict[str, Any]):
    graph, model = build(recipe)
    assert starts(model) <= starts_by_definition(graph, model)  # some in it may not be found


@FEW
@given(RECIPES, st.integers(1, 100))
def test_a_share_is_cut_at_the_nearest_start(recipe: dict[str, Any], share: int):
    graph, model = build(recipe)
    layers = without_inputs(leaves_of(model))
    counts = {
        start: sum(bool(layer.weights) for layer in layers[start:])
        for start in starts_by_definition(graph, model)
    }
    assume(counts[0])  # a graph of additions alone has no weights to share
    wanted = max(1, math.floor(share * counts[0] / 100 + 0.5))

    found = select_layers(model, f"{share}%")

    start = len(layers) - len(found)
    assert found == layers[start:]
    assert start in counts, "a block is split"
    assert abs(counts[start] - wanted) == min(abs(n - wanted) for n in counts.values() if n)


def without_inputs(leaves: list[Any]) -> list[Any]:
    return [leaf for leaf in leaves if not isinstance(leaf, L.InputLayer)]


def test_a_layer_tied_between_a_nested_model_and_its_caller_is_not_cut_in_two():
    tied = dense("tied")
    inner = Graph()
    inner.call(tied, inner.tensors[-1])
    inner.call(dense("inner"), inner.tensors[-1])
    graph = Graph()
    graph.call_model(inner, inner.model(), graph.tensors[-1])
    graph.call(dense("middle"), graph.tensors[-1])
    graph.call(tied, graph.tensors[-1])
    graph.call(dense("last"), graph.tensors[-1])
    model = graph.model()
    assert starts(model) == starts_by_definition(graph, model)


def test_operations_that_are_no_layers_hold_a_block_together():
    inputs = keras.Input((WIDTH,))
    x = dense("stem")(inputs)
    x = x + dense("a2")(dense("a1")(x))
    x = keras.ops.relu(x)
    x = x + dense("c2")(dense("c1")(x))
    model = keras.Model(inputs, L.Dense(1, name="top")(x))
    layers = without_inputs(leaves_of(model))
    assert {layers[start].name for start in starts(model)} == {"stem", "a1", "c1", "top"}


def chain() -> keras.Sequential:
    inner = keras.Sequential([keras.Input((WIDTH,)), dense("b"), dense("c")])
    return keras.Sequential([keras.Input((WIDTH,)), dense("a"), inner, dense("d")])


def test_between_the_layers_of_a_chain_is_always_a_boundary():
    assert starts(chain()) == {0, 1, 2, 3}


def test_a_subclassed_model_is_cut_between_its_own_layers_only():
    class Opaque(keras.Model):
        def __init__(self):
            super().__init__()
            self.stem = dense()
            self.body = chain()

        def call(self, inputs):
            return self.body(self.stem(inputs))

    model = Opaque()
    model(keras.ops.zeros((1, WIDTH)))
    assert starts(model) == {0, 1, 2, 3, 4}


def test_a_late_second_input_does_not_hold_the_whole_base_together():
    """Images, and a few numbers about each that join the head: the images' path has its blocks."""
    image, numbers = keras.Input((WIDTH,)), keras.Input((WIDTH,))
    x = image
    for name in ("d1", "d2", "d3"):
        x = dense(name)(x)
    model = keras.Model([image, numbers], dense("head")(L.Concatenate()([x, numbers])))
    assert select_layers(model, "50%")[0].name == "d3"


@pytest.fixture(scope="module")
def residual() -> keras.Model:
    """A stem, three residual blocks of two layers each, and a top."""
    inputs = keras.Input((WIDTH,))
    x = dense("stem")(inputs)
    for n in (1, 2, 3):
        y = dense(f"r{n}_b")(dense(f"r{n}_a")(x))
        x = L.Add(name=f"r{n}_add")([x, y])
    return keras.Model(inputs, dense("top")(x))


@pytest.mark.parametrize(
    ("share", "first"),
    [
        ("1%", "top"),
        ("20%", "top"),  # 2 of 8 layers would begin in the middle of r3: 1 is as near as 3
        ("30%", "top"),
        ("40%", "r3_a"),
        ("50%", "r3_a"),
        ("60%", "r2_a"),
        ("90%", "r1_a"),
        ("100%", "stem"),
    ],
)
def test_a_residual_block_is_never_split(residual: keras.Model, share: str, first: str):
    found = select_layers(residual, share)
    assert found[0].name == first
    assert found[-1].name == "top"
