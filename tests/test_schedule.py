"""Stages and schedules are plain values."""

from __future__ import annotations

import copy
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_freeze import Schedule, ScheduleError, Stage

pytestmark = pytest.mark.one_backend

SOME = settings(max_examples=max(1, settings().max_examples // 2))
SELECTORS = st.sampled_from(["block5_*", "b1:", "-20:", "20%", "all", ["a", "!b"], ("a", ["b"])])
RATES = st.none() | st.floats(1e-8, 10.0)
MODES = st.sampled_from([None, "carry", "reset"])


@st.composite
def stage_arguments(draw: Any) -> list[dict[str, Any]]:
    """Draws the arguments of a few stages in any order, each at a different epoch."""
    epochs = draw(st.lists(st.integers(0, 60), min_size=1, max_size=6, unique=True))
    return [
        {
            "at": at,
            "unfreeze": draw(SELECTORS),
            "freeze": draw(
                st.none() | st.sampled_from(["block1_*", ["c", "re:.*_bn"], ("d", ["e"])])
            ),
            "learning_rate": draw(RATES),
            "optimizer": draw(MODES),
            "name": draw(st.none() | st.text(max_size=5)),
        }
        for at in epochs
    ]


def stages_of(arguments: list[dict[str, Any]]) -> list[Stage]:
    return [Stage(**each) for each in arguments]


@SOME
@given(stage_arguments())
def test_all_forms_mean_the_same(arguments: list[dict[str, Any]]):
    stages = stages_of(arguments)
    expected = Schedule(stages)
    fields = {each["at"]: {k: v for k, v in each.items() if k != "at"} for each in arguments}
    for form in (
        expected,
        tuple(stages),
        arguments,
        {stage.at: stage for stage in stages},
        {each["at"]: each for each in arguments},
        fields,
    ):
        assert Schedule(form) == expected


@SOME
@given(stage_arguments(), st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(arguments: list[dict[str, Any]], random: Any):
    shuffled = copy.copy(arguments)
    random.shuffle(shuffled)
    schedule = Schedule(stages_of(shuffled))
    assert schedule == Schedule(stages_of(arguments))
    assert hash(schedule) == hash(Schedule(stages_of(arguments)))
    assert [stage.at for stage in schedule] == sorted(each["at"] for each in arguments)


@SOME
@given(stage_arguments())
def test_the_input_is_not_changed(arguments: list[dict[str, Any]]):
    mapping = {each["at"]: dict(each) for each in arguments}
    stages = stages_of(arguments)
    given_forms = [arguments, mapping, stages]
    before = copy.deepcopy(given_forms)
    for form in given_forms:
        Schedule(form)
    assert given_forms == before


@SOME
@given(stage_arguments(), st.lists(st.integers(0, 80), min_size=1, max_size=20))
def test_the_stage_is_a_function_of_the_epoch_alone(
    arguments: list[dict[str, Any]], epochs: list[int]
):
    schedule = Schedule(stages_of(arguments))
    begun = [sorted(e["at"] for e in arguments if e["at"] <= epoch) for epoch in epochs]
    assert [schedule.number_at(epoch) for epoch in epochs] == [len(ats) for ats in begun]
    assert [schedule.number_at(epoch) for epoch in epochs[::-1]] == [len(a) for a in begun[::-1]]
    for ats in filter(None, begun):
        assert schedule[len(ats)].at == ats[-1]


@SOME
@given(stage_arguments())
def test_the_repr_reads_back(arguments: list[dict[str, Any]]):
    schedule = Schedule(stages_of(arguments))
    assert eval(repr(schedule), {"Schedule": Schedule, "Stage": Stage}) == schedule


def test_the_repr_shows_what_was_given():
    schedule = Schedule({10: "block5_*", 4: Stage(4, learning_rate=1e-5, name="slow")})
    assert repr(schedule) == (
        "Schedule([Stage(at=4, learning_rate=1e-05, name='slow'), "
        "Stage(at=10, unfreeze='block5_*')])"
    )


def test_a_schedule_has_a_length_and_stages_counted_from_1():
    schedule = Schedule({10: "b", 5: "a"})
    assert len(schedule) == 2
    assert [stage.unfreeze for stage in schedule] == ["a", "b"]
    assert (schedule[1].unfreeze, schedule[2].unfreeze) == ("a", "b")


def test_one_stage_is_a_schedule():
    assert Schedule(Stage(3, "a")) == Schedule({3: "a"})


@pytest.mark.parametrize(
    "other",
    [
        {3: "b"},
        {4: "a"},
        {3: "a", 4: "a"},
        {3: Stage(3, "a", name="n")},
        {3: Stage(3, "a", learning_rate=0.1)},
        {3: Stage(3, freeze="a")},
    ],
)
def test_schedules_that_differ_are_not_equal(other: Any):
    assert Schedule({3: "a"}) != Schedule(other)


def test_a_schedule_is_equal_to_no_other_type():
    assert Schedule({3: "a"}) != {3: "a"}


def test_a_number_of_numpy_is_an_epoch():
    schedule = Schedule({np.int64(3): "a"})
    assert schedule == Schedule({3: "a"})
    assert type(schedule[1].at) is int


def test_a_stage_can_not_be_changed():
    stage = Stage(3, "a")
    with pytest.raises(AttributeError):
        stage.at = 4  # type: ignore[misc]
    assert len({Stage(3, ["a"]), Stage(3, ["a"]), Stage(3, ["b"])}) == 2


def test_objects_are_selectors_and_rates_as_they_are():
    layer = keras.layers.Dense(1)
    rate = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    stage = Stage(1, [layer, callable], learning_rate=rate)
    assert stage.unfreeze[0] is layer
    assert stage.learning_rate is rate


def test_a_whole_number_is_a_rate():
    assert Stage(1, learning_rate=1).learning_rate == 1.0


@pytest.mark.parametrize("selector", ["0%", "-0:", "re:(", "", None, 5])
def test_a_stage_refuses_what_no_model_could_match(selector: Any):
    with pytest.raises(ValueError, match="3"):
        Schedule({3: selector})


def test_a_schedule_that_fails_leaves_its_input_as_it_was():
    stages = {3: "a", -1: "b"}
    with pytest.raises(ScheduleError):
        Schedule(stages)
    assert stages == {3: "a", -1: "b"}
