"""The type of the `on_<backend>` modules: the functions that other modules call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from keras_freeze.feature_cache.storage.row_hashes import Key

Array = np.ndarray[Any, Any]


class Backend(Protocol):
    """The functions of `on_jax`, `on_tensorflow` and `on_torch` that rows and checks use."""

    def to_numpy(self, tensor: Any) -> Array: ...
    def to_tensor(self, array: Array) -> Any: ...
    def wait(self, tensors: Any) -> None: ...
    def unshared(self, tensor: Any) -> Any: ...
    def fingerprints(self, variables: list[Any]) -> Callable[[], list[Key]]: ...
    def is_faster_together(self, model: Any) -> bool: ...
