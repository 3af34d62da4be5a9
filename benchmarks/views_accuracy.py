"""What recorded views cost in accuracy: none, live augmentation, and `BottleneckCache(views=K)`.

    KERAS_BACKEND=jax python benchmarks/views_accuracy.py [--small] [--seeds 20] [--epochs 80]
                                                          [--tasks digits "mnist 5-9"]
                                                          [--conditions none "views 4" live]
                                                          [--output FILE.json] [--plot FILE.svg]

A small convolutional base is pretrained on MNIST and transferred to two tasks with few labels:

- digits: a base pretrained on 5,000 images of MNIST's ten digits, transferred to scikit-learn's
  digits: other writers, another scanner.
- mnist 5-9: a base pretrained on MNIST's digits 0-4, transferred to the digits 5-9.

In front of the base, random layers rotate and shift each image. A head is trained on the frozen
base, then the last block of the base too. All conditions have the same data, epochs, rates and
initial weights, and differ in the augmentation alone:

- none: without the random layers.
- views K: the first K epochs are augmented and recorded, the others are trained on the recordings.
- live: each epoch is augmented anew.

A seed chooses the labelled images, the head's initial weights and what is random in the run. The
result is the accuracy on test images. The number of labelled images and the strength of the
augmentation are the last of four settings that were tried on other seeds, chosen such that live
augmentation helps on both tasks: with five labelled images of each digit and twice the shifts it
did harm. PyTorch is the fastest here: on
JAX, Keras runs the layers of a model with RandomRotation one by one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
from machine import machine

from keras_freeze import BottleneckCache, FreezeBase, GradualUnfreeze, Schedule, Stage
from keras_freeze.demo.few_labels_task import Examples, load_task
from keras_freeze.demo.keep_compiled import keep_compiled
from keras_freeze.demo.mnist_base import (
    SHAPE,
    Weights,
    build_base,
    load_mnist,
    pretrain,
    set_pretrained,
)

LABELLED = 2  # images of each digit
ROTATION, SHIFT = 0.04, 0.06
EPOCHS, HEAD_ALONE = 80, 0.6  # the share of the epochs in which the base is frozen
RATES = (3e-3, 3e-4)  # of the head, and of fine-tuning
BATCH = 5
VIEWS = (1, 2, 4, 8)
SEEDS = 20


@dataclass(frozen=True)
class Task:
    """One seed's data.

    Attributes:
        weights: the pretrained base's.
        train: the few labelled images and their classes.
        test: other images and their classes.
    """

    weights: Weights
    train: Examples
    test: Examples


def digits_tasks() -> Callable[[int], Task]:
    """Pretrains a base for scikit-learn's digits; returns what makes the data of a seed."""
    weights = pretrain(load_mnist())

    def task(seed: int) -> Task:
        # The demo's few labelled images are augmented already; those that it watches are not.
        found = load_task(seed)
        return Task(weights, split(found.watched, LABELLED)[0], found.test)

    return task


def mnist_tasks() -> Callable[[int], Task]:
    """Pretrains a base on MNIST's digits 0-4; returns what makes the data of a seed, of 5-9."""
    images, digits = load_mnist()
    known = digits < 5
    weights = pretrain((images[known], digits[known]))
    images, classes = images[~known], digits[~known] - 5

    def task(seed: int) -> Task:
        order = np.random.default_rng(seed).permutation(len(images))
        return Task(weights, *split((images[order], classes[order]), LABELLED))

    return task


TASKS = {"digits": digits_tasks, "mnist 5-9": mnist_tasks}


def split(examples: Examples, count: int) -> tuple[Examples, Examples]:
    """Returns the first images of each class, and all others."""
    images, classes = examples
    first = [np.flatnonzero(classes == each)[:count] for each in np.unique(classes)]
    chosen = np.isin(np.arange(len(images)), np.concatenate(first))
    return (images[chosen], classes[chosen]), (images[~chosen], classes[~chosen])


