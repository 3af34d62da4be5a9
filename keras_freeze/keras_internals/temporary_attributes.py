"""Sets attributes of Keras objects for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

Patch = tuple[Any, str, Any]  # owner, name of the attribute, value

_MISSING = object()


@contextmanager
def attributes(patches: Sequence[Patch]) -> Iterator[None]:
    """While this is open, each `owner.name` is its value; then all is as it was, come what may.

    The attribute is set on the object itself, past Keras' tracking of variables and layers. One
    plain loop: this is entered at each step.
    """
    before = [owner.__dict__.get(name, _MISSING) for owner, name, _ in patches]
    try:
        for owner, name, value in patches:
            object.__setattr__(owner, name, value)
        yield
    finally:
        _put_back(patches, before)


def _put_back(patches: Sequence[Patch], before: list[Any]) -> None:
    """Puts everything back, also if Ctrl-C comes in the middle of it."""
    interrupt: KeyboardInterrupt | None = None
    done = False
    while not done:
        try:
            for (owner, name, _), old in zip(patches, before, strict=True):
                if old is _MISSING:
                    owner.__dict__.pop(name, None)
                else:
                    object.__setattr__(owner, name, old)
            done = True
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt


def attribute(owner: Any, name: str, value: Any) -> AbstractContextManager[None]:
    """`attributes` for a single one."""
    return attributes([(owner, name, value)])
