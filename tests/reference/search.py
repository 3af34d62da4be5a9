"""How many examples hypothesis draws where each one traces and trains models."""

from __future__ import annotations

from hypothesis import settings


def examples(count: int) -> settings:
    """Of hypothesis' usual 100, `count`; as many fewer as the profile says, or all in a search."""
    if not settings.default.derandomize:
        return settings()
    return settings(max_examples=max(2, count * settings.default.max_examples // 100))
