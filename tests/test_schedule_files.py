"""Schedules as files: a file reads back as written, and an invalid file is an error."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import pathlib
import sys
import time
from dataclasses import fields
from typing import Any

import keras
import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_freeze import FreezeBase, GradualUnfreeze, Plateau, Schedule, ScheduleError, Stage
from keras_freeze.schedule.files import json_and_toml_formats, schema, yaml_format
from keras_freeze.schedule.files.position import Source
from keras_freeze.schedule.files.validation import schedule_arguments
from tests import builders as B

pytestmark = pytest.mark.one_backend

rates = keras.optimizers.schedules
SOME = settings(max_examples=max(1, settings().max_examples // 2))
FORMATS = (".yaml", ".json", ".toml")

# Words that YAML 1.1 misreads, special characters of the formats, and any text.
WORDS = st.sampled_from(
    ["1e-5", "1:20", "-20:", ":b", "20%", "off", "yes", "null", "~", "0o7", "08", "1_0", "=", "<<"]
) | st.sampled_from(
    ["*_conv", "a: b", "a #b", "'", '"', "2020-01-01", " a ", "é", "\u2028", "\x85", ".5", "{a"]
)
TEXTS = WORDS | st.text(min_size=1, max_size=8)


def is_selector(text: str) -> bool:
    try:
        Stage(1, text)
    except ValueError:
        return False
    return True


NAMES = TEXTS.filter(is_selector)
SELECTORS = st.recursive(
    NAMES,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3) | st.lists(inner, min_size=1, max_size=3).map(tuple)
    ),
    max_leaves=5,
)
NUMBERS = st.floats(1e-12, 1e6)
RATES = (
    NUMBERS
    | st.integers(1, 9)
    | st.builds(rates.ExponentialDecay, NUMBERS, st.integers(1, 9), NUMBERS, st.booleans())
    | st.builds(rates.CosineDecay, NUMBERS, st.integers(1, 9), name=st.text(max_size=3))
    | st.just(rates.PiecewiseConstantDecay([1, 5], [1.0, 0.5, 1e-5]))
    | st.just(rates.CosineDecay(0.0, 10, warmup_target=0.1, warmup_steps=5))
)
PLATEAUS = st.builds(
    Plateau,
    st.sampled_from(["val_loss", "acc", "1e-5"]),
    patience=st.integers(0, 9),
    min_delta=st.floats(0, 1),
    mode=st.sampled_from(["auto", "min", "max"]),
    min_epochs=st.integers(1, 3),
    max_epochs=st.none() | st.integers(3, 9),
)


@st.composite
def schedules(draw: Any) -> Schedule:
    epochs = sorted(draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=4, unique=True)))
    ats = [draw(PLATEAUS) if draw(st.booleans()) else epoch for epoch in epochs]
    either = st.fixed_dictionaries(
        {},
        optional={
            "learning_rate": RATES,
            "optimizer": st.sampled_from(["carry", "reset"]),
            "restore_best": st.booleans(),
            "name": TEXTS | st.just(""),
        },
    )
    stages = [
        Stage(
            at, **{draw(st.sampled_from(["unfreeze", "freeze"])): draw(SELECTORS)}, **draw(either)
        )
        for at in ats
    ]
    settings = st.fixed_dictionaries(
        {},
        optional={
            "base": SELECTORS,
            "optimizer": st.sampled_from(["carry", "reset"]),
            "batch_norm": st.sampled_from(["freeze", "train"]),
        },
    )
    return Schedule(stages, **draw(settings))


def write(folder: pathlib.Path, text: str | bytes, suffix: str = ".yaml") -> pathlib.Path:
    path = folder / f"plan{suffix}"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def read(folder: pathlib.Path, text: str | bytes, suffix: str = ".yaml") -> Schedule:
    return Schedule.from_file(write(folder, text, suffix))


@pytest.mark.parametrize("suffix", FORMATS)
@SOME
@given(schedule=schedules())
def test_what_is_written_reads_back(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, schedule: Schedule
):
    path = tmp_path_factory.getbasetemp() / f"plan{suffix}"
    schedule.to_file(path)
    found = Schedule.from_file(path)
    assert found == schedule
    assert found.settings.keys() == schedule.settings.keys()
    found.to_file(path)
    assert Schedule.from_file(path) == schedule


@SOME
@given(schedules())
def test_keras_serialises_it(schedule: Schedule):
    config = keras.saving.serialize_keras_object(schedule)
    assert keras.saving.deserialize_keras_object(config) == schedule
    assert keras.saving.deserialize_keras_object(json.loads(json.dumps(config))) == schedule


@pytest.mark.parametrize(
    "made",
    [
        Plateau("acc", patience=1),
        Stage(3, ("a", ["b", "!c"]), restore_best=True),
        Stage(Plateau(), learning_rate=rates.ExponentialDecay(0.1, 10, 0.5)),
        Schedule({3: "a"}, base="vgg19", batch_norm="train"),
    ],
    ids=lambda made: type(made).__name__,
)
def test_each_class_is_registered(made: Any):
    config = keras.saving.serialize_keras_object(made)
    assert config["registered_name"] == f"keras_freeze>{type(made).__name__}"
    assert keras.saving.deserialize_keras_object(json.loads(json.dumps(config))) == made
    assert type(made).from_config(made.get_config()) == made


def test_rates_are_equal_if_their_configs_are():
    stages = [Stage(1, learning_rate=rates.ExponentialDecay(r, 10, 0.5)) for r in (0.1, 0.1, 0.2)]
    assert stages[0] == stages[1]
    assert stages[0] != stages[2]
    assert stages[0] != Stage(1, learning_rate=0.1)


FULL = Schedule(
    [
        Stage(10, "block5_*", learning_rate=1e-5, name="fine"),
        Stage(Plateau("val_loss", patience=3), ["block4_*", "!bn"], restore_best=True),
        Stage(40, freeze="-20:", optimizer="reset"),
    ],
    base="vgg19",
    batch_norm="train",
)
AS_TEXT = {
    ".yaml": """
