"""A misspelled name: the message gives the right name, or the place where it belongs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_freeze import (
    BottleneckCache,
    CacheError,
    FreezeBase,
    FreezeError,
    GradualUnfreeze,
    LayerMatchError,
    PerStage,
    Plateau,
    RecompileOnTrainableChange,
    Schedule,
    ScheduleError,
    Stage,
    TransferModel,
    freeze,
    plot_history,
    select_layers,
    unfreeze,
)
from keras_freeze.errors import closest, nearest
from keras_freeze.schedule.stage import KEYS
from tests import builders as B
from tests.builders import L

pytestmark = pytest.mark.one_backend

Action = Callable[[], Any]


@pytest.fixture(scope="module")
def vgg19() -> keras.Model:
    """A model with a nested VGG19 with random weights."""
    base = keras.applications.VGG19(weights=None, include_top=False, input_shape=(32, 32, 3))
    layers = [keras.Input((32, 32, 3)), base, L.Flatten(name="flatten"), L.Dense(2, name="head")]
    return B.compiled(keras.Sequential(layers, name="model"))


def message(kind: type[Exception], action: Action) -> str:
    with pytest.raises(kind) as error:
        action()
    assert type(error.value) is kind
    return str(error.value)


@pytest.mark.parametrize(
    ("base", "hint"),
    [
        ("VGG", "Closest names: 'vgg19'."),
        ("VGG19", "Closest names: 'vgg19'."),
        ("vgg-19", "Closest names: 'vgg19'."),
        ("vgg19_base", "Closest names: 'vgg19'."),
        ("vgg16", "Closest names: 'vgg19'."),
        ("conv_base", "It holds 'vgg19', 'flatten', 'head'."),
        ("zzz", "It holds 'vgg19', 'flatten', 'head'."),
    ],
)
def test_the_base(base: str, hint: str, vgg19: keras.Model):
    x, y = np.zeros((2, 32, 32, 3)), np.zeros((2, 2))
    thaw = GradualUnfreeze({1: "all"}, base=base)
    for each in (FreezeBase(base), BottleneckCache(base), thaw):
        options = {"verbose": 0, "callbacks": [each]}
        text = message(LayerMatchError, lambda options=options: vgg19.fit(x, y, **options))
        assert hint in text
        assert f"Received: '{base}'" in text


SELECTORS = {
    "Block5_Conv1": "Closest names: 'block5_conv1'",
    "block5conv1:": "Closest names: 'block5_conv1'",
    "vgg19/block5_conv": "Closest names: 'block5_conv4', 'block5_conv3', 'block5_conv2'",
    "ALL": "Did you mean 'all'?",
    "LoRA": "Did you mean 'lora'?",
    "-2": "Did you mean '-2:', the last 2 layers? An index needs a colon.",
    "-1": "Did you mean '-1:', the last layer?",
    " 5 ": "Did you mean '-5:', the last 5 layers? Or '5:', all from index 5 on?",
    "0": "'0:' is every layer",
    "0.2": "Did you mean '20%'",
    "-20%": "'20%' is the last share already",
    -2: "Did you mean '-2:'",
    0.25: "Did you mean '25%'",
}


@pytest.mark.parametrize("selector", SELECTORS)
def test_selectors(selector: Any, vgg19: keras.Model):
    text = message(LayerMatchError, lambda: select_layers(vgg19.layers[0], selector))
    assert SELECTORS[selector] in text


def test_what_a_hint_says_is_right(vgg19: keras.Model):
    base = vgg19.layers[0]
    assert [layer.name for layer in select_layers(base, "-2:")] == ["block5_conv4", "block5_pool"]
    assert select_layers(base, "0:") == select_layers(base, "all")


def test_a_layer_that_is_called_as_a_number():
    model = keras.Sequential([keras.Input((2,)), L.Dense(2, name="-2"), L.Dense(2, name="b")])
    assert [layer.name for layer in select_layers(model, "-2")] == ["-2"]


STAGE_KEYS = {
    "lr": "Did you mean 'learning_rate'?",
    "Learning_Rate": "Did you mean 'learning_rate'?",
    "warmup": "Did you mean 'warmup_steps'?",
    "thaw": "Did you mean 'unfreeze'?",
    "epoch": "Did you mean 'at'?",
    "plateau": "at=Plateau(patience=3)",
    "patience": "at=Plateau(patience=3)",
    "batch_norm": "pass it to GradualUnfreeze or Schedule",
}


@pytest.mark.parametrize("key", STAGE_KEYS)
def test_stages(key: str):
    for action in (lambda: Stage(3, "b", **{key: 1}), lambda: Schedule({3: {key: 1}})):
        text = message(ScheduleError, action)
        assert STAGE_KEYS[key] in text
        assert f"Received: {key}=1" in text
        assert ", ".join(KEYS) in text


def base() -> keras.Model:
    return B.functional_base()


# The function called, the type of the error, the closest argument, and all arguments.
KEYWORDS: dict[str, tuple[Action, type[FreezeError], str, str]] = {
    "FreezeBase": (lambda: FreezeBase(batchnorm="train"), FreezeError, "batch_norm", "base"),
    "GradualUnfreeze": (
        lambda: GradualUnfreeze({1: "b"}, optimiser="carry"),
        FreezeError,
        "optimizer",
        "schedule",
    ),
    "RecompileOnTrainableChange": (
        lambda: RecompileOnTrainableChange(optimiser="carry"),
        FreezeError,
        "optimizer",
        "verbose",
    ),
    "BottleneckCache": (lambda: BottleneckCache(max_byte=1), CacheError, "max_bytes", "dtype"),
    "PerStage": (
        lambda: PerStage(call_back=keras.callbacks.EarlyStopping()),
        FreezeError,
        "callback",
        "callback",
    ),
    "TransferModel": (
        lambda: TransferModel(base(), 3, schedul={}),
        FreezeError,
        "schedule",
        "head",
    ),
    "Plateau": (lambda: Plateau(patince=1), ScheduleError, "patience", "monitor"),
    "Schedule": (lambda: Schedule({1: "b"}, optimiser="x"), ScheduleError, "optimizer", "stages"),
    "Schedule.two_phase": (
        lambda: Schedule.two_phase("b", lr=1e-5),
        ScheduleError,
        "learning_rate",
        "unfreeze",
    ),
    "Schedule.lp_ft": (lambda: Schedule.lp_ft(starts=1), ScheduleError, "start", "learning_rate"),
    "Schedule.ulmfit": (
        lambda: Schedule.ulmfit(base(), decay=1),
        ScheduleError,
        "layer_decay",
        "every",
    ),
    "Schedule.chain_thaw": (
        lambda: Schedule.chain_thaw(base(), evry=1),
        ScheduleError,
        "every",
        "model",
    ),
    "Schedule.auto": (lambda: Schedule.auto(base(), stage=2), ScheduleError, "stages", "start"),
    "Schedule.preview": (
        lambda: Schedule({1: "b3"}).preview(base(), epoch=3),
        ScheduleError,
        "epochs",
        "order",
    ),
    "select_layers": (lambda: select_layers(base(), select="b"), FreezeError, "selector", "model"),
    "freeze": (lambda: freeze(layer=base()), FreezeError, "layers", "batch_norm"),
    "unfreeze": (lambda: unfreeze(base(), batchnorm="x"), FreezeError, "batch_norm", "layers"),
    "plot_history": (lambda: plot_history({}, schedules={}), FreezeError, "schedule", "history"),
}


@pytest.mark.parametrize("name", KEYWORDS)
def test_keywords(name: str):
    action, kind, near, other = KEYWORDS[name]
    text = message(kind, action)
    assert text.startswith(f"{name} has no argument ")
    assert f"Did you mean {near!r}?" in text
    assert f"`{near}`" in text
    assert f"`{other}" in text
    assert "Received: " in text


@pytest.mark.parametrize(
    ("action", "owner"),
    [
        (lambda: GradualUnfreeze({1: "b"}, learning_rate=1e-5), "Stage"),
        (lambda: GradualUnfreeze({1: "b"}, patience=2), "Plateau"),
        (lambda: Schedule({1: "b"}, restore_best=True), "Stage"),
        (lambda: FreezeBase(optimizer="reset"), "GradualUnfreeze"),
        (lambda: FreezeBase("base", schedule={1: "b"}), "GradualUnfreeze"),
    ],
)
def test_keywords_of_others(action: Action, owner: str):
    with pytest.raises(FreezeError, match=rf"It is an argument of {owner}\."):
        action()


SIGNATURES = {
    FreezeBase: ["base", "batch_norm", "verbose"],
    GradualUnfreeze: ["schedule", "base", "optimizer", "batch_norm", "verbose"],
    RecompileOnTrainableChange: ["optimizer", "verbose"],
    BottleneckCache: [
        "base",
        "views",
        "shuffle",
        "directory",
        "data",
        "dtype",
        "max_bytes",
        "verbose",
    ],
    PerStage: ["callback"],
    Plateau: ["monitor", "patience", "min_delta", "mode", "min_epochs", "max_epochs"],
    Schedule: ["stages", "base", "optimizer", "batch_norm"],
    Schedule.two_phase: ["unfreeze", "start", "learning_rate", "base_learning_rate"],
    select_layers: ["model_or_base", "selector"],
    freeze: ["layers", "batch_norm"],
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__name__)
def test_editors_see_the_arguments_and_nothing_else(function: Any):
    assert list(inspect.signature(function).parameters) == SIGNATURES[function]
    assert "**" not in str(inspect.signature(function))
    assert function.__doc__


def test_a_missing_argument_is_what_python_says():
    with pytest.raises(TypeError, match="'schedule'"):
        GradualUnfreeze()
    with pytest.raises(TypeError, match="positional"):
        FreezeBase("base", "train")


def test_a_class_of_the_users_may_have_more_arguments():
    class Loud(GradualUnfreeze):
        """Has an extra argument."""

        def __init__(self, schedule: Any, *, volume: int, **kwargs: Any):
            super().__init__(schedule, **kwargs)
            self.volume = volume

    assert Loud({1: "b"}, volume=3, optimizer="reset").optimizer == "reset"
    with pytest.raises(FreezeError, match="'optimizer'"):
        Loud({1: "b"}, volume=3, optimiser="reset")


# A file, and what the message about it says.
FILES = {
    "lr": ("- at: 3\n  lr: 0.1\n", "line 2, stage 1 (at 3): unknown key 'lr'. Did you mean 'learn"),
    "plateau": (
        "- plateau: {patience: 3}\n  unfreeze: x\n",
        "It belongs under `at`: `at: {plateau: {patience: 3}}`.",
    ),
    "patience": ("- at: 3\n  patience: 2\n", "under `at`: `at: {plateau: {patience: 3}}`."),
    "trigger without its name": (
        "- at: {monitor: val_loss}\n  unfreeze: x\n",
        "It belongs in a trigger, under `at`: `at: {plateau: {patience: 3}}`.",
    ),
    "wrong case": ("- at: {Plateau: {}}\n  unfreeze: x\n", "Did you mean 'plateau'?"),
    "epoch": ("- epoch: 3\n  unfreeze: x\n", "unknown key 'epoch'. Did you mean 'at'?"),
    "setting in a stage": (
        "- at: 3\n  unfreeze: x\n  batch_norm: train\n",
        "It belongs at the top of the file, next to `stages`.",
    ),
    "stage's key at the top": (
        "learning_rate: 1\nstages:\n- at: 3\n  unfreeze: x\n",
        "line 1: unknown key 'learning_rate'. It belongs in a stage, an item of `stages`.",
    ),
    "setting": ("optimiser: reset\nstages:\n- at: 3\n  unfreeze: x\n", "Did you mean 'optimizer'?"),
    "stages": ("stage:\n- at: 3\n  unfreeze: x\n", "Did you mean 'stages'?"),
    "choice": ("- at: 3\n  unfreeze: x\n  optimizer: carrry\n", "Did you mean 'carry'?"),
    "index": ("- at: 3\n  unfreeze: -2\n", "Did you mean '-2:', the last 2 layers?"),
    "index in a list": ("- at: 3\n  unfreeze: [b1, -2]\n", "`unfreeze` must be a selector"),
    "no dash": (
        "stages:\n  at: 3\n  unfreeze: x\n",
        "line 2: the keys of one stage are under `stages`, but stages must be a list. "
        "Under `stages:`, begin each stage with a dash: `- at: 3`. Received: {'at': 3",
    ),
    "no dash and no at": ("stages:\n  epoch: 3\n  unfreeze: x\n", "begin each stage with a dash"),
    "one stage alone": (
        "at: 3\nunfreeze: x\n",
        "line 1: the keys of one stage are at the top of the file",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_files(case: str, tmp_path: Path):
    content, part = FILES[case]
    path = tmp_path / "plan.yaml"
    path.write_text(content)
    for read in (Schedule, GradualUnfreeze):
        assert part in message(ScheduleError, lambda read=read: read(str(path)))


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("p.toml", '[stages]\nat = 3\nunfreeze = "x"\n', "[[stages]], in two brackets"),
        ("p.json", '{"stages": {"at": 3, "unfreeze": "x"}}', '{"stages": [{"at": 3,'),
        ("p.json", '{"at": 3, "unfreeze": "x"}', '{"stages": [{"at": 3,'),
    ],
)
def test_a_lone_stage_in_other_formats(name: str, content: str, part: str, tmp_path: Path):
    (tmp_path / name).write_text(content)
    assert part in message(ScheduleError, lambda: Schedule.from_file(tmp_path / name))


def test_the_remedies_for_a_lone_stage_are_right(tmp_path: Path):
    path = tmp_path / "plan.yaml"
    path.write_text("stages:\n  - at: 3\n    unfreeze: x\n")
    assert Schedule(path) == Schedule([Stage(3, "x")])
    path = tmp_path / "plan.toml"
    path.write_text('[[stages]]\nat = 3\nunfreeze = "x"\n')
    assert Schedule(path) == Schedule([Stage(3, "x")])


def test_a_string_as_a_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("plan.yaml").write_text("- at: 3\n  unfreeze: x\n")
    for given, part in {
        "plan": "Did you mean 'plan.yaml'?",
        "Plan.yml": "Did you mean 'plan.yaml'?",
        "plan.yalm": "Did you mean '.yaml'?",
        "ULMFiT": "Did you mean Schedule.ulmfit(...)?",
        "lp-ft": "Did you mean Schedule.lp_ft(...)?",
        "block5_*": "A selector needs its epoch: {10: 'block5_*'}.",
    }.items():
        assert part in message(ScheduleError, lambda given=given: GradualUnfreeze(given))


CHOICES: dict[str, tuple[Action, str]] = {
    "optimizer": (lambda: GradualUnfreeze({1: "b"}, optimizer="carrry"), "'carry'"),
    "optimizer, case": (lambda: GradualUnfreeze({1: "b"}, optimizer="Reset"), "'reset'"),
    "batch_norm": (lambda: FreezeBase(batch_norm="training"), "'train'"),
    "batch_norm, frozen": (lambda: FreezeBase(batch_norm="frozen"), "'freeze'"),
    "mode": (lambda: Plateau(mode="maximum"), "'max'"),
    "order": (lambda: Schedule({1: "b3"}).preview(base(), order="mem"), "'memory'"),
    "dtype": (lambda: BottleneckCache(dtype="Float16"), "'float16'"),
    "max_bytes": (lambda: BottleneckCache(max_bytes="automatic"), "'auto'"),
    "cache": (lambda: TransferModel(base(), 3, cache="atuo"), "'auto'"),
    "arguments of a cache": (lambda: TransferModel(base(), 3, cache={"types": 1}), "'dtype'"),
}


@pytest.mark.parametrize("case", CHOICES)
def test_choices(case: str):
    action, near = CHOICES[case]
    with pytest.raises(FreezeError, match=f"Did you mean {near}?"):
        action()


@pytest.mark.parametrize("monitor", ["Val_Loss", "val_los", "val-loss"])
def test_monitors(monitor: str):
    model = B.compiled(B.nested())
    x, y = B.data()
    thaw = GradualUnfreeze([Stage(Plateau(monitor), "b3")], verbose=0)
    options = {"validation_data": (x, y), "verbose": 0, "callbacks": [FreezeBase(), thaw]}
    text = message(ScheduleError, lambda: model.fit(x, y, **options))
    assert "Did you mean 'val_loss'?" in text


def test_closest():
    assert closest("xyz", ["learning_rate"]) == ""
    assert closest("", ["learning_rate"]) == ""
    assert closest(7, ["learning_rate"]) == ""
    assert nearest("b", ["base", "b1"], most=5) == ["b1"]  # too many words start with one letter
    assert nearest("rate", ["layer_decay", "learning_rate"]) == ["learning_rate"]
    assert nearest("bn", ["base", "batch_norm"]) == ["batch_norm"]
    assert nearest("val_acc", ["loss", "val_loss", "accuracy", "val_accuracy"]) == ["val_accuracy"]
