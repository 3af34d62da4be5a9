"""Runs `keras-freeze cache ls`, `verify` and `gc`. LMDB is imported when it is needed."""

from __future__ import annotations

import argparse
import functools
import json
import math
import operator
import os
from pathlib import Path
from typing import Any

from keras_freeze.cache_command import as_json, as_text
from keras_freeze.cache_command.find_directory import checked
from keras_freeze.display.fit_messages import readable
from keras_freeze.errors import CacheError
from keras_freeze.feature_cache.directory import marks
from keras_freeze.feature_cache.storage.memory_limit_and_dtype import check_max_bytes

DAY = 86400.0  # seconds


def run_cache(options: argparse.Namespace) -> int:
    """Runs the subcommand.

    Args:
        options: what its parser has read.

    Returns:
        The exit status: 0, or 1 if damage was found.

    Raises:
        CacheError: an argument is invalid, or the directory can't be read or written to.
    """
    directory = checked(options.directory.expanduser())
    try:
        if options.action == "ls":
            return _ls(directory, is_json=options.json)
        if options.action == "verify":
            return _verify(directory, is_json=options.json)
        return _gc(directory, options)
    except OSError as error:
        raise CacheError(f"{str(directory)!r}: {error.strerror or error}.") from error


def _ls(directory: Path, *, is_json: bool) -> int:
    from keras_freeze.feature_cache.directory import contents, room

    found = [
        (each, contents.listed_rows(each.files)) for each in contents.fingerprints_in(directory)
    ]
    if is_json:
        _print_json([as_json.listed(*each) for each in found])
    else:
        left = sum(map(room.bytes_on_disk, contents.left_behind(directory)))
        print(as_text.listed(directory, found, left))
    return 0


def _verify(directory: Path, *, is_json: bool) -> int:
    from keras_freeze.feature_cache.directory.contents import Rows, checked_rows, fingerprints_in

    results = []
    for each in fingerprints_in(directory):
        rows = functools.reduce(operator.or_, map(checked_rows, each.files), Rows())
        results.append(as_json.verified(each, rows))
        if not is_json:
            print(as_text.verified(results[-1]), flush=True)  # the next one may take minutes
    if is_json:
        _print_json(results)
    else:
        print(as_text.verdict(directory, results))
    return 0 if all(result["is_whole"] for result in results) else 1


def _gc(directory: Path, options: argparse.Namespace) -> int:
    from keras_freeze.feature_cache.directory.clean_up import clean_up

    limit = None if options.max_bytes is None else check_max_bytes(options.max_bytes)
    days = options.older_than
    if days is not None and not 0 <= days < math.inf:
        raise CacheError(
            f"`--older-than` must be a number of days from 0 on. Received: --older-than={days:g}"
        )
    kind = marks.file_system(directory)
    if marks.is_remote(kind):
        raise CacheError(
            f"{str(directory)!r} is on a network file system ({kind}), where it can't be told "
            "whether another computer uses it: run the command on the computer that has the disk."
        )
    if not os.access(directory, os.W_OK):
        raise CacheError(f"{str(directory)!r} can't be written to.")
    done = clean_up(
        directory,
        limit=limit,
        unused_for=None if days is None else days * DAY,
        dry_run=options.dry_run,
    )
    if limit is not None and done.nbytes > limit:
        done.problems.append(
            f"{readable(done.nbytes)} is more than {readable(limit)}, but nothing else may go"
        )
    if options.json:
        _print_json(as_json.cleaned(done, dry_run=options.dry_run))
    else:
        print(as_text.cleaned(directory, done, dry_run=options.dry_run))
    return 0


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))