# the plan
base: vgg19
batch_norm: train
stages:
  - at: 10
    unfreeze: block5_*
    learning_rate: 1e-5
    name: fine
  - at: {plateau: {monitor: val_loss, patience: 3}}
    unfreeze: [block4_*, "!bn"]
    restore_best: true
  - at: 40
    freeze: "-20:"
    optimizer: reset
""",
    ".json": """{"$schema": "schema.json", "base": "vgg19", "batch_norm": "train", "stages": [
    {"at": 10, "unfreeze": "block5_*", "learning_rate": 1e-5, "name": "fine"},
    {"at": {"plateau": {"monitor": "val_loss", "patience": 3}}, "restore_best": true,
     "unfreeze": ["block4_*", "!bn"], "learning_rate": null},
    {"at": 40, "freeze": "-20:", "optimizer": "reset"}]}""",
    ".toml": """
base = "vgg19"
batch_norm = "train"
[[stages]]
at = 10
unfreeze = "block5_*"
learning_rate = 1e-5
name = "fine"
[[stages]]
at.plateau = {monitor = "val_loss", patience = 3}
unfreeze = ["block4_*", "!bn"]
restore_best = true
[[stages]]
at = 40
freeze = "-20:"
optimizer = "reset"
""",
}


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_of_each_format(tmp_path: pathlib.Path, suffix: str):
    path = write(tmp_path, AS_TEXT[suffix], suffix)
    assert Schedule.from_file(path) == FULL
    assert Schedule(str(path)) == FULL
    assert GradualUnfreeze(path).schedule == FULL


SHORT = {
    "by epoch": ("10: block5_*\n12: {freeze: a, learning_rate: 1e-5}", ".yaml"),
    "by epoch, under stages": (
        "stages: {12: {at: 12, freeze: a, learning_rate: 1e-5}, 10: block5_*}",
        ".yaml",
    ),
    "a list": (
        "- {at: 12, freeze: a, learning_rate: 1.0e-5}\n- {at: 10, unfreeze: block5_*}",
        ".yml",
    ),
    "JSON": ('{"10": "block5_*", "12": {"freeze": "a", "learning_rate": 1e-5}}', ".json"),
    "JSON list": (
        '[{"at": 10, "unfreeze": "block5_*"}, {"at": 12, "freeze": "a", "learning_rate": 1E-5}]',
        ".json",
    ),
    "TOML": ('10 = "block5_*"\n[12]\nfreeze = "a"\nlearning_rate = 1e-5', ".toml"),
    "TOML, stages": (
        '[stages]\n10 = "block5_*"\n12 = {freeze = "a", learning_rate = 1e-5}',
        ".toml",
    ),
    "with a mark": ("\ufeff10: block5_*\n12: {freeze: a, learning_rate: 1e-5}", ".yaml"),
    "upper case": ("10: block5_*\n12: {freeze: a, learning_rate: 1E-5}", ".YAML"),
}


@pytest.mark.parametrize("case", SHORT)
def test_short_forms(tmp_path: pathlib.Path, case: str):
    expected = Schedule({10: "block5_*", 12: Stage(12, freeze="a", learning_rate=1e-5)})
    assert read(tmp_path, *SHORT[case]) == expected


def test_yaml_reads_words_as_a_user_means_them(tmp_path: pathlib.Path):
    """YAML 1.1 reads 1:20 as 80, off as False, and 1e-5 as a string."""
    schedule = read(tmp_path, "- {at: 010, unfreeze: 1:20, learning_rate: 1e-5, name: off}")
    assert schedule == Schedule([Stage(10, "1:20", learning_rate=1e-5, name="off")])


def test_a_rate_of_keras_in_a_file(tmp_path: pathlib.Path):
    config = keras.saving.serialize_keras_object(rates.CosineDecay(0.1, 100))
    schedule = read(tmp_path, json.dumps([{"at": 1, "learning_rate": config}]), ".json")
    assert type(schedule[1].learning_rate) is rates.CosineDecay
    assert schedule[1].learning_rate.get_config() == rates.CosineDecay(0.1, 100).get_config()


STAGE = "stages:\n  - at: 3\n    unfreeze: a\n"  # an error may be added on line 4
RATE = STAGE + "    learning_rate:\n      class_name: ExponentialDecay\n      config: "
BILLION = "a: &a [x]\n" + "".join(f"{c}: &{c} [*a, *a, *a]\n" for c in "bcdefghij")

# The text, and what the message must contain in addition to the file's name.
BAD_YAML: dict[str, tuple[str | bytes, list[str]]] = {
    "typo of unfreeze": (
        "stages:\n  - at: 3\n    unfreze: a",
        ["line 3", "stage 1 (at 3)", "'unfreze'", "Did you mean 'unfreeze'?", "unfreze='a'"],
    ),
    "typo in the second stage": (
        STAGE + "  - at: 5\n    name: x\n    learning_rat: 0.1",
        ["line 6", "stage 2 (at 5)", "'learning_rat'", "Did you mean 'learning_rate'?", "=0.1"],
    ),
    "typo of at": (
        "stages:\n  - att: 3\n    unfreeze: a",
        ["line 2", "stage 1", "'att'", "Did you mean 'at'?"],
    ),
    "typo of stages": (
        "base: b\nstage:\n  - {at: 3, unfreeze: a}",
        ["line 2", "'stage'", "Did you mean 'stages'?"],
    ),
    "typo of base": ("bse: a\n" + STAGE, ["line 1", "'bse'", "Did you mean 'base'?"]),
    "typo of a setting's value": (
        "optimizer: rest\n" + STAGE,
        ["line 1", "`optimizer`", "Did you mean 'reset'?", "'carry'"],
    ),
    "typo of plateau": (
        "stages:\n  - at: {platau: {}}\n    unfreeze: a",
        ["line 2", "stage 1", "Did you mean 'plateau'?"],
    ),
    "typo in a plateau": (
        "stages:\n  - unfreeze: a\n    at:\n      plateau:\n        patiense: 3",
        ["line 5", "stage 1", "Did you mean 'patience'?", "patiense=3"],
    ),
    "key that is no string": ("stages:\n  - at: 3\n    7: a", ["line 3", "unknown key 7", "7='a'"]),
    "key that is null": ("stages:\n  - at: 3\n    ~: a", ["stage 1 (at 3)", "unknown key"]),
    "no at": ("stages:\n  - unfreeze: a", ["line 2", "stage 1", "`at` is missing", "epoch"]),
    "at is a word": (
        "stages:\n  - at: ten\n    unfreeze: a",
        ["line 2", "stage 1", "`at`", "at='ten'", "str", "epoch"],
    ),
    "at is a string": ("stages:\n  - at: '3'\n    unfreeze: a", ["line 2", "at='3'", "str"]),
    "at is a float": ("stages:\n  - at: 3.0\n    unfreeze: a", ["line 2", "at=3.0", "float"]),
    "at is a boolean": ("stages:\n  - at: true\n    unfreeze: a", ["line 2", "at=True", "bool"]),
    "at is null": ("stages:\n  - at:\n    unfreeze: a", ["line 2", "at=None"]),
    "at is negative": ("stages:\n  - at: -1\n    unfreeze: a", ["line 2", "at=-1", "from 0"]),
    "at is huge": (
        "stages:\n  - at: 99999999999999999999\n    unfreeze: a",
        ["line 2", "at=99999999999999999999", "2147483648"],
    ),
    "at has 401 digits": (f"- at: 1{'0' * 400}\n  unfreeze: a", ["line 1", "at=1000"]),
    "at has 5000 digits": (f"- at: 1{'0' * 5000}\n  unfreeze: a", ["line 1", "too long"]),
    "at is a list": ("- at: [1, 2]\n  unfreeze: a", ["line 1", "at=[1, 2]"]),
    "at is a date": ("- at: 2020-01-01\n  unfreeze: a", ["line 1", "at='2020-01-01'"]),
    "plateau is null": ("- at: {plateau: }\n  unfreeze: a", ["`plateau`", "plateau=None", "{}"]),
    "patience is a boolean": (
        "- at: {plateau: {patience: true}}\n  unfreeze: a",
        ["line 1", "`patience`", "patience=True", "bool"],
    ),
    "mode of a plateau": (
        "- at: {plateau: {mode: mx}}\n  unfreeze: a",
        ["`mode`", "mode='mx'", "Did you mean 'max'?"],
    ),
    "limits of a plateau": (
        "- at: {plateau: {min_epochs: 5, max_epochs: 2}}\n  unfreeze: a",
        ["line 1", "stage 1", "`max_epochs`", "max_epochs=2"],
    ),
    "selector is a number": (
        "stages:\n  - at: 3\n    unfreeze: 5",
        ["line 3", "`unfreeze`", "unfreeze=5", "int", "in quotes"],
    ),
    "number in a list of selectors": (
        "- at: 3\n  freeze: [a, [b, 5]]",
        ["line 2", "`freeze`", "freeze=['a', ['b', 5]]"],
    ),
    "selector is a boolean": ("- {at: 3, unfreeze: true}", ["`unfreeze`", "unfreeze=True"]),
    "selector is empty": ("- {at: 3, unfreeze: ''}", ["stage 1 (at 3)", "`unfreeze`", "''"]),
    "selector is blank": ("- {at: 3, unfreeze: ' '}", ["stage 1 (at 3)", "`unfreeze`", "' '"]),
    "selector is a mapping": ("- {at: 3, unfreeze: {a: b}}", ["`unfreeze`", "{'a': 'b'}"]),
    "list of no selectors": ("- {at: 3, unfreeze: []}", ["`unfreeze`", "unfreeze=[]"]),
    "share above 100 %": (STAGE.replace("a\n", "120%\n"), ["line 3", "'120%'", "at most 100%"]),
    "-0": ('- {at: 3, unfreeze: "-0:"}', ["stage 1 (at 3)", "'-0:'"]),
    "broken regular expression": ('- {at: 3, unfreeze: "re:("}', ["stage 1", "'re:('"]),
    "unfreeze and freeze alike": (
        STAGE + "    freeze: a",
        ["line 3", "stage 1 (at 3)", "both", "['a']", "freeze='a'"],
    ),
    "unfreeze and freeze overlap": (
        STAGE + "    freeze: [b, [a]]",
        ["stage 1 (at 3)", "both", "['a']"],
    ),
    "nothing changes": ("- at: 3", ["line 1", "stage 1 (at 3)", "changes nothing"]),
    "two stages at one epoch": (
        STAGE + "  - at: 5\n    unfreeze: b\n  - at: 3\n    unfreeze: c",
        ["line 6", "stage 3 (at 3)", "stage 1", "epoch 3", "Join them"],
    ),
    "out of order around a plateau": (
        "- {at: 9, unfreeze: a}\n- {at: {plateau: {}}, unfreeze: b}\n- {at: 5, unfreeze: c}",
        ["epoch 5", "after 9", "Move it"],
    ),
    "rate is nan": (STAGE + "    learning_rate: .nan", ["line 4", "`learning_rate`", "=nan"]),
    "rate is infinite": (STAGE + "    learning_rate: .inf", ["line 4", "learning_rate=inf"]),
    "rate is too large": (STAGE + "    learning_rate: 1e400", ["line 4", "learning_rate=inf"]),
    "rate has 401 digits": (STAGE + f"    learning_rate: 1{'0' * 400}", ["line 4", "=1000"]),
    "rate is 0": (STAGE + "    learning_rate: 0", ["line 4", "learning_rate=0", "above 0"]),
    "rate is negative": (STAGE + "    learning_rate: -1e-5", ["line 4", "=-1e-05", "above 0"]),
    "rate is a boolean": (STAGE + "    learning_rate: true", ["line 4", "=True", "bool"]),
    "rate is a word": (STAGE + "    learning_rate: slow", ["line 4", "='slow'", "str"]),
    "rate in quotes": (STAGE + "    learning_rate: '1e-5'", ["line 4", "='1e-5'", "str"]),
    "rate is a list": (STAGE + "    learning_rate: [1.0]", ["line 4", "=[1.0]", "list"]),
    "mode of the optimizer": (
        STAGE + "    optimizer: cary",
        ["line 4", "stage 1 (at 3)", "Did you mean 'carry'?", "optimizer='cary'"],
    ),
    "name is a number": (STAGE + "    name: 7", ["line 4", "`name`", "name=7", "quotes"]),
    "restore_best is a number": (STAGE + "    restore_best: 1", ["line 4", "restore_best=1"]),
    "restore_best is a word": (STAGE + "    restore_best: yes", ["line 4", "restore_best='yes'"]),
    "class of a rate": (
        STAGE + "    learning_rate: {class_name: CosinDecay, config: {}}",
        ["line 4", "`class_name`", "Did you mean 'CosineDecay'?"],
    ),
    "class that isn't a rate": (
        STAGE + "    learning_rate: {class_name: Adam, config: {}}",
        ["line 4", "class_name='Adam'", "ExponentialDecay"],
    ),
    "module of a rate": (
        STAGE + "    learning_rate: {class_name: CosineDecay, config: {}, module: os}",
        ["line 4", "`module`", "module='os'"],
    ),
    "registered name of a rate": (
        STAGE + "    learning_rate: {class_name: CosineDecay, config: {}, registered_name: x>Y}",
        ["line 4", "`registered_name`", "'x>Y'"],
    ),
    "lambda as a rate": (
        STAGE + "    learning_rate: {class_name: __lambda__, config: {value: 4wA=}}",
        ["line 4", "class_name='__lambda__'"],
    ),
    "rate without a config": (
        STAGE + "    learning_rate: {class_name: CosineDecay}",
        ["line 4", "`config` is missing"],
    ),
    "config of a rate, typo": (
        RATE + "{initial_learning_rate: 0.1, decay_stps: 3, decay_rate: 0.5}",
        ["stage 1 (at 3)", "'decay_stps'", "Did you mean 'decay_steps'?"],
    ),
    "config of a rate, missing": (
        RATE + "{initial_learning_rate: 0.1}",
        ["stage 1 (at 3)", "ExponentialDecay needs `decay_steps`"],
    ),
    "config of a rate, type": (
        RATE + "{initial_learning_rate: fast, decay_steps: 3, decay_rate: 0.5}",
        ["`initial_learning_rate`", "'fast'", "a number"],
    ),
    "config of a rate, boolean": (
        RATE + "{initial_learning_rate: 0.1, decay_steps: 3, decay_rate: true}",
        ["`decay_rate`", "decay_rate=True"],
    ),
    "config of a rate, code": (
        RATE + "{initial_learning_rate: {class_name: __lambda__, config: {}}, decay_steps: 3}",
        ["`initial_learning_rate`", "__lambda__"],
    ),
    "config of a rate, refused by Keras": (
        STAGE + "    learning_rate: {class_name: PiecewiseConstantDecay, config: {boundaries: [1], "
        "values: [0.1]}}",
        ["line 4", "`config` of PiecewiseConstantDecay is invalid"],
    ),
    "stages is null": ("base: b\nstages:", ["line 2", "no stages"]),
    "stages is empty": ("stages: []", ["line 1", "no stages"]),
    "stages is an empty mapping": ("stages: {}", ["line 1", "no stages"]),
    "stages is a word": ("stages: block5_*", ["line 1", "`stages`", "'block5_*'", "list"]),
    "stages is a number": ("stages: 3", ["line 1", "`stages`", "stages=3"]),
    "no stages": ("base: vgg19", ["`stages` is missing"]),
    "stage is a word": ("stages:\n  - block5_*", ["line 2", "stage 1", "'block5_*'", "`at`"]),
    "stage is null": ("stages:\n  -\n", ["line 2", "stage 1", "None"]),
    "stage is a list": ("- [3, a]", ["line 1", "stage 1", "[3, 'a']"]),
    "base is a number": ("base: 5\n" + STAGE, ["line 1", "`base`", "base=5"]),
    "base is a bad selector": ("base: 0%\n" + STAGE, ["line 1", "`base`", "'0%'"]),
    "batch_norm": ("batch_norm: frezze\n" + STAGE, ["line 1", "Did you mean 'freeze'?"]),
    "batch_norm is a boolean": ("batch_norm: true\n" + STAGE, ["line 1", "batch_norm=True"]),
    "short form, null": ("10:", ["line 1", "stage at 10", "no selector"]),
    "short form, number": ("10: 5", ["line 1", "(at 10)", "unfreeze=5"]),
    "short form, negative": ("10: a\n-1: b", ["line 2", "-1", "from 0"]),
    "short form, float": ("1.5: b", ["line 1", "1.5", "whole number"]),
    "short form, word beside epochs": ("10: b\nbase: v", ["line 2", "'base'", "under `stages`"]),
    "short form, word": ("stages: {ten: b}", ["line 1", "'ten'", "epoch"]),
    "short form, boolean": ("stages: {true: b}", ["line 1", "True", "epoch"]),
    "short form, huge": ("99999999999: b", ["line 1", "99999999999"]),
    "short form, another epoch": (
        "10:\n  at: 11\n  unfreeze: a",
        ["line 2", "stage at 10", "at=11", "same"],
    ),
    "short form, typo": (
        "10:\n  unfreze: a",
        ["line 2", "(at 10)", "Did you mean 'unfreeze'?"],
    ),
    "short form, twice": ("10: a\n'10': b", ["line 2", "(at 10)", "epoch 10"]),
    "key twice": ("stages:\n  - at: 3\n    at: 4\n    name: a", ["line 3", "'at'", "twice"]),
    "stages twice": (STAGE + STAGE, ["line 4", "'stages'", "twice"]),
    "epoch twice": ("10: a\n11: c\n10: b", ["line 3", "10", "twice"]),
    "anchor": ("stages:\n  - &x {at: 3, unfreeze: a}", ["line 2", "anchors", "&x"]),
    "alias": ("stages:\n  - {at: 3, unfreeze: *x}", ["line 2"]),
    "pattern without quotes": ("stages:\n  - at: 3\n    unfreeze: *x", ["line 3", "alias", '"*x"']),
    "merge": ("- {at: 3, <<: {unfreeze: a}}", ["stage 1 (at 3)", "'<<'"]),
    "billion laughs": (BILLION, ["line 1", "anchors"]),
    "Python's tags": ("!!python/object/apply:os.system ['exit 1']", ["line 1", "os.system"]),
    "Python's tags, in a key": (
        "!!python/object/apply:os.mkdir [pwned]: a",
        ["line 1", "key"],
    ),
    "Python's name": ("- {at: 3, unfreeze: !!python/name:os.system ''}", ["line 1", "tags"]),
    "a tag of one's own": ("- {at: 3, unfreeze: !secret a}", ["line 1", "tags", "!secret"]),
    "a standard tag": ("- {at: !!int '3', unfreeze: a}", ["line 1", "tags"]),
    "! without quotes": ("- {at: 3, unfreeze: [all, !bn]}", ["line 1", "in quotes"]),
    "two documents": (STAGE + "---\n" + STAGE, ["line 4", "second document"]),
    "tab": ("stages:\n\t- at: 3", ["line 2", "YAML"]),
    "slice without quotes": (STAGE.replace("a\n", "block5_conv1:\n"), ["line 3", "quotes"]),
    "bracket that stays open": ("stages: [{at: 3, unfreeze: a}", ["YAML", "line "]),
    "wrong indent": ("stages:\n  - at: 3\n   unfreeze: a", ["line 3", "YAML"]),
    "list as a key": ("[a, b]: c", ["line 1", "key"]),
    "deeply nested": ("[" * 10000, ["line 1", "deeply"]),
    "deeply nested, closed": ("[" * 10000 + "]" * 10000, ["line 1", "deeply"]),
    "deeply nested mappings": ("{a: " * 10000, ["line 1", "deeply"]),
    "deeply nested lines": ("".join(" " * n + "a:\n" for n in range(400)), ["deeply", "line "]),
    "deeply nested selector": (
        f"- {{at: 3, unfreeze: {'[' * 500}a{']' * 500}}}",
        ["line 1", "deeply"],
    ),
    "empty": ("", ["no schedule", "`stages`"]),
    "blank": ("\n \n", ["no schedule"]),
    "only comments": ("# a\n# b\n", ["no schedule"]),
    "only a document's start": ("---\n", ["no schedule"]),
    "null": ("null", ["no schedule"]),
    "a word": ("block5_*", ["`stages`", "'block5_*'", "str"]),
    "a number": ("10", ["`stages`", "10"]),
    "empty mapping": ("{}", ["no schedule"]),
    "not UTF-8": (b"stages:\n  - at: 3\n    name: caf\xe9\n", ["line 3", "UTF-8", "0xe9"]),
    "UTF-16": (STAGE.encode("utf-16"), ["UTF-8"]),
    "NUL": (STAGE + "    name: a\0b", ["line 4", "YAML"]),
    "binary": (bytes(range(128)), ["YAML"]),
    "a mark in the middle": (STAGE + "\ufeff  - at: 5", ["line "]),
}
BAD_JSON: dict[str, tuple[str | bytes, list[str]]] = {
    "comma at the end": ('{"stages": [\n{"at": 3, "unfreeze": "a"},\n]}', ["line 3", "JSON"]),
    "comment": ('// plan\n{"3": "a"}', ["line 1", "JSON"]),
    "single quotes": ("{'3': 'a'}", ["line 1", "JSON"]),
    "bracket that stays open": ('{"stages": [\n{"at": 3', ["line 2", "JSON"]),
    "two documents": ('{"3": "a"}\n{"4": "b"}', ["line 2", "JSON"]),
    "empty": ("", ["line 1", "JSON"]),
    "null": ("null", ["no schedule"]),
    "typo": (
        '{"stages": [\n{"at": 3, "unfreeze": "a"},\n{"at": 5,\n"unfreze": "a,]}"}]}',
        ["line 4", "stage 2 (at 5)", "Did you mean 'unfreeze'?", "unfreze='a,]}'"],
    ),
    "key twice": ('[{"at": 3,\n"unfreeze": "a",\n"at": 4}]', ["line 3", "'at'", "twice"]),
    "key twice, escaped": ('{"3": "a",\n"\\u0033": "b"}', ["line 2", "'3'", "twice"]),
    "NaN": ('[{"at": 3,\n"learning_rate": NaN}]', ["line 2", "learning_rate=nan"]),
    "Infinity": ('[{"at": 3,\n"learning_rate": Infinity}]', ["line 2", "learning_rate=inf"]),
    "1e400": ('[{"at": 3,\n"learning_rate": 1e400}]', ["line 2", "learning_rate=inf"]),
    "5000 digits": (f'[{{"at": 1{"0" * 5000}}}]', ["too long"]),
    "deeply nested": ("[" * 10000, ["deeply"]),
    "deeply nested, closed": ("[" * 10000 + "]" * 10000, ["deeply"]),
    "nested": ("[" * 400 + "]" * 400, ["line 1", "deeply"]),
    "deeply nested mappings": ('{"a":' * 10000, ["deeply"]),
    "epoch with a sign": ('{"+3": "a"}', ["line 1", "'+3'", "epoch"]),
    "epoch in other digits": ('{"3": "a",\n"\u0663": "b"}', ["line 2", "epochs"]),
    "a lone surrogate": ('[{"at": 3, "unfreeze": "\\ud800"}]', ["unfreeze='\\ud800'"]),
    "not UTF-8": (b'{"3": "\xff"}', ["line 1", "UTF-8"]),
}
BAD_TOML: dict[str, tuple[str | bytes, list[str]]] = {
    "syntax": ("[[stages]]\nat = 3\nunfreeze = a\n", ["line 3", "TOML"]),
    "string that stays open": ('[[stages]]\nat = 3\nunfreeze = "a', ["line 3", "TOML"]),
    "key twice": ("[[stages]]\nat = 3\nat = 4\n", ["line 3", "TOML"]),
    "typo": (
        '[[stages]]\nat = 3\nunfreeze = "a"\n[[stages]]\nat = 5\nunfreze = "b"\n',
        ["line 6", "stage 2 (at 5)", "Did you mean 'unfreeze'?"],
    ),
    "typo in a plateau": (
        '[[stages]]\nat = 3\nunfreeze = "a"\n[[stages]]\nunfreeze = "b"\n[stages.at.plateau]\n'
        "patiense = 3\n",
        ["line 7", "stage 2", "Did you mean 'patience'?"],
    ),
    "rate is nan": ("[[stages]]\nat = 3\nlearning_rate = nan\n", ["line 3", "learning_rate=nan"]),
    "rate is infinite": ("[[stages]]\nat = 3\nlearning_rate = inf\n", ["line 3", "=inf"]),
    "at is a date": ("[[stages]]\nat = 2020-01-01\n", ["line 2", "at=datetime.date"]),
    "no such date": ("[[stages]]\nat = 2020-13-01\n", ["TOML"]),
    "5000 digits": (f"[[stages]]\nat = 1{'0' * 5000}\n", ["TOML", "too long"]),
    "empty": ("", ["no schedule"]),
    "only comments": ("# a", ["no schedule"]),
    "deeply nested": ("a = " + "[" * 10000, ["deeply"]),
    "deeply nested tables": ("a = " + "{a = " * 10000, ["deeply"]),
    "dotted deeply": ("[" + ".".join("a" * 5000) + "]\nb = 1", ["'a'"]),
    "not UTF-8": (b'"3" = "\xff"', ["line 1", "UTF-8"]),
    "short form, number": ('[stages]\n10 = "a"\n12 = 5\n', ["line 3", "(at 12)", "unfreeze=5"]),
}
BAD = {
    (suffix, case): value
    for suffix, cases in ((".yaml", BAD_YAML), (".json", BAD_JSON), (".toml", BAD_TOML))
    for case, value in cases.items()
}


def refused(action: Any, *parts: str) -> str:
    """Returns the message of an action that must raise in under a second.

    The fastest of three tries counts, because garbage collection may slow one down.
    """
    seconds = []
    for _ in range(3):
        start = time.thread_time()  # not of the process: backends have their own threads
        with pytest.raises(ScheduleError) as error:
            action()
        seconds.append(time.thread_time() - start)
        if seconds[-1] < 1:
            break
    message = str(error.value)
    missing = [part for part in parts if part not in message]
    assert not missing, f"{missing} not in: {message}"
    assert len(message) < 700
    assert min(seconds) < 1
    return message


@pytest.mark.parametrize(("suffix", "case"), BAD)
def test_a_file_that_can_not_be_meant(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, suffix: str, case: str
):
    monkeypatch.chdir(tmp_path)
    text, parts = BAD[suffix, case]
    path = write(tmp_path, text, suffix)
    message = refused(lambda: GradualUnfreeze(path), *parts)
    assert message.startswith(str(path))
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("case", BAD_YAML)
def test_yaml_without_the_parser_in_c(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, case: str
):
    import yaml

    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    path = write(tmp_path, BAD_YAML[case][0])
    refused(lambda: Schedule.from_file(path), path.name)


def test_no_object_is_made_of_a_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """Keras doesn't make one either: a registered name stays a string."""
    monkeypatch.chdir(tmp_path)
    with keras.saving.custom_object_scope({"block5": lambda layer: os.mkdir("made")}):
        schedule = read(tmp_path, "3: block5")
        config = keras.saving.serialize_keras_object(schedule)
        assert schedule[1].unfreeze == "block5"
        assert keras.saving.deserialize_keras_object(config)[1].unfreeze == "block5"
    assert not pathlib.Path("made").exists()


