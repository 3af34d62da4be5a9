"""What the subcommands print with `--json`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # they need LMDB
    from keras_freeze.feature_cache.directory.clean_up import CleanUp
    from keras_freeze.feature_cache.directory.contents import Fingerprint, Rows


def listed(fingerprint: Fingerprint, rows: int) -> dict[str, Any]:
    """Returns what `ls` tells of a fingerprint with so many rows."""
    about = fingerprint.about
    return {
        "fingerprint": fingerprint.path.name,
        "network": about.network if about else None,
        "cut": about.cut if about else [],
        "features": about.features if about else [],
        "data": about.data if about else None,
        "made_with": about.made_with if about else {},
        "made": _iso(about.made) if about else None,
        "last_use": _iso(fingerprint.last_use),
        "in_use": fingerprint.is_used,
        "rows": rows,
        "bytes": fingerprint.nbytes,
        "files": len(fingerprint.files),
        "damaged_files": sum(file.state == "damaged" for file in fingerprint.files),
    }


def _iso(seconds: float) -> str:
    """Returns a time in UTC, such as "2026-01-31T12:00:00Z"."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def verified(fingerprint: Fingerprint, rows: Rows) -> dict[str, Any]:
    """Returns what `verify` has found in a fingerprint."""
    return {
        "fingerprint": fingerprint.path.name,
        "network": fingerprint.about.network if fingerprint.about else None,
        "whole_rows": len(rows.keys),
        "bad_rows": rows.bad,
        "bad_blocks": rows.bad_blocks,
        "damaged_files": [str(path / "data.mdb") for path in rows.damaged],
        "unreadable_files": [str(path / "data.mdb") for path in rows.unusable],
        "is_whole": rows.is_whole and not rows.unusable,
    }


def cleaned(done: CleanUp, *, dry_run: bool) -> dict[str, Any]:
    """Returns what `gc` has done, or would do."""
    return {
        "dry_run": dry_run,
        "removed": [
            {"path": str(each.path), "why": each.why, "bytes": each.nbytes} for each in done.removed
        ],
        "rewritten": [
            {
                "fingerprint": each.fingerprint.name,
                "files": each.files,
                "bad_rows": each.bad,
                "rows": each.rows,
                "freed_bytes": each.nbytes,
            }
            for each in done.rewritten
        ],
        "in_use": [path.name for path in done.used],
        "problems": done.problems,
        "freed_bytes": done.freed,
        "bytes": done.nbytes,
    }
