"""LoRA adapters in a frozen base: what trains, how a stage names them, where the cut is."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from keras_freeze import (
    BottleneckCache,
    FreezeBase,
    GradualUnfreeze,
    LayerMatchError,
    Plateau,
    Schedule,
    Stage,
    select_layers,
)
from tests import builders as B
from tests.reference.cached import compare

pytestmark = pytest.mark.one_backend(but=["test_one_fit_equals_two"])

L = keras.layers
ADAPTERS = {"b2/lora_kernel_a", "b2/lora_kernel_b"}
B1, B2, B3 = ({f"{name}/kernel", f"{name}/bias"} for name in ("b1", "b2", "b3"))
HEAD = {"head/kernel", "head/bias"}


def lora(kind: str = "nested") -> keras.Model:
    """A model with adapters in the second layer of its base."""
    keras.utils.set_random_seed(0)
    model = B.KINDS[kind]()
    B.layer(model, "b2").enable_lora(2)
    return B.compiled(model)


def fit(model: keras.Model, *callbacks: Any, epochs: int = 1, first: int = 0, **more: Any) -> Any:
    x, y = B.data(16)
    options = {"batch_size": 8, "epochs": epochs, "initial_epoch": first, "verbose": 0}
    return model.fit(x, y, callbacks=list(callbacks), **options, **more).history


def moved(model: keras.Model, *callbacks: Any, epochs: int = 1, first: int = 0) -> set[str]:
    """Returns the names of the variables that a fit changes."""
    before = B.weights(model)
    fit(model, *callbacks, epochs=epochs, first=first)
    after = B.weights(model)
    return {key for key in before if not np.array_equal(before[key], after[key])}


@pytest.mark.parametrize("kind", B.KINDS)
def test_the_adapters_of_a_frozen_base_are_trained(kind: str):
    model = lora(kind)
    assert moved(model, FreezeBase("base" if kind != "flat" else ":b3"), epochs=2) == (
        ADAPTERS | HEAD
    )


def test_after_the_fit_the_layers_have_these_flags():
    model = lora()
    fit(model, FreezeBase())
    base = B.layer(model, "base")
    trained = {v.path for v in model.trainable_variables}
    assert trained == {"b2/lora_kernel_a", "b2/lora_kernel_b", "head/kernel", "head/bias"}
    assert base.trainable
    assert not B.layer(model, "b1").trainable


def test_a_stage_names_the_adapters():
    """They are frozen until a stage unfreezes them, like a layer outside the base that it names."""
    plan = [FreezeBase(), GradualUnfreeze({1: "lora"}, verbose=0)]
    model = lora()
    assert moved(model, *plan) == HEAD
    assert moved(model, *plan, first=1, epochs=2) == ADAPTERS | HEAD


def test_a_stage_freezes_the_adapters():
    plan = [FreezeBase(), GradualUnfreeze([Stage(1, "b3", "lora"), Stage(2, "b2")], verbose=0)]
    model = lora()
    assert moved(model, *plan) == ADAPTERS | HEAD
    assert moved(model, *plan, first=1, epochs=2) == B3 | HEAD
    assert moved(model, *plan, first=2, epochs=3) == B2 | ADAPTERS | B3 | HEAD


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (Stage(0, "b2"), B2 | ADAPTERS | HEAD),
        (Stage(0, ["b3", "lora"]), B3 | ADAPTERS | HEAD),
        (Stage(0, ["all", "!lora"]), B1 | B3 | ADAPTERS | HEAD),
        (Stage(0, "all", "lora"), B1 | B2 | B3 | HEAD),
        (Stage(0, "b1", "b2"), B1 | HEAD),
    ],
    ids=["layer", "layer and adapters", "without", "all but adapters", "layer frozen"],
)
@pytest.mark.filterwarnings("ignore:The base is")
def test_layers_and_adapters_are_named_together(stage: Stage, expected: set[str]):
    assert moved(lora(), FreezeBase(), GradualUnfreeze([stage], verbose=0)) == expected


def test_the_selector():
    model = lora()
    assert [layer.name for layer in select_layers(model, "lora")] == ["b2"]
    with pytest.raises(LayerMatchError, match=r"enable_lora\(rank=4\)"):
        select_layers(B.nested(), "lora")
    named = keras.Sequential([keras.Input((6,)), L.Dense(2, name="lora"), L.Dense(1)])
    assert [layer.name for layer in select_layers(named, "lora")] == ["lora"]


def test_a_layer_of_that_name_is_a_layer():
    base = keras.Sequential([keras.Input((6,)), L.Dense(2, name="lora")], name="base")
    model = B.compiled(keras.Sequential([base, L.Dense(1, name="head")]))
    plan = [FreezeBase("base"), GradualUnfreeze({1: "lora"}, verbose=0)]
    assert moved(model, *plan) == HEAD
    assert moved(model, *plan, first=1, epochs=2) == HEAD | {"lora/kernel", "lora/bias"}


@pytest.mark.parametrize("kind", B.KINDS)
def test_the_cache_cuts_before_the_first_adapter(kind: str):
    base = "base" if kind != "flat" else ":b3"
    plan = {2: "lora"}
    runs = []
    for cache in (BottleneckCache(verbose=0), None):
        model = lora(kind)
        callbacks = [FreezeBase(base), GradualUnfreeze(plan, verbose=0)]
        callbacks += [cache] if cache is not None else []
        runs.append((fit(model, *callbacks, epochs=4), B.weights(model)))
        if cache is not None:
            stats = cache.stats
    (cached, weights), (plain, expected) = runs
    compare(cached, plain)
    compare(weights, expected)
    assert stats.enabled, stats.reason
    assert stats.base_passes == 1.0
    places = 2 if kind == "shared" else 1  # this base is called twice
    assert stats.cuts[1] == ["b1"] * places
    assert stats.cuts[0] == ["b3"] or kind == "shared"


def test_one_fit_equals_two():
    """Fresh optimizers for each stage, and flags set by hand."""
    model = lora()
    ours = fit(
        model,
        FreezeBase(),
        GradualUnfreeze({2: "lora"}, optimizer="reset", verbose=0),
        epochs=4,
        shuffle=False,
    )
    by_hand = lora()
    losses: list[float] = []
    for first, adapters in ((0, False), (2, True)):
        for name in ("b1", "b2", "b3"):
            B.layer(by_hand, name).trainable = False
        if adapters:
            layer = B.layer(by_hand, "b2")
            layer.trainable = True
            for variable in layer._trainable_variables:
                variable.trainable = variable.name.startswith("lora_")
        B.compiled(by_hand)
        losses += fit(by_hand, epochs=first + 2, first=first, shuffle=False)["loss"]
    assert ours["loss"] == losses
    B.assert_equal(B.weights(model), B.weights(by_hand))


@pytest.mark.parametrize("options", [{"warmup_steps": 4}, {"layer_decay": 0.5}])
def test_rates_of_adapters_follow_the_stage(options: dict[str, Any]):
    """The first step of SGD is proportional to the rate, so a warmed-up one is smaller."""
    steps = {}
    for key, more in (("plain", {}), ("slow", options)):
        model = lora()
        model.compile(keras.optimizers.SGD(1.0), "mse")
        before = B.weights(model)
        x, y = B.data(8)
        stage = Stage(0, "lora", **more)
        model.fit(
            x,
            y,
            batch_size=8,
            verbose=0,
            callbacks=[FreezeBase(), GradualUnfreeze([stage], verbose=0)],
        )
        steps[key] = B.weights(model)["b2/lora_kernel_b"] - before["b2/lora_kernel_b"]
    share = 0.25  # one of four steps; b2 is the second block of the base from the head
    np.testing.assert_allclose(steps["slow"], share * steps["plain"], rtol=1e-4, atol=1e-8)


def test_restore_best_puts_adapters_back():
    class Worse(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["val_loss"] = float(epoch)

    kept: dict[str, Any] = {}

    class Keep(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                kept.update(B.weights(self.model))

        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                now = B.weights(self.model)
                kept["same"] = all(np.array_equal(now[key], kept[key]) for key in ADAPTERS)

    stage = Stage(Plateau("val_loss", patience=1), "b3", restore_best=True)
    callbacks = [Worse(), FreezeBase(), GradualUnfreeze([stage], verbose=0), Keep()]
    fit(lora(), *callbacks, epochs=3, validation_data=B.data(4))
    assert kept["same"]


def test_the_first_lines_say_that_adapters_are_trained(capsys: pytest.CaptureFixture[str]):
    fit(lora(), FreezeBase(verbose=1))
    text = capsys.readouterr().out
    assert "  adapters       LoRA, trainable in 1 layer\n" in text
    assert "  base           base, 3 layers with weights (found" in text


def test_the_preview_counts_adapters():
    model = lora()
    first, second, third = Schedule({1: "lora", 2: "all"}).preview(model, epochs=3)
    assert [row["trainable_params"] for row in (first, second, third)] == [9, 41, 241]
    assert second["thawed"] == ["b2"]
    assert [row["cut"] for row in (first, second, third)] == [["b3"], ["b1"], None]


def test_a_base_that_holds_all_weights():
    """A language model whose output reads its embeddings: only adapters or lower layers work."""
    model = keras.Sequential([keras.Input((6,)), B.functional_base()])
    B.compiled(model)
    with pytest.raises(ValueError, match=r"FreezeBase\(':b2'\) freezes its lower layers"):
        fit(model, FreezeBase("base"))
    assert {key.split("/")[0] for key in moved(model, FreezeBase(":b2"))} == {"b3"}
    B.layer(model, "b1").enable_lora(2)
    B.compiled(model)
    assert moved(model, FreezeBase("base")) == {"b1/lora_kernel_a", "b1/lora_kernel_b"}


def test_saved_and_loaded_within_a_stage(tmp_path: Any):
    model = lora()
    fit(model, FreezeBase())
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    x, _ = B.data(4)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
