"""On PyTorch, a recorded step changes the same tensors as the step's code, bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.skipif(keras.backend.backend() != "torch", reason="PyTorch's own")
torch = pytest.importorskip("torch") if keras.backend.backend() == "torch" else None

Step = Callable[..., Any]


def recorded(step: Step, *tensors: Any) -> Any:
    """Runs a step; returns its record, or None."""
    from keras_freeze.feature_cache.backends.torch_tape.record_step import record_step

    return record_step(step, tensors)[1]


def graph_of(record: Any, *, results: bool = True) -> Step:
    from keras_freeze.feature_cache.backends.torch_tape.operations_to_graph import to_graph

    outputs = record.outputs if results else []
    return to_graph(record.needed(results=results), record.inputs, outputs)


def check(make: Callable[[], tuple[Step, list[Any]]], batches: list[Any]) -> Any:
    """Compares a step with its record on each batch. Returns the record.

    Args:
        make: returns (a step, the tensors that it changes), equal in each call.
        batches: one tensor each.
    """
    (step, expected), (other, found) = make(), make()
    torch.manual_seed(0)
    wanted = [step(batch) for batch in batches]
    torch.manual_seed(0)
    record = recorded(other, batches[0])
    assert record is not None
    with torch.no_grad():
        got = [graph_of(record)(batch) for batch in batches[1:-1]]
        graph_of(record, results=False)(batches[-1])
    for one, two in zip(wanted[1:-1], got, strict=True):
        assert all(map(torch.equal, keras.tree.flatten(one), keras.tree.flatten(two)))
    assert all(map(torch.equal, expected, found))
    return record


def batches_of(count: int = 5) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 6, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop", "lion", "adagrad"])
@pytest.mark.parametrize("rate", [0.0, 0.5], ids=["", "dropout"])
def test_a_train_step_of_keras(optimizer: str, rate: float):
    step, _ = train_step(optimizer, rate)
    if isinstance(step(torch.ones(4, 6))["loss"], float):  # Keras 3.12 converts the logs
        assert recorded(step, torch.ones(4, 6)) is None
        return
    record = check(lambda: train_step(optimizer, rate), batches_of())
    assert len(record.needed(results=False)) < len(record.needed(results=True))


def train_step(optimizer: str, rate: float = 0.0) -> tuple[Step, list[Any]]:
    """Returns the train step of a model, and the tensors that it changes."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(5), keras.layers.BatchNormalization()]
    layers += [keras.layers.Dropout(rate)] if rate else []
    model = keras.Sequential([keras.Input((6,)), *layers, keras.layers.Dense(1)])
    model.compile(optimizer, "mse", metrics=["mae"])
    model.train_on_batch(torch.ones(4, 6), torch.ones(4, 1))  # builds optimizer and metrics
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    return lambda x: model.train_step((x, x[:, :1])), [v.value for v in variables]


def test_a_step_whose_values_leave_pytorch_is_not_recorded():
    step, _ = train_step("nadam")  # its code converts a product of rates to NumPy
    assert recorded(step, torch.ones(4, 6)) is None


def test_a_value_that_stays_is_guarded():
    rate, weight = torch.tensor(0.5), torch.ones(6)

    def step(x: Any) -> Any:
        weight.add_(x.sum(0), alpha=-float(rate))
        return weight.sum()

    record = recorded(step, torch.ones(4, 6))
    assert record.holds()
    rate.fill_(0.25)
    assert not record.holds()


def test_a_value_that_is_computed_from_one_that_stays_is_guarded():
    rate, weight = torch.tensor(0.5), torch.ones(6)
    record = recorded(lambda x: weight.mul_(float(rate * 2 + 1)), torch.ones(4, 6))
    assert record.holds()
    rate.fill_(0.25)
    assert not record.holds()


@pytest.mark.parametrize(
    "step",
    [
        lambda x, state: state.add_(1 if float(state[0]) > 2 else 2),
        lambda x, state: (state.add_(1), state.mul_(float(state[0])))[1],
        lambda x, state: state.add_(float(x.sum())),
        lambda x, state: x.add_(1),
        lambda x, state: state.add_(x[x > 0].sum()),
    ],
    ids=["state before", "state after", "batch", "changes the batch", "shape by values"],
)
def test_what_cannot_be_recorded(step: Any):
    state = torch.ones(6)
    assert recorded(lambda x: step(x, state), torch.ones(4, 6)) is None


OPERATIONS: dict[str, Any] = {
    "add": lambda state, x: state.add_(x.mean(0)),
    "scale": lambda state, x: state.mul_(torch.tensor(0.5)),
    "through a view": lambda state, x: state[:3].copy_(x[0, :3] * torch.ones(3)),
    "a constant that is changed": lambda state, x: state.add_(torch.zeros(6).add_(x[1])),
    "a constant of constants": lambda state, x: state.mul_(torch.ones(6) * 2 - torch.tensor(1.5)),
    "random": lambda state, x: state.add_(torch.rand(6)),
    "unused": lambda state, x: x.sum() * torch.rand(1),
    "whole": lambda state, x: state.copy_(x.sum(0) + state),
    "a detached alias": lambda state, x: state.detach().sub_(x[2]),
}


@given(st.lists(st.tuples(st.sampled_from(sorted(OPERATIONS)), st.integers(0, 1)), max_size=8))
def test_any_sequence_of_changes(names: list[tuple[str, int]]):
    def make() -> tuple[Step, list[Any]]:
        states = [torch.ones(6), torch.full((6,), 2.0)]

        def step(x: Any) -> Any:
            for name, place in names:
                OPERATIONS[name](states[place], x)
            return {"sum": states[0].sum(), "first": states[1][:1] * 1}

        return step, states

    check(make, batches_of(4))
