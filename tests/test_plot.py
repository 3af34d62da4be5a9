"""plot_history: what is drawn, where the stages begin, and what can't be drawn."""

import math
import pickle
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_freeze import (
    FreezeBase,
    FreezeError,
    GradualUnfreeze,
    Schedule,
    ScheduleError,
    Stage,
    plot_history,
)
from tests.builders import compiled, data, nested

pytestmark = pytest.mark.one_backend

figures = pytest.importorskip("matplotlib.figure")
STAGES = [Stage(2, "b3", name="fine-tune", learning_rate=0.01), Stage(3, "b2")]


def fitted(tmp_path, epochs=4, **kwargs):
    """Returns the History of a run, and its CSVLogger file."""
    x, y = data(16)
    model = compiled(nested(), keras.optimizers.SGD(0.1), metrics=["mae"])
    log = keras.callbacks.CSVLogger(str(tmp_path / "log.csv"), **kwargs.pop("csv", {}))
    callbacks = [FreezeBase(), GradualUnfreeze(STAGES, verbose=0), log]
    options = {"validation_split": 0.25, "verbose": 0, "epochs": epochs}
    return model.fit(x, y, callbacks=callbacks, **(options | kwargs)), tmp_path / "log.csv"


def panels(figure):
    return {axes.get_ylabel(): axes for axes in figure.axes}


def curves(axes):
    """Returns {label: (epochs, values)} of a panel's curves."""
    lines = [line for line in axes.get_lines() if not line.get_label().startswith("_")]
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in lines}


def boundaries(axes):
    """Returns the positions of the vertical lines."""
    lines = [line for line in axes.get_lines() if line.get_label().startswith("_")]
    assert all(line.get_xdata()[0] == line.get_xdata()[1] for line in lines)
    return [line.get_xdata()[0] for line in lines]


def labels(figure):
    return {text.get_text(): text.xy[0] for text in figure.axes[0].texts}


def saved(figure, tmp_path):
    figure.savefig(tmp_path / "history.png")
    return (tmp_path / "history.png").stat().st_size


def test_a_run(tmp_path):
    history, _ = fitted(tmp_path)
    figure = plot_history(history)
    assert isinstance(figure, figures.Figure)
    found = panels(figure)
    assert list(found) == ["loss", "metrics", "learning rate"]
    drawn = {key: curve for axes in found.values() for key, curve in curves(axes).items()}
    expected = {"loss", "val_loss", "mae", "val_mae", "learning_rate"}
    assert drawn.keys() == expected
    for key, (epochs, values) in drawn.items():
        assert epochs == [1, 2, 3, 4]
        assert values == history.history[key], key
    assert found["learning rate"].get_yscale() == "log"
    assert found["learning rate"].get_xlabel() == "epoch"
    for axes in found.values():
        assert boundaries(axes) == [2.5, 3.5]
        assert axes.get_xlim() == (0.5, 4.5)
    assert labels(figure) == {"stage 0": 0.5, "stage 1": 2.5, "stage 2": 3.5}
    assert saved(figure, tmp_path) > 10_000


def test_validation_is_dashed_in_the_color_of_its_metric(tmp_path):
    lines = plot_history(fitted(tmp_path)[0]).axes[0].get_lines()
    by_label = {line.get_label(): line for line in lines}
    assert by_label["loss"].get_color() == by_label["val_loss"].get_color()
    assert (by_label["loss"].get_linestyle(), by_label["val_loss"].get_linestyle()) == ("-", "--")


@pytest.mark.parametrize("schedule", [STAGES, Schedule(STAGES), {2: STAGES[0], 3: STAGES[1]}])
def test_names_of_the_stages(schedule, tmp_path):
    figure = plot_history(fitted(tmp_path)[0], schedule=schedule)
    assert list(labels(figure)) == ["stage 0", "stage 1: fine-tune", "stage 2"]


@pytest.mark.parametrize("csv", [{}, {"separator": ";"}])
@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_a_file_of_csv_logger(csv, kind, tmp_path):
    history, path = fitted(tmp_path, csv=csv, initial_epoch=1)
    read, held = plot_history(kind(path)), plot_history(history)
    assert labels(read) == labels(held) == {"stage 0": 1.5, "stage 1": 2.5, "stage 2": 3.5}
    for name, axes in panels(held).items():
        found = curves(panels(read)[name])
        for key, (epochs, values) in curves(axes).items():
            assert found[key][0] == epochs == [2, 3, 4]
            assert found[key][1] == pytest.approx(values)


def test_a_file_with_gaps(tmp_path):
    (tmp_path / "log.csv").write_text(
        "epoch,loss,stage,val_loss,word\n0,3,0,2,a\n1,2,0,NA,b\n2,nan,1,1,c\n"
    )
    found = curves(plot_history(tmp_path / "log.csv").axes[0])
    assert found["val_loss"] == ([1, 3], [2, 1])
    assert found["loss"][1][:2] == [3, 2]
    assert math.isnan(found["loss"][1][2])
    assert "word" not in found


@pytest.mark.parametrize(
    ("initial_epoch", "epochs", "frequency"), [(0, 7, 2), (0, 10, 3), (3, 8, 2), (2, 6, 4)]
)
def test_validation_in_some_epochs(initial_epoch, epochs, frequency, tmp_path):
    history, _ = fitted(
        tmp_path, epochs=epochs, initial_epoch=initial_epoch, validation_freq=frequency
    )
    found = curves(plot_history(history).axes[0])
    due = [epoch for epoch in range(initial_epoch + 1, epochs + 1) if epoch % frequency == 0]
    assert found["val_loss"] == (due, history.history["val_loss"])
    # A dict has no first epoch, so the epochs of its validation values are estimated.
    assert len(curves(plot_history(history.history).axes[0])["val_loss"][0]) == len(due)


