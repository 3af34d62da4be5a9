"""The preview of a schedule before training, compared with the training itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_freeze import (
    BottleneckCache,
    CacheWarning,
    FreezeBase,
    FreezeError,
    GradualUnfreeze,
    LayerMatchError,
    Plateau,
    Schedule,
    ScheduleError,
    Stage,
)
from keras_freeze.cli import main
from keras_freeze.graph.flops import backward_flops, forward_flops
from keras_freeze.graph.layer_calls import read_program
from keras_freeze.graph.layer_tree import LayerTree, own_variables
from keras_freeze.keras_internals.estimate_optimizer_bytes import slot_bytes
from tests import builders
from tests.builders import BACKEND, L

pytestmark = pytest.mark.one_backend

STAGES = [
    Stage(2, "b3", learning_rate={"factor": 0.5}, name="top"),
    Stage(4, "all", layer_decay=0.5, warmup_steps=3),
]


class Seen(keras.callbacks.Callback):
    """Records the trainable parameters and the optimizer's bytes in each epoch."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.rows: list[tuple[int, int]] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        optimizer = self.model.optimizer
        own = [v for v in optimizer.variables if v is not optimizer.iterations]
        size = sum(math.prod(v.shape) * 4 for v in own if len(v.shape))
        self.rows.append((logs["trainable_params"], size))


@pytest.mark.parametrize("kind", sorted(builders.KINDS))
def test_it_is_what_training_then_does(kind: str):
    model = builders.compiled(builders.KINDS[kind]())
    base = None if kind == "flat" else "base"
    schedule = Schedule(STAGES)
    table = schedule.preview(model, epochs=6, steps_per_epoch=3, data=24, base=base)
    assert [row["epochs"] for row in table] == [2, 2, 2]
    assert [row["steps"] for row in table] == [6, 6, 6]
    seen, cache = Seen(), BottleneckCache(verbose=0)
    x, y = builders.data(24)
    callbacks = [FreezeBase(base), GradualUnfreeze(schedule, verbose=0), seen, cache]
    history = model.fit(x, y, batch_size=8, epochs=6, verbose=0, callbacks=callbacks).history
    for epoch in range(6):
        row = table[history["stage"][epoch]]
        assert (row["trainable_params"], row["optimizer_bytes"]) == seen.rows[epoch]
        assert row["learning_rate"] == pytest.approx(history["learning_rate"][epoch])
        assert row["trainable_params"] + row["frozen_params"] == model.count_params()
    if kind != "subclassed":
        assert {row["stage"]: row["cut"] for row in table if row["cut"]} == cache.stats.cuts


def test_the_bytes_of_a_cache_are_those_that_it_takes():
    model = builders.compiled(builders.nested())
    x, y = builders.data(24)
    (row, *_) = Schedule({5: "b3"}).preview(model, epochs=6, data=(x, y))
    cache, kept = BottleneckCache(verbose=0), []
    note = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda e, logs: kept.append(cache.stats.bytes)
    )
    thaw = GradualUnfreeze({5: "b3"}, verbose=0)
    model.fit(x, y, epochs=6, verbose=0, callbacks=[FreezeBase("base"), thaw, cache, note])
    assert row["cache_bytes"] == kept[0]


OPTIMIZERS = {
    "SGD": lambda: keras.optimizers.SGD(0.1),
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.5),
    "Adam": lambda: keras.optimizers.Adam(),
    "AMSGrad": lambda: keras.optimizers.Adam(amsgrad=True),
    "EMA": lambda: keras.optimizers.Adam(use_ema=True),
    "accumulation": lambda: keras.optimizers.Adam(gradient_accumulation_steps=2),
    "Adafactor": lambda: keras.optimizers.Adafactor(),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_bytes_of_an_optimizer_are_those_of_a_built_one(name: str):
    model = keras.Sequential([keras.Input((9, 9, 3)), L.Conv2D(4, 3), L.Flatten(), L.Dense(6)])
    optimizer, built = OPTIMIZERS[name](), OPTIMIZERS[name]()
    built.build(model.trainable_variables)
    inner = getattr(built, "inner_optimizer", built)
    slots = [v for v in inner.variables if len(v.shape)]
    assert slot_bytes(optimizer, model.trainable_variables) == sum(
        math.prod(v.shape) * 4 for v in slots
    )


