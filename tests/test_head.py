"""Layers outside the base keep their flags until a stage names them: a stage may name the head."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import keras
import pytest

from keras_freeze import FreezeBase, GradualUnfreeze, Stage
from tests import builders as B

pytestmark = pytest.mark.one_backend


def model(*, head: bool = True) -> keras.Model:
    keras.utils.set_random_seed(0)
    made = B.nested()
    made.get_layer("head").trainable = head
    return B.compiled(made)


def run(net: keras.Model, stages: Any, *, epochs: int = 3, first: int = 0) -> list[set[str]]:
    """Returns the names of the layers that train in each epoch."""
    seen = [B.weights(net)]
    keep = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: seen.append(B.weights(net)))
    callbacks = [FreezeBase(), GradualUnfreeze(stages, verbose=0), keep]
    options = {"batch_size": 8, "epochs": epochs, "initial_epoch": first, "verbose": 0}
    keras.utils.set_random_seed(1)
    net.fit(*B.data(16), callbacks=callbacks, **options)
    return [B.changed(one, other) for one, other in itertools.pairwise(seen)]


LISTED = {
    "before the base": {0: "head", 1: "b3"},
    "with the base": {1: ["b3", "head"]},
    "after the base": {1: "b3", 2: "head"},
    "in each stage": [Stage(0, "head"), Stage(1, ["head", "b3"])],
}


@pytest.mark.parametrize("stages", LISTED.values(), ids=list(LISTED))
def test_a_schedule_that_lists_the_head_is_the_one_that_does_not(stages: Any):
    plain, listed = model(), model()
    expected = run(plain, {1: "b3"})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert run(listed, stages) == expected == [{"head"}, {"head", "b3"}, {"head", "b3"}]
    B.assert_equal(B.weights(plain), B.weights(listed))


@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights")
def test_a_head_that_the_user_has_frozen_stays_so_until_a_stage_names_it():
    net = model(head=False)
    assert run(net, {0: "b3", 2: "head"}) == [{"b3"}, {"b3"}, {"b3", "head"}]


def test_a_head_that_a_stage_freezes_first_begins_trainable():
    stages = [Stage(1, "b3", "head"), Stage(2, "head", "b3")]
    assert run(model(head=False), stages) == [{"head"}, {"b3"}, {"head"}]


def test_a_second_fit_goes_on_where_the_first_ended():
    stages, net = [Stage(1, "b3"), Stage(2, freeze="head")], model()
    assert run(net, stages) == [{"head"}, {"head", "b3"}, {"b3"}]
    assert run(net, stages, first=3, epochs=4) == [{"b3"}]
    assert run(net, stages, epochs=1) == [{"head"}]


def test_a_warmed_up_head_was_trainable_before():
    """The stage that unfreezes the base doesn't lower its rate."""
    slow, plain = model(), model()
    for net, stage in ((slow, Stage(1, ["b3", "head"], warmup_steps=50)), (plain, Stage(1, "b3"))):
        net.compile(keras.optimizers.SGD(0.1), "mse")
        run(net, [stage], epochs=1)
    B.assert_equal(B.weights(slow), B.weights(plain))


def test_a_name_that_is_only_already_trainable_in_the_base_is_pointed_out():
    with pytest.warns(UserWarning, match="changes no layer"):
        run(model(), {1: "b3", 2: ["b3", "head"]})
