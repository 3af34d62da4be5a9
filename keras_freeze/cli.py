"""The command `keras-freeze`, with the subcommands `plan`, `demo` and `cache`."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import keras

from keras_freeze import Schedule
from keras_freeze.cache_command.parser import add_cache
from keras_freeze.cache_command.run import run_cache
from keras_freeze.demo import run_demo
from keras_freeze.errors import FreezeError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    Args:
        arguments: the command-line arguments; `None` = `sys.argv[1:]`.

    Returns:
        The exit status: 0, 1 if `cache verify` found damage, or 2 if an argument is invalid.
    """
    options = _parser().parse_args(arguments)
    try:
        if options.command == "plan":
            _plan(options)
        elif options.command == "cache":
            return run_cache(options)
        else:
            run_demo(seeds=options.seeds, output=options.output, schedule=options.schedule)
    except (FreezeError, ImportError) as error:
        print(f"keras-freeze: {error}", file=sys.stderr)
        return 2
    return 0


def _plan(options: argparse.Namespace) -> None:
    """Prints what a schedule will do to a saved model."""
    schedule = Schedule(options.schedule)
    if not options.model.exists():
        raise FreezeError(f"there is no model at {str(options.model)!r}.")
    table = schedule.preview(
        _load(options.model),
        epochs=options.epochs,
        steps_per_epoch=options.steps_per_epoch,
        data=options.images,
        order=options.order,
        views=options.views,
    )
    print(table)


def _load(path: Path) -> keras.Model:
    """Loads the model with its optimizer, whose rate and size the table shows."""
    try:
        with warnings.catch_warnings():
            # Keras warns if flags changed after the last step. The slots aren't needed here.
            warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
            return keras.models.load_model(path)
    except (ValueError, OSError) as error:
        raise FreezeError(f"{str(path)!r} can't be loaded: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keras-freeze", description="Transfer learning in one Keras fit."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    plan = commands.add_parser(
        "plan",
        help="show what a schedule will do to a saved model",
        description="Prints a table with the stages of a schedule on a model: epochs, layers, "
        "parameters, rates, memory, what a cache keeps, and the work that is left.",
    )
    plan.add_argument("model", type=Path, metavar="MODEL.keras", help="a saved Keras model")
    plan.add_argument("schedule", type=Path, metavar="PLAN.yaml", help="YAML, JSON or TOML")
    plan.add_argument("--epochs", type=int, help="number of epochs of the fit")
    plan.add_argument("--steps-per-epoch", type=int, help="number of batches in an epoch")
    plan.add_argument("--images", type=int, help="number of training and validation images")
    plan.add_argument(
        "--order", default="stage", help="'stage', or 'memory' for the largest optimizer first"
    )
    plan.add_argument("--views", type=int, help="number of epochs that a cache records")
    demo = commands.add_parser(
        "demo",
        help="one fit beside two fits, features by hand and training from scratch",
        description="Pretrains a base on MNIST and transfers it to other handwritten digits with "
        "few labels: in one fit, by Keras' two-fit recipe, with bottleneck features by hand, and "
        "from scratch. Prints a table, writes a plot.",
    )
    demo.add_argument(
        "--schedule", type=Path, help="file with the schedule of the one fit (default: built in)"
    )
    demo.add_argument("--seeds", type=int, default=3, help="number of runs (default: 3)")
    demo.add_argument(
        "--output",
        type=Path,
        default=Path("keras_freeze_demo.png"),
        help="path of the plot (default: keras_freeze_demo.png)",
    )
    add_cache(commands)
    return parser
