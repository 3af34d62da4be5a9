"""How many examples hypothesis draws where each one traces and trains models."""

from __future__ import annotations

from hypothesis import settings


def examples(count: int) -> settings:
    """The same `count` examples at every run; in a search, as many as the profile says."""
    return settings(max_examples=count) if settings.default.derandomize else settings()
