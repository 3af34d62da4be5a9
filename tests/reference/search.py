"""The number of hypothesis examples in tests that trace and train models."""

from __future__ import annotations

from hypothesis import settings


def examples(count: int) -> settings:
    """Uses `count` of hypothesis' usual 100, scaled by the profile, or all of them in a search."""
    if not settings.default.derandomize:
        return settings()
    return settings(max_examples=max(2, count * settings.default.max_examples // 100))