def flops(model: keras.Model) -> float:
    program = read_program(model)
    return sum(forward_flops(program, call) for call in program.calls)


@pytest.mark.parametrize(
    ("make", "published"),
    [  # multiply-adds of one 224 x 224 image, from the papers
        (keras.applications.MobileNetV2, 300e6),  # Sandler et al. 2018, table 4
        (keras.applications.ResNet50, 3.8e9),  # He et al. 2015, table 1
        (keras.applications.DenseNet121, 2.87e9),  # Huang et al. 2017, by their code
    ],
)
def test_operations_are_those_that_papers_give(make: Any, published: float):
    counted = flops(make(weights=None, input_shape=(224, 224, 3)))
    assert counted / 2 == pytest.approx(published, rel=0.06)


def convolutional() -> keras.Model:
    inputs = keras.Input((12, 12, 4))
    x = L.Conv2D(8, 3, padding="same", use_bias=False, name="c1")(inputs)
    y = L.DepthwiseConv2D(3, padding="same", use_bias=False, name="c2")(x)
    y = L.Conv2D(8, 3, strides=2, padding="same", groups=2, use_bias=False, name="c3")(y)
    y = L.Conv2DTranspose(8, 3, strides=2, padding="same", use_bias=False, name="c4")(y)
    x = L.Add(name="add")([x, y])
    return keras.Model(inputs, L.Dense(5, use_bias=False, name="head")(L.Flatten()(x)))


