"""Saves what the other callbacks count, and restores it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from keras_freeze.backup.array_files import content_of
from keras_freeze.backup.packing import NotPlainError, Packed, Packer, unpacked
from keras_freeze.keras_internals import callbacks_of_fit

GROUP = "callbacks"
NOT_STATE = ("params", "_model")  # Keras sets these
Attributes = dict[str, Packed]


class CallbackStates:
    """The attributes of the other callbacks that have changed since the `fit` began.

    Saved are numbers, strings, None, arrays, and lists, tuples and dicts of these: the counters of
    EarlyStopping with its best weights, those of ReduceLROnPlateau and ModelCheckpoint, the
    History, and what a user's own callback counts. Attributes that haven't changed are the user's
    settings, which a later process may set differently.

    Args:
        callback_list: Keras' list of the callbacks of the `fit`.
        ours: the public callbacks in it.
    """

    def __init__(self, callback_list: Any, ours: list[Any]):
        self.callback_list = callback_list
        self.ours = ours
        self.at_start: dict[int, tuple[Any, Attributes]] = {}
        self.changed: dict[int, set[str]] = {}  # attributes that have changed at some time

    def follow(self) -> None:
        """Notes the attributes of callbacks that are new: at the beginning, and in each stage."""
        running = list(self._running())
        for callback in running:
            if id(callback) not in self.at_start:
                self.at_start[id(callback)] = callback, _contents(callback)
                self.changed[id(callback)] = set()
        ids = set(map(id, running))
        self.at_start = {key: held for key, held in self.at_start.items() if key in ids}

    def look(self) -> list[tuple[Any, Attributes]]:
        """Notes which attributes have changed; returns those of each callback."""
        found = [(callback, _contents(callback)) for callback in self._running()]
        for callback, now in found:
            _, before = self.at_start.get(id(callback), (None, {}))
            names = {name for name, content in now.items() if before.get(name, now) != content}
            self.changed.setdefault(id(callback), set()).update(names)
        return found

    def _running(self) -> Iterator[Any]:
        """Yields the callbacks whose attributes are saved, also those inside PerStage."""
        for callback in callbacks_of_fit.all_callbacks(self.callback_list):
            if any(callback is each for each in self.ours):
                if callback.role == "per_stage":
                    yield callback.callback
            elif not isinstance(callback, keras.callbacks.ProgbarLogger):
                yield callback

    def packed(self, packer: Packer) -> Packed:
        """Returns the name and the changed attributes of each callback."""
        found = []
        for callback, now in self.look():
            names = sorted(self.changed[id(callback)] & now.keys())
            state = {name: packer.plain(vars(callback)[name], GROUP) for name in names}
            found.append([type(callback).__name__, state])
        return found

    def restore(self, packed: Packed, arrays: list[Any]) -> None:
        """Sets the attributes again; callbacks of a class are taken in their order."""
        waiting: dict[str, list[Attributes]] = {}
        for name, state in packed:
            waiting.setdefault(name, []).append(state)
        for callback in self._running():
            states = waiting.get(type(callback).__name__)
            for name, value in states.pop(0).items() if states else ():
                vars(callback)[name] = unpacked(value, arrays)
                self.changed.setdefault(id(callback), set()).add(name)


def _contents(callback: Any) -> Attributes:
    """Returns the plain attributes of a callback, with hashes in place of arrays."""
    # Keras changes the sign of `min_delta` once, when a callback learns whether less is better.
    # That happens anew in each process.
    left_out = {*NOT_STATE, *(["min_delta"] if hasattr(callback, "monitor_op") else [])}
    contents = {}
    for name, value in vars(callback).items():
        packer = Packer()
        try:
            packed = None if name in left_out else packer.plain(value, GROUP)
        except (NotPlainError, RecursionError):
            continue
        if name not in left_out:
            contents[name] = [packed, [content_of(array) for _, array in packer.arrays]]
    return contents
