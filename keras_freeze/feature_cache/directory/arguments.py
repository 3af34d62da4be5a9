"""Checks the arguments `directory` and `data` of BottleneckCache."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from keras_freeze.errors import CacheError
from keras_freeze.feature_cache.directory.folder_names import REMOVED, fingerprints
from keras_freeze.feature_cache.directory.marks import IGNORE, TAG, is_marked

NEEDED = ("lmdb", "filelock")


def check_directory(directory: Any) -> Path | None:
    """Returns the directory of a cache, or None.

    Raises:
        CacheError: it is no path, holds other files, or LMDB isn't installed.
    """
    if directory is None:
        return None
    if not isinstance(directory, str | os.PathLike) or not str(directory).strip():
        raise CacheError(
            "`directory` must be None (features are kept in memory) or the path of a directory, "
            f"such as 'features'. Received: directory={directory!r}"
        )
    received = f"Received: directory={str(directory)!r}"
    try:
        path = Path(directory).expanduser()
    except (RuntimeError, TypeError) as error:  # there is no such home, or it consists of bytes
        raise CacheError(
            f"`directory` must be the path of a directory: {error}. {received}"
        ) from error
    if "\0" in str(path):
        raise CacheError(f"`directory` must be a path without zero bytes. {received}")
    if os.path.exists(path) and not os.path.isdir(path):
        raise CacheError(f"`directory` must be the path of a directory, not of a file. {received}")
    if os.path.isdir(path) and not is_marked(path) and _is_foreign(path):
        raise CacheError(
            "`directory` must be a new or empty directory, or one that a cache has made: this one "
            f"holds other files. Did you mean {str(path / 'features')!r}? {received}"
        )
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise CacheError(
            f"`directory` needs {' and '.join(missing)}: pip install 'keras_freeze[disk]'. "
            f"{received}"
        )
    return path


def _is_foreign(path: Path) -> bool:
    """Returns True if a directory without a whole mark holds anything that isn't of a cache.

    The mark may be cut off if the process that wrote it was killed, or damaged later.
    """
    try:
        names = {each.name for each in path.iterdir()}
        ours = {path.name for path in fingerprints(path)} | {TAG, IGNORE, ".opening.lock"}
    except OSError:
        return True
    is_begun = not names or TAG in names
    return not is_begun or not all(name in ours or name.startswith(REMOVED) for name in names)


def check_data(data: Any, views: int | None, directory: Path | None) -> str | None:
    """Returns the name of the data of recorded views, or None.

    Raises:
        CacheError: it is no text, or nothing uses it.
    """
    if data is None:
        return None
    received = f"Received: data={data!r}"
    if not isinstance(data, str) or not data.strip():
        raise CacheError(
            "`data` must be None or a name that you give the training data, such as 'photos-v1'. "
            f"{received}"
        )
    absent = [name for name, value in (("views", views), ("directory", directory)) if value is None]
    if absent:
        raise CacheError(
            "`data` names the data of views that are kept in a directory: pass "
            f"{' and '.join(f'`{name}`' for name in absent)} too, or leave it out. {received}"
        )
    return data
