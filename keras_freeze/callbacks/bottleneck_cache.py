"""BottleneckCache: computes the outputs of frozen layers once for each sample of the data."""

from __future__ import annotations

from typing import Any

from keras_freeze.errors import CacheError, names_unknown
from keras_freeze.feature_cache.cache_stats import CacheStats
from keras_freeze.feature_cache.directory.arguments import check_data, check_directory
from keras_freeze.feature_cache.storage.memory_limit_and_dtype import check_dtype, check_max_bytes
from keras_freeze.feature_cache.storage.number_of_views import check_shuffle, check_views
from keras_freeze.fit_engine.features_outside_fit import features_of
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
    is cached. One `CacheWarning` names the layer. `views` caches such training too.

    If the features can't be cached correctly, the run continues without the cache. One
    `CacheWarning` says why. Don't change arrays in place that you passed to `fit`; some of their
    rows are compared in each epoch.

    Args:
        base: only for a subclassed model, whose graph can't be read: the layer to cache. The cut is
            found in the smallest layer that holds `base` and whose graph can be read; without one,
            `base` is cached as a whole. None = the base of `FreezeBase` or `GradualUnfreeze`, else
            the layers that are already frozen, else the base that is found.
        views: number of training epochs to record, with their random augmentation. Later epochs
            train on the recordings in turn: the `e`-th epoch of this `fit` (from 0) on recording
            `e % views`, without reading data or running the frozen layers. What is random after the
            cut, such as a Dropout of the head, stays random. Validation data are cached exactly.
            `1` suits data that are the same in each epoch, as from image files. None = each row is
            recognized by its content, and each epoch reads the data.
        shuffle: whether the rows of a replayed epoch are permuted. `keras.utils.set_random_seed`
            decides how. False = in the order in which they were recorded.
        directory: a directory in which features are kept on disk: a later run, another process or
            the next trial of a search finds them, if it has the same frozen part and the same rows.
            They are found by a fingerprint of all that they depend on: the frozen layers, each
            byte of their weights, the cut, the versions of Keras and of the backend. So a new head
            finds them, and a changed base doesn't. Features that aren't there are computed from
            those of an earlier cut, if there are any. Training doesn't wait for the disk, and goes
            on if the disk fails. Needs `pip install 'keras_freeze[disk]'`, and a local disk. None =
            features are kept in memory until `fit` ends.
        data: a name that you give the training data, such as `"photos-v1"`, to keep views in
            `directory` too. Choose another one when the data, their augmentation outside of the
            model, or the targets change: views can't be told apart by their content, as each row
            differs in each epoch. None = views are kept in memory.
        dtype: dtype in which float features are kept. `"float16"` and `"bfloat16"` halve the memory
            and round the features (relative error up to 0.0005 and 0.004). None = their own dtype.
        max_bytes: memory limit of all rows: a number, a size such as `"2 GB"`, or `"auto"` = half
            of the memory that is free when `fit` begins. Rows beyond it are computed in each epoch.
            With `directory`, it limits what that takes on disk, and `"auto"` = all but 1 GB of the
            free disk: the features that were used least recently are removed to make room, but none
            that are in use. Rows beyond half of the free memory are then read in each epoch.
        verbose: 0 = silent, 1 = prints a line before the first pass and one at the end of each
            stage's first epoch.

    Attributes:
        stats: a `CacheStats` of the last `fit`, with `hits`, `misses`, `rows`, `bytes`,
            `base_passes`, `read`, `continued`, `cuts`, `views`, `replayed`, `pulled`, `grouped`,
            `enabled`, `validation_only`, `reason`.

    Raises:
        CacheError: `views`, `shuffle`, `directory`, `data`, `dtype` or `max_bytes` is invalid, or
            LMDB isn't installed.
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
        >>> cache = BottleneckCache(views=2, verbose=0)
        >>> history = model.fit(x, y, epochs=5, verbose=0, callbacks=[FreezeBase("base"), cache])
        >>> cache.stats.views, cache.stats.replayed, cache.stats.base_passes
        (2, 3, 2.0)
    """

    role = "cache"

    @names_unknown(CacheError)
    def __init__(
        self,
        base: Any = None,
        *,
        views: Any = None,
        shuffle: bool = True,
        directory: Any = None,
        data: Any = None,
        dtype: Any = None,
        max_bytes: Any = "auto",
        verbose: int = 1,
    ):
        super().__init__()
        self.base = base
        self.views = check_views(views)
        self.shuffle = check_shuffle(shuffle)
        self.directory = directory
        self.path = check_directory(directory)
        self.data = check_data(data, self.views, self.path)
        self.dtype = check_dtype(dtype)
        self.max_bytes = max_bytes
        self.byte_limit = check_max_bytes(max_bytes)
        self.verbose = verbose
        self.stats = CacheStats()

    def features(self, model: Any, data: Any, *, batch_size: int = 32) -> Any:
        """Returns the features of a data set: the outputs of the frozen layers of a model.

        Those in `directory` are read, others are computed in inference mode, without augmentation,
        and added to it. They can be plotted (t-SNE), searched (nearest neighbours), or given to
        scikit-learn. The cut is that of a `fit` in which the base is frozen. Of a base alone,
        freeze all layers (`base.trainable = False`) to get its outputs. Masks aren't returned.

        Args:
            model: the model, or a base alone. It needn't be compiled.
            data: arrays, or a dict or list of them, as `x` of `predict`; a `PyDataset`, a
                `tf.data.Dataset`, a `DataLoader`, or another iterable of batches. If a batch is a
                tuple, its first part is the inputs. Don't shuffle it.
            batch_size: rows of a batch, if `data` are arrays.

        Returns:
            An array (rows, ...) in the order of the data; if the outputs of several layers are
            cached, a dict of such arrays by the name of the layer.

        Raises:
            CacheError: the model has no frozen layers, or their outputs can't be cached.
            LayerMatchError: `base` isn't part of the model.

        Examples:
            >>> base = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)], name="base")
            >>> model = keras.Sequential([base, keras.layers.Dense(1)])
            >>> BottleneckCache("base").features(model, np.random.rand(6, 4)).shape
            (6, 8)
        """
        return features_of(self, model, data, batch_size)
