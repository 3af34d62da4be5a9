"""Runs the demo from the data to the plot."""

import time
from collections.abc import Iterator
from pathlib import Path

import keras

from keras_freeze import Schedule
from keras_freeze.demo.digits import Task, load_task
from keras_freeze.demo.extras import load_extra
from keras_freeze.demo.methods import (
    METHODS,
    ONE_FIT,
    SCHEDULE,
    Result,
    pretrain,
    preview,
    run_method,
)
from keras_freeze.demo.report import format_table, save_plot
from keras_freeze.errors import FreezeError


def run_demo(
    seeds: int = 3,
    output: str | Path = "keras_freeze_demo.png",
    verbose: int = 1,
    schedule: str | Path | None = None,
) -> list[Result]:
    """Compares one `fit` with Keras' two-`fit` recipe and with training from scratch.

    A small convolutional base is pretrained on the digits 0-4, then transferred to 5-9 with ten
    labelled images a digit, and tested on all other images of 5-9.

    Args:
        seeds: How many times to run, each with other labelled images and weights; 1 or more.
        output: Where to write the plot; its suffix is the format.
        verbose: 1 prints the stages of the first seed, a table and the plot's path, 0 nothing.
        schedule: A file with the schedule of the one-`fit` run; None = the demo's own.

    Returns:
        One result for each seed and method, seed by seed.

    Raises:
        FreezeError: If `seeds`, `output` or the schedule is unusable.
        ImportError: If scikit-learn or matplotlib is not installed.

    Examples:
        >>> results = run_demo(seeds=1, output="demo.png", verbose=0)  # doctest: +SKIP
        >>> [result.method for result in results]  # doctest: +SKIP
        ['one fit (keras_freeze)', 'two fits (Keras guide)', 'from scratch']
    """
    path = _check(seeds, output)
    plan = SCHEDULE if schedule is None else Schedule(schedule)
    table = preview(plan)
    results: list[Result] = []
    for seed in range(seeds):
        task = load_task(seed)
        if verbose and seed == 0:
            _print_task(task)
            print(f"{table}\n", flush=True)
        results += _run_seed(task, seed, verbose, plan)
    save_plot(results, path)
    if verbose:
        _print_summary(results, seeds, path)
    return results


def _check(seeds: int, output: str | Path) -> Path:
    # All that can go wrong after a minute of training is tried before it.
    if not isinstance(seeds, int) or seeds < 1:
        raise FreezeError(f"`seeds` must be a whole number, 1 or more. Received: seeds={seeds!r}")
    load_extra("sklearn.datasets")
    formats = load_extra("matplotlib.figure").Figure().canvas.get_supported_filetypes()
    path = Path(output)
    if path.suffix.lstrip(".").lower() not in formats:
        raise FreezeError(
            f"`output` must end in one of {', '.join(sorted(formats))}, as in 'demo.png'. "
            f"Received: output={str(output)!r}"
        )
    if not path.parent.is_dir():
        raise FreezeError(
            f"`output` must be in a folder that exists. Received: output={str(output)!r}"
        )
    return path


def _run_seed(task: Task, seed: int, verbose: int, plan: Schedule) -> Iterator[Result]:
    start = time.perf_counter()
    weights = pretrain(task.pretrain, seed)
    pretraining = time.perf_counter() - start
    for name in METHODS:
        shown = verbose if name == ONE_FIT and not seed else 0
        yield run_method(name, weights, task, seed, shown, plan)
    if verbose:
        total = time.perf_counter() - start
        print(f"seed {seed}: {total:.1f} s, of which pretraining {pretraining:.1f} s", flush=True)


def _print_task(task: Task) -> None:
    print(
        f"keras_freeze demo on {keras.backend.backend()}: handwritten digits, 8x8 pixels.\n"
        f"A base is pretrained on {len(task.pretrain[0])} images of 0-4, "
        f"then transferred to 5-9 with {len(task.few[0])} labelled images;\n"
        f"the other {len(task.test[0])} images of 5-9 are the test set.\n",
        flush=True,
    )


def _print_summary(results: list[Result], seeds: int, path: Path) -> None:
    print(f"\nMean over {seeds} seed{'s' * (seeds > 1)}; seconds are the median.\n")
    print(format_table(results))
    print(f"\nPlot: {path}")