def test_a_file_that_is_not_there(tmp_path: pathlib.Path):
    write(tmp_path, "3: a")
    parts = ("paln.yaml", "no such file", "Did you mean 'plan.yaml'?")
    refused(lambda: GradualUnfreeze(str(tmp_path / "paln.yaml")), *parts)
    refused(lambda: Schedule.from_file(tmp_path / "no" / "plan.yaml"), "no such file", "folder")
    refused(lambda: Schedule("plan.yaml\0.yaml"), "can't be read")
    refused(lambda: Schedule("a" * 5000 + ".yaml"), "can't be read")


@pytest.mark.parametrize("name", ["plan.txt", "plan.yaml.bak", "plan.jsn", "plan.py"])
def test_an_unknown_suffix(tmp_path: pathlib.Path, name: str):
    (tmp_path / name).write_text("3: a")
    refused(lambda: GradualUnfreeze(str(tmp_path / name)), name, ".yaml, .yml, .json, .toml")
    refused(lambda: Schedule({3: "a"}).to_file(tmp_path / name), name, ".yaml, .yml, .json, .toml")


def test_a_path_without_a_suffix(tmp_path: pathlib.Path):
    refused(lambda: GradualUnfreeze(tmp_path), ".yaml, .yml, .json, .toml")
    refused(lambda: GradualUnfreeze("plan"), "`schedule`", "'plan'", ".yaml")
    refused(lambda: Schedule.from_file(3), "path", "3")
    refused(lambda: Schedule.from_file(b"plan.yaml"), "path", "b'plan.yaml'")


