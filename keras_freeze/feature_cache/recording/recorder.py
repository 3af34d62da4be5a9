"""Follows the stages of a `fit` whose first epochs are recorded and then replayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from keras_freeze.feature_cache.cache_stats import CacheStats
from keras_freeze.feature_cache.checks.consistency_checks import ConsistencyChecks
from keras_freeze.feature_cache.cutting.choose_cached_part import ChosenCut, choose
from keras_freeze.feature_cache.cutting.graph_to_cut import CachedModel
from keras_freeze.feature_cache.cutting.prefix_and_tail import GraphPrefix, LayerPrefix
from keras_freeze.feature_cache.cutting.tensors_to_cache import Flags
from keras_freeze.feature_cache.not_cacheable import NotCacheableError, nothing_frozen, tell
from keras_freeze.feature_cache.recording.record_batch import BatchRecorder
from keras_freeze.feature_cache.recording.recordings import Recordings
from keras_freeze.feature_cache.recording.training_steps import TrainingSteps
from keras_freeze.feature_cache.serving.stage_server import StageServer

Plain = Callable[[], Callable[..., Any]]


class Recorder:
    """The training of one `fit`: its first epochs are recorded, the later ones replayed.

    A recorded epoch runs as ever, with the user's data and random augmentation. What the layers
    after the cut take is kept. A replayed epoch runs neither the data pipeline nor the frozen part.

    Args:
        cached_model: the model.
        stats: statistics that the recorder updates.
        views: how many epochs to record.
        shuffle: whether the rows of a replayed epoch are permuted.
        dtype: dtype in which float features are kept; None = their own.
        backend: the module of the backend.
        room: returns how many bytes all views may take.
        stored: keeps views in a directory; None = there is none.

    Attributes:
        is_on: False once training runs without recordings.
    """

    def __init__(
        self,
        cached_model: CachedModel,
        stats: CacheStats,
        *,
        views: int,
        shuffle: bool,
        dtype: Any,
        backend: Any,
        room: Callable[[], float],
        stored: Any = None,
    ):
        self.stored = stored
        self.cached_model = cached_model
        self.stats = stats
        self.dtype = dtype
        self.backend = backend
        self.checks = ConsistencyChecks(backend)
        self.batches = BatchRecorder(cached_model, backend)
        self.recordings = Recordings(stats, views, shuffle, backend, room, stored)
        model = cached_model.model
        self.steps = TrainingSteps(self.recordings, self.batches, stats, model, backend, self.stop)
        self.part: GraphPrefix | LayerPrefix | None = None  # the last part that was served
        self.is_on = True
        self.stage = 0
        self.home: dict[str, Any] = {"stage": 0, "folder": None}  # where the views are kept
        self.layers: list[Any] = []  # of the prefix
        self.epoch = self.changed_at = 0  # epochs that have begun; when frozen weights changed

    @property
    def served(self) -> StageServer | None:
        """Serves the running stage; None if nothing is frozen in it, or nothing is recorded."""
        return self.steps.served

    def follow(self, stage: int, now: Flags, later: Sequence[Flags]) -> None:
        """Moves the cut to its place in a stage; the arguments are those of `FeatureCache`."""
        self.stage = stage
        if self.is_on:
            self._follow_weights()  # before fingerprints of the new stage are taken
        self.steps.begin_stage(None)
        if not self.is_on:
            return
        try:
            choice = choose(self.cached_model, now, later, records=True)
            if choice.part is None and not choice.later and not self.stats.cuts:
                raise nothing_frozen(bool(self.cached_model.base_leaves))
            self.steps.begin_stage(self._server(now, choice))
        except NotCacheableError as error:
            self.stop(error)
            return
        if choice.part is not None:
            self.stats.cuts[stage] = choice.names

    def _server(self, now: Flags, choice: ChosenCut) -> StageServer | None:
        self.batches.given = choice.given
        kept = self.recordings.keep_only(choice.columns, self.batches.positions)
        part = choice.part
        self.layers = part.layers if part is not None else []
        self._look_at_weights()
        if self.stored is not None:
            is_known = self.cached_model.is_readable
            self.stored.begin_stage(choice if is_known else None, self.dtype)
        if part is None:
            return None
        if kept and self.part is not None:
            part.follow(self.part)
        self.part = part
        arguments = self.cached_model, part, now, self.backend, self.dtype
        return StageServer(*arguments, records=True)

    def _look_at_weights(self) -> None:
        self.checks.look_at(self.layers, [], training=False)

    def begin_epoch(self, iterator: Any, left: int | None, epochs: int) -> None:
        """Prepares an epoch: it is recorded, replayed, or neither.

        Args:
            iterator: Keras' iterator over the training batches.
            left: number of epochs until the end of the fit, if known.
            epochs: number of epochs until the end of the stage.
        """
        self.epoch += 1
        if self.is_on:
            self._follow_weights()
            is_new = not self.recordings.views
            self.recordings.begin_epoch(left, iterator.num_batches)
            if is_new:
                folder = None if self.stored is None else self.stored.name
                self.home = {"stage": self.stage, "folder": folder}
        self.steps.begin_epoch(iterator, epochs)

    def _follow_weights(self) -> None:
        """Begins a new recording if somebody has changed frozen weights."""
        try:
            self.checks.check_weights()
        except NotCacheableError as error:
            if self.changed_at and self.epoch - self.changed_at <= 1:
                self.stop(error)  # they change in each epoch
                return
            self.changed_at = self.epoch
            if self.recordings.views:
                tell(f"begins a new recording: {error.reason}.")
            self.recordings.drop()
            if self.stored is not None:
                self.stored.folder = None  # its fingerprint is another one now
            self.steps.groups.forget()
            self._look_at_weights()

    def state(self) -> dict[str, Any]:
        """Returns what a backup needs to continue with the next epoch."""
        return self.recordings.state() | self.home

    def continue_with(self, state: dict[str, Any], begin_home: Callable[[], None]) -> None:
        """Continues with what `state` returned, in a stage that has begun.

        Args:
            state: what another process has recorded.
            begin_home: begins the stage in which the views were recorded, and then this one again.
        """
        self.recordings.findable = state["views"]
        if self.is_on and state["folder"] is not None and self.stored is not None:
            self.stored.known = state["folder"]
            begin_home()
        missing = state["views"] - len(self.recordings.views)
        if self.is_on and missing:
            tell(
                f"records {missing} of {state['views']} views anew, so this run isn't exactly the "
                "one that was interrupted. Views are found again if `directory` and `data` are "
                "given, and if the stage that began to record them has recorded them all."
            )
        self.home = {"stage": state["stage"], "folder": state["folder"]}
        self.recordings.restore(state)

    def end_epoch(self, *, is_complete: bool) -> None:
        """Ends an epoch, after its validation; False if a callback ended it early."""
        self.recordings.end_epoch(is_complete=is_complete)
        if self.is_on and not self.recordings.wanted:
            self.turn_off("`max_bytes` doesn't hold a view")

    def step(self, args: tuple[Any, ...], plain: Plain) -> Any:
        """Runs a training step; the arguments are those of `TrainingSteps.run`."""
        return self.steps.run(args, plain)

    def stop(self, error: NotCacheableError) -> None:
        """Stops recording: each step from now on runs the whole model on the user's data."""
        tell(
            f"stops recording, and each epoch reads the data again: {error.reason}. To record, "
            f"{error.remedy}."
        )
        self.turn_off(error.reason)

    def turn_off(self, reason: str) -> None:
        """Stops recording without a word."""
        self.is_on = False
        self.stats.reason = reason
        self.recordings.drop()
        self.steps.begin_stage(None)

    def close(self) -> None:
        """Frees the memory and restores the iterator; the statistics stay."""
        self.recordings.close()
        self.steps.close()
