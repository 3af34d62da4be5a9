"""A warning points to the user's line that calls `fit` or one of our functions."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_freeze
from keras_freeze import (
    BottleneckCache,
    CacheWarning,
    FreezeBase,
    GradualUnfreeze,
    Plateau,
    RecompileOnTrainableChange,
    Schedule,
    Stage,
    TransferModel,
)
from keras_freeze.cli import main
from keras_freeze.errors import warn
from tests import builders as B
from tests.builders import L

pytestmark = pytest.mark.one_backend

HOME = Path(keras_freeze.__file__).parent


def thaw(stages: Any) -> GradualUnfreeze:
    return GradualUnfreeze(stages, verbose=0)


class Faster(keras.callbacks.Callback):
    """Sets the rate in the epoch in which a stage sets it."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.model.optimizer.learning_rate = 0.5


class Freezer(keras.callbacks.Callback):
    """Freezes everything while `fit` runs."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.trainable = False


class Twice(keras.Model):
    """A model whose custom `call` calls layers: user code between `fit` and the cache."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.head = B.functional_base(), L.Dense(1, name="head")

    def call(self, inputs: Any, training: Any = None) -> Any:
        return self.head(self.base(inputs) + self.base(-inputs))


def called(model: keras.Model) -> keras.Model:
    model(np.zeros((2, 6), "float32"))
    return B.compiled(model, loss="mse")


MANY = {
    "never reached": ([FreezeBase(), thaw({9: "b3"})], "never reached"),
    "untrained head": ([FreezeBase(), thaw({0: "b3"})], "still untrained"),
    "changes nothing": ([FreezeBase(), thaw([Stage(1, "b3"), Stage(2, "b3")])], "changes no layer"),
    "never began": ([FreezeBase(), thaw([Stage(Plateau("loss", patience=9), "b3")])], "never beg"),
    "stopped": (
        [FreezeBase(), thaw({2: "b3"}), keras.callbacks.EarlyStopping("loss", min_delta=9)],
        "ended the run",
    ),
    "rate": ([FreezeBase(), Faster(), thaw([Stage(1, learning_rate=0.1)])], "Another callback"),
    "all frozen": ([RecompileOnTrainableChange(verbose=0), Freezer()], "nothing trainable"),
    "no prefix": ([BottleneckCache("head", verbose=0)], "stepped aside"),
    "full": ([FreezeBase(), BottleneckCache(max_bytes=40, verbose=0)], "BottleneckCache"),
}


def assert_warned_here(part: str, action: Callable[[], Any]) -> None:
    """The warning must point to the line of `action`, a one-line lambda."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    places = {(each.filename, each.lineno) for each in caught if part in str(each.message)}
    assert places == {(__file__, action.__code__.co_firstlineno)}, [str(c.message) for c in caught]


@pytest.mark.parametrize("case", MANY)
def test_the_line_of_fit(case: str):
    callbacks, part = MANY[case]
    model = B.compiled(B.nested())
    x, y = B.data()
    options = {"epochs": 3, "batch_size": 8, "verbose": 0, "callbacks": callbacks}
    assert_warned_here(part, lambda: model.fit(x, y, **options))


def test_a_cache_in_a_model_of_the_users():
    """The problem is found inside the user's `call`."""
    model = called(Twice())
    x, y = B.data()
    x[3, 2] = np.nan
    options = {"verbose": 0, "callbacks": [FreezeBase("base"), BottleneckCache(verbose=0)]}
    assert_warned_here("BottleneckCache", lambda: model.fit(x, y, **options))


@pytest.mark.parametrize("eager", [False, True], ids=["compiled", "eager"])
@pytest.mark.parametrize("where", ["training", "validation"])
def test_features_that_are_not_finite(where: str, eager: bool):
    x, y = B.data()
    bad = np.where(np.arange(24)[:, None] == 3, np.float32("nan"), x)
    train, test = (bad, x) if where == "training" else (x, bad)
    model = B.compiled(B.nested(), run_eagerly=eager)
    callbacks = [FreezeBase("base"), BottleneckCache(verbose=0)]
    options = {"validation_data": (test, y), "verbose": 0, "callbacks": callbacks}
    assert_warned_here("NaN", lambda: model.fit(train, y, **options))


def test_a_best_epoch_of_an_earlier_fit():
    model = B.compiled(B.nested())
    x, y = B.data()
    late = thaw([Stage(1, "b3"), Stage(2, "b2", restore_best=True)])
    options = {"validation_data": (x, y), "verbose": 0, "callbacks": [FreezeBase(), late]}
    assert_warned_here("is never reached", lambda: model.fit(x, y, epochs=2, **options))
    options |= {"epochs": 3, "initial_epoch": 2}
    assert_warned_here("nothing is restored", lambda: model.fit(x, y, **options))


def test_functions_of_ours():
    assert_warned_here("head=1", lambda: TransferModel(B.functional_base(), 1))
    model = TransferModel(B.functional_base(), 2)
    model.compile("sgd", loss=lambda y, p: keras.ops.mean(p))
    assert_warned_here("isn't compiled", lambda: model.unwrap())
    twice = Schedule({1: "b3", 2: "b3"})
    assert_warned_here("changes no layer", lambda: twice.preview(B.nested()))