def test_a_folder(tmp_path: pathlib.Path):
    folder = tmp_path / "plan.yaml"
    folder.mkdir()
    refused(lambda: Schedule.from_file(folder), "plan.yaml", "folder")
    refused(lambda: Schedule({3: "a"}).to_file(folder), "plan.yaml", "can't be written")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: pathlib.Path):
    os.mkfifo(tmp_path / "plan.yaml")
    refused(lambda: Schedule.from_file(tmp_path / "plan.yaml"), "a special file")


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_large_file_is_not_read(tmp_path: pathlib.Path, suffix: str):
    path = write(tmp_path, "#", suffix)
    os.truncate(path, 100 * 2**20)
    refused(lambda: Schedule.from_file(path), path.name, "too large", str(100 * 2**20))


def test_a_file_that_may_not_be_read(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path, "3: a")
    monkeypatch.setattr(pathlib.Path, "open", refuse)
    refused(lambda: Schedule.from_file(path), "can't be read", "Permission denied")


@pytest.mark.parametrize(
    ("module", "suffix", "action"),
    [
        ("yaml", ".yaml", "read"),
        ("yaml", ".yml", "write"),
        ("tomli_w", ".toml", "write"),
    ],
)
def test_what_is_not_installed(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    suffix: str,
    action: str,
):
    monkeypatch.setitem(sys.modules, module, None)
    package, extra = {"yaml": ("pyyaml", "yaml"), "tomli_w": ("tomli-w", "toml")}[module]
    path = write(tmp_path, "3: a", suffix)
    act = {"read": lambda: Schedule.from_file(path), "write": lambda: FULL.to_file(path)}[action]
    refused(act, path.name, f"pip install {package}", f"keras_freeze[{extra}]")


