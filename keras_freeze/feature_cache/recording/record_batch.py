"""Records a batch as a step takes it, and makes it again from a recording."""

from __future__ import annotations

from typing import Any

import keras

from keras_freeze.feature_cache.cutting.graph_to_cut import CachedModel
from keras_freeze.feature_cache.not_cacheable import NotCacheableError
from keras_freeze.feature_cache.recording.batch_layout import BatchLayout, Columns
from keras_freeze.feature_cache.recording.view import View
from keras_freeze.feature_cache.serving.batch_rows import specs_of
from keras_freeze.feature_cache.serving.run_prefix import features_as_arrays
from keras_freeze.feature_cache.serving.stage_server import (
    StageServer,
    has_own_steps,
    positions_of_inputs,
)
from keras_freeze.feature_cache.storage.row_chunks import Array

Batch = Any
SPARSE = ("RaggedTensor", "SparseTensor", "BCOO")


class BatchRecorder:
    """Records batches, and makes batches from recordings.

    Args:
        cached_model: the model.
        backend: the module of the backend.

    Attributes:
        given: the places of the inputs that layers after the cut read, in this stage or a later
            one; None = all.
        num_batches: number of batches in an epoch, if known.
    """

    def __init__(self, cached_model: CachedModel, backend: Any):
        self.cached_model = cached_model
        self.backend = backend
        self.has_own_steps = has_own_steps(cached_model.model)
        self.given: tuple[int, ...] | None = None
        self.num_batches: int | None = None

    def positions(self, x: Any) -> list[int]:
        """Returns the positions of the tensors in `x` that are recorded."""
        return positions_of_inputs(self.cached_model, x, None if self.has_own_steps else self.given)

    def record(
        self, served: StageServer, view: View, state: Any, batch: Batch
    ) -> tuple[Any, Batch]:
        """Runs the frozen part on a batch and records what it gives.

        Args:
            served: serves the running stage.
            view: the recording of the running epoch.
            state: the arguments of the step before the data.
            batch: a batch as Keras yields it.

        Returns:
            The state with the random draws of the frozen part, and (features, inputs, targets,
            sample weights) for the step.

        Raises:
            NotCacheableError: the batch can't be recorded.
        """
        x, y, weights = keras.utils.unpack_x_y_sample_weight(batch)
        others = self._others(view, batch)  # first: an error must come before random draws
        tensors, state = served.recorded(state, x)
        flat, rows = keras.tree.flatten(x), rows_of(batch)
        features = features_as_arrays(tensors, rows, self.backend)
        view.add(features, others, rows)
        served.override.show(*view.inputs)
        wanted = served.part.columns
        ready = {
            name: view.tensor(name, array)
            for name, array in features.items()
            if name.split(".")[0] in wanted
        }
        inputs = {str(place): flat[place] for place in served.shown(x)}
        return state, (ready, inputs, y, weights)

    def record_inputs(self, view: View, batch: Batch) -> None:
        """Records a batch of which nothing goes through frozen layers."""
        view.add({}, self._others(view, batch), rows_of(batch))

    def _others(self, view: View, batch: Batch) -> Columns:
        """Returns the inputs, targets and sample weights that are kept, as arrays."""
        x, y, weights = keras.utils.unpack_x_y_sample_weight(batch)
        flat, rows = keras.tree.flatten(x), rows_of(batch)
        for leaf in flat:
            _check_dense(leaf, rows)
        inputs = {place: flat[place] for place in self.positions(x)}
        if view.layout is None:
            view.expect(self.num_batches, rows)
            view.layout = BatchLayout(inputs, (y, weights), self.backend)
            view.inputs = keras.tree.map_structure(lambda _: None, x), specs_of(flat)
        return view.layout.columns(inputs, (y, weights), rows)

    def recorded(self, served: StageServer, view: View, rows: Array) -> Batch:
        """Returns (features, inputs, targets, sample weights) of recorded rows, for a step."""
        assert view.layout is not None
        arrays = view.others_of(rows)
        y, weights = view.layout.others_of(arrays)
        inputs = view.layout.inputs_of(arrays, served.shown(view.inputs[0]))
        features = view.features_of(rows, served.part.columns)
        return features, {str(place): leaf for place, leaf in inputs.items()}, y, weights


def rows_of(batch: Batch) -> int:
    """Returns the number of rows of a batch; 0 if its inputs have no axis for them."""
    x, *_ = keras.utils.unpack_x_y_sample_weight(batch)
    shape = getattr(next(iter(keras.tree.flatten(x)), None), "shape", None)
    return int(shape[0]) if shape is not None and len(shape) and shape[0] is not None else 0


def _check_dense(leaf: Any, rows: int) -> None:
    """Raises if an input isn't a dense tensor of numbers with a row for each sample."""
    is_dense = type(leaf).__name__ not in SPARSE and hasattr(leaf, "dtype")
    name = str(getattr(leaf.dtype, "name", leaf.dtype)).split(".")[-1] if is_dense else ""
    is_number = name.startswith(("int", "uint", "float", "bfloat", "bool"))
    if not is_number or not len(leaf.shape) or leaf.shape[0] != rows:
        what = f"{name} of shape {tuple(leaf.shape)}" if is_dense else type(leaf).__name__
        raise NotCacheableError(
            f"an input of a batch can't be recorded: {what}",
            "pass dense arrays of numbers with a row for each sample",
        )


def whole_batch(view: View, rows: Array) -> Batch:
    """Returns a batch of recorded rows as Keras would yield it. All its inputs are recorded."""
    assert view.layout is not None
    arrays = view.others_of(rows)
    y, weights = view.layout.others_of(arrays)
    structure, shapes = view.inputs
    inputs = view.layout.inputs_of(arrays, range(len(shapes)))
    x = keras.tree.pack_sequence_as(structure, list(inputs.values()))
    return keras.utils.pack_x_y_sample_weight(x, y, weights)