def test_the_fit_of_a_transfer_model():
    model = TransferModel(B.functional_base(), 3, schedule={0: "b3"})
    model.compile("sgd", "sparse_categorical_crossentropy")
    x, _ = B.data()
    assert_warned_here("still untrained", lambda: model.fit(x, np.zeros(24), verbose=0))


def test_a_model_that_a_fit_makes_has_its_own_line():
    """A wrapper's `fit` calls a function: the warning points to the line that makes the model."""
    make = lambda: TransferModel(B.functional_base(), 1)  # noqa: E731

    def build(X: Any, y: Any) -> keras.Model:
        model = make()
        model.compile("sgd", "mse")
        return model

    x, y = B.data()
    wrapper = keras.wrappers.SKLearnRegressor(build, fit_kwargs={"verbose": 0})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        wrapper.fit(x, y[:, 0])
    places = {(each.filename, each.lineno) for each in caught if "head=1" in str(each.message)}
    assert places == {(__file__, make.__code__.co_firstlineno)}


def test_once_for_each_line():
    """Like Python's default filter: once for a line in a loop, again for another line."""

    def two() -> None:
        for _ in range(2):
            TransferModel(B.functional_base(), 1)
        TransferModel(B.functional_base(), 1)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        two()
    assert len(caught) == 2
    assert {each.filename for each in caught} == {__file__}


def test_a_filter_by_module_means_the_users():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module=__name__.replace(".", "[.]"))
        TransferModel(B.functional_base(), 1)


def test_a_thread_without_a_line_of_the_users():
    """No user line exists, so the warning points to our own file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=warn, args=("deep down", CacheWarning))]
        for thread in threads:
            thread.start()
            thread.join()
    [only] = caught
    assert (str(only.message), only.category) == ("deep down", CacheWarning)


SCRIPT = """import keras
import numpy as np
from keras_freeze import FreezeBase, GradualUnfreeze

base = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="d")], name="base")
model = keras.Sequential([base, keras.layers.Dense(1)])
model.compile("sgd", "mse")
thaw = GradualUnfreeze({7: "d"}, verbose=0)
x, y = np.ones((8, 4)), np.ones((8, 1))
history = model.fit(
    x, y, epochs=2, verbose=0, callbacks=[FreezeBase("base"), thaw]
)
"""


def run(tmp_path: Path, *flags: str) -> tuple[int, str, Path]:
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    command = [sys.executable, *flags, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(HOME.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    return done.returncode, done.stderr, path


def test_a_script(tmp_path: Path):
    """What users see: file, line number, and the text of the line."""
    code, printed, path = run(tmp_path)
    assert code == 0, printed
    assert f"{path}:10: UserWarning: Stage 1 (at=7) is never reached" in printed
    assert "\n  history = model.fit(" in printed


def test_a_script_in_which_warnings_are_errors(tmp_path: Path):
    code, printed, _ = run(tmp_path, "-W", "error::UserWarning")
    assert code == 1
    assert "UserWarning: Stage 1 (at=7) is never reached" in printed.splitlines()[-1]


def test_one_function_warns():
    """No other function calls Python's `warn`, which would need the right `stacklevel`."""
    callers = set()
    for path in HOME.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("warn", "warn_explicit"):
                callers.add(path.name)
    assert callers == {"errors.py"}


def saved_after_fit(path: Path, change: Callable[[keras.Model], None]) -> None:
    model = B.compiled(B.nested())
    x, y = B.data()
    model.fit(x, y, epochs=2, verbose=0, callbacks=[FreezeBase("base"), thaw({1: "b3"})])
    change(model)
    model.save(path)


CHANGES: dict[str, Callable[[keras.Model], None]] = {
    "as fit left it": lambda model: None,
    "unfrozen since": lambda model: setattr(B.layer(model, "b1"), "trainable", True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_plan_shows_its_table_alone(change: str, tmp_path: Path, capsys: Any):
    """Keras warns about slots that don't fit, but the table doesn't read them."""
    model, plan = tmp_path / "model.keras", tmp_path / "plan.json"
    saved_after_fit(model, CHANGES[change])
    plan.write_text('{"2": "b3"}')
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert main(["plan", str(model), str(plan), "--epochs", "6"]) == 0
    assert [str(each.message) for each in caught if each.category is UserWarning] == []
    printed = capsys.readouterr()
    assert printed.out.startswith("stage ")
    assert f"{B.RATE:.4g}" in printed.out
    assert printed.err == ""


def test_keras_does_warn_of_slots_that_do_not_fit(tmp_path: Path):
    """Otherwise the test above proves nothing."""
    saved_after_fit(tmp_path / "model.keras", CHANGES["unfrozen since"])
    with pytest.warns(UserWarning, match="Skipping variable loading for optimizer"):
        keras.models.load_model(tmp_path / "model.keras")
