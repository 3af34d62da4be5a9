"""What a cache did."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class CacheStats:
    """Counts of one `fit`; each `fit` begins anew.

    Attributes:
        hits: rows that were served from the cache.
        misses: rows whose features were computed, repeats and padding not counted.
        rows: rows that are kept now, or were when `fit` ended.
        bytes: of memory for these rows.
        base_passes: distinct images whose features were computed (each time that they were), over
            distinct images seen. 1.0 is the least there can be.
        cuts: for each stage that was cached, the names of the layers whose outputs are kept.
        enabled: whether rows are served; False before the first `fit`, and once the cache has
            stepped aside.
        validation_only: whether only the rows of the validation are, so that the counts above are
            of these alone: something in front of the base is random in training.
        reason: why training isn't served, or nothing is; else "".

    Examples:
        >>> BottleneckCache().stats.enabled
        False
    """

    hits: int = 0
    misses: int = 0
    rows: int = 0
    bytes: int = 0
    base_passes: float = 0.0
    cuts: dict[int, list[str]] = field(default_factory=dict)
    enabled: bool = False
    validation_only: bool = False
    reason: str = ""
