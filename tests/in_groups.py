"""Makes steps run in groups wherever that is possible, however small the model."""

from __future__ import annotations

import pytest

from keras_freeze.feature_cache.checks import serving_cost
from keras_freeze.feature_cache.serving import group_sizes


def always_in_groups(patch: pytest.MonkeyPatch) -> None:
    """Lowers the thresholds by which the cache decides whether groups pay."""
    patch.setattr(serving_cost, "CLEAR", -1e9)
    patch.setattr(serving_cost, "MEASURED", 1)
    patch.setattr(group_sizes, "WORTH", 0.0)
    patch.setattr(group_sizes, "is_slower", lambda times: False)
