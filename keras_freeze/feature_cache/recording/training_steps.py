"""Runs the training steps of a `fit` whose first epochs are recorded."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from keras_freeze.feature_cache.backends.step_loops.batch_tables import CannotLoopError
from keras_freeze.feature_cache.cache_stats import CacheStats
from keras_freeze.feature_cache.not_cacheable import NotCacheableError
from keras_freeze.feature_cache.recording.record_batch import BatchRecorder, rows_of, whole_batch
from keras_freeze.feature_cache.recording.recordings import Recordings
from keras_freeze.feature_cache.recording.replay_groups import ReplayGroups
from keras_freeze.feature_cache.recording.view import View
from keras_freeze.feature_cache.serving.stage_server import StageServer
from keras_freeze.feature_cache.storage.row_chunks import Array
from keras_freeze.keras_internals import replayed_batches
from keras_freeze.keras_internals.replayed_batches import ReplayedBatches
from keras_freeze.keras_internals.temporary_attributes import attributes

Batch = Any
Plain = Callable[[], Callable[..., Any]]


class TrainingSteps:
    """Runs training steps on the user's data, which may be recorded, or on recordings.

    Args:
        recordings: the recorded epochs.
        batches: records batches.
        stats: statistics that are updated.
        model: the model that is fitted.
        backend: the module of the backend.
        stop: is called with an error when a step can't be recorded or replayed.

    Attributes:
        groups: runs replayed steps in groups.
        served: serves the running stage; None if nothing is frozen in it.
    """

    def __init__(
        self,
        recordings: Recordings,
        batches: BatchRecorder,
        stats: CacheStats,
        model: Any,
        backend: Any,
        stop: Callable[[NotCacheableError], None],
    ):
        self.recordings = recordings
        self.batches = batches
        self.stats = stats
        self.model = model
        self.backend = backend
        self.stop = stop
        self.groups = ReplayGroups(backend)
        self.iterator: Any = None
        self.live: Any = None  # the user's batches, if a replay can't go on
        self.begin_stage(None)

    def begin_stage(self, served: StageServer | None) -> None:
        """Begins a stage, or another one after a change within a stage."""
        self.served = served
        self.whole = self.backend.UsedStateStep(self.model, hidden=[])
        self.groups.sizes.begin_stage()
        self.groups.forget()

    def begin_epoch(self, iterator: Any, epochs: int) -> None:
        """Prepares an epoch; `epochs` are left until the end of the stage."""
        self._end_live()
        self.iterator = iterator
        self.batches.num_batches = iterator.num_batches
        replayed_batches.put_back(iterator)
        if (view := self.recordings.replayed) is not None:
            per_call = iterator.steps_per_execution
            self.groups.begin_epoch(self.served, view, per_call, epochs)
            numbers = self.recordings.order(view)
            batches = partial(self.groups.batches, numbers, per_call)
            replayed_batches.put(iterator, batches, self.backend.draw_as_data_do)

    def run(self, args: tuple[Any, ...], plain: Plain) -> Any:
        """Runs a training step, or a group of replayed steps.

        Args:
            args: the arguments with which Keras called the model's train function.
            plain: returns the function that runs the whole model.
        """
        replay = replayed_batches.replayed(args)
        if replay is not None and (done := self._run_group(args, replay.numbers)) is not None:
            return done
        began = time.perf_counter()
        result = self._run_live(args, plain) if replay is None else self._run(args, replay, plain)
        seconds = time.perf_counter() - began
        self.groups.sizes.add_single("train", seconds, known=replay is not None)
        return result

    def _run_live(self, args: tuple[Any, ...], plain: Plain) -> Any:
        state, batches = self.backend.pull(args, self.model.steps_per_execution)
        if not batches:
            raise StopIteration
        self.stats.pulled += len(batches)
        view = self.recordings.current
        if view is not None:
            try:
                return self._record(view, state, batches, plain)
            except NotCacheableError as error:
                self.stop(error)
        return self.whole.step(plain(), state, batches)

    def _record(self, view: View, state: Any, batches: list[Batch], plain: Plain) -> Any:
        served, ready = self.served, []
        self.stats.misses += sum(map(rows_of, batches))
        if served is None:
            for batch in batches:
                self.batches.record_inputs(view, batch)
            self.recordings.check_room()
            return self.whole.step(plain(), state, batches)
        served.override.check_used()
        with attributes(served.patches):
            for batch in batches:
                state, taken = self.batches.record(served, view, state, batch)
                ready.append(taken)
            self.recordings.check_room()
            return served.lighter.step(served.function("train"), state, ready)

    def _run_group(self, args: tuple[Any, ...], numbers: list[Array]) -> Any:
        """Runs replayed steps in one call; None if they can't."""
        served, view = self.served, self.recordings.replayed
        if served is None or view is None or not self.groups.can_run(view, numbers):
            return None
        try:
            served.override.check_used()
            with attributes(served.patches):
                served.override.show(*view.inputs)
                result = self.groups.run(served, view, self.backend.state_of(args), numbers)
        except NotCacheableError as error:
            self.stop(error)
            return None
        except CannotLoopError:
            self.groups.sizes.stop("train")
            return None
        self.stats.hits += sum(map(len, numbers))
        self.stats.grouped += len(numbers)
        return result

    def _run(self, args: tuple[Any, ...], replay: ReplayedBatches, plain: Plain) -> Any:
        """Runs replayed steps, as many in a call as Keras would."""
        per_call = self.model.steps_per_execution
        before, result = args[:-1], None
        for start in range(0, len(replay.numbers), per_call):
            state = self.backend.state_of((*before, replay))
            result = self._replay(state, replay.numbers[start : start + per_call], plain)
            before = self.backend.next_args(result)
        return result

    def _replay(self, state: Any, numbers: list[Array], plain: Plain) -> Any:
        view, served = self.recordings.replayed, self.served
        if view is None:
            return self._run_instead(state, len(numbers), plain)
        self.stats.hits += sum(map(len, numbers))
        if served is None:
            return self.whole.step(plain(), state, [whole_batch(view, rows) for rows in numbers])
        try:
            served.override.check_used()
            with attributes(served.patches):
                served.override.show(*view.inputs)
                ready = [self.batches.recorded(served, view, rows) for rows in numbers]
                return served.lighter.step(served.function("train"), state, ready)
        except NotCacheableError as error:
            self.stop(error)
        return self._run_instead(state, len(numbers), plain)

    def _run_instead(self, state: Any, count: int, plain: Plain) -> Any:
        """Runs the whole model on the user's data: the recordings lack what these steps need."""
        if self.live is None:
            self.live = replayed_batches.live_batches(self.iterator)
        batches = [next(self.live) for _ in range(count)]
        self.stats.pulled += count
        return self.whole.step(plain(), state, batches)

    def close(self) -> None:
        """Restores the iterator."""
        self.served = None
        self.groups.forget()
        self._end_live()
        if self.iterator is not None:
            replayed_batches.put_back(self.iterator)
        self.iterator = None

    def _end_live(self) -> None:
        if self.live is not None:
            self.live = None
            replayed_batches.end_live_batches(self.iterator)
