"""BottleneckCache: the frozen part of the model runs once for each image."""

from __future__ import annotations

from typing import Any

from keras_freeze.errors import CacheError, names_unknown
from keras_freeze.feature_cache.cache_stats import CacheStats
from keras_freeze.feature_cache.storage.memory_limit_and_dtype import check_dtype, check_max_bytes
from keras_freeze.fit_engine.first_and_last_callbacks import Participant


class BottleneckCache(Participant):
    """Computes the features of the frozen part once for each image and trains on them.

    The cut is found from what is trainable: the last tensors before which everything is frozen and
    deterministic, `GlobalAveragePooling` and the like included. With `GradualUnfreeze` it moves
    with the stages; the first pass computes what all of them need. Rows are found again by their
    content (a 128-bit hash), so shuffling, repeats and any kind of data are served, validation data
    too. Losses, metrics, the optimizer and a `train_step` of your own run as they are.

    What is random in training alone, such as `RandomFlip` before the base, leaves the validation to
    be cached: then training runs uncached, with one `CacheWarning` that names it.

    What can't be cached is never cached wrongly: then the run goes on uncached, with one
    `CacheWarning` that says why. Arrays that are passed to `fit` must not be changed in place
    meanwhile; a sample of their rows is compared in each epoch.

    Args:
        base: only for a subclassed model, whose graph can't be read: what is cached is the smallest
            layer of the model that holds this one and whose graph can be read, or else this one as
            a whole. None = the base of `FreezeBase` or `GradualUnfreeze`; without these, what is
            frozen already, or else the base that is found.
        dtype: in which float features are kept: `"float16"` or `"bfloat16"` take half the memory
            and round the features (relative error up to 0.0005 and 0.004); None = as they are.
        max_bytes: of memory for all rows: a number, a size such as `"2 GB"`, or `"auto"`: half of
            the memory that is free when `fit` begins. Rows beyond are computed in each epoch.
        verbose: 0 = silent, 1 = a line before the first pass and one at the end of each stage's
            first epoch.

    Attributes:
        stats: a `CacheStats` with what happened in the last `fit`: `hits`, `misses`, `rows`,
            `bytes`, `base_passes`, `cuts`, `enabled`, `validation_only`, `reason`.

    Raises:
        CacheError: `dtype` or `max_bytes` can't be meant.
        LayerMatchError: in `fit`, before the first step: `base` isn't part of the model.

    Examples:
        >>> base = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)], name="base")
        >>> model = keras.Sequential([base, keras.layers.Dense(1)])
        >>> model.compile("adam", "mse")
        >>> x, y = np.random.rand(8, 4), np.ones((8, 1))
        >>> cache = BottleneckCache(verbose=0)
        >>> history = model.fit(x, y, epochs=5, verbose=0, callbacks=[FreezeBase("base"), cache])
        >>> cache.stats.base_passes, cache.stats.hits, cache.stats.misses
        (1.0, 32, 8)
    """

    role = "cache"

    @names_unknown(CacheError)
    def __init__(
        self,
        base: Any = None,
        *,
        dtype: Any = None,
        max_bytes: Any = "auto",
        verbose: int = 1,
    ):
        super().__init__()
        self.base = base
        self.dtype = check_dtype(dtype)
        self.max_bytes = max_bytes
        self.byte_limit = check_max_bytes(max_bytes)
        self.verbose = verbose
        self.stats = CacheStats()
