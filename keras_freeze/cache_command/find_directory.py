"""Checks that a path is a directory of features; if it isn't, names one that is near."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from keras_freeze.errors import CacheError, nearest
from keras_freeze.feature_cache.directory.arguments import NEEDED
from keras_freeze.feature_cache.directory.marks import is_marked


def checked(path: Path) -> Path:
    """Returns the path if it is a directory of features.

    Raises:
        CacheError: it isn't, or LMDB isn't installed.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise CacheError(
            f"features on disk need {' and '.join(missing)}: pip install 'keras_freeze[disk]'."
        )
    if not path.exists():
        raise CacheError(f"there is no directory {str(path)!r}.{_hint(path)}")
    if not path.is_dir():
        raise CacheError(f"{str(path)!r} is a file, not a directory of features.{_hint(path)}")
    if not is_marked(path):
        raise CacheError(
            f"{str(path)!r} isn't a directory that BottleneckCache(directory=...) has made."
            f"{_hint(path)}"
        )
    return path


def _hint(path: Path) -> str:
    """Returns " Did you mean 'photos/features'?" if a directory of features is near."""
    beside = {each.name: each for each in _folders(path.parent) if is_marked(each)}
    near = [
        *(each for each in _folders(path) if is_marked(each)),
        *(each for each in path.parents if is_marked(each)),
        *(beside[name] for name in nearest(path.name, beside)),
    ]
    return f" Did you mean {str(near[0])!r}?" if near else ""


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(each for each in path.iterdir() if each.is_dir())
    except OSError:
        return []
