"""Sets attributes of Keras objects within a context, and restores them at its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

Patch = tuple[Any, str, Any]  # owner, name of the attribute, value

_MISSING = object()


@contextmanager
def attributes(patches: Sequence[Patch]) -> Iterator[None]:
    """Sets each `owner.name` to its value within the context; restores all of them at its end.

    The attribute is set on the object directly, so Keras doesn't track the value. The code is a
    plain loop for speed, as it runs at each training step.
    """
    before = [owner.__dict__.get(name, _MISSING) for owner, name, _ in patches]
    try:
        for owner, name, value in patches:
            object.__setattr__(owner, name, value)
        yield
    finally:
        _put_back(patches, before)


def _put_back(patches: Sequence[Patch], before: list[Any]) -> None:
    """Restores the attributes, even if it is interrupted by Ctrl-C."""
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
    """Does what `attributes` does, for a single attribute."""
    return attributes([(owner, name, value)])