def build_model(task: Task, *, augmented: bool) -> Any:
    base = build_base()
    set_pretrained(base, task.weights)
    head = [keras.layers.Flatten(), keras.layers.Dense(len(np.unique(task.test[1])), "softmax")]
    # Made last: a random layer takes a seed, and the head is to start equal without it.
    random = [
        keras.layers.RandomRotation(ROTATION, fill_mode="constant"),
        keras.layers.RandomTranslation(SHIFT, SHIFT, fill_mode="constant"),
    ]
    front = random if augmented else []
    model = keras.Sequential([keras.Input(SHAPE), *front, base, *head])
    adam = keras.optimizers.Adam(RATES[0])
    model.compile(adam, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def run(task: Task, condition: str, seed: int, epochs: int) -> float:
    """Returns the accuracy on the test images after training under one condition."""
    keras.utils.set_random_seed(seed)
    model = build_model(task, augmented=condition != "none")
    stage = Stage(round(epochs * HEAD_ALONE), "block3_conv", learning_rate=RATES[1])
    schedule = Schedule([stage], optimizer="reset")
    callbacks = [FreezeBase("base", verbose=0), GradualUnfreeze(schedule, verbose=0)]
    if condition.startswith("views"):
        views = int(condition.split()[1])
        callbacks.append(BottleneckCache(views=views, verbose=0))
    options = {"batch_size": BATCH, "epochs": epochs, "verbose": 0, "callbacks": callbacks}
    model.fit(*task.train, **options)
    if condition.startswith("views"):
        stats = callbacks[-1].stats
        assert stats.enabled, stats.reason
        assert (stats.views, stats.replayed) == (views, epochs - views)
    return float(model.evaluate(*task.test, batch_size=100, verbose=0)[1])


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the accuracy of each seed, by condition, and what it says of each condition."""
    make, conditions = TASKS[name](), options.conditions
    found: dict[str, list[float]] = {condition: [] for condition in conditions}
    for seed in range(options.seeds):
        task = make(seed)
        for condition in conditions:
            keras.backend.clear_session()
            start = time.perf_counter()
            found[condition].append(run(task, condition, seed, options.epochs))
            took = time.perf_counter() - start
            last = f"{found[condition][-1]:6.1%} {took:6.1f} s"
            print(f"{name:<10} seed {seed} {condition:<8} {last}", flush=True)
    return {"accuracy": found, "summary": {key: summary(found, key) for key in found}}


def summary(found: dict[str, list[float]], condition: str) -> dict[str, float]:
    """Returns mean and standard deviation, and the mean difference to live with its error.

    The difference is taken within each seed. Its error is the standard error of the mean.
    """
    values = found[condition]
    result = {"mean": statistics.mean(values), "deviation": deviation(values)}
    if "live" in found:
        gaps = [a - b for a, b in zip(values, found["live"], strict=True)]
        error = deviation(gaps) / len(gaps) ** 0.5
        result |= {"to live": statistics.mean(gaps), "error": error}
    return result


def deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def show(name: str, result: dict[str, Any]) -> None:
    print(f"{name:<10} {'mean':>8} {'deviation':>10} {'to live':>8} {'error':>6}")
    for condition, one in result["summary"].items():
        far = one.get("to live", float("nan")), one.get("error", float("nan"))
        print(
            f"{condition:<10} {one['mean']:8.2%} {one['deviation']:10.2%} {far[0]:+8.2%} "
            f"{far[1]:6.2%}"
        )


def plot(results: dict[str, Any], path: Path) -> None:
    """Draws accuracy by number of views, with lines for live augmentation and none."""
    from matplotlib.figure import Figure

    names = [name for name in results if name in TASKS]
    figure = Figure(figsize=(4.4 * len(names), 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        summaries = results[name]["summary"]
        recorded = [condition for condition in summaries if condition.startswith("views")]
        count = len(results[name]["accuracy"]["none"])
        views = [int(condition.split()[1]) for condition in recorded]
        means = [100 * summaries[condition]["mean"] for condition in recorded]
        errors = [100 * summaries[condition]["deviation"] / count**0.5 for condition in recorded]
        axes.errorbar(views, means, errors, marker="o", capsize=3, label="K recorded views")
        for level, style in (("live", "-"), ("none", "--")):
            mean = 100 * summaries[level]["mean"]
            label = {"live": "live augmentation", "none": "no augmentation"}[level]
            axes.axhline(mean, color="0.3", linewidth=1, linestyle=style, label=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(views, [str(each) for each in views])
        axes.set(title=name, xlabel="K", ylabel="test accuracy (%)")
        axes.grid(axis="y", alpha=0.25)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> None:
    """Reads the options, measures, and prints a table for each task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="one task, one seed, few epochs")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    conditions = ["none", *(f"views {each}" for each in VIEWS), "live"]
    parser.add_argument("--conditions", nargs="+", choices=conditions, default=conditions)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args(arguments)
    if options.plot and not {"none", "live"} <= set(options.conditions):
        parser.error("--plot shows the conditions 'none' and 'live': put them into --conditions")
    if options.small:
        options.seeds, options.epochs, options.tasks = 1, 10, ["mnist 5-9"]
    results: dict[str, Any] = {
        "machine": machine(),
        "seeds": options.seeds,
        "epochs": options.epochs,
        "labelled": LABELLED,
    }
    print(" ".join(f"{key}={value}" for key, value in machine().items()))
    with keep_compiled():
        for name in options.tasks:
            results[name] = measure(name, options)
    for name in options.tasks:
        show(name, results[name])
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