def test_a_write_that_fails_leaves_the_file(tmp_path: pathlib.Path):
    path = write(tmp_path, "3: a")
    with pytest.raises(ScheduleError):
        Schedule([Stage(1, "b", name="\ud800")]).to_file(path)
    assert Schedule.from_file(path) == Schedule({3: "a"})
    assert os.listdir(tmp_path) == ["plan.yaml"]
    refused(lambda: FULL.to_file(tmp_path / "no" / "plan.yaml"), "can't be written")


UNWRITABLE: dict[str, tuple[Any, list[str]]] = {
    "a function": (lambda: Schedule({3: lambda layer: True}), ["`unfreeze`", "at=3", "function"]),
    "a layer": (
        lambda: Schedule([Stage(3, freeze=["a", [keras.layers.Dense(1, name="d")]])]),
        ["`freeze`", "at=3", "layer", "its name, 'd'"],
    ),
    "a base": (
        lambda: Schedule({3: "a"}, base=keras.layers.Dense(1, name="d")),
        ["`base`", "its name, 'd'"],
    ),
}


@pytest.mark.parametrize("case", UNWRITABLE)
def test_what_has_no_written_form(tmp_path: pathlib.Path, case: str):
    make, parts = UNWRITABLE[case]
    schedule = make()
    refused(lambda: schedule.to_file(tmp_path / "plan.json"), *parts)
    refused(lambda: keras.saving.serialize_keras_object(schedule), *parts)
    assert not os.listdir(tmp_path)


