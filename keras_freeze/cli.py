"""The command `keras-freeze`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from keras_freeze.demo import run_demo
from keras_freeze.errors import FreezeError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    Args:
        arguments: the words behind the command's name; `None` = those of the process.

    Returns:
        The exit status: 0, or 2 where an argument can't be used.
    """
    options = _parser().parse_args(arguments)
    try:
        run_demo(seeds=options.seeds, output=options.output)
    except (FreezeError, ImportError) as error:
        print(f"keras-freeze: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keras-freeze", description="Transfer learning in one Keras fit."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="transfer a small base from the digits 0-4 to 5-9, beside two fits and from scratch",
        description="Pretrains a small base on handwritten digits 0-4 and transfers it to 5-9, in "
        "one fit, by Keras' two-fit recipe, and from scratch. Prints a table, writes a plot.",
    )
    demo.add_argument("--seeds", type=int, default=3, help="how many times to run (default: 3)")
    demo.add_argument(
        "--output",
        type=Path,
        default=Path("keras_freeze_demo.png"),
        help="where to write the plot (default: keras_freeze_demo.png)",
    )
    return parser
