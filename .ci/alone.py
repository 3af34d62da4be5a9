"""The installed wheel, with one backend and nothing else: one fit over two stages, from a file."""

import importlib.metadata
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np

import keras_freeze

base = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, name="block1")], name="base")
model = keras.Sequential([base, keras.layers.Dense(1)])
model.compile("adam", "mse")
cache = keras_freeze.BottleneckCache()
plan = Path(tempfile.mkdtemp(), "plan.json")
keras_freeze.Schedule({1: "block1"}).to_file(plan)
assert [row["trainable_params"] for row in keras_freeze.Schedule(plan).preview(model)] == [9, 49]
thaw = keras_freeze.GradualUnfreeze(plan)
callbacks = [keras_freeze.FreezeBase("base"), thaw, cache]
history = model.fit(np.ones((8, 4)), np.ones((8, 1)), epochs=2, verbose=0, callbacks=callbacks)
assert history.history["stage"] == [0, 1], history.history
assert history.history["trainable_params"] == [9, 49], history.history
assert cache.stats.base_passes == 1.0, cache.stats
others = {"tensorflow", "torch"} & set(sys.modules)
assert not others, others
assert "site-packages" in keras_freeze.__file__, keras_freeze.__file__
files = {str(path) for path in importlib.metadata.files("keras_freeze") or ()}
tops = {path.split("/")[0] for path in files if "bin/" not in path}
version = keras_freeze.__version__
assert tops == {"keras_freeze", f"keras_freeze-{version}.dist-info"}, tops
needed = {"keras_freeze/py.typed", "keras_freeze/schedule/schema.json"}
assert needed <= files, needed - files
assert not [path for path in files if "tests" in path], files
print(f"keras_freeze {keras_freeze.__version__} on {keras.backend.backend()} alone: fine")
