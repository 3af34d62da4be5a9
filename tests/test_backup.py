"""BackupAndRestore: a run that is cut off anywhere continues as if nothing had happened."""

from __future__ import annotations

import importlib.util
import json
import random
from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_freeze import (
    BackupAndRestore,
    BottleneckCache,
    FreezeBase,
    FreezeError,
    PerStage,
    Plateau,
    RecompileOnTrainableChange,
    Stage,
)
from tests.builders import BACKEND, data
from tests.reference.cut_runs import EPOCHS, OPTIMIZERS, SCHEDULES, Cut, Cutter, Run, assert_same

STEPS = 6  # in an epoch: 26 rows in batches of 5
# What depends on the backend runs on each, but fewer kinds of it: a model is compiled in each run.
pytestmark = pytest.mark.one_backend(
    but=[
        "ema",
        "test_cut_after_any_step",
        "4-reset",
        "test_cut_between_the_last_backup_and_the_end",
        "4-14",
        "test_nothing_stays_behind",
        "test_a_second_fit_of_the_same_objects",
        *("shuffled-4", "PyDataset-4", "generator-4", "tf.data-epoch", "tf.data, repeated-4"),
        "DataLoader-4",
        "test_several_steps_in_a_call",
        "test_unseeded_shuffling_is_told_of",
        *("4-memory", "epoch-directory", "epoch-views"),
        "test_a_stage_begins_anew_with_its_first_weights",
        "other",
        "test_random_states_come_back",
        "test_several_outputs_without_metrics",
        "test_flags_that_change_within_an_epoch",
    ]
)
EXAMPLES = 15 if BACKEND == "torch" else 2


@pytest.fixture
def closed_directories():
    """Ends the threads of fits that were cut, which otherwise end with the process."""
    yield
    if importlib.util.find_spec("lmdb") is None:
        return
    from keras_freeze.feature_cache.directory import cache_directory  # needs LMDB

    cache_directory._close_all()


@cache
def whole(optimizer: str, schedule: str, **fit: Any) -> dict[str, np.ndarray]:
    """Returns the result of the run that isn't cut."""
    with TemporaryDirectory() as directory:
        run = Run(Path(directory), optimizer, schedule, fit=fit)
        return run.result(run.train())


def continued(run: Run, *cuts: Cutter, late: bool = False) -> dict[str, np.ndarray]:
    """Returns the result of a run that is cut several times."""
    for cut in cuts:
        assert run.train(cut, late=late) is None
    return run.result(run.train())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer(optimizer, tmp_path):
    schedule = "plateau" if optimizer == "decaying" else "epochs"  # which can't halve a schedule
    run = Run(tmp_path, optimizer, schedule)
    cuts = [Cutter(step=STEPS * 3 + 2), Cutter(step=STEPS * 2 + 1)]
    assert_same(whole(optimizer, schedule), continued(run, *cuts))


@settings(max_examples=EXAMPLES)
@given(
    optimizer=st.sampled_from(["adam", "momentum", "accumulation"]),
    schedule=st.sampled_from(sorted(SCHEDULES)),
    save_freq=st.sampled_from(["epoch", 1, 4, 7]),
    cuts=st.lists(st.integers(1, STEPS * EPOCHS), min_size=1, max_size=3),
    late=st.booleans(),
)
def test_cut_after_any_step(optimizer, schedule, save_freq, cuts, late):
    with TemporaryDirectory() as directory:
        run = Run(Path(directory), optimizer, schedule, backup={"save_freq": save_freq})
        history = None
        for step in cuts:
            history = history or run.train(Cutter(step=step), late=late)
        result = run.result(history or run.train())
    assert_same(whole(optimizer, schedule), result)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("epoch", [0, 2, 4, EPOCHS - 1])
def test_cut_in_validation(schedule, epoch, tmp_path):
    run = Run(tmp_path, "adam", schedule, backup={"save_freq": 4})
    assert_same(whole("adam", schedule), continued(run, Cutter(validation_of=epoch)))


@pytest.mark.parametrize("schedule", SCHEDULES if BACKEND == "torch" else ["plateau"])
def test_cut_between_the_last_backup_and_the_end(schedule, tmp_path):
    run = Run(tmp_path, "ema", schedule)

    class AtEnd(Cutter):
        def on_train_end(self, logs=None):
            raise Cut

    result = continued(run, AtEnd())
    assert_same(whole("ema", schedule), result)
    assert not tmp_path.exists() or not list(tmp_path.iterdir())