class Constant(rates.LearningRateSchedule):
    def __call__(self, step):
        return 0.1


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_rate_of_ones_own_has_no_written_form(tmp_path: pathlib.Path, suffix: str):
    schedule = Schedule([Stage(3, learning_rate=Constant())])
    assert schedule == copy.copy(schedule)
    assert schedule != Schedule([Stage(3, learning_rate=Constant())])
    refused(
        lambda: schedule.to_file(tmp_path / f"plan{suffix}"), "at=3", "`learning_rate`", "Constant"
    )


@pytest.mark.parametrize(
    "value",
    [10**400, 10**5000, 2**31, -(10**5000)],
    ids=["400 digits", "5000 digits", "2**31", "negative"],
)
def test_numbers_that_are_too_large_in_code(value: int):
    refused(lambda: Stage(value, "a"), "`at`")
    refused(lambda: Plateau(patience=value), "`patience`")
    if value != 2**31:
        refused(lambda: Stage(1, learning_rate=value), "`learning_rate`")
        refused(lambda: Plateau(min_delta=value), "`min_delta`")


def test_settings_of_a_schedule():
    schedule = Schedule({3: "a"}, base="vgg19", optimizer="reset")
    assert (schedule.base, schedule.optimizer, schedule.batch_norm) == ("vgg19", "reset", None)
    assert repr(schedule) == (
        "Schedule([Stage(at=3, unfreeze='a')], base='vgg19', optimizer='reset')"
    )
    assert eval(repr(schedule)) == schedule
    assert schedule != Schedule({3: "a"})
    assert Schedule(schedule) == schedule
    assert Schedule(schedule, optimizer="carry").settings == {"base": "vgg19", "optimizer": "carry"}
    refused(lambda: Schedule({3: "a"}, optimizer="rest"), "`optimizer`", "Did you mean 'reset'?")
    refused(lambda: Schedule({3: "a"}, batch_norm="x"), "`batch_norm`", "'train'")


