"""Block boundaries: one call's result crosses each, and shares are cut only there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import keras
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from keras_freeze import select_layers
from keras_freeze.graph.block_boundaries import block_starts

pytestmark = pytest.mark.one_backend

L = keras.layers
WIDTH = 2
FEW = settings(max_examples=max(1, settings().max_examples // 4))


def dense(name: str | None = None) -> Any:
    return L.Dense(WIDTH, kernel_initializer="zeros", name=name)  # fast to build


class Beside(keras.layers.Dense):
    """Transforms its first argument. The second only scales the result."""

    def __init__(self, **options: Any):
        super().__init__(WIDTH, kernel_initializer="zeros", **options)

    def call(self, inputs: Any, beside: Any = None) -> Any:
        scale = 1.0 if beside is None else keras.ops.mean(keras.ops.cast(beside, "float32"))
        return super().call(inputs) * scale


class IsPositive(keras.layers.Layer):
    """A boolean mask, so it has no gradient."""

    def call(self, inputs: Any) -> Any:
        return inputs > 0

    def compute_output_spec(self, inputs: Any) -> Any:
        return keras.KerasTensor(inputs.shape, dtype="bool")


class Graph:
    """Builds a functional model and records its calls independently.

    `calls` holds (leaf, input tensors, output tensor) in call order. Nested models are expanded:
    their leaves are called on tensors of this graph.
    """

    def __init__(self, inputs: int = 1):
        self.calls: list[tuple[Any, list[Any], Any]] = []
        self.inputs = [keras.Input((WIDTH,)) for _ in range(inputs)]
        self.tensors = list(self.inputs)

    def call(self, layer: Any, *inputs: Any) -> None:
        if isinstance(layer, Beside):
            output = layer(*inputs)
        else:
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
        """Returns the calls that the tensors `ends` depend on."""
        needed = {id(tensor) for tensor in ends}
        used = []
        for call in reversed(self.calls):
            if id(call[2]) in needed:
                needed |= {id(tensor) for tensor in call[1]}
                used.append(call)
        return used[::-1]

    def model(self, outputs: int = 1) -> keras.Model:
        """Returns a model of the last results and the inputs they depend on."""
        ends = self.tensors[len(self.inputs) :][-outputs:]
        read = {id(tensor) for call in self.calls_for(ends) for tensor in call[1]}
        inputs = [tensor for tensor in self.inputs if id(tensor) in read]
        return keras.Model(inputs, ends[0] if len(ends) == 1 else ends)


def build(recipe: dict[str, Any]) -> tuple[Graph, keras.Model]:
    """Builds a model from a recipe. Each step reads tensors, counted backward from the last one."""
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
        elif kind == "beside":
            graph.call(Beside(), a, b)
        elif kind == "mask":
            graph.call(IsPositive(), b)
            graph.call(Beside(), a, graph.tensors[-1])
            del graph.tensors[-2]  # booleans can't be added
        else:
            nested = twin if kind == "twin" else None
            inner, model = nested or build(recipe["nested"] or PLAIN)
            graph.call_model(inner, model, *[a, b][: len(model.inputs)])
    return graph, graph.model(recipe["outputs"])


PLAIN = {"inputs": 1, "outputs": 1, "nested": None, "steps": [("dense", 0, 0), ("add", 0, 1)]}
TWO_ENDS = {"inputs": 2, "outputs": 2, "nested": None, "steps": [("dense", 0, 0), ("add", 2, 0)]}
SKIP = {"inputs": 2, "outputs": 1, "nested": None, "steps": [("dense", 0, 0), ("add", 0, 2)]}
KINDS = ["dense", "dense", "dense", "add", "add", "concatenate", "shared", "nested", "twin"]
KINDS += ["beside", "beside", "mask"]


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
    """Returns the layers without sublayers, depth first, each once."""
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


Called = tuple[Any, list[Any], Any]


def once(method: Any) -> Any:
    """Caches the answer for each tensor: a graph of additions has many paths."""

    def ask(self: Any, tensor: Any) -> Any:
        key = method.__name__, id(tensor)
        if key not in self.known:
            self.known[key] = method(self, tensor)
        return self.known[key]

    return ask


class Definition:
    """Defines which tensors tie layers together, by following the model's calls.

    Args:
        calls: (leaf, input tensors, output tensor) of each call.
        outputs: the model's outputs.
    """

    def __init__(self, calls: list[Called], outputs: list[Any]):
        self.calls = calls
        self.known: dict[tuple[str, int], Any] = {}
        self.maker = {id(made): (leaf, read) for leaf, read, made in calls}
        ends = [end for end in outputs if not self.is_free(end)]
        self.ends = {id(end) for end in ends or outputs}

    @once
    def readers(self, tensor: Any) -> list[Called]:
        return [call for call in self.calls if any(tensor is read for read in call[1])]

    @once
    def is_free(self, tensor: Any) -> bool:
        """Whether no gradient flows from it to weights."""
        leaf, read = self.maker[id(tensor)]
        return isinstance(leaf, IsPositive) or (not leaf.weights and all(map(self.is_free, read)))

    @once
    def is_context(self, tensor: Any) -> bool:
        """Whether it is only a second argument, in calls with different first arguments."""
        transformed = []
        for leaf, read, _ in self.readers(tensor):
            if not isinstance(leaf, Beside) or self.is_free(tensor):
                return False
            transformed.append(next(each for each in read if not self.is_free(each)))
        several = len({id(each) for each in transformed}) > 1
        return several and not any(each is tensor for each in transformed)

    def ties(self, tensor: Any, readers: list[Called]) -> bool:
        """Whether a tensor ties the layer that made it to some of its readers."""
        if not self.is_free(tensor):
            return bool(readers) and not self.is_context(tensor)
        alone = [call for call in readers if all(map(self.is_free, call[1]))]
        return any(leaf.weights or self.is_needed(made) for leaf, _, made in alone)

    @once
    def is_needed(self, tensor: Any) -> bool:
        return id(tensor) in self.ends or self.ties(tensor, self.readers(tensor))

    @once
    def stream(self, tensor: Any) -> frozenset[int]:
        """Returns the contexts it leads to; empty if it leads to an output of the model."""
        if id(tensor) in self.ends and not self.is_context(tensor):
            return frozenset()
        if self.is_context(tensor):
            return frozenset({id(tensor)})
        ways = [call for call in self.readers(tensor) if self.ties(tensor, [call])]
        streams = [self.stream(made) for _, _, made in ways]
        return frozenset().union(*streams) if all(streams) else frozenset()


def is_start(graph: Graph, model: keras.Model, cut: int) -> bool:
    """By definition: each stream passes one call's result, and no layer is on both sides."""
    place = {id(leaf): index for index, leaf in enumerate(leaves_of(model))}
    inputs = [(leaf, [], leaf.output) for leaf in model.layers if isinstance(leaf, L.InputLayer)]
    calls = [*inputs, *graph.calls_for(model.outputs)]
    rules = Definition(calls, model.outputs)
    behind: set[int] = set()
    crossing: dict[int, tuple[Any, list[Called]]] = {id(made): (made, []) for *_, made in calls}
    for leaf, read, made in calls:
        is_behind = place[id(leaf)] >= cut or any(id(tensor) in behind for tensor in read)
        begins = all(map(rules.is_free, read))  # an embedding may be called again later
        if leaf.weights and not begins and is_behind != (place[id(leaf)] >= cut):
            return False
        behind |= {id(made)} if is_behind else set()
        for tensor in read if is_behind else ():
            crossing[id(tensor)][1].append((leaf, read, made))
    passing = [
        tensor
        for key, (tensor, readers) in crossing.items()
        if key not in behind
        and ((key in rules.ends and not rules.is_context(tensor)) or rules.ties(tensor, readers))
    ]
    return len(passing) == len({rules.stream(tensor) for tensor in passing})


def starts_by_definition(graph: Graph, model: keras.Model) -> set[int]:
    leaves = leaves_of(model)
    cuts = {0, *(cut for cut in range(1, len(leaves)) if is_start(graph, model, cut))}
    return {len(without_inputs(leaves[:cut])) for cut in cuts}


def starts(model: keras.Model) -> set[int]:
    """Returns positions among the selectable layers, without the end."""
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
    assert starts(model) <= starts_by_definition(graph, model)  # it may not find all of them


@FEW
@given(RECIPES, st.integers(1, 100))
def test_a_share_is_cut_at_the_nearest_start(recipe: dict[str, Any], share: int):
    graph, model = build(recipe)
    layers = without_inputs(leaves_of(model))
    counts = {
        start: sum(bool(layer.weights) for layer in layers[start:])
        for start in starts_by_definition(graph, model)
    }
    assume(counts[0])  # a graph with additions only has no weights to share
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
    """Images, with some numbers for each that join at the head: the image path keeps its blocks."""
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
        ("20%", "top"),  # 2 of 8 layers would start inside r3; 1 is as near as 3
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
