"""The arguments of `keras-freeze cache`."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def add_cache(commands: Any) -> None:
    """Adds the subcommand to those of `keras-freeze`."""
    cache = commands.add_parser(
        "cache",
        help="list, check or clean up the features in a directory",
        description="Looks after a directory in which BottleneckCache(directory=...) keeps "
        "features.",
    )
    actions = cache.add_subparsers(required=True, metavar="ACTION", dest="action")
    listing = actions.add_parser(
        "ls",
        help="list what a directory holds",
        description="Prints a table with a line for each fingerprint: the network, the layers "
        "whose outputs are kept, rows, bytes on disk, and when it was last used.",
    )
    check = actions.add_parser(
        "verify",
        help="read all rows and compare their checksums",
        description="Reads every row and compares it with its checksum. Changes nothing. The exit "
        "status is 1 if damage was found.",
    )
    clean = actions.add_parser(
        "gc",
        help="make room: remove what isn't needed, and merge small files",
        description="Removes what killed runs have left, damaged files and bad rows, and merges "
        "the files of many small runs. Nothing that a process uses is touched.",
    )
    for action in (listing, check, clean):
        action.add_argument("directory", type=Path, metavar="DIR", help="directory of the features")
        action.add_argument("--json", action="store_true", help="print JSON")
    clean.add_argument(
        "--max-bytes",
        metavar="SIZE",
        help="then remove the least recently used fingerprints until the directory takes at most "
        "that much, such as '5 GB'",
    )
    clean.add_argument(
        "--older-than",
        type=float,
        metavar="DAYS",
        help="remove fingerprints that weren't used for so many days",
    )
    clean.add_argument(
        "--dry-run", action="store_true", help="only show what would be removed and merged"
    )