def test_validation_in_a_few_odd_epochs():
    """No frequency matches their number, so they are spread evenly."""
    found = curves(plot_history({"loss": range(10), "val_loss": range(4)}).axes[0])
    assert found["val_loss"][0] == [2, 4, 6, 8]


def test_one_epoch(tmp_path):
    figure = plot_history({"loss": [1.0], "stage": [0], "learning_rate": [0.1]})
    assert figure.axes[0].get_lines()[0].get_marker() == "o"
    assert boundaries(figure.axes[0]) == []
    assert labels(figure) == {"stage 0": 0.5}
    assert saved(figure, tmp_path)


def test_many_epochs_and_stages(tmp_path):
    """Labels of stages that begin close together don't overlap."""
    epochs = np.arange(300)
    stage = np.searchsorted([100, 103, 106, 290, 295, 299], epochs, side="right")
    schedule = {int(at): Stage(int(at), name="a name") for at in [100, 103, 106, 290, 295, 299]}
    figure = plot_history({"loss": 1 / (1 + epochs), "stage": stage}, schedule=schedule)
    assert saved(figure, tmp_path)
    assert figure.axes[0].get_lines()[0].get_marker() == ""
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 7
    assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n])
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_nan(tmp_path):
    nan = float("nan")
    history = {"loss": [1.0, nan, nan], "acc": [nan] * 3, "lr": [nan] * 3, "stage": [0, nan, 1]}
    figure = plot_history(history)
    assert saved(figure, tmp_path)
    assert labels(figure) == {"stage 0": 0.5, "stage 1": 2.5}


def test_without_stages_or_rates():
    """A run without our callbacks."""
    figure = plot_history({"loss": [2, 1], "accuracy": [0, 1]})
    assert list(panels(figure)) == ["loss", "metrics"]
    assert not figure.axes[0].texts
    assert list(panels(plot_history({"loss": [2, 1]}))) == ["loss"]


def test_several_losses_and_rates():
    history = {"loss": [3, 2], "a_loss": [2, 1], "val_a_loss": [1, 1], "b_acc": [0, 1]}
    history |= {"learning_rate_adam": [0.1, 0.1], "learning_rate_sgd": [0.2, 0.0]}
    found = {name: list(curves(axes)) for name, axes in panels(plot_history(history)).items()}
    assert found == {
        "loss": ["loss", "a_loss", "val_a_loss"],
        "metrics": ["b_acc"],
        "learning rate": ["learning_rate_adam", "learning_rate_sgd"],
    }


def test_what_is_not_a_number_is_left_out():
    figure = plot_history({"loss": [2, 1], "each_class": [[0, 1], [1, 1]], "word": ["a", "b"]})
    assert list(panels(figure)) == ["loss"]


@pytest.mark.parametrize(
    ("history", "message"),
    [
        (None, r"Received: None \(of type NoneType\)"),
        ([1, 2], r"Received: \[1, 2\] \(of type list\)"),
        ({}, "`history` is empty"),
        ({"loss": []}, "`history` is empty"),
        (keras.callbacks.History(), "`history` is empty.*of type History"),
        ({"accuracy": [1.0]}, r"must have a 'loss'.*with the keys \['accuracy'\]"),
        ({"loss": [[1.0, 2.0]]}, r"must have numbers as 'loss'.*\[\[1.0, 2.0\]\]"),
        ({"loss": 1.0}, r"\{name: \[one number for each epoch\]\}. Received: 'loss': 1.0"),
        ({"loss": "abc"}, "Received: 'loss': 'abc'"),
        ({"loss": [1.0], "val_loss": [1.0, 2.0]}, "2 values of 'val_loss' for 1 epochs"),
    ],
)
def test_what_cannot_be_drawn(history, message):
    with pytest.raises(FreezeError, match=message):
        plot_history(history)


def test_files_that_cannot_be_drawn(tmp_path):
    path = tmp_path / "other.csv"
    for text in ("step,loss\n1,2\n", "", "epoch\n"):
        path.write_text(text)
        with pytest.raises(FreezeError, match=r"a file that a CSVLogger wrote.*other\.csv"):
            plot_history(path)
    path.write_text("epoch,loss\n")
    with pytest.raises(FreezeError, match="empty"):
        plot_history(path)
    with pytest.raises(FileNotFoundError):
        plot_history(tmp_path / "none.csv")


def test_a_schedule_that_cannot_be_meant():
    with pytest.raises(ScheduleError):
        plot_history({"loss": [1.0]}, schedule={-1: "b3"})


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in ("matplotlib.figure", "keras_freeze.display.figure_with_png_repr"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ImportError, match=r'pip install "keras_freeze\[plot\]"') as caught:
        plot_history({"loss": [1.0]})
    assert caught.value.name == "matplotlib"


ASK = """
import sys
import keras  # which may import pyplot itself
before = set(sys.modules)
import keras_freeze
assert not [name for name in set(sys.modules) - before if name.startswith("matplotlib")]
keras_freeze.plot_history({"loss": [1.0, 2.0], "stage": [0, 1]}).savefig(sys.argv[1])
assert "matplotlib.pyplot" not in set(sys.modules) - before
if "matplotlib.pyplot" in sys.modules:
    assert not sys.modules["matplotlib.pyplot"].get_fignums()
"""


def test_pyplot_is_left_alone(tmp_path):
    """In a separate process, as another test may have imported it in this one."""
    subprocess.run([sys.executable, "-c", ASK, str(tmp_path / "a.png")], check=True)


def test_notebooks_show_it():
    """Without a matplotlib backend that displays it."""
    figure = plot_history({"loss": [3.0, 2.0]})
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert pickle.loads(pickle.dumps(figure)).axes
