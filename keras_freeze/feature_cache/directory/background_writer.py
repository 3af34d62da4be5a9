"""Writes rows in a thread of its own, so that training doesn't wait for the disk."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from keras_freeze.feature_cache.directory.feature_folder import FeatureFolder
from keras_freeze.feature_cache.directory.portions import bytes_needed
from keras_freeze.feature_cache.directory.row_index import Batch

WAITING = 1 << 28  # bytes that may wait to be written
ROUND = 1 << 26  # bytes that are taken at once to be written
SECONDS = 60.0  # without any progress, after which waiting for the disk ends


class BackgroundWriter:
    """A thread that writes batches in the order in which they come.

    Args:
        path: the directory; the thread is named by it.
        check: is called before bytes are written, with their number; raises `OSError` if there is
            no room for them.
        failed: is called with the error if rows can't be written.

    Raises:
        RuntimeError: the thread can't be started.
    """

    def __init__(
        self, path: Path, check: Callable[[int], None], failed: Callable[[Exception], None]
    ):
        self.check = check
        self.failed = failed
        self.jobs: deque[tuple[FeatureFolder, Batch]] = deque()
        self.nbytes = 0  # of batches that wait or are being written
        self.left = 0  # their number
        self.rounds = 0  # that were written
        self.changed = threading.Condition()
        self.is_over = False
        name = f"keras_freeze writer of {path}"
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    @property
    def is_full(self) -> bool:
        """True if no more rows should come for the moment."""
        return self.nbytes > WAITING

    def add(self, folder: FeatureFolder, batch: Batch) -> bool:
        """Adds a batch, and waits while too many bytes wait to be written.

        Returns False, and adds nothing, if the disk doesn't answer.
        """
        with self.changed:
            if not self._wait_while(lambda: self.is_full):
                return False
            self.jobs.append((folder, batch))
            self.nbytes += batch.nbytes
            self.left += 1
            self.changed.notify_all()
        return True

    def flush(self) -> bool:
        """Waits until all rows are written; returns False if the disk doesn't answer."""
        with self.changed:
            return self._wait_while(lambda: self.left > 0)

    def _wait_while(self, condition: Callable[[], bool]) -> bool:
        """Waits; gives up when nothing was written for some time."""
        rounds, since = self.rounds, time.monotonic()
        while condition() and self.thread.is_alive():
            if self.rounds != rounds:
                rounds, since = self.rounds, time.monotonic()
            seconds = since + SECONDS - time.monotonic()
            if seconds <= 0:
                return False
            self.changed.wait(seconds)
        return not condition()

    def close(self) -> bool:
        """Writes what waits, and ends the thread; returns False if the disk doesn't answer."""
        is_done = self.flush()
        with self.changed:
            self.is_over = True
            self.changed.notify_all()
        if is_done:
            self.thread.join()
        return is_done

    def _run(self) -> None:
        while (jobs := self._next()) is not None:
            for folder in dict.fromkeys(folder for folder, _ in jobs):
                self._write(folder, [batch for of, batch in jobs if of is folder])
            with self.changed:
                self.nbytes -= sum(batch.nbytes for _, batch in jobs)
                self.left -= len(jobs)
                self.rounds += 1
                self.changed.notify_all()

    def _next(self) -> list[tuple[FeatureFolder, Batch]] | None:
        """Waits for batches; returns some of those that wait, or None at the end."""
        with self.changed:
            while not self.jobs and not self.is_over:
                self.changed.wait()
            jobs: list[tuple[FeatureFolder, Batch]] = []
            size = 0
            while self.jobs and (not jobs or size + self.jobs[0][1].nbytes <= ROUND):
                jobs.append(self.jobs.popleft())
                size += jobs[-1][1].nbytes
        return jobs or None

    def _write(self, folder: FeatureFolder, batches: list[Batch]) -> None:
        try:
            self.check(bytes_needed(batches))
            folder.write(batches)
        except Exception as error:  # whatever it is, training must go on
            folder.forget(batches)
            self.failed(error)
