"""C12: with `directory`, later runs and other processes find features, and none is ever wrong."""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("lmdb")
pytest.importorskip("filelock")

from keras_freeze import (
    BottleneckCache,
    CacheError,
    CacheWarning,
    FreezeBase,
    TransferModel,
)
from keras_freeze.feature_cache import cache as cache_module
from keras_freeze.feature_cache.directory import cache_directory, environments, marks
from keras_freeze.feature_cache.fingerprints import value_prints
from keras_freeze.feature_cache.serving.run_prefix import PrefixRunner
from tests import builders
from tests.builders import L
from tests.reference import disk_fits
from tests.reference.cached import Run, X, Y, check, compare

VAL = builders.data(12, seed=5)
ROWS = len(X) + 12
STAGES = {1: "b3", 3: "b2"}
OPTIONS = {"validation_data": VAL, "validation_batch_size": 4}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "features"


def run_of(**given: Any) -> Run:
    return Run(**({"options": OPTIONS} | given))


def cached(run: Run, **arguments: Any) -> tuple[Any, Any, Any]:
    """Returns History, weights and the cache's counts. A warning is an error."""
    cache = BottleneckCache(verbose=0, **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CacheWarning)
        history, weights = run.fit(cache)
    return history, weights, cache.stats


# Parity


@pytest.mark.one_backend(but=["nested-stages", "flat-head"])
@pytest.mark.parametrize("stages", [None, STAGES], ids=["head", "stages"])
@pytest.mark.parametrize("kind", ["nested", "flat", "sequential", "shared"])
def test_the_first_run_and_the_next_equal_the_uncached_one(kind: str, stages: Any, directory: Path):
    run = run_of(make=lambda: builders.KINDS[kind](extras=True), stages=stages)
    run.traced = kind == "nested"
    first = check(run, directory=directory)
    assert (first.misses, first.read) == (ROWS, 0)
    second = check(run, passes=0.0, directory=directory)
    assert (second.misses, second.read) == (0, ROWS)
    assert second.hits == 5 * ROWS


