"""On PyTorch, the tape of a prefix gives the same bits and memory order as the code."""

from __future__ import annotations

from typing import Any

import keras
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.skipif(keras.backend.backend() != "torch", reason="PyTorch's own")
torch = pytest.importorskip("torch") if keras.backend.backend() == "torch" else None

A = keras.applications
BASES = [A.MobileNetV2, A.VGG16, A.ResNet50V2, A.DenseNet121, A.EfficientNetB0, A.Xception]
BASES += [A.ConvNeXtTiny, A.MobileNetV3Small]


def check(function: Any, batches: list[list[Any]]) -> Any:
    """Records the first batch. Runs all batches together and compares them."""
    from keras_freeze.feature_cache.backends.torch_tape.record_tape import record

    with torch.no_grad():
        copies = [[tensor.clone() for tensor in batch] for batch in batches]
        expected = [function(*batch) for batch in batches]
        recorded, tape = record(function, [tensor.clone() for tensor in copies[0]])
        assert tape is not None
        played = tape.run(copies)
    for want, got in zip([expected[0], *expected], [recorded, *played], strict=True):
        assert want.keys() == got.keys()
        for name in want:
            assert torch.equal(want[name], got[name])
            assert want[name].stride() == got[name].stride()
    return tape


@pytest.mark.parametrize("make", BASES, ids=lambda make: make.__name__)
def test_bases(make: Any):
    keras.utils.set_random_seed(0)
    base = make(weights=None, include_top=False, input_shape=(75, 75, 3), pooling="avg")
    batches = [[torch.rand(4, 75, 75, 3)] for _ in range(3)]
    check(lambda x: {"0": base(x, training=False)}, batches)


def test_a_convolution_reads_no_copy_of_a_copy():
    layers = [keras.layers.Conv2D(4, 3, padding="same", name=f"c{n}") for n in range(3)]
    model = keras.Sequential([keras.Input((8, 8, 4)), *layers])
    tape = check(lambda x: {"0": model(x)}, [[torch.rand(4, 8, 8, 4)] for _ in range(3)])
    copies = [one for one in tape.operations if "clone" in str(one.function) and not one.is_shared]
    assert len(copies) <= 2  # of the images: a feed may have any memory order


OPERATIONS = ["first", "last", "copy", "copy last", "pad", "conv", "relu", "add", "+=", "*="]
OPERATIONS += ["relu_", "view +=", "weight", "shared *=", "pool", "keep"]


@given(st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 7)), max_size=16))
def test_random_operations(steps: list[tuple[str, int]]):
    """Copies of copies, changed in place before, between and after them."""
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn((3, 3, 4, 4), generator=generator)

    def function(x: Any) -> dict[str, Any]:
        have, kept = [x.permute(0, 2, 3, 1).clone()], {}
        weight = kernel.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
        for number, (step, place) in enumerate(steps):
            tensor = have[-1 - place % len(have)]
            if step == "first":
                have.append(tensor.permute(0, 3, 1, 2))
            elif step == "last":
                have.append(tensor.permute(0, 2, 3, 1))
            elif step == "copy":
                have.append(tensor.clone(memory_format=torch.contiguous_format))
            elif step == "copy last":
                have.append(tensor.clone(memory_format=torch.channels_last))
            elif step == "pad":
                have.append(torch.nn.functional.pad(tensor, (0, 1, 1, 0)))
            elif step == "conv" and tensor.shape[1] == 4:
                have.append(torch.conv2d(tensor, weight, padding=1))
            elif step == "relu":
                have.append(torch.relu(tensor))
            elif step == "add":
                have.append(tensor + have[0].sum())
            elif step == "+=":
                tensor += 0.5
            elif step == "*=":
                tensor.mul_(1.25)
            elif step == "relu_":
                torch.relu_(tensor)
            elif step == "view +=":
                tensor.select(1, 0).add_(0.25)
            elif step == "weight":
                weight = weight * 0.5
            elif step == "shared *=":
                weight.mul_(1.5)
            elif step == "pool" and min(tensor.shape[2:]) > 1:
                have.append(torch.max_pool2d(tensor, 2))
            elif step == "keep":
                kept[str(number)] = tensor
        return kept | {"last": have[-1]}

    batches = [[torch.randn((4, 4, 4, 4), generator=generator)] for _ in range(3)]
    check(function, batches)


def test_results_that_are_several_tensors():
    def function(x: Any) -> dict[str, Any]:
        one, two = x.split(2, dim=1)
        values, places = torch.cat([two, one], dim=1).sort(dim=1)
        return {"values": values, "places": places}

    check(function, [[torch.rand(3, 4)] for _ in range(3)])