@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch alone counts operations itself")
@pytest.mark.parametrize(
    "trained", [{"head"}, {"head", "c4"}, {"c1"}, {"c4"}, {"head", "c1", "c4"}]
)
def test_operations_are_those_that_pytorch_counts(trained: set[str]):
    """Forward and backward, for several frozen parts. PyTorch counts only products.

    The layers with groups aren't trained: PyTorch's counter ignores groups in the gradient of
    their weights.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model = convolutional()
    for layer in LayerTree(model).leaves:
        layer.trainable = layer.name in trained
    program = read_program(model)
    weighted = [s for s in program.calls if own_variables(s.operation)]
    with FlopCounterMode(display=False) as counter:
        model(torch.ones((1, 12, 12, 4))).sum().backward()
    plain = sum(forward_flops(program, s) for s in program.calls if s not in weighted)
    assert plain < 0.2 * flops(model)
    forward = sum(forward_flops(program, s) for s in weighted)
    backward = backward_flops(program, lambda layer: layer.name in trained)
    counted = counter.get_total_flops()
    assert forward + backward == pytest.approx(counted, rel=0.1)


def test_the_share_of_the_work():
    model = builders.compiled(builders.nested())
    first, second, last = Schedule({1: "b3", 2: "all"}).preview(model, epochs=3)
    assert first["work"] < second["work"] < last["work"] <= 1
    assert first["work_cached"] < second["work_cached"]
    assert last["work_cached"] is None
    assert last["work"] > 0.85  # the first layer needs no gradient of the images


def test_a_trigger_has_no_epochs():
    model = builders.compiled(builders.nested())
    stages = [Stage(2, "b3"), Stage(Plateau(), "b2"), Stage(9, "b1")]
    table = Schedule(stages).preview(model, epochs=12)
    assert [row["epochs"] for row in table] == [2, None, None, 3]
    assert "after val_loss, patience 3" in str(table)


def test_without_compile_rates_are_unknown():
    row = Schedule({1: "b3"}).preview(builders.nested(), epochs=2)[1]
    assert row["learning_rate"] is None
    assert row["optimizer_bytes"] is None
    assert row["trainable_params"] == 81


def test_the_largest_optimizer_first():
    model = builders.compiled(builders.nested())
    table = Schedule({1: "all", 2: Stage(2, freeze=["b1", "b2"])}).preview(model, order="memory")
    sizes = [row["optimizer_bytes"] for row in table]
    assert sizes == sorted(sizes, reverse=True)
    assert table[0]["stage"] == 1


def test_it_changes_nothing():
    model = builders.compiled(builders.nested(extras=True))
    before, flags = builders.weights(model), [layer.trainable for layer in model._flatten_layers()]
    state = np.random.get_state()[1].copy()
    Schedule(STAGES).preview(model, epochs=6)
    builders.assert_equal(before, builders.weights(model))
    assert [layer.trainable for layer in model._flatten_layers()] == flags
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_it_shows_itself():
    model = builders.compiled(builders.nested())
    table = Schedule(STAGES).preview(model, epochs=6, steps_per_epoch=3, data=24)
    lines = str(table).splitlines()
    assert len(lines) == 2 + 3 + 2
    assert "2 (6 steps)" in lines[2]
    assert "+ b3" in lines[3]
    page = table._repr_html_()
    assert page.count("<tr>") == 4
    assert "<td>1 top</td>" in page
    assert page.endswith(f"<p>{lines[5]}</p><p>{lines[6]}</p>")
    assert repr(table) == str(table)


NOTHING = "nothing to cache: no frozen layer with weights comes before the trainable layers"


def notes(table: Any) -> list[str]:
    """Returns the lines below a table."""
    return str(table).splitlines()[2 + len(table) :]


def test_what_a_dash_means():
    model = builders.compiled(builders.nested())
    schedule = Schedule([Stage(2, "b3"), Stage(Plateau(), "all")])
    assert notes(schedule.preview(model)) == [
        "epochs: - = a trigger decides",
        "layers: - = no layer changes",
        f"cache after, a row, in all, cached of stage 2: - = {NOTHING}",
        "in all of stages 0, 1: - = pass `data`",
    ]
    table = Schedule({2: "b3"}).preview(model, data=24)
    assert notes(table) == ["epochs: - = pass `epochs`", "layers: - = no layer changes"]
    assert [row["why"] for row in table] == [
        {"layers": "no layer changes"},
        {"epochs": "pass `epochs`"},
    ]
    table = Schedule({2: "b3"}).preview(builders.nested(), epochs=3, data=24)
    assert "rate, optimizer: - = unknown before `compile`" in notes(table)


def test_a_dash_for_what_a_cache_refuses():
    """The reason is the same as in the run."""
    inputs = keras.Input((6,))
    noise = L.GaussianNoise(0.1, name="noise")(inputs)
    model = builders.compiled(keras.Model(inputs, L.Dense(1)(builders.functional_base()(noise))))
    (row, *_) = table = Schedule({2: "b3"}).preview(model, epochs=3)
    cache, (x, y) = BottleneckCache(verbose=0), builders.data()
    callbacks = [FreezeBase("base"), GradualUnfreeze({1: "b3"}, verbose=0), cache]
    with pytest.warns(CacheWarning):
        model.fit(x, y, epochs=2, verbose=0, callbacks=callbacks)
    assert row["why"]["cut"] == f"nothing to cache: {cache.stats.reason}"
    text = f"cache after, a row, in all, cached: - = nothing to cache: {cache.stats.reason}"
    assert text in notes(table)


def test_a_dash_for_a_graph_that_cannot_be_read():
    model = builders.compiled(builders.subclassed())
    table = Schedule({2: "b3"}).preview(model, epochs=3, base="base")
    assert any(note.startswith("work, ") or note.startswith("work:") for note in notes(table))
    assert "unknown: the model is subclassed" in "".join(notes(table))


def test_every_missing_value_has_its_reason():
    for kind, make in builders.KINDS.items():
        for model in (make(), builders.compiled(make())):
            base = None if kind == "flat" else "base"
            for row in Schedule({1: "b3", 2: "all"}).preview(model, base=base):
                missing = {key for key, value in row.items() if value is None} - {"steps", "name"}
                assert missing - {"base_learning_rate", "lowest_rate"} == set(row["why"])


def test_no_dash_has_no_note():
    model = builders.compiled(builders.nested())
    table = Schedule({0: "b3"}).preview(model, epochs=2, data=24)
    assert notes(table) == []


@pytest.mark.parametrize(
    ("stages", "options", "error", "message"),
    [
        ({9: "b3"}, {"epochs": 9}, ScheduleError, "never reached in 9 epochs"),
        ({1: "b33"}, {}, LayerMatchError, "'b33'"),
        ({1: "b3"}, {"data": "images"}, FreezeError, "`data` of preview"),
        ({1: "b3"}, {"data": (x for x in ())}, FreezeError, "`data` of preview"),
        ({1: "b3"}, {"data": 0}, FreezeError, "`data` of preview"),
        ({1: "b3"}, {"order": "size"}, FreezeError, "`order` must be"),
        ({1: "b3"}, {"views": 0}, FreezeError, "`views` must be"),
    ],
)
def test_what_cannot_be_meant(stages: Any, options: Any, error: Any, message: str):
    with pytest.raises(error, match=message):
        Schedule(stages).preview(builders.compiled(builders.nested()), **options)


@pytest.mark.parametrize("model", [None, "model", keras.Sequential([L.Dense(2)])])
def test_a_model_that_is_not_built(model: Any):
    with pytest.raises(FreezeError, match="`model` of preview"):
        Schedule({1: "b3"}).preview(model)


def test_views():
    inputs = keras.Input((6,))
    features = builders.functional_base()(L.GaussianNoise(0.1)(inputs))
    model = builders.compiled(keras.Model(inputs, L.Dense(1, name="head")(features)))
    exact = Schedule({2: "b3", 6: "all"}).preview(model, epochs=8, data=100)
    assert exact[0]["cut"] is None, "the noise differs in each epoch"
    table = Schedule({2: "b3", 6: "all"}).preview(model, epochs=8, data=100, views=3)
    assert [row["cut"] for row in table] == [["b3"], ["b2"], None]
    # b3's and b2's outputs, and the inputs, which the last stage reads.
    assert table[0]["row_bytes"] == 4 * (8 + 8 + 6)
    assert table[1]["row_bytes"] == 4 * (8 + 6)
    assert table[0]["cache_bytes"] == 3 * 100 * table[0]["row_bytes"]
    # All epochs of stage 0 are recorded, one of the four of stage 1.
    assert table[0]["work_cached"] == table[0]["work"]
    few = Schedule({2: "b3", 6: "all"}).preview(model, epochs=8, views=2)
    assert few[1]["work_cached"] < table[1]["work_cached"] < table[1]["work"]


def test_from_the_command_line(tmp_path: Path, capsys: Any):
    model, plan = tmp_path / "model.keras", tmp_path / "plan.yaml"
    builders.compiled(builders.nested()).save(model)
    plan.write_text('2: "b3"\n4: {unfreeze: all, layer_decay: 0.5}\n')
    assert main(["plan", str(model), str(plan), "--epochs", "6", "--images", "100"]) == 0
    assert "+ b1, b2" in capsys.readouterr().out
    assert main(["plan", str(model), str(plan), "--images", "100", "--views", "4"]) == 0
    assert "35.2 KB" in capsys.readouterr().out
    assert main(["plan", str(model), str(plan), "--epochs", "3"]) == 2
    assert "never reached" in capsys.readouterr().err
    assert main(["plan", str(tmp_path / "no.keras"), str(plan)]) == 2
    assert "there is no model" in capsys.readouterr().err
    model.write_bytes(b"no model")
    assert main(["plan", str(model), str(plan)]) == 2
    assert "can't be loaded" in capsys.readouterr().err
    plan.write_text('2: "b3"\n4: {unfreze: all}\n')
    assert main(["plan", str(model), str(plan)]) == 2
    assert "Did you mean 'unfreeze'" in capsys.readouterr().err
