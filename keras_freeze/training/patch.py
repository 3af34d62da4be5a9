"""Sets an attribute of a Keras object for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_MISSING = object()


@contextmanager
def attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """While this is open, `owner.name` is `value`; then all is as it was, whatever happened.

    The attribute is set on the object itself, past Keras' tracking of variables and layers.
    """
    before = vars(owner).get(name, _MISSING)
    object.__setattr__(owner, name, value)
    try:
        yield
    finally:
        if before is _MISSING:
            object.__delattr__(owner, name)
        else:
            object.__setattr__(owner, name, before)