class Batches(keras.utils.PyDataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> Any:
        rows = slice(8 * number, 8 * number + 8)
        return X[rows], Y[rows]


@pytest.mark.one_backend(but=["PyDataset"])
@pytest.mark.parametrize("later", ["arrays", "PyDataset"])
def test_arrays_and_pipelines_find_the_rows_of_one_another(later: str, directory: Path):
    sources = {"arrays": lambda: (X, Y), "PyDataset": lambda: (Batches(),)}
    options = {**OPTIONS, "batch_size": None, "shuffle": False}
    for name in ("arrays" if later == "PyDataset" else "PyDataset", later):
        chosen = options | ({"batch_size": 8} if name == "arrays" else {})
        stats = check(Run(data=sources[name], options=chosen), passes=None, directory=directory)
    assert stats.base_passes == 0.0


@pytest.mark.one_backend(but=["bfloat16"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_reduced_precision_has_files_of_its_own(dtype: str, directory: Path):
    run = run_of(stages=STAGES)
    first = cached(run, directory=directory, dtype=dtype)
    second = cached(run, directory=directory, dtype=dtype)
    compare(second[0], first[0])
    compare(second[1], first[1])
    assert second[2].base_passes == 0.0
    assert cached(run, directory=directory)[2].base_passes == 1.0


@pytest.mark.one_backend
def test_reduced_precision_is_made_from_stored_features(directory: Path):
    check(run_of(), directory=directory)
    stats = cached(run_of(), directory=directory, dtype="float16")[2]
    assert (stats.base_passes, stats.continued) == (0.0, ROWS)


def text() -> keras.Model:
    """The mask of the words goes through the cut."""
    words = keras.Input((6,))
    embedded = L.Embedding(20, 8, mask_zero=True, name="embedding")(words)
    hidden = L.LSTM(4, return_sequences=True, name="b1")(embedded)
    base = keras.Model(words, hidden, name="base")
    return keras.Sequential([base, L.GlobalAveragePooling1D(), L.Dense(1, name="head")])


def test_masks_are_kept(directory: Path):
    words = np.random.default_rng(0).integers(0, 20, (32, 6)) * (np.arange(6) < 4)
    run = Run(make=text, data=lambda: (words, Y), frozen=lambda: [FreezeBase("base")])
    for passes in (1.0, 0.0):
        check(run, passes=passes, directory=directory)


def test_another_process_equals_the_first_to_the_bit(directory: Path, tmp_path: Path):
    program = [sys.executable, "-m", "tests.reference.disk_fits", directory, tmp_path / "first.npz"]
    subprocess.run(program, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    first = dict(np.load(tmp_path / "first.npz"))
    for other, exact in (
        (disk_fits.arrays(*disk_fits.fit(str(directory))), True),
        (uncached(), False),
    ):
        assert sorted(other) == sorted(first)
        for name, array in first.items():
            if exact:
                assert np.array_equal(array, other[name]), name
            np.testing.assert_allclose(array, other[name], rtol=1e-5, atol=1e-6)


@functools.cache
def uncached() -> dict[str, np.ndarray]:
    """Returns History and weights without a cache."""
    return disk_fits.arrays(*disk_fits.fit(""))


def start(directory: Path, output: Path, seconds: float) -> Any:
    """Starts a fit in a forked process, which needs no time to import Keras."""
    context = multiprocessing.get_context("fork")
    process = context.Process(target=disk_fits.fit_and_save, args=(directory, output, seconds))
    process.start()
    return process


@pytest.mark.one_backend
def test_killed_fits_leave_only_right_rows(directory: Path, tmp_path: Path):
    random = np.random.default_rng(int(os.environ.get("SEED", 0)))
    kills = int(os.environ.get("KILLS", 5))
    for number in range(kills):
        process = start(directory, tmp_path / "killed.npz", 0.02)
        time.sleep(random.uniform(0.1, 1.2))
        process.kill()
        process.join()
        assert process.exitcode in (-signal.SIGKILL, 0)  # it may have ended before
        if number % 10 == 9 or number == kills - 1:
            compare(disk_fits.arrays(*disk_fits.fit(str(directory))), uncached())
            shutil.rmtree(directory) if number % 20 == 9 else None
    assert not list(directory.glob("*/*.lock"))


@pytest.mark.one_backend
def test_processes_share_a_directory(directory: Path, tmp_path: Path):
    count = int(os.environ.get("PROCESSES", 3))
    processes = [start(directory, tmp_path / f"{n}.npz", 0.01) for n in range(count)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    for number in range(count):
        compare(dict(np.load(tmp_path / f"{number}.npz")), uncached())
    compare(disk_fits.arrays(*disk_fits.fit(str(directory))), uncached())


# What a fingerprint covers


def small(
    *,
    activation: str = "tanh",
    name: str = "base",
    own: Any = None,
    bit: int = 0,
    extra: Any = None,
) -> keras.Model:
    layers = [keras.Input((6,)), L.Dense(8, activation=activation, name="b1")]
    layers += [L.BatchNormalization(name="norm"), *([own] if own is not None else [])]
    base = keras.Sequential([*layers, L.Dropout(0.5), L.Dense(8, name="b2")], name=name)
    kernel = base.get_layer("b1").kernel
    random = np.random.default_rng(0)
    for weight in base.weights:
        if "seed" not in weight.name:
            weight.assign(random.uniform(0.5, 1, weight.shape).astype("float32"))
    array = keras.ops.convert_to_numpy(kernel).copy()
    array.view(np.uint32)[3, 4] ^= bit
    kernel.assign(array)
    if extra is not None:
        extra(base)
    return keras.Sequential([base, L.Dense(1, name="head")])


def passes_of(make: Any, directory: Path, base: str = "base") -> float:
    run = Run(make=make, frozen=lambda: [FreezeBase(base)])
    run.options = {"epochs": 2}
    return check(run, passes=None, directory=directory).base_passes


class Scale(L.Layer):
    def __init__(self, factor: float = 2.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x: Any) -> Any:
        return x * self.factor


def with_other_code() -> keras.Layer:
    class Scale(L.Layer):
        def __init__(self, factor: float = 2.0, **kwargs: Any):
            super().__init__(**kwargs)
            self.factor = factor

        def call(self, x: Any) -> Any:
            return x * self.factor + 0.25

    return Scale()


class Quiet(L.Layer):
    """Its config doesn't name its attribute."""

    def __init__(self, factor: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.factor = np.array([factor])

    def get_config(self) -> dict[str, Any]:
        return L.Layer.get_config(self)

    def call(self, x: Any) -> Any:
        return x * keras.ops.cast(self.factor, x.dtype)


def lambda_of(factor: float) -> keras.Layer:
    return L.Lambda(lambda x: x * factor)


def moved_statistics(base: keras.Model) -> None:
    base.get_layer("norm").moving_mean.assign(np.full(8, 0.1, "float32"))


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (small, small),
        (small, lambda: small(name="other")),
        (lambda: small(own=Scale(3.0)), lambda: small(own=Scale(3.0, name="again"))),
        (lambda: small(own=lambda_of(2.0)), lambda: small(own=lambda_of(2.0))),
        (lambda: small(own=Quiet(2.0)), lambda: small(own=Quiet(2.0))),
        (lambda: small(own=L.Dropout(0.1)), lambda: small(own=L.Dropout(0.9))),
    ],
    ids=["same", "names", "own layer", "lambda", "attribute", "dropout"],
)
def test_the_same_frozen_part_finds_its_rows(first: Any, second: Any, directory: Path):
    assert passes_of(first, directory) == 1.0
    assert (
        passes_of(second, directory, base="other" if second().layers[0].name == "other" else "base")
        == 0.0
    )


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (small, lambda: small(bit=1)),
        (small, lambda: small(extra=moved_statistics)),
        (small, lambda: small(activation="sigmoid")),
        (small, lambda: small(own=Scale())),
        (lambda: small(own=Scale(2.0)), lambda: small(own=Scale(3.0))),
        (lambda: small(own=Scale()), lambda: small(own=with_other_code())),
        (lambda: small(own=lambda_of(2.0)), lambda: small(own=lambda_of(3.0))),
        (lambda: small(own=Quiet(2.0)), lambda: small(own=Quiet(3.0))),
    ],
    ids=["bit", "statistics", "activation", "layer", "setting", "code", "lambda", "attribute"],
)
def test_another_frozen_part_finds_none(first: Any, second: Any, directory: Path):
    assert passes_of(first, directory) == 1.0
    assert passes_of(second, directory) == 1.0


@pytest.mark.one_backend
def test_versions_and_settings_count(directory: Path, monkeypatch: pytest.MonkeyPatch):
    assert passes_of(small, directory) == 1.0
    with monkeypatch.context() as patch:
        patch.setattr(keras, "__version__", "0.0.0")
        assert passes_of(small, directory) == 1.0
    with monkeypatch.context() as patch:
        patch.setattr(value_prints, "FORMAT", 0)
        assert passes_of(small, directory) == 1.0
    try:
        keras.config.set_epsilon(1e-5)
        assert passes_of(small, directory) == 1.0
    finally:
        keras.config.set_epsilon(1e-7)
    assert passes_of(small, directory) == 0.0


def test_a_deeper_cut_continues_from_stored_features(directory: Path):
    check(run_of(stages={0: "b2:"}), directory=directory)  # up to b1
    stats = check(run_of(stages={0: "b3"}), passes=0.0, directory=directory)
    assert (stats.misses, stats.continued, stats.read) == (0, ROWS, 0)
    stats = check(run_of(stages={0: "b3"}), passes=0.0, directory=directory)
    assert (stats.misses, stats.continued, stats.read) == (0, 0, ROWS)


def test_the_frozen_part_does_not_run_at_all(directory: Path, monkeypatch: pytest.MonkeyPatch):
    """Not even for a check: it would have to be compiled."""
    run = run_of(stages=STAGES)
    check(run, directory=directory)

    def runs(*_: Any) -> None:
        raise AssertionError("the frozen part runs")

    monkeypatch.setattr(PrefixRunner, "run", runs)
    check(run, passes=0.0, directory=directory)


@pytest.mark.one_backend
def test_an_earlier_cut_is_computed(directory: Path):
    check(run_of(), directory=directory)
    stats = check(run_of(stages={0: "b2:"}), directory=directory)
    assert (stats.misses, stats.continued) == (ROWS, 0)


@pytest.mark.one_backend
@settings(max_examples=12)
@given(st.data())
def test_any_runs_on_one_directory(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    """Each equals its uncached run, whatever the others have left."""
    directory = tmp_path_factory.mktemp("runs") / "features"
    stages = st.sampled_from([None, {0: "b3"}, {1: "b3"}, {0: "b2:"}, {1: "b3", 2: "b2"}])
    for _ in range(data.draw(st.integers(2, 4))):
        rows = data.draw(st.integers(9, 32))
        options = {"epochs": 3, "batch_size": 8, "shuffle": data.draw(st.booleans())}
        run = Run(data=lambda rows=rows: (X[:rows], Y[:rows]), stages=data.draw(stages))
        run.options = options
        check(run, exact=False, passes=None, directory=directory)


# Weights, code and memory that change


class Nudge(keras.callbacks.Callback):
    """Changes a bit of a frozen weight in the last epoch."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.params["epochs"] == 1:
            kernel = self.model.layers[0].get_layer("b1").kernel
            array = keras.ops.convert_to_numpy(kernel).copy()
            array.view(np.uint32)[0, 0] ^= 1
            kernel.assign(array)


@pytest.mark.one_backend
def test_a_weight_that_somebody_changes_removes_what_the_fit_wrote(directory: Path):
    model = builders.compiled(small())
    cache = BottleneckCache(directory=directory, verbose=0)
    model.fit(X, Y, verbose=0, callbacks=[FreezeBase("base"), Nudge(), cache])
    assert passes_of(small, directory) == 1.0


class OfTheSystem(L.Layer):
    """Reads what no fingerprint covers."""

    def call(self, x: Any) -> Any:
        return x * float(os.environ["FACTOR"])


@pytest.mark.one_backend
def test_stale_rows_of_own_layers_are_noticed(directory: Path, monkeypatch: pytest.MonkeyPatch):
    run = Run(make=lambda: small(own=OfTheSystem()), frozen=lambda: [FreezeBase("base")])
    monkeypatch.setenv("FACTOR", "2.0")
    check(run, directory=directory)
    check(run, passes=0.0, directory=directory)
    monkeypatch.setenv("FACTOR", "3.0")
    expected = run.fit(None)
    cache = BottleneckCache(directory=directory, verbose=0)
    with pytest.warns(CacheWarning, match="differ from what the frozen part computes now"):
        history, weights = run.fit(cache)
    compare(history, expected[0])
    compare(weights, expected[1])


class Unknown(L.Layer):
    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.secret = object()

    def call(self, x: Any) -> Any:
        return x


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: small(own=Unknown()), "object of type builtins.object"),
        (builders.subclassed, "can't be fingerprinted"),
    ],
    ids=["attribute", "subclassed"],
)
def test_what_has_no_fingerprint_stays_in_memory(make: Any, match: str, directory: Path):
    run = Run(make=make, frozen=lambda: [FreezeBase("base")])
    expected = run.fit(None)
    for _ in range(2):
        cache = BottleneckCache(directory=directory, verbose=0)
        with pytest.warns(CacheWarning, match=match):
            history, weights = run.fit(cache)
        assert cache.stats.base_passes == 1.0
        compare(history, expected[0])
        compare(weights, expected[1])
    assert not [path for path in directory.iterdir() if path.is_dir()]


@pytest.mark.one_backend(but=["True"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_data_of_ten_times_the_memory(
    shuffle: bool, directory: Path, monkeypatch: pytest.MonkeyPatch
):
    row = 8 * 4  # bytes of the features
    monkeypatch.setattr(cache_module, "free_memory", lambda: 2 * row * (ROWS // 10))
    run = run_of(options={**OPTIONS, "shuffle": shuffle})
    first = check(run, directory=directory)
    assert first.rows == ROWS // 10
    assert first.misses == ROWS
    second = check(run, passes=0.0, directory=directory)
    assert second.read == ROWS
    assert "keras_freeze" not in " ".join(thread.name for thread in threading.enumerate())


# Faults


class Breaks(keras.callbacks.Callback):
    def __init__(self, what: Any, epoch: int = 1):
        super().__init__()
        self.what = what
        self.epoch = epoch

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == self.epoch:
            self.what()


def fit_with_fault(directory: Path, fault: Any, epoch: int = 1) -> list[str]:
    """Compares a fit with a fault with an uncached one; returns the warnings."""
    plain = run_of(stages=STAGES).fit(None)
    run = run_of(stages=STAGES, frozen=lambda: [FreezeBase(), Breaks(fault, epoch)])
    cache = BottleneckCache(directory=directory, verbose=0)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        history, weights = run.fit(cache)
    compare(history, plain[0])
    compare(weights, plain[1])
    assert cache.stats.base_passes == 1.0
    return [str(each.message) for each in told if each.category is CacheWarning]


def test_a_directory_that_is_removed_meanwhile(directory: Path):
    assert len(fit_with_fault(directory, lambda: shutil.rmtree(directory))) <= 1
    assert not threading.active_count() > 1 or "keras_freeze" not in str(threading.enumerate())


@pytest.mark.one_backend
def test_a_disk_that_fills_up(directory: Path, monkeypatch: pytest.MonkeyPatch):
    def fails(self: Any, blocks: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(environments.Written, "add", fails)
    (told,) = fit_with_fault(directory, lambda: None)
    assert "No space left on device" in told
    monkeypatch.undo()
    assert not cache_directory._shared
    check(run_of(stages=STAGES), directory=directory)


@pytest.mark.one_backend
@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "9p"])
def test_a_network_file_system(kind: str, directory: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache_directory, "file_system", lambda path: kind)
    (told,) = fit_with_fault(directory, lambda: None)
    assert f"network file system ({kind})" in told


@pytest.mark.one_backend
def test_damaged_rows_are_computed_and_written_again(directory: Path):
    run = run_of()
    check(run, directory=directory)
    (file,) = directory.glob("*/*/data.mdb")
    raw = bytearray(file.read_bytes())
    wanted = keras_bytes(run)
    for place in range(len(raw)):  # LMDB leaves older copies of small blocks in the file
        if raw.startswith(wanted, place):
            raw[place + 5] ^= 1
    file.write_bytes(raw)
    expected = run.fit(None)
    cache = BottleneckCache(directory=directory, verbose=0)
    with pytest.warns(CacheWarning, match="damaged rows"):
        history, _ = run.fit(cache)
    compare(history, expected[0])
    assert cache.stats.misses == 1
    check(run, passes=0.0, directory=directory)


def keras_bytes(run: Run) -> bytes:
    """Returns the bytes of the features of a row."""
    keras.utils.set_random_seed(3)
    model = run.make()
    return np.asarray(builders.layer(model, "base").predict(X[:8], verbose=0))[3].tobytes()


@pytest.mark.one_backend
def test_a_truncated_file(directory: Path):
    run = run_of()
    check(run, directory=directory)
    (file,) = directory.glob("*/*/data.mdb")
    os.truncate(file, 8192 + 100)
    cache = BottleneckCache(directory=directory, verbose=0)
    with pytest.warns(CacheWarning, match="damaged file"):
        run.fit(cache)
    assert cache.stats.base_passes == 1.0
    check(run, passes=0.0, directory=directory)


@pytest.mark.one_backend(but=["KeyboardInterrupt"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_fit_that_is_broken_off_leaves_its_rows(error: Any, directory: Path):
    def breaks() -> None:
        raise error

    run = run_of(frozen=lambda: [FreezeBase(), Breaks(breaks)])
    with pytest.raises(error):
        run.fit(BottleneckCache(directory=directory, verbose=0))
    gc.collect()  # the traceback held the fit
    check(run_of(), passes=0.0, directory=directory)
    assert not open_files(directory)


def open_files(directory: Path) -> list[str]:
    opened = [file.path for file in psutil.Process().open_files()]
    return [path for path in opened if str(directory) in path]


def test_nothing_stays_open_after_fit(directory: Path):
    before = threading.active_count()
    check(run_of(stages=STAGES), directory=directory)
    assert not open_files(directory)
    assert threading.active_count() <= before
    assert not list(directory.glob("*/*.lock"))


@pytest.mark.one_backend
def test_the_directory_is_private_and_marked(directory: Path):
    check(run_of(), directory=directory)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06")
    assert (directory / ".gitignore").read_text() == "*\n"
    (file,) = directory.glob("*/*/data.mdb")
    assert file.stat().st_mode & 0o077 == 0


@pytest.mark.one_backend
def test_max_bytes_limits_the_directory(directory: Path):
    for bit in range(6):
        run = Run(make=lambda bit=bit: small(bit=1 << bit), frozen=lambda: [FreezeBase("base")])
        check(run, directory=directory, max_bytes="200 KB")
        assert marks.is_marked(directory)
    sizes = [file.stat().st_blocks * 512 for file in directory.rglob("*") if file.is_file()]
    assert sum(sizes) <= 200_000
    check(run, passes=0.0, directory=directory)  # the last one is there


# Views


def augmented() -> keras.Model:
    inputs = keras.Input((6,))
    noisy = L.GaussianNoise(0.1, seed=2)(inputs)
    outputs = builders.functional_base()(noisy)
    return keras.Model(inputs, L.Dense(1, name="head")(L.Dropout(0.1, seed=3)(outputs)))


def test_views_are_found_again(directory: Path):
    run = run_of(make=augmented, stages={3: "b3"}, frozen=lambda: [FreezeBase("base")])
    arguments = {"views": 2, "shuffle": False}
    memory = cached(run, **arguments)
    first = cached(run, **arguments, directory=directory, data="numbers")
    second = cached(run, **arguments, directory=directory, data="numbers")
    for history, weights, _ in (first, second):
        compare(history, memory[0])
        compare(weights, memory[1])
    assert (first[2].base_passes, first[2].read, first[2].replayed) == (2.0, 0, 3)
    assert (second[2].base_passes, second[2].read, second[2].replayed) == (0.0, 2 * 32 + 12, 5)
    assert second[2].pulled == 0
    more = cached(run, views=3, directory=directory, data="numbers")[2]
    assert (more.base_passes, more.views, more.replayed) == (1.0, 3, 4)


@pytest.mark.one_backend
def test_views_of_other_data_are_not_found(directory: Path):
    run = run_of(make=augmented, frozen=lambda: [FreezeBase("base")])
    cached(run, views=2, directory=directory, data="numbers")
    assert cached(run, views=2, directory=directory, data="others")[2].base_passes == 2.0
    assert cached(run, views=2, directory=directory)[2].base_passes == 2.0
    fewer = run_of(make=augmented, data=lambda: (X[:16], Y[:16]), frozen=run.frozen)
    assert cached(fewer, views=2, directory=directory, data="numbers")[2].base_passes == 2.0


@pytest.mark.one_backend
def test_targets_and_weights_of_views_keep_their_structure(directory: Path):
    def two_heads() -> keras.Model:
        inputs = keras.Input((6,))
        outputs = builders.functional_base()(L.GaussianNoise(0.1, seed=2)(inputs))
        heads = {"one": L.Dense(1, name="one")(outputs), "two": L.Dense(1, name="two")(outputs)}
        return keras.Model(inputs, heads)

    targets = {"one": Y, "two": -Y}
    weights = {"one": np.arange(32.0), "two": np.ones(32)}
    run = Run(make=two_heads, data=lambda: (X, targets), frozen=lambda: [FreezeBase("base")])
    run.options, run.compile = {"sample_weight": weights}, {"metrics": None}
    arguments = {"views": 1, "shuffle": False, "directory": directory, "data": "two"}
    first, second = cached(run, **arguments), cached(run, **arguments)
    compare(second[0], first[0])
    compare(second[1], first[1])
    assert second[2].base_passes == 0.0


# Features as arrays


def test_features_are_those_of_the_base_in_order(directory: Path):
    model = builders.nested(extras=True)
    cache = BottleneckCache("base", directory=directory, verbose=0)
    expected = builders.layer(model, "base").predict(X, verbose=0)
    features = cache.features(model, X, batch_size=5)
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)
    assert cache.stats.base_passes == 1.0
    assert np.array_equal(cache.features(model, Batches()), features)
    assert cache.stats.base_passes == 0.0
    assert np.array_equal(cache.features(model, iter([(X[8:16],), (X[:8],)]))[8:], features[:8])
    builders.compiled(model).fit(X, Y, verbose=0, callbacks=[FreezeBase("base"), cache])
    assert (cache.stats.misses, cache.stats.read) == (0, 32)


@pytest.mark.one_backend
def test_features_of_a_base_alone_and_in_memory():
    base = builders.functional_base()
    base.trainable = False
    expected = base.predict(X, verbose=0)
    features = BottleneckCache().features(base, X.astype("float64"))
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.one_backend
def test_features_of_a_fit_are_read(directory: Path):
    model = builders.compiled(builders.nested())
    cache = BottleneckCache(directory=directory, verbose=0)
    model.fit(X, Y, verbose=0, callbacks=[FreezeBase("base"), cache])
    assert cache.features(model, X).shape == (32, 8)
    assert (cache.stats.misses, cache.stats.read) == (0, 32)


@pytest.mark.one_backend
def test_features_that_cant_be_had():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, L.Dense(1)(inputs))
    with pytest.raises(CacheError, match="no frozen layers"):
        BottleneckCache().features(model, X)
    with pytest.raises(CacheError, match="no rows"):
        BottleneckCache("base").features(builders.nested(), X[:0])
    with pytest.raises(ValueError, match="`batch_size` must be 1 or more"):
        BottleneckCache("base").features(builders.nested(), X, batch_size=0)


# Arguments


@pytest.mark.one_backend
def test_bad_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "photo.jpg").write_text("")
    with pytest.raises(CacheError, match=r"holds other files. Did you mean '.*features'"):
        BottleneckCache(directory=tmp_path)
    with pytest.raises(CacheError, match="not of a file"):
        BottleneckCache(directory=tmp_path / "photo.jpg")
    with pytest.raises(CacheError, match=r"`directory` must be None .* or the path"):
        BottleneckCache(directory=3)
    with pytest.raises(CacheError, match="pass `views` and `directory` too"):
        BottleneckCache(data="photos")
    with pytest.raises(CacheError, match="pass `directory` too"):
        BottleneckCache(data="photos", views=2)
    with pytest.raises(CacheError, match="`data` must be None or a name"):
        BottleneckCache(data=3, views=2, directory=tmp_path / "features")
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(CacheError, match=r"needs lmdb: pip install 'keras_freeze\[disk\]'"):
        BottleneckCache(directory=tmp_path / "features")


@pytest.mark.one_backend
def test_transfer_model_saves_the_directory(directory: Path, tmp_path: Path):
    base = keras.Sequential([keras.Input((6,)), L.Dense(8, name="b1")], name="base")
    model = TransferModel(base, 3, cache={"directory": directory, "views": 2, "data": "numbers"})
    model.compile("adam", "sparse_categorical_crossentropy")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert (loaded.cache.directory, loaded.cache.data) == (str(directory), "numbers")
    loaded.fit(X, np.zeros(32), epochs=3, verbose=0)
    assert loaded.cache.stats.views == 2