def test_an_argument_wins_over_the_file(tmp_path: pathlib.Path):
    path = write(tmp_path, "base: vgg19\noptimizer: reset\nbatch_norm: train\n" + STAGE)

    def settings_of(*args: Any, **kwargs: Any) -> tuple[Any, str, str]:
        made = GradualUnfreeze(*args, **kwargs)
        return made.base, made.optimizer, made.batch_norm

    assert settings_of(path) == ("vgg19", "reset", "train")
    assert settings_of(path, base="resnet") == ("resnet", "reset", "train")
    assert settings_of(Schedule(path, optimizer="carry")) == ("vgg19", "carry", "train")
    quiet = write(tmp_path, "optimizer: carry\nbatch_norm: freeze\n" + STAGE)
    assert settings_of(quiet) == (None, "carry", "freeze")
    assert settings_of(quiet, optimizer="reset", batch_norm="train") == (None, "reset", "train")
    assert settings_of(write(tmp_path, STAGE)) == (None, "carry", "freeze")


@pytest.mark.skipif(
    tuple(map(int, pydantic.VERSION.split(".")[:2])) < (2, 11),
    reason="older versions word the same schema in another way",
)
def test_the_published_schema_is_current():
    """Update it with `python -m keras_freeze.schedule.files.schema > .../schedule/schema.json`."""
    published = pathlib.Path(schema.__file__).parents[1] / "schema.json"
    assert json.loads(published.read_text()) == json.loads(schema.json_schema())


