"""BottleneckCache: computes the outputs of frozen layers once for each sample of the data."""

from __future__ import annotations

from typing import Any

from keras_freeze.errors import CacheError, names_unknown
from keras_freeze.feature_cache.cache_stats import CacheStats
from keras_freeze.feature_cache.storage.memory_limit_and_dtype import check_dtype, check_max_bytes
from keras_freeze.fit_engine.first_and_last_callbacks import PublicCallback


class BottleneckCache(PublicCallback):
    """Computes the features of the frozen layers once for each row and trains on them.

    A row is one sample of the data, such as an image or a text. The features are the outputs of the
    last layer before which all layers are frozen and deterministic, including layers such as
    `GlobalAveragePooling`. With `GradualUnfreeze`, this place (the cut) moves with the stages; the
    first pass computes the features for all of them. The cache recognizes a row by a 128-bit hash
    of its content, so it works with shuffling, repeats and any kind of data. Validation data are
    cached too. Losses, metrics, the optimizer and a custom `train_step` run unchanged.

    If a layer is random in training only, such as a `RandomFlip` before the base, only validation
    is cached. One `CacheWarning` names the layer.

    If the features can't be cached correctly, the run continues without the cache. One
    `CacheWarning` says why. Don't change arrays in place that you passed to `fit`; some of their
    rows are compared in each epoch.

    Args:
        base: only for a subclassed model, whose graph can't be read: the layer to cache. The cut is
            found in the smallest layer that holds `base` and whose graph can be read; without one,
            `base` is cached as a whole. None = the base of `FreezeBase` or `GradualUnfreeze`, else
            the layers that are already frozen, else the base that is found.
        dtype: dtype in which float features are kept. `"float16"` and `"bfloat16"` halve the memory
            and round the features (relative error up to 0.0005 and 0.004). None = their own dtype.
        max_bytes: memory limit of all rows: a number, a size such as `"2 GB"`, or `"auto"` = half
            of the memory that is free when `fit` begins. Rows beyond it are computed in each epoch.
        verbose: 0 = silent, 1 = prints a line before the first pass and one at the end of each
            stage's first epoch.

    Attributes:
        stats: a `CacheStats` of the last `fit`, with `hits`, `misses`, `rows`, `bytes`,
            `base_passes`, `cuts`, `grouped`, `enabled`, `validation_only`, `reason`.

    Raises:
        CacheError: `dtype` or `max_bytes` is invalid.
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
