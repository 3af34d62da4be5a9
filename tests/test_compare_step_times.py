"""The cache is never slower: in doubt it times steps with and without it, and may give up."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from keras_freeze import BottleneckCache, CacheWarning
from keras_freeze.feature_cache.checks import compare_step_times, serving_cost
from keras_freeze.feature_cache.not_cacheable import NotCacheableError
from keras_freeze.feature_cache.serving.stage_server import StageServer
from tests import builders
from tests.reference.cached import Run, check, compare
from tests.test_cache_sources import Batches

pytestmark = pytest.mark.one_backend(
    but=["test_a_trial_changes_no_result", "test_a_run_that_is_slower_with_the_cache"]
)

X, Y = builders.data(64)
OPTIONS = {"batch_size": 4, "epochs": 6}
STAGES = {3: "b3"}


class Clock:
    """A clock that only advances when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Device:
    """Runs queued work when something waits for it."""

    def __init__(self, clock: Clock):
        self.clock = clock
        self.queued = 0.0

    def wait(self) -> None:
        self.clock.now += self.queued
        self.queued = 0.0


def run(
    served: float, whole: float, steps: int, *, clear: bool = False, queued: float = 0.0
) -> Any:
    """Runs steps in epochs of 20 with a trial. Returns the kinds of steps, and the trial."""
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare_step_times, "time", clock)
        trial, device, kinds = compare_step_times.StepTrial(), Device(clock), []
        for step in range(steps):
            if step % 20 == 0:
                clock.now += 100.0  # a validation
                trial.begin_epoch()
            kinds.append(trial.wants_whole(lambda: clear, [device]))
            clock.now += whole if kinds[-1] else served
            device.queued += queued * kinds[-1]
    return kinds, trial


def test_a_short_run_is_left_alone():
    kinds, _ = run(served=0.04, whole=0.01, steps=20)
    assert not any(kinds)


def test_a_clear_case_is_not_tried():
    kinds, trial = run(served=1.0, whole=0.1, steps=60, clear=True)
    assert not any(kinds)
    assert trial.is_over


def test_turns_alternate_and_only_those_within_an_epoch_count():
    kinds, trial = run(served=1.0, whole=1.5, steps=200)
    assert trial.is_over
    assert trial.turns == pytest.approx([1.0, 1.5] * 4)
    assert 4 * 7 <= sum(kinds) <= 8 * 7  # some turns started over
    assert not any(kinds[-20:])


def test_a_slower_cache_gives_up_and_names_both_figures():
    with pytest.raises(NotCacheableError) as raised:
        run(served=1.5, whole=1.0, steps=200)
    assert "takes 1.5e+03 ms" in raised.value.reason
    assert "model 1e+03 ms" in raised.value.reason


def test_what_a_device_has_queued_counts():
    """The whole model's steps return at once, and run later."""
    kinds, trial = run(served=1.0, whole=0.1, queued=2.0, steps=200)
    assert trial.is_over
    assert trial.turns[1] > 2.0
    assert not any(kinds[-20:])


def test_equal_steps_stay_cached():
    assert run(served=1.0, whole=0.99, steps=200)[1].is_over


@pytest.mark.parametrize(("rows", "clear"), [(1, False), (100, True)])
def test_it_is_clear_where_a_batch_spares_more_than_python_costs(rows: int, clear: bool):
    cost = serving_cost.ServingCost()
    for _ in range(serving_cost.MEASURED + 1):
        assert cost.is_clear(rows)
        cost.add_prefix(1.1e-3, 1)  # the first one compiles, so it doesn't count
    for _ in range(serving_cost.MEASURED):
        assert cost.is_due
        cost.add_served(0.1e-3, 1)
    assert not cost.is_due
    assert cost.is_clear(rows) is clear


def test_a_later_prefix_takes_the_share_of_its_operations():
    cost = serving_cost.ServingCost()
    cost.begin_stage(10.0)
    for _ in range(3):
        cost.add_prefix(1.0, 1)
    cost.begin_stage(5.0)
    assert list(cost.prefix) == [0.5, 0.5]
    assert not cost.served


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Times both in each stage, from the first known batches on. Returns the turns' seconds."""
    monkeypatch.setattr(compare_step_times, "AFTER", -1.0)
    monkeypatch.setattr(serving_cost, "CLEAR", float("inf"))
    turns: list[float] = []
    compared = compare_step_times.StepTrial._compare
    monkeypatch.setattr(compare_step_times, "TIMED", 2)
    monkeypatch.setattr(compare_step_times, "TURNS", ("served", "whole") * 2)
    monkeypatch.setattr(compare_step_times, "GAP", 1.0)  # it never gives up, even if it is slow

    def note(trial: compare_step_times.StepTrial) -> None:
        turns.extend(trial.turns)
        compared(trial)

    monkeypatch.setattr(compare_step_times.StepTrial, "_compare", note)
    return turns


@pytest.mark.parametrize("traced", [False, True], ids=["eager", "traced"])
@pytest.mark.parametrize("source", ["arrays", "in order", "batches"])
def test_a_trial_changes_no_result(source: str, traced: bool, always: list[float]):
    data: Any = (X, Y)
    options = OPTIONS | {"shuffle": source == "arrays"}
    if source == "batches":
        data, options = (Batches((X, Y), 4),), {"epochs": 6, "batch_size": None}
    check(Run(data=lambda: data, stages=STAGES, options=options, traced=traced), passes=None)
    assert len(always) == 8


def test_validation_is_served_beside_it(always: list[float]):
    options = OPTIONS | {"validation_data": builders.data(12, seed=1)}
    stats = check(Run(data=lambda: (X, Y), stages=STAGES, options=options))
    assert stats.misses == 64 + 12
    assert always


@pytest.mark.parametrize("traced", [False, True], ids=["eager", "traced"])
def test_a_run_that_is_slower_with_the_cache(
    traced: bool, always: list[float], monkeypatch: pytest.MonkeyPatch
):
    """The rest of the run uses the whole model, and equals a run without a cache."""
    monkeypatch.setattr(compare_step_times, "GAP", 0.0)
    function = StageServer.function

    def slow(self: StageServer, kind: str) -> Any:
        time.sleep(0.05)
        return function(self, kind)

    monkeypatch.setattr(StageServer, "function", slow)
    run = Run(data=lambda: (X, Y), stages=STAGES, options=OPTIONS, traced=traced)
    expected, weights = run.fit(None)
    cache = BottleneckCache(verbose=0)
    with pytest.warns(CacheWarning, match="a step on cached features takes .* ms") as told:
        got, got_weights = run.fit(cache)
    assert len([each for each in told if each.category is CacheWarning]) == 1
    assert not cache.stats.enabled
    assert cache.stats.rows == cache.stats.bytes == 0
    assert np.isfinite(got["loss"]).all()
    compare(got, expected, exact=True)
    compare(got_weights, weights, exact=True)