def test_the_models_know_each_argument():
    assert {field.name for field in fields(Stage)} == set(schema.Entry.model_fields)
    trigger = {key: field.default for key, field in schema.Trigger.model_fields.items()}
    assert trigger == {field.name: field.default for field in fields(Plateau)}


def test_each_key_is_described_in_the_schema():
    definitions = json.loads(schema.json_schema())["$defs"]
    for name, model in definitions.items():
        for key, value in model.get("properties", {}).items():
            assert value.get("description") or "$ref" in value, (name, key)
        if name not in ("Selector",):
            assert model["additionalProperties"] is False, name


@SOME
@given(st.sampled_from(FORMATS), st.text(max_size=60) | st.binary(max_size=60).map(repr))
def test_any_text_is_a_schedule_or_refused(suffix: str, text: str):
    source = Source(f"plan{suffix}")
    with contextlib.suppress(ScheduleError):
        json_and_toml_formats.LOAD[suffix](source, text)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["at", "unfreeze", "plateau", "learning_rate", "class_name", "10"])
            | st.integers(0, 5),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@SOME
@given(VALUES | st.fixed_dictionaries({"stages": VALUES}) | st.fixed_dictionaries({"at": VALUES}))
def test_any_data_is_a_schedule_or_refused(data: Any):
    with contextlib.suppress(ScheduleError):
        schedule_arguments(Source("plan.yaml"), data)


@SOME
@given(st.lists(st.none() | st.booleans() | st.integers() | st.floats() | TEXTS))
def test_yaml_of_plain_values_reads_back(values: list[Any]):
    source = Source("plan.yaml")
    found = yaml_format.load(source, yaml_format.dump(source, values))
    assert repr(found) == repr(values)


def test_a_file_trains_as_the_code_does(tmp_path: pathlib.Path):
    path = write(
        tmp_path,
        "base: base\nbatch_norm: train\nstages:\n  - {at: 1, unfreeze: b3, learning_rate: 1e-3}\n"
        '  - {at: 2, unfreeze: [b2, "!b3"], optimizer: reset}\n',
    )
    code = [Stage(1, "b3", learning_rate=1e-3), Stage(2, ["b2", "!b3"], optimizer="reset")]
    x, y = B.data()
    histories, weights = [], []
    for thaw in (
        GradualUnfreeze(path, verbose=0),
        GradualUnfreeze(code, base="base", batch_norm="train", verbose=0),
    ):
        keras.utils.set_random_seed(1)
        model = B.compiled(B.nested(extras=True))
        freeze = FreezeBase(batch_norm="train")
        run = model.fit(x, y, epochs=3, verbose=0, shuffle=False, callbacks=[freeze, thaw])
        histories.append(run.history)
        weights.append(B.weights(model))
    assert histories[0] == histories[1]
    assert histories[0]["stage"] == [0, 1, 2]
    B.assert_equal(*weights)
    assert np.isfinite(histories[0]["loss"]).all()
