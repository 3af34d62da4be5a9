"""Transfer learning in one Keras `fit`: feature extraction, then gradual unfreezing."""

from keras_freeze.callbacks.backup_and_restore import BackupAndRestore
from keras_freeze.callbacks.bottleneck_cache import BottleneckCache
from keras_freeze.callbacks.freeze_base import FreezeBase
from keras_freeze.callbacks.gradual_unfreeze import GradualUnfreeze
from keras_freeze.callbacks.per_stage import PerStage
from keras_freeze.callbacks.recompile_on_trainable_change import RecompileOnTrainableChange
from keras_freeze.display.plot_history import plot_history
from keras_freeze.errors import (
    CacheError,
    CacheWarning,
    FreezeError,
    LayerMatchError,
    ScheduleError,
)
from keras_freeze.graph.selectors import select_layers
from keras_freeze.keras_internals.trainable_flags import freeze, unfreeze
from keras_freeze.models.transfer_model import TransferModel
from keras_freeze.schedule.plateau import Plateau
from keras_freeze.schedule.schedule import Schedule
from keras_freeze.schedule.stage import Stage

__all__ = [
    "BackupAndRestore",
    "BottleneckCache",
    "CacheError",
    "CacheWarning",
    "FreezeBase",
    "FreezeError",
    "GradualUnfreeze",
    "LayerMatchError",
    "PerStage",
    "Plateau",
    "RecompileOnTrainableChange",
    "Schedule",
    "ScheduleError",
    "Stage",
    "TransferModel",
    "freeze",
    "plot_history",
    "select_layers",
    "unfreeze",
]
__version__ = "0.1.0"