def refused() -> dict[str, Any]:
    """Returns functions that can't be replayed."""
    weight = torch.ones(4)

    def draws(x: Any) -> Any:
        return x + torch.rand_like(x)

    def asks(x: Any) -> Any:
        return x * 2 if float(x.sum()) > 0 else x

    def changes(x: Any) -> Any:
        weight.add_(1)
        return x * weight

    def mixes(x: Any) -> Any:
        copy = weight * 1
        copy += x[0]
        return x * copy

    def mixes_several(x: Any) -> Any:
        copy = weight * 1
        torch._foreach_add_([copy], [x[0]])
        return x * copy

    return {each.__name__: each for each in (draws, asks, changes, mixes, mixes_several)}


@pytest.mark.parametrize("name", ["draws", "asks", "changes", "mixes", "mixes_several"])
def test_what_cannot_be_played_again_is_not(name: str):
    from keras_freeze.feature_cache.backends.torch_tape.replay_tape import Replay

    batches = [[torch.randn(3, 4)] for _ in range(5)]
    with torch.no_grad():
        torch.manual_seed(0)
        expected = [refused_one(*batch) for refused_one in [refused()[name]] for batch in batches]
        torch.manual_seed(0)
        function = refused()[name]
        replay = Replay(lambda x: {"0": function(x)})
        played = [one for part in (batches[:3], batches[3:]) for one in replay.run(part)]
    assert replay.tape is None
    assert all(torch.equal(a, b["0"]) for a, b in zip(expected, played, strict=True))


@pytest.mark.parametrize("view", [False, True])
def test_what_changes_its_inputs_is_not_played(view: bool):
    """The second batch couldn't be computed both ways."""
    from keras_freeze.feature_cache.backends.torch_tape.replay_tape import Replay

    def function(x: Any) -> dict[str, Any]:
        (x[0] if view else x).mul_(2)
        return {"0": x + 1}

    replay, played = Replay(function), []
    batches = [[torch.full((2, 3), float(number))] for number in range(5)]
    expected = [function(batch[0].clone())["0"] for batch in batches]
    with torch.no_grad():
        for part in (batches[:3], batches[3:]):
            played += replay.run(part)
    assert replay.tape is None
    assert all(torch.equal(a, b["0"]) for a, b in zip(expected, played, strict=True))


@pytest.mark.parametrize("sizes", [[1, 1, 1, 2], [5], [2, 3]])
def test_a_tape_that_gives_something_else_is_dropped(sizes: list[int]):
    """A value computed outside PyTorch is a constant on the tape. The second batch reveals it."""
    from keras_freeze.feature_cache.backends.torch_tape.replay_tape import Replay

    def function(x: Any) -> dict[str, Any]:
        return {"0": x * float(x.numpy().sum())}

    replay = Replay(function)
    batches = [[torch.randn(3, 4)] for _ in range(5)]
    played = []
    with torch.no_grad():
        for size in sizes:
            played += replay.run(batches[len(played) : len(played) + size])
    assert replay.tape is None
    for batch, got in zip(batches, played, strict=True):
        assert torch.equal(function(*batch)["0"], got["0"])


def test_batches_in_another_order_of_memory():
    """One is a view where the other is a copy, so each has its own tape."""
    from keras_freeze.feature_cache.backends.on_torch import compiled

    model = keras.Sequential([keras.Input((2, 3)), keras.layers.Reshape((3, 2))])
    prefix = compiled(model, lambda x: {"0": model(x) * 2}, is_trusted=True)
    batches = [torch.randn(4, 2, 3) for _ in range(4)]
    batches += [torch.randn(4, 3, 2).permute(0, 2, 1) for _ in range(4)]
    for batch in batches[::3] + batches[::-1] + batches:
        (features,) = prefix((), [batch])
        assert torch.equal(features["0"], model(batch) * 2)


def test_tensors_are_let_go_as_soon_as_they_are_read():
    """Running several batches together keeps only tensors that are read later."""
    from keras_freeze.feature_cache.backends.torch_tape.record_tape import record

    def function(x: Any) -> dict[str, Any]:
        for _ in range(20):
            x = torch.relu(x) + 1
        return {"0": x}

    _, tape = record(function, [torch.rand(2, 2)])
    alive, most = {*tape.inputs}, 0
    for one, done in zip(tape.operations, tape.done, strict=True):
        alive |= set(one.gives)
        most = max(most, len(alive))
        alive -= set(done)
    assert most <= 3
    assert len(alive) == 1
