"""The demo: its table, its plot, its measurements, and one short run."""

from __future__ import annotations

import re
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_freeze import FreezeError
from keras_freeze.demo import Result, demo_command, digits_transfer, run_demo
from keras_freeze.demo import compared_methods as methods
from keras_freeze.demo import few_labels_task as task
from keras_freeze.demo.measured_run import LINES, METHODS, ONE_FIT, SCRATCH, TWO_FITS, count_lines
from keras_freeze.demo.mnist_base import RowCounter
from keras_freeze.demo.optional_imports import load_extra
from keras_freeze.demo.results_plot import save_plot
from keras_freeze.demo.results_table import HEADER, format_table, loss_difference

pytestmark = pytest.mark.one_backend

pytest.importorskip("mlxtend")


def made_up(method: str, seed: int, accuracy: float, loss: float = 0.5) -> Result:
    history = {
        "loss": [1.0, loss],
        "val_loss": [1.0, 0.7],
        "val_accuracy": [0.5, accuracy],
        "stage": [0, 1],
        "trainable_params": [10, 2000],
    }
    return Result(method, seed, accuracy, 1.0 + seed, 1.0, 9, history)


MADE_UP = [made_up(name, seed, 0.8 + seed / 10) for seed in range(2) for name in METHODS]


def test_the_table_has_a_row_for_each_method():
    head, rule, *rows = format_table(MADE_UP).splitlines()
    assert re.split(" {2,}", head) == list(HEADER)
    assert set(rule) == {"-", " "}
    assert [row[: len(name)] for row, name in zip(rows, METHODS, strict=True)] == list(METHODS)
    assert rows[0].split()[-8:] == ["85.0", "%", "80.0", "-", "90.0", "1.5", "1.0", "9"]


def test_the_difference_of_losses_is_the_largest_of_any_epoch_and_seed():
    results = [made_up(name, 0, 0.9) for name in (ONE_FIT, TWO_FITS)]
    assert loss_difference(results) == 0
    results += [made_up(ONE_FIT, 1, 0.9), made_up(TWO_FITS, 1, 0.9, loss=0.75)]
    assert loss_difference(results) == 0.25


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_plot_is_written(suffix: str, tmp_path: Path):
    save_plot(MADE_UP, tmp_path / f"plot.{suffix}")
    assert (tmp_path / f"plot.{suffix}").stat().st_size > 10_000


def function_of_three_lines() -> int:
    """Its docstring

    isn't counted."""
    # Nor is this.
    first = 1

    second = 2
    return first + second


def test_lines_are_those_of_the_body():
    assert count_lines(function_of_three_lines) == 3
    assert LINES[ONE_FIT] < LINES[TWO_FITS]


@pytest.mark.parametrize("trainable", [True, False])
def test_a_counter_counts_rows_wherever_the_base_runs(trainable: bool):
    counter = RowCounter()
    counter.trainable = trainable
    model = keras.Sequential([keras.Input((3,)), counter, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x, y = np.ones((10, 3)), np.ones((10, 1))
    model.fit(x, y, batch_size=4, epochs=2, validation_data=(x, y), verbose=0)
    assert counter.counted() == 40
    model.predict(x, batch_size=4, verbose=0)
    assert counter.counted() == 50


def test_a_task_has_each_image_once():
    first = task.load_task(0)
    counts = [len(part[0]) for part in (first.train, first.watched, first.test)]
    assert counts == [200, 100, 1600]
    assert (np.bincount(first.train[1]) == 20).all()
    assert first.train[0].shape[1:] == (28, 28, 1)
    assert len(np.unique(first.train[0], axis=0)) == 200, "variants differ"
    again, other = task.load_task(0), task.load_task(1)
    assert np.array_equal(first.train[0], again.train[0])
    assert not np.array_equal(first.train[0], other.train[0])


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo with few images and epochs."""
    images, labels = task._load()
    monkeypatch.setattr(methods, "EPOCHS", 4)
    monkeypatch.setattr(methods, "FINE_TUNE_AT", 2)
    monkeypatch.setattr(task, "VARIANTS", 2)
    monkeypatch.setattr(demo_command, "EPOCHS", 4)
    monkeypatch.setattr(demo_command, "load_mnist", lambda: (images[:100], labels[:100]))


@pytest.mark.usefixtures("short")
def test_a_short_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    results = run_demo(seeds=1, output=tmp_path / "demo.png")
    passes = {result.method: result.base_passes for result in results}
    assert list(passes.values()) == [1, 4, 3, 4]
    assert list(passes)[-1] == SCRATCH
    assert loss_difference(results) < 1e-5
    assert (tmp_path / "demo.png").exists()
    printed = capsys.readouterr().out
    assert format_table(results) in printed
    assert "Largest difference of any loss, one fit to two fits" in printed


@pytest.mark.usefixtures("short")
def test_a_schedule_of_the_users(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    for name in [TWO_FITS, SCRATCH, *list(METHODS)[2:-1]]:
        monkeypatch.delitem(METHODS, name)
    plan = tmp_path / "plan.json"
    plan.write_text('{"stages": [{"at": 1, "unfreeze": "block2_conv:"}]}')
    (result,) = run_demo(seeds=1, output=tmp_path / "demo.png", schedule=plan)
    assert result.history["stage"] == [0, 1, 1, 1]
    assert "difference" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 0}, "`seeds` must be a whole number, 1 or more"),
        ({"output": "demo.doc"}, "`output` must end in one of"),
        ({"output": "no/folder/demo.png"}, "`output` must be in a folder that exists"),
    ],
)
def test_what_cannot_be_meant_is_told_before_the_training(options: dict, message: str):
    with pytest.raises(FreezeError, match=message):
        run_demo(**options)


def test_a_package_that_is_missing_is_named():
    with pytest.raises(ImportError, match=r"needs `no_such_package`.*keras_freeze\[demo\]"):
        load_extra("no_such_package.data")


def test_the_small_base_of_the_examples():
    base, (images, labels), (others, _) = digits_transfer()
    assert base.name == "base"
    assert base.output_shape == (None, 4, 4, 64)
    assert images.shape == (50, 8, 8, 1)
    assert (np.bincount(labels) == 10).all()
    assert len(others) == 846