@pytest.mark.parametrize("late", [False, True])
def test_cut_at_the_end_of_an_epoch(late, tmp_path):
    run = Run(tmp_path)
    cuts = [Cutter(epoch_end=epoch) for epoch in (0, 1, 3, 5)]
    assert_same(whole("adam", "epochs"), continued(run, *cuts, late=late))


def stops() -> list[Any]:
    return [
        keras.callbacks.EarlyStopping("val_loss", patience=2, restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau("loss", patience=1, factor=0.5, min_delta=0.1),
    ]


@pytest.mark.parametrize("cut", [3, STEPS * 2 + 2, STEPS * 4 + 1])
@pytest.mark.parametrize("save_freq", ["epoch", 4])
def test_callbacks_go_on_counting(cut, save_freq, tmp_path):
    def others(folder: Path) -> list[Any]:
        path = str(folder / "best-{epoch}.keras")
        best = keras.callbacks.ModelCheckpoint(path, "val_loss", save_best_only=True)
        per_stage = keras.callbacks.EarlyStopping("loss", patience=1, min_delta=0.05)
        return [*stops(), best, PerStage(per_stage)]

    saved, results = [], []
    for name in ("whole", "cut"):
        folder = tmp_path / name
        folder.mkdir()
        run = Run(folder / "b", others=lambda folder=folder: others(folder))
        run.backup = {"save_freq": save_freq}
        results.append(continued(run, *([Cutter(step=cut)] if name == "cut" else [])))
        saved.append({path.name for path in folder.glob("*.keras")})
    assert_same(*results)
    assert saved[0] == saved[1]


def test_own_callbacks_go_on_with_plain_attributes(tmp_path):
    class Own(keras.callbacks.Callback):
        def __init__(self, setting):
            super().__init__()
            self.setting, self.count, self.seen, self.sums = setting, 0, [], {"a": np.zeros(2)}
            self.model_again = None

        def on_train_batch_begin(self, batch, logs=None):
            self.count += 1
            self.sums["a"] += 1
            self.model_again = self.model  # not plain: isn't saved

        def on_epoch_begin(self, epoch, logs=None):
            self.seen.append((epoch, float(epoch)))

    own = Own("first")
    run = Run(tmp_path, others=lambda: [own], backup={"save_freq": 4})
    assert run.train(Cutter(step=STEPS * 2 + 5)) is None
    first, own = own, Own("second")
    run.train()
    settings = first.setting, own.setting
    assert settings == ("first", "second")  # they aren't restored
    assert own.count == STEPS * EPOCHS
    assert own.sums["a"].tolist() == [own.count, own.count]
    assert own.seen == [(epoch, float(epoch)) for epoch in range(EPOCHS)]


def test_an_early_stop_isn_t_trained_past(tmp_path):
    run = Run(tmp_path, others=stops, backup={"delete_checkpoint": False}, epochs=20)
    first = run.train()
    result = run.result(first)
    assert len(first.epoch) < 20
    again = run.train()
    assert (again.epoch, again.history) == (first.epoch, first.history)
    assert_same(result, run.result(again))


def test_more_epochs_continue_a_run_that_ended(tmp_path):
    run = Run(tmp_path, backup={"delete_checkpoint": False}, epochs=4)
    run.train()
    run.epochs = EPOCHS
    assert_same(whole("adam", "epochs"), run.result(run.train()))


def test_nothing_stays_behind(tmp_path):
    run = Run(tmp_path / "deep" / "backup")
    assert run.train(Cutter(step=STEPS * 3)) is None
    assert sorted(path.suffix for path in run.directory.iterdir())
    run.train()
    assert not run.directory.exists()
    assert run.model._initial_epoch is None
    assert "train_function" not in vars(run.model) or run.model.train_function is None


def test_a_second_fit_of_the_same_objects(tmp_path):
    """As in a notebook: the cell is interrupted, and runs again with the model that is there."""
    keras.utils.set_random_seed(1)
    from keras_freeze import GradualUnfreeze
    from tests.reference.cut_runs import arrays, built

    run = Run(tmp_path)
    model = built("adam")
    backup = BackupAndRestore(tmp_path, verbose=0)
    unfreeze = GradualUnfreeze(SCHEDULES["epochs"](), base="base", verbose=0, batch_norm="train")
    more = stops()
    cut = Cutter(step=STEPS * 4 + 3)
    with pytest.raises(Cut):
        model.fit(callbacks=[cut, *more, unfreeze, backup], epochs=EPOCHS, verbose=0, **arrays())
    history = model.fit(
        callbacks=[Cutter(), *more, unfreeze, backup], epochs=EPOCHS, verbose=0, **arrays()
    )
    run.model = model
    with TemporaryDirectory() as directory:
        other = Run(Path(directory), others=stops)
        assert_same(other.result(other.train()), run.result(history))


# Data


class Shuffled(keras.utils.PyDataset):
    """Shuffles at the end of each epoch, with a generator of its own."""

    def __init__(self):
        super().__init__()
        self.x, self.y = data(26)
        self.random = np.random.default_rng(5)
        self.order = np.arange(26)

    def __len__(self):
        return STEPS

    def __getitem__(self, number):
        rows = self.order[5 * number : 5 * number + 5]
        return self.x[rows], self.y[rows]

    def on_epoch_end(self):
        self.random.shuffle(self.order)


def stream(*, ends: bool = False) -> Any:
    x, y = data(26)
    generator = np.random.default_rng(3)
    while True:
        rows = generator.integers(0, 26, 5)
        yield x[rows], y[rows]


def pipeline(**shuffle: Any) -> Any:
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices(data(26)).shuffle(26, **shuffle).batch(5)


def loader(*, own: bool) -> Any:
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(4) if own else None
    torch.manual_seed(7)  # on other backends, `set_random_seed` leaves it alone
    rows = torch.utils.data.TensorDataset(*map(torch.from_numpy, data(26)))
    return torch.utils.data.DataLoader(rows, batch_size=5, shuffle=True, generator=generator)


FEEDS = {
    "in order": lambda: (
        dict(zip("xy", data(26), strict=True)) | {"batch_size": 5, "shuffle": False}
    ),
    "shuffled": lambda: dict(zip("xy", data(26), strict=True)) | {"batch_size": 5},
    "batches": lambda: (
        dict(zip("xy", data(26), strict=True)) | {"batch_size": 5, "shuffle": "batch"}
    ),
    "PyDataset": lambda: {"x": Shuffled(), "shuffle": False},
    "PyDataset, shuffled": lambda: {"x": Shuffled()},
    "generator": lambda: {"x": stream(), "steps_per_epoch": STEPS},
    "tf.data": lambda: {"x": pipeline()},
    "tf.data, seed": lambda: {"x": pipeline(seed=2)},
    "tf.data, unknown length": lambda: {"x": pipeline(seed=2).filter(lambda *rows: True)},
    "tf.data, repeated": lambda: {"x": pipeline(seed=2).repeat(), "steps_per_epoch": 4},
    "DataLoader": lambda: {"x": loader(own=False)},
    "DataLoader, own generator": lambda: {"x": loader(own=True)},
}
if BACKEND != "tensorflow":  # one backend besides TensorFlow reads its pipelines
    left_out = [name for name in FEEDS if BACKEND == "jax" and name.startswith(("tf", "DataL"))]
    FEEDS = {name: feed for name, feed in FEEDS.items() if name not in left_out}


EACH_EPOCH = ("shuffled", "PyDataset", "generator", "tf.data", "DataLoader, own generator")
KINDS = [(feed, 4) for feed in FEEDS] + [(feed, "epoch") for feed in EACH_EPOCH if feed in FEEDS]


@pytest.mark.parametrize(("feed", "save_freq"), KINDS)
def test_every_kind_of_data(feed, save_freq, tmp_path):
    run = Run(tmp_path / "whole", feed=FEEDS[feed])
    result = run.result(run.train())
    run = Run(tmp_path / "cut", feed=FEEDS[feed], backup={"save_freq": save_freq})
    cuts = [Cutter(step=STEPS + 3), Cutter(step=STEPS * 2 + 3)]
    assert_same(result, continued(run, *cuts))


@pytest.mark.parametrize("shuffle", [False, True])
def test_workers_that_read_ahead_are_told_of(shuffle, tmp_path, capsys):
    def feed() -> dict[str, Any]:
        rows = Shuffled()
        rows.workers = 2
        return {"x": rows, "shuffle": shuffle}

    run = Run(tmp_path, feed=feed, backup={"save_freq": 4, "verbose": 1})
    with pytest.warns(UserWarning, match="read some batches of the next epoch ahead"):
        assert run.train(Cutter(step=STEPS + 3)) is None
    run.backup["save_freq"] = "epoch"
    assert run.train().epoch == list(range(EPOCHS))
    assert "The data come in another order" in capsys.readouterr().out


@pytest.mark.skipif(BACKEND == "torch", reason="Keras runs one step a call on PyTorch")
def test_several_steps_in_a_call(tmp_path):
    results = []
    for name in ("whole", "cut"):
        run = Run(tmp_path / name, backup={"save_freq": 4}, compiling={"steps_per_execution": 2})
        run.fit = {"batch_size": 3}
        cuts = [] if name == "whole" else [Cutter(step=4), Cutter(step=8)]
        results.append(continued(run, *cuts))
    assert_same(*results)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow has a seed of its own")
def test_unseeded_shuffling_is_told_of(tmp_path, monkeypatch):
    from keras_freeze.keras_internals.epoch_order import on_tensorflow

    monkeypatch.setattr(on_tensorflow, "has_seed", lambda: False)
    run = Run(tmp_path, backup={"save_freq": 4})
    with pytest.warns(UserWarning, match="at the end of an epoch only.*set_random_seed"):
        run.train()


# The cache

CACHES = {
    "memory": lambda folder: BottleneckCache(verbose=0),
    "directory": lambda folder: BottleneckCache(directory=folder, verbose=0),
    "views": lambda folder: BottleneckCache(directory=folder, views=2, data="d", verbose=0),
    "views in order": lambda folder: BottleneckCache(
        directory=folder, views=1, data="d", shuffle=False, verbose=0
    ),
}


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("save_freq", ["epoch", 4])
@pytest.mark.filterwarnings("ignore:BackupAndRestore.save_freq")
@pytest.mark.usefixtures("closed_directories")
def test_with_the_cache(kind, save_freq, tmp_path):
    if kind != "memory":
        pytest.importorskip("lmdb")
    results = []
    for name in ("whole", "cut"):
        folder = tmp_path / name
        run = Run(folder / "b", others=lambda folder=folder: [CACHES[kind](folder / "features")])
        run.backup = {"save_freq": save_freq}
        run.gradual = {"batch_norm": "freeze"}
        cuts = [Cutter(step=STEPS * 3 + 5), Cutter(step=STEPS + 1)] if name == "cut" else []
        results.append(continued(run, *cuts))
    assert_same(*results)


@pytest.mark.usefixtures("closed_directories")
@pytest.mark.parametrize("epoch", [0, 1])
def test_a_view_that_is_newer_than_the_backup_is_recorded_again(epoch, tmp_path, monkeypatch):
    pytest.importorskip("lmdb")
    from keras_freeze.backup.folder import Folder

    results = []
    for name in ("whole", "cut"):
        folder = tmp_path / name
        others = lambda folder=folder: [CACHES["views"](folder / "features")]  # noqa: E731
        run = Run(folder / "b", others=others, gradual={"batch_norm": "freeze"})
        if name == "cut":
            write = Folder.write

            def fails(self, about, state, *args, write=write, **kwargs):
                if state["epoch"] == epoch + 1:
                    raise Cut
                write(self, about, state, *args, **kwargs)

            monkeypatch.setattr(Folder, "write", fails)
            assert run.train() is None
            monkeypatch.undo()
        results.append(run.result(run.train()))
        assert not run.directory.exists()
    assert_same(*results)


def test_views_in_memory_are_recorded_anew_and_that_is_said(tmp_path):
    run = Run(tmp_path, others=lambda: [BottleneckCache(views=2, verbose=0)])
    assert run.train(Cutter(step=STEPS * 3)) is None
    with pytest.warns(UserWarning, match="records 2 of 2 views anew.*`directory` and `data`"):
        assert run.train().epoch == list(range(EPOCHS))


# What is refused


def cut_run(directory: Path, **arguments: Any) -> Run:
    run = Run(directory, **arguments)
    assert run.train(Cutter(step=STEPS * 4 + 2)) is None
    return run


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


CHANGES = {
    "rate": (
        lambda run: setattr(run, "schedule", [*SCHEDULES["epochs"]()[:1], Stage(4, "all")]),
        "Stage 2, learning_rate: .*0.1.* before, none now",
    ),
    "layers": (
        lambda run: setattr(run, "schedule", [Stage(2, "b2", learning_rate={"factor": 0.5})]),
        "Stage 1, ",
    ),
    "optimizer": (lambda run: setattr(run, "optimizer", "momentum"), "'Adam' before, 'SGD' now"),
    "mode": (lambda run: run.gradual.update(optimizer="reset"), "optimizer: 'carry' before"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_another_plan_is_refused(kind, tmp_path):
    run = cut_run(tmp_path)
    before = contents(tmp_path)
    change, text = CHANGES[kind]
    change(run)
    with pytest.raises(FreezeError, match=text) as error:
        run.train()
    assert "Nothing was changed" in str(error.value)
    assert "on_change='restart_stage'" in str(error.value)
    assert contents(tmp_path) == before
    run.backup = {"on_change": "restart_stage"}
    history = run.train()
    assert history.epoch == list(range(EPOCHS))


def test_a_stage_begins_anew_with_its_first_weights(tmp_path):
    """The run is that of a script in which the new plan was there from the start of the stage."""
    changed = [*SCHEDULES["epochs"]()[:1], Stage(4, "all", learning_rate=0.002)]
    run = cut_run(tmp_path / "cut")  # in epoch 4, the first of Stage 2
    run.schedule, run.backup = changed, {"on_change": "restart_stage"}
    result = run.result(run.train())
    other = Run(tmp_path / "other", schedule=changed)
    assert_same(other.result(other.train()), result)


def test_the_first_stage_begins_anew_from_the_start(tmp_path, capsys):
    run = Run(tmp_path)
    assert run.train(Cutter(step=STEPS + 2)) is None
    run.schedule, run.backup = "reset", {"on_change": "restart_stage", "verbose": 1}
    assert_same(whole("adam", "reset"), run.result(run.train()))
    assert "Training begins anew" in capsys.readouterr().out


def test_another_model_is_refused(tmp_path, monkeypatch):
    from tests.reference import cut_runs

    run = cut_run(tmp_path)
    before = contents(tmp_path)

    def wider(optimizer, **compiling):
        base = keras.Sequential([keras.Input((6,)), keras.layers.Dense(9, name="b1")], name="base")
        model = keras.Sequential([base, keras.layers.Dense(1)])
        model.compile("adam", "mse")
        return model

    monkeypatch.setattr(cut_runs, "built", wider)
    run.schedule = [Stage(2, "b1")]
    for on_change in ("error", "restart_stage"):
        run.backup = {"on_change": on_change}
        with pytest.raises(FreezeError, match="another model: model"):
            run.train()
    assert contents(tmp_path) == before


def damage(path: Path, how: str) -> None:
    held = path.read_bytes()
    if how == "cut":
        path.write_bytes(held[: len(held) // 2])
    elif how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    else:
        middle = len(held) // 2
        path.write_bytes(held[:middle] + bytes([held[middle] ^ 255]) + held[middle + 1 :])


@pytest.mark.parametrize("how", ["cut", "missing", "empty"])
@pytest.mark.parametrize("kind", ["trained", "frozen", "random"])
def test_a_damaged_backup_is_refused(kind, how, tmp_path):
    run = cut_run(tmp_path)
    files = [
        entry["file"] for entry in json.loads((tmp_path / "backup.json").read_text())["arrays"]
    ]
    name, _ = Counter(file for file in files if file.startswith(kind)).most_common(1)[0]
    damage(tmp_path / name, how)
    before = contents(tmp_path)
    with pytest.raises(FreezeError, match=r"is damaged: .*double_checkpoint=True"):
        run.train()
    assert contents(tmp_path) == before


def test_each_byte_of_a_backup(tmp_path):
    """A changed byte is noticed, or isn't read."""
    run = cut_run(tmp_path, backup={"delete_checkpoint": False})
    before = contents(tmp_path)
    steps = np.random.default_rng(0)
    for name in sorted(before):
        if name != "stage.json":
            for place in steps.integers(0, len(before[name]), 6):
                held = before[name]
                flipped = held[:place] + bytes([held[place] ^ 255]) + held[place + 1 :]
                (tmp_path / name).write_bytes(flipped)
                try:
                    result = run.result(run.train())
                except FreezeError:
                    assert contents(tmp_path) == before | {name: flipped}
                else:
                    assert_same(whole("adam", "epochs"), result)
                for path in tmp_path.iterdir():
                    path.unlink()
                for other, content in before.items():
                    (tmp_path / other).write_bytes(content)


@pytest.mark.parametrize("how", ["cut", "empty"])
def test_a_damaged_list_of_files(how, tmp_path):
    run = cut_run(tmp_path)
    damage(tmp_path / "backup.json", how)
    with pytest.raises(FreezeError, match=r"is damaged: backup\.json can't be read"):
        run.train()


def test_the_backup_before_the_last_one(tmp_path):
    run = cut_run(tmp_path, backup={"double_checkpoint": True})
    named = [
        {entry["file"] for entry in json.loads((tmp_path / name).read_text())["arrays"]}
        for name in ("backup.json", "previous.json", "stage.json")
    ]
    (only,) = [each for each in named[0] - named[1] - named[2] if each.startswith("trained")] or [
        ""
    ]
    if not only:  # the stage began with the last backup
        (only,) = [each for each in named[0] - named[1] if each.startswith("trained")]
    damage(tmp_path / only, "flipped")
    with pytest.warns(UserWarning, match="Training continues from the one before it"):
        history = run.train()
    assert_same(whole("adam", "epochs"), run.result(history))


def test_a_backup_of_keras_is_refused(tmp_path):
    run = Run(tmp_path)
    (tmp_path / "latest.weights.h5").write_bytes(b"")
    with pytest.raises(FreezeError, match=r"keras\.callbacks\.BackupAndRestore"):
        run.train()


def test_a_full_disk_doesnt_end_the_run(tmp_path, monkeypatch):
    from keras_freeze.backup import array_files

    run = cut_run(tmp_path)

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(array_files.os, "fsync", fails)
    run.backup = {"delete_checkpoint": False}
    with pytest.warns(UserWarning, match="can't write .*No space left"):
        result = run.result(run.train())
    monkeypatch.undo()
    assert_same(whole("adam", "epochs"), result)
    assert_same(result, run.result(run.train()))  # from the backup that stayed


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"backup_dir": ""}, "`backup_dir` .* Received: backup_dir=''"),
        ({"backup_dir": None}, "Received: backup_dir=None"),
        ({"backup_dir": "gs://bucket"}, "on a disk of this computer"),
        ({"save_freq": 0}, "'epoch' or a number of batches"),
        ({"save_freq": True}, "Received: save_freq=True"),
        ({"save_freq": "batch"}, "'epoch' or a number of batches"),
        ({"on_change": "restart"}, "Did you mean 'restart_stage'"),
        ({"save_frequency": 2}, "Did you mean 'save_freq'"),
    ],
)
def test_arguments(arguments, text):
    with pytest.raises(FreezeError, match=text):
        BackupAndRestore(**({"backup_dir": "b"} | arguments))


def test_two_of_them_are_refused(tmp_path):
    run = Run(tmp_path, others=lambda: [BackupAndRestore(tmp_path / "other")])
    with pytest.raises(FreezeError, match="2 BackupAndRestore"):
        run.train()


# Other uses


class Thaw(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.model.get_layer("base").trainable = epoch >= 2


ALONE = {
    "FreezeBase": lambda: [FreezeBase("base")],
    "nothing": list,
    "other": lambda: [RecompileOnTrainableChange(verbose=0), Thaw()],
}


@pytest.mark.parametrize("kind", ALONE)
def test_without_stages(kind, tmp_path):
    results = []
    for name in ("whole", "cut"):
        run = Run(tmp_path / name, others=ALONE[kind], backup={"save_freq": 4})
        results.append(run.result(fit_alone(run)))
    assert_same(*results)


def fit_alone(run: Run) -> Any:
    """Fits without GradualUnfreeze; cut twice if the name of the directory says so."""
    from tests.reference.cut_runs import arrays, built

    steps = [STEPS * 2 + 5, STEPS + 2, None] if run.directory.name.endswith("cut") else [None]
    for step in steps:
        keras.utils.set_random_seed(1)
        run.model = built("adam")
        callbacks = [*run.others(), BackupAndRestore(run.directory, verbose=0, **run.backup)]
        try:
            cut = Cutter(step=step)
            history = run.model.fit(callbacks=[*callbacks, cut], epochs=5, verbose=0, **arrays())
        except Cut:
            continue
        return history
    raise AssertionError


def test_random_states_come_back(tmp_path):
    """Also those that nothing in this run draws from."""
    run = Run(tmp_path, backup={"delete_checkpoint": False}, epochs=3)
    run.train()
    drawn = (
        random.random(),
        np.random.random(),
        keras.ops.convert_to_numpy(keras.random.normal((1,))),
    )
    run.epochs = 3
    run.train()
    again = (
        random.random(),
        np.random.random(),
        keras.ops.convert_to_numpy(keras.random.normal((1,))),
    )
    assert drawn == again


def test_it_says_where_it_continues(tmp_path, capsys):
    run = Run(tmp_path, backup={"save_freq": 4, "verbose": 1})
    assert run.train(Cutter(step=STEPS + 3)) is None
    run.train()
    out = capsys.readouterr().out
    assert (
        f"Training continues from the backup in {str(tmp_path)!r}: epoch 2/7, after step 2" in out
    )


def test_a_plateau_that_began_is_known_to_the_callback(tmp_path):
    stages = [Stage(at=Plateau("loss", max_epochs=2), unfreeze="all")]
    run = cut_run(tmp_path, schedule=stages)
    history = run.train()
    assert history.history["stage"] == [0, 0, 1, 1, 1, 1, 1]


# Unusual models, callbacks and folders


def fit_twice(make: Any, directory: Path, cut: Cutter, others: Any = list, **fit: Any) -> list[Any]:
    """Returns the Histories of a whole run, and of one that was cut."""
    found = []
    for name, steps in (("whole", [None]), ("cut", [cut, None])):
        for step in steps:
            keras.utils.set_random_seed(1)
            model = make()
            backup = BackupAndRestore(directory / name, save_freq=1, verbose=0)
            callbacks = [*others(), backup, step or Cutter()]
            x, y = data(26)
            given = {"x": x, "y": y, "batch_size": 5, "epochs": 3, "verbose": 0} | fit
            try:
                found.append(model.fit(callbacks=callbacks, **given).history)
            except Cut:
                continue
    return found


def test_several_outputs_without_metrics(tmp_path):
    def make():
        inputs = keras.Input((6,))
        inner = keras.layers.Dense(4)(inputs)
        outputs = [keras.layers.Dense(1, name=name)(inner) for name in "ab"]
        model = keras.Model(inputs, outputs)
        model.compile("adam", ["mse", "mae"])
        return model

    x, y = data(26)
    whole, cut = fit_twice(make, tmp_path, Cutter(step=10), x=x, y=[y, y])
    assert whole == cut


class Plain(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.01


class Nested(Plain):
    def get_config(self):
        return {
            "inner": keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.9),
            "other": object(),
        }


@pytest.mark.parametrize("rate", [Plain, Nested])
def test_schedules_of_rates_that_tell_little(rate, tmp_path):
    def make():
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(rate()), "mse")
        return model

    whole, cut = fit_twice(make, tmp_path, Cutter(step=10))
    assert whole == cut


class Odd(keras.callbacks.Callback):
    """Has attributes of all kinds, which change."""

    def __init__(self):
        super().__init__()
        self.flag, self.count, self.nan = False, 0, 0.0

    @property
    def shown(self):
        return self.count

    def on_epoch_begin(self, epoch, logs=None):
        self.flag = True
        self.count += 1
        self.nan = float("nan")
        self.text, self.raw = np.str_("a"), np.bytes_(b"a")
        self.turned = np.arange(3).astype(">f4")
        self.fields = np.zeros(2, [("a", "i4"), ("b", object)])
        self.huge = 10**5000
        self.loop = [1]
        self.loop.append(self.loop)
        self.empty, self.flat = np.zeros((0, 3)), np.arange(6.0).reshape(2, 3).T
        self.mixed = (1, [np.float32(0.1), {}, ()], {"a": None, 2: [True]})

    def on_train_batch_end(self, batch, logs=None):
        if batch == 0:
            self.flag = False


def test_odd_attributes(tmp_path):
    held: list[Odd] = []

    def others():
        held.append(Odd())
        return held[-1:]

    def make():
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        return model

    seen: list[Any] = []

    class Seen(Cutter):
        def on_train_batch_begin(self, batch, logs=None):
            seen.append((batch, held[-1].flag, held[-1].count, repr(getattr(held[-1], "mixed", 0))))

    whole, cut = fit_twice(make, tmp_path, Seen(step=9), others)
    assert whole == cut
    assert held[-1].count == 3
    assert held[-1].flag is False
    np.testing.assert_array_equal(held[-1].flat, np.arange(6.0).reshape(2, 3).T)
    assert [each[:3] for each in seen[:3]] == [(0, True, 1), (1, False, 1), (2, False, 1)]


def test_a_best_model_isnt_lost_by_the_second_interruption(tmp_path):
    """The first `fit` that continues has the same callback: its `best` is there from the start."""

    def saver() -> Any:  # the model of the first epoch is the best
        path = str(tmp_path / "best.keras")
        best = keras.callbacks.ModelCheckpoint(path, "stage", save_best_only=True, mode="min")
        return best

    best = saver()
    run = Run(tmp_path / "b", others=lambda: [best])
    for _ in range(2):
        assert run.train(Cutter(step=STEPS * 2)) is None
    saved = (tmp_path / "best.keras").read_bytes()
    run.others = lambda: [saver()]
    run.train()
    assert (tmp_path / "best.keras").read_bytes() == saved


def test_flags_that_change_within_an_epoch(tmp_path):
    class Within(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.get_layer("base").trainable = False

        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                self.model.get_layer("base").trainable = True

    def make():
        from tests.reference.cut_runs import built

        return built("adam")

    others = lambda: [RecompileOnTrainableChange(verbose=0), Within()]  # noqa: E731
    whole, cut = fit_twice(make, tmp_path, Cutter(step=STEPS + 5), others)
    assert whole == cut


def test_an_epoch_of_a_stream_that_a_stage_ended_early(tmp_path):
    class StopsInside(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                self.model.stop_training = True

    results = []
    for name in ("whole", "cut"):
        stages = [Stage(5, "b3")]
        run = Run(tmp_path / name, schedule=stages, feed=FEEDS["generator"])
        run.others = lambda: [PerStage(StopsInside())]
        results.append(continued(run, *([Cutter(step=5)] if name == "cut" else [])))
    assert_same(*results)


def test_an_unknown_number_of_batches_is_told_of(tmp_path):
    run = Run(tmp_path, feed=lambda: {"x": stream(), "steps_per_epoch": STEPS})
    run.backup = {"save_freq": 4}
    run.train()  # known
    x, y = data(26)
    batches = ((x[i : i + 5], y[i : i + 5]) for i in range(0, 26, 5))
    run.feed, run.epochs, run.schedule = (lambda: {"x": batches}), 1, [Stage(0, "all")]
    with pytest.warns(UserWarning, match="makes no backup within the first epoch"):
        run.train()


def test_files_of_others_stay(tmp_path):
    (tmp_path / "my.partial").write_text("mine")
    run = Run(tmp_path)
    run.train()
    assert (tmp_path / "my.partial").read_text() == "mine"
    (tmp_path / "stage.json").write_text("{}")
    with pytest.raises(FreezeError, match=r"stage\.json.* isn't from BackupAndRestore"):
        run.train()
    assert (tmp_path / "stage.json").read_text() == "{}"


def test_a_linked_folder(tmp_path):
    (tmp_path / "real").mkdir()
    try:
        (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    except OSError:
        pytest.skip("no links here")
    assert Run(tmp_path / "link").train().epoch == list(range(EPOCHS))
    assert not list((tmp_path / "real").iterdir())


def test_the_good_backup_stays_until_the_next_is_whole(tmp_path, monkeypatch):
    from keras_freeze.backup import folder

    run = cut_run(tmp_path, backup={"double_checkpoint": True})
    (tmp_path / "backup.json").write_bytes(b"{")
    replace = folder.replace_whole

    def fails(path, write_to):
        if path.name == "backup.json":
            raise OSError(28, "No space left on device")
        replace(path, write_to)

    monkeypatch.setattr(folder, "replace_whole", fails)
    with pytest.warns(UserWarning, match="Training continues from the one before it"):
        assert run.train(Cutter(step=STEPS + 2)) is None
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="Training continues from the one before it"):
        assert_same(whole("adam", "epochs"), run.result(run.train()))


def test_fewer_epochs_than_are_done_keep_the_backup(tmp_path):
    run = cut_run(tmp_path)
    run.epochs = 2
    run.train()
    run.epochs = EPOCHS
    assert_same(whole("adam", "epochs"), run.result(run.train()))


def test_another_generator_of_numpy(tmp_path):
    before = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(3))
    try:
        assert Run(tmp_path).train().epoch == list(range(EPOCHS))
    finally:
        np.random.set_bit_generator(before)
