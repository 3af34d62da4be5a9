"""What the subcommands print for people."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_freeze.display.fit_messages import readable, shorten

if TYPE_CHECKING:  # they need LMDB
    from keras_freeze.feature_cache.directory.clean_up import CleanUp
    from keras_freeze.feature_cache.directory.contents import Fingerprint

DIGITS = 12  # of a fingerprint that are shown
NUMBERS = ("rows", "on disk")  # columns that are aligned to the right
ROOM = 30  # characters for the names of layers
DAMAGE = ("bad_rows", "bad_blocks", "damaged_files")


def listed(directory: Path, found: Sequence[tuple[Fingerprint, int]], left: int) -> str:
    """Returns the table of `ls`, and what else there is to say.

    Args:
        directory: the directory.
        found: its fingerprints, each with its number of rows.
        left: bytes that killed processes have left.
    """
    lines = [f"{directory} holds no features."]
    if found:
        rows = counted(sum(rows for _, rows in found), "row")
        size = readable(sum(each.nbytes for each, _ in found))
        total = f"{counted(len(found), 'fingerprint')}, {rows}, {size}"
        lines = [*_table([_cells(each, rows) for each, rows in found]), total]
    command = f"`keras-freeze cache gc {shlex.quote(str(directory))}`"
    damaged = sum(file.state == "damaged" for each, _ in found for file in each.files)
    if damaged:
        lines.append(f"{counted(damaged, 'damaged file')}: {command} removes what is damaged.")
    if left:
        lines.append(f"Killed processes have left {readable(left)}: {command} removes it.")
    return "\n".join(lines)


def _cells(fingerprint: Fingerprint, rows: int) -> dict[str, str]:
    about = fingerprint.about
    return {
        "fingerprint": fingerprint.path.name[:DIGITS],
        "network": about.network if about else "?",
        "cut": shorten(about.cut, ROOM) if about and about.cut else "?",
        "features": ", ".join(about.features) if about else "?",
        "data": (about.data or "") if about else "",
        "rows": f"{rows:,}",
        "on disk": readable(fingerprint.nbytes),
        "last use": time.strftime("%Y-%m-%d %H:%M", time.localtime(fingerprint.last_use)),
        "in use": "yes" if fingerprint.is_used else "no",
    }


def _table(rows: Sequence[dict[str, str]]) -> list[str]:
    """Returns rows in aligned columns. The names of data are shown only if there are any."""
    names = [name for name in rows[0] if name != "data" or any(row["data"] for row in rows)]
    cells = [{name: name for name in names}, *rows]
    widths = {name: max(len(row[name]) for row in cells) for name in names}
    lines = ["  ".join(_aligned(name, row[name], widths[name]) for name in names) for row in cells]
    rule = "  ".join("-" * width for width in widths.values())
    return [line.rstrip() for line in [lines[0], rule, *lines[1:], rule]]


def _aligned(name: str, cell: str, width: int) -> str:
    return cell.rjust(width) if name in NUMBERS else cell.ljust(width)


def verified(result: dict[str, Any]) -> str:
    """Returns what `verify` has found in a fingerprint, from what it prints as JSON."""
    parts = [counted(result["whole_rows"], "whole row")]
    for name in ("bad_rows", "bad_blocks", "damaged_files", "unreadable_files"):
        count = result[name] if isinstance(result[name], int) else len(result[name])
        parts += [counted(count, name[:-1].replace("_", " "))] if count else []
    name = f"{result['fingerprint'][:DIGITS]}  {result['network'] or '?'}"
    lines = [f"{name}: {', '.join(parts)}"]
    lines += [f"  damaged: {path}" for path in result["damaged_files"]]
    lines += [f"  unreadable: {path}" for path in result["unreadable_files"]]
    return "\n".join(lines)


def verdict(directory: Path, results: Sequence[dict[str, Any]]) -> str:
    """Returns what all that `verify` has found means, and what to do."""
    if not results:
        return f"{directory} holds no features."
    if all(result["is_whole"] for result in results):
        return "All rows are whole."
    lines = []
    if any(result[name] for result in results for name in DAMAGE):
        command = f"`keras-freeze cache gc {shlex.quote(str(directory))}`"
        lines.append(
            "Damage was found. The next run computes these rows again; "
            f"{command} removes damaged files and bad rows."
        )
    if any(result["unreadable_files"] for result in results):
        lines.append(
            "An unreadable file may be whole: check its permissions, and whether another version "
            "of LMDB has written it."
        )
    return "\n".join(lines)


def cleaned(directory: Path, done: CleanUp, *, dry_run: bool) -> str:
    """Returns what `gc` has done, or would do."""
    remove, rewrite, free, takes = (
        ("would remove", "would rewrite", "Would free", "would take")
        if dry_run
        else ("removed", "rewrote", "Freed", "takes")
    )
    lines = [f"{remove} {each.path} ({each.why}, {readable(each.nbytes)})" for each in done.removed]
    for each in done.rewritten:
        bad = f", without what is damaged ({each.bad:,})" if each.bad else ""
        what = f"{counted(each.files, 'file')} of {each.fingerprint.name[:DIGITS]}"
        lines.append(f"{rewrite} {what} as one{bad}")
    if done.used:
        names = ", ".join(path.name[:DIGITS] for path in done.used)
        lines.append(f"in use, so left as it is: {names}")
    lines += [f"note: {problem}." for problem in done.problems]
    size = f"{directory} {takes} {readable(done.nbytes)}."
    if done.removed or done.rewritten:
        return "\n".join([*lines, f"{free} {readable(done.freed)}; {size}"])
    return "\n".join([*lines, f"There is nothing to remove; {size}"])


def counted(count: int, what: str) -> str:
    """Returns a number with a noun, such as "2 rows"."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
