"""Checks the arguments `views` and `shuffle` of BottleneckCache."""

from __future__ import annotations

import numbers
from typing import Any

from keras_freeze.errors import CacheError


def check_views(views: Any) -> int | None:
    """Returns the number of epochs to record; None = none.

    Raises:
        CacheError: `views` is neither None nor an integer of 1 or more.
    """
    if views is None:
        return None
    if isinstance(views, numbers.Integral) and not isinstance(views, bool) and int(views) >= 1:
        return int(views)
    raise CacheError(
        "`views` must be None (no recording) or the number of epochs to record, an integer of 1 or "
        f"more, such as 3. Received: views={views!r}"
    )


def check_shuffle(shuffle: Any) -> bool:
    """Returns whether replayed rows are permuted.

    Raises:
        CacheError: `shuffle` is neither True nor False.
    """
    if isinstance(shuffle, bool):
        return shuffle
    raise CacheError(
        "`shuffle` must be True (a replayed epoch's rows are permuted) or False (as recorded). "
        f"Received: shuffle={shuffle!r}"
    )
