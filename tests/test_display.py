"""What is printed, and that it never breaks a progress bar."""

import re
import sys

import keras
import numpy as np
import pytest

from keras_freeze import FreezeBase, GradualUnfreeze, RecompileOnTrainableChange, Stage
from tests.builders import L, data

pytestmark = pytest.mark.one_backend

X, Y = data(8)
BLOCK = re.compile(r"^(Stage|Change) .*(\n  .*)+\n", re.MULTILINE)


def model():
    """A base of six layers with 42 parameters each, and a head with 7."""
    layers = [L.Dense(6, name=f"b{number}") for number in range(1, 7)]
    base = keras.Sequential([keras.Input((6,)), *layers], name="base")
    built = keras.Sequential([base, L.Dense(1, name="head")])
    built.compile(keras.optimizers.SGD(0.25), "mse", run_eagerly=True)
    return built


def fit(model, *callbacks, verbose=1, **kwargs):
    model.fit(X, Y, epochs=3, batch_size=4, callbacks=[*callbacks], verbose=verbose, **kwargs)


@pytest.fixture
def printed(terminal, capsys, monkeypatch):
    """Returns what was printed. On a terminal, the progress bar is redrawn in the same line."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    return lambda: without_colours(capsys.readouterr().out)


def without_colours(text):
    return re.sub(r"\x1b\[[\d;]*m", "", text)


def blocks(text):
    """Returns the blocks by their first lines. Each has its own lines and is printed once."""
    found = {}
    for match in BLOCK.finditer(text):
        first, *rest = match[0].splitlines()
        assert first not in found
        found[first] = rest
    titles = len(re.findall("Stage|Change", text))
    assert titles == len(found), text  # none is in the line of a progress bar
    return found


def position(text, *parts):
    """Asserts that the parts appear in this order."""
    places = [text.index(part) for part in parts]
    assert places == sorted(places), text


@pytest.mark.parametrize(("terminal", "verbose"), [(True, 1), (False, 2)])
def test_stages(printed, verbose):
    stages = [Stage(1, "all", learning_rate=1e-3, name="fine-tune"), Stage(2, freeze="b1")]
    fit(model(), FreezeBase("base"), GradualUnfreeze(stages), verbose=verbose)
    text = printed()
    assert blocks(text) == {
        "Stage 0 (frozen base) from epoch 1/3": [
            "  base           base, 6 layers with weights",
            "  frozen         b1, b2, ..., b6 (6 layers)",
            "  parameters     7 trainable, 252 frozen",
            "  learning rate  0.25",
        ],
        "Stage 1 'fine-tune' (at=1) from epoch 2/3": [
            "  unfrozen       b1, b2, ..., b6 (6 layers)",
            "  parameters     259 trainable, 0 frozen",
            "  learning rate  0.001",
            "  optimizer      carried over",
        ],
        "Stage 2 (at=2) from epoch 3/3": [
            "  frozen         b1",
            "  parameters     217 trainable, 42 frozen",
            "  learning rate  0.001",
            "  optimizer      carried over",
        ],
    }
    parts = ["Stage 0", "Epoch 1/3", "Stage 1", "Epoch 2/3", "Stage 2", "Epoch 3/3"]
    position(text, *parts)
    assert text.count("Epoch") == 3


@pytest.mark.parametrize(("terminal", "verbose"), [(True, 1), (True, 2)])
def test_changes_by_others(printed, terminal, verbose):
    """One change in the middle of epoch 1, one at the start of epoch 3: shown between two bars."""
    net = model()
    layers = net.get_layer("base").layers
    net.get_layer("base").trainable = False
    net.compile(keras.optimizers.SGD(0.25), "mse", run_eagerly=True)

    class Thaw(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            layers[0].trainable = True

        def on_epoch_begin(self, epoch, logs=None):
            layers[1].trainable = epoch == 2

    watch = RecompileOnTrainableChange(optimizer="reset")
    fit(net, Thaw(), watch, verbose=verbose, validation_data=(X, Y))
    text = printed()
    assert ("\b" in text or "\r" in text) == (terminal and verbose == 1)
    assert blocks(text) == {
        "Change 1 of the trainable layers from step 2 of epoch 1": [
            "  unfrozen       b1",
            "  parameters     49 trainable, 210 frozen",
            "  learning rate  0.25",
            "  optimizer      reset",
        ],
        "Change 2 of the trainable layers from epoch 3": [
            "  unfrozen       b2",
            "  parameters     91 trainable, 168 frozen",
            "  learning rate  0.25",
            "  optimizer      reset",
        ],
    }
    position(text, "Epoch 1/3", "Change 1", "Epoch 2/3", "Epoch 3/3", "Change 2")


def test_silence(capsys):
    net = model()
    first = net.get_layer("base").layers[0]
    others = keras.callbacks.LambdaCallback(lambda e, logs: setattr(first, "trainable", e == 2))
    quiet = [GradualUnfreeze({1: "b6"}, verbose=0), RecompileOnTrainableChange(verbose=0)]
    fit(net, FreezeBase("base"), *quiet, others, verbose=0)
    assert capsys.readouterr().out == ""


def test_freeze_base_alone(capsys):
    """With verbose=1 it prints what is frozen, even if the schedule is silent."""
    frozen = [
        "  base           base, 6 layers with weights",
        "  frozen         b1, b2, ..., b6 (6 layers)",
        "  parameters     7 trainable, 252 frozen",
    ]
    for callbacks in ([], [GradualUnfreeze({1: "b6"}, verbose=0)]):
        fit(model(), FreezeBase("base", verbose=1), *callbacks, verbose=0)
        found = blocks(capsys.readouterr().out)
        expected = [*frozen, "  learning rate  0.25"]
        assert found == {"Stage 0 (frozen base) from epoch 1/3": expected}


def test_layers_of_one_name_are_told_apart_by_their_paths(capsys):
    blocks = [
        keras.Sequential([keras.Input((6,)), L.Dense(6, name="same")], name=name) for name in "ab"
    ]
    base = keras.Sequential([keras.Input((6,)), *blocks], name="base")
    net = keras.Sequential([base, L.Dense(1, name="head")])
    net.compile(keras.optimizers.SGD(0.25), "mse", run_eagerly=True)
    fit(net, GradualUnfreeze({1: "b/same", 2: "a/same"}), verbose=0)
    out = capsys.readouterr().out
    position(out, "unfrozen       base/b/same", "unfrozen       base/a/same")


def test_numbers_are_readable(capsys):
    """Thousands are grouped, and a rate is printed in its shortest form."""
    inputs = keras.Input((1000,))
    base = keras.Sequential([keras.Input((1000,)), L.Dense(10, name="b")], name="base")
    net = keras.Model(inputs, L.Dense(1)(base(inputs)))
    net.compile(keras.optimizers.SGD(1e-5), "mse", run_eagerly=True)
    net.fit(np.ones((2, 1000)), np.ones((2, 1)), verbose=0, callbacks=[FreezeBase(verbose=1)])
    out = capsys.readouterr().out
    assert "11 trainable, 10,010 frozen" in out
    assert "learning rate  1e-05" in out
