"""Statistics of BottleneckCache: cache hits, misses, memory, and why it is off."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class CacheStats:
    """Counts of one `fit`; each `fit` resets them. A row is one sample, such as an image.

    Attributes:
        hits: rows that were served from the cache.
        misses: rows whose features were computed, without repeats and padding.
        rows: rows in the cache now, or at the end of `fit`.
        bytes: memory that these rows take.
        base_passes: number of rows whose features were computed, divided by the number of distinct
            rows. 1.0 is optimal: each row went through the base once. With `views`, of training
            rows only: the number of epochs that were recorded.
            Features that were read from a directory weren't computed: 0.0 if all were.
        read: rows that an earlier run or another process left in the directory.
        continued: rows whose features were computed from those of an earlier cut, in the directory.
        cuts: for each cached stage, the names of the layers whose outputs are kept.
        views: recorded epochs, with `BottleneckCache(views=...)`.
        replayed: epochs that trained on a recording.
        pulled: training batches that were taken from the data that the user passed, with `views`.
        grouped: training and validation steps that ran in groups, several in one call.
        enabled: whether rows are served. False before the first `fit`, and after the cache stepped
            aside.
        validation_only: whether only validation rows are served, because a layer before the base
            is random in training. The counts above are of validation rows then.
        reason: why training isn't cached, or why nothing is; "" if both are cached.

    Examples:
        >>> BottleneckCache().stats.enabled
        False
    """

    hits: int = 0
    misses: int = 0
    rows: int = 0
    bytes: int = 0
    base_passes: float = 0.0
    read: int = 0
    continued: int = 0
    cuts: dict[int, list[str]] = field(default_factory=dict)
    views: int = 0
    replayed: int = 0
    pulled: int = 0
    grouped: int = 0
    enabled: bool = False
    validation_only: bool = False
    reason: str = ""
